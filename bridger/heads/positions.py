"""Fixed sine and cosine position codes of the global alignment (docs/method.md, section 4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import torch
from einops import rearrange, repeat
from torch import Tensor

from bridger._thread_state import operations_are_watched

BASE = 10000.0
KEPT = 64
"""Codes that are kept: pictures of several sizes and texts of all lengths have one each."""

P = ParamSpec("P")


def computed_once(code: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Keep what a function of sizes and a device returns; it must not be written to.

    Compiled code computes it itself, and so does what runs under a mode that watches or replaces
    operations: tensors that are fake, or belong to a recording, are their caller's alone.
    """
    kept: dict[tuple[object, ...], Tensor] = {}

    @wraps(code)
    def known(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        if torch.compiler.is_compiling() or operations_are_watched():
            return code(*args, **kwargs)
        key = (*args, *kwargs.items(), torch.get_default_device())
        found = kept.get(key)
        if found is None:
            # What inference mode makes could never take part in training.
            with torch.inference_mode(False), torch.no_grad():
                found = code(*args, **kwargs)
            if len(kept) >= KEPT:
                kept.clear()
            kept[key] = found
        return found

    return known


@computed_once
def sequence_code(length: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return the code of positions 0 ... length - 1, with shape (L, C).

    Channels 2k and 2k + 1 hold sin(l w_k) and cos(l w_k), w_k = 10000^(-2k / C).
    """
    even = torch.arange(0, width, 2, dtype=torch.float32, device=device)
    rates = torch.pow(BASE, -even / width)
    positions = torch.arange(length, dtype=torch.float32, device=device)
    angles = positions[:, None] * rates  # (L, ceil(C / 2))
    code = rearrange([angles.sin(), angles.cos()], "two l k -> l (k two)")
    return code[:, :width]


@computed_once
def grid_code(height: int, width: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Return the code of a grid, row by row, with shape (H*W, C).

    The first half of the channels codes the column, the second half the row.
    """
    columns = repeat(sequence_code(width, channels // 2, device), "w c -> h w c", h=height)
    rows = repeat(sequence_code(height, channels // 2, device), "h c -> h w c", w=width)
    return rearrange(torch.cat([columns, rows], dim=-1), "h w c -> (h w) c")


@computed_once
def coordinates(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Return x (column), then y (row), both from -1 to 1 with the ends, with shape (2, H, W)."""
    x = torch.linspace(-1, 1, width, device=device)
    y = torch.linspace(-1, 1, height, device=device)
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])

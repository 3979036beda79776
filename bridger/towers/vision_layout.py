"""How the states of unknown vision blocks are laid out: maps or tokens, strides, order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from bridger.towers.trial import Firing, Trace, home_of, watch

TOKENS, MAPS = ("b l c", "l b c"), ("b c h w", "b h w c")
"""Layouts of states. In each pair the first is what the rest of the library reads."""

PICTURES = 3
"""Of a trial: a batch size that is hardly a width or a number of tokens."""


NEIGHBOURS = 9
"""As many tokens may show a change of one patch, where convolutions overlap."""


class MisreadError(ValueError):
    """States that do not fit the picture that they were made of, or fit it in several ways."""


@dataclass(frozen=True)
class Said:
    """What the user said about the states."""

    layout: str | None
    prefix: int | None
    patch: int | None


@dataclass(frozen=True)
class Read:
    """What a trial forward said about them; prefix and patch are 0 for maps."""

    layout: str
    strides: tuple[int, ...]
    prefix: int = 0
    patch: int = 0


def trial_pictures(module: nn.Module, size: tuple[int, int]) -> Tensor:
    """Return pictures (PICTURES, 3, *size), the same on every call, as the module takes them."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(PICTURES, 3, *size, generator=generator).to(home_of(module))


def could_be_state(state: Tensor) -> bool:
    """Whether a tensor could be a state: maps with the batch first, tokens also second."""
    if not state.is_floating_point() or state.is_nested:
        return False
    return state.shape[0] == PICTURES if state.ndim == 4 else _token_layout(state) is not None


def _token_layout(state: Tensor) -> str | None:
    if state.ndim != 3 or PICTURES not in state.shape[:2]:
        return None
    return TOKENS[0] if state.shape[0] == PICTURES else TOKENS[1]


def read_states(
    module: nn.Module,
    trace: Trace,
    blocks: tuple[Firing, ...],
    size: tuple[int, int],
    said: Said,
) -> Read:
    """Read a trial's states.

    Args:
        module: the tower.
        trace: of a trial forward on `trial_pictures` of that size.
        blocks: the tower's blocks in the trace.
        size: of the pictures, (H, W).
        said: what the user said, which is not tried but must fit.

    Raises:
        MisreadError: the states do not fit the pictures, or fit in several ways; the message
            says which argument decides.
    """
    states = [block.state for block in blocks if block.state is not None]
    layouts = MAPS if states[0].ndim == 4 else (_token_layout(states[0]),)
    shapes = [tuple(state.shape) for state in states]
    alike = [
        layout
        for layout in layouts
        if layout and said.layout in (None, layout) and _all_fit(states, layout, size)
    ]
    if states[0].ndim == 3 and len({state.shape for state in states}) > 1:
        raise MisreadError(
            f"blocks return different numbers of tokens, {shapes}, whose maps are not known: name "
            "the `blocks` of one resolution, or write a family (docs/towers.md)"
        )
    if len(alike) != 1:
        # Two layouts fit where a map has as many channels as cells in a row.
        raise MisreadError(
            f"states {shapes} for pictures {(PICTURES, 3, *size)} can be read as {alike or 'none'} "
            f"of the layouts {[*MAPS, *TOKENS]}: `layout` decides, or other `blocks`"
        )
    layout = alike[0]
    if layout in MAPS:
        return Read(layout, tuple(_stride(size, _grid(state, layout)) for state in states))
    length = states[0].shape[layout.split().index("l")]
    patch = said.patch or _patch(trace.before(blocks[0]), size, length)
    if patch is None:
        raise MisreadError(
            f"{length} tokens for a picture of {size[0]} x {size[1]} pixels may be patches of "
            "several sizes, after class tokens or not: `patch` (pixels per patch) decides"
        )
    cells = (size[0] // patch) * (size[1] // patch)
    prefix = length - cells if said.prefix is None else said.prefix
    if prefix < 0 or prefix + cells != length or not cells:
        raise MisreadError(
            f"{length} tokens for a picture of {size[0]} x {size[1]} pixels are not {prefix} and "
            f"{size[0] // patch}*{size[1] // patch} patches of {patch} pixels: `patch` and "
            "`prefix` decide"
        )
    read = Read(layout, (patch,) * len(states), prefix, patch)
    if said.prefix is None:
        _check_order(module, blocks[0], size, read)
    return read


def _all_fit(states: Sequence[Tensor], layout: str, size: tuple[int, int]) -> bool:
    if layout in TOKENS:
        return len({state.shape[:2] for state in states}) == 1
    return all(
        state.ndim == 4 and _strides_of(size, _grid(state, layout)) is not None for state in states
    )


def _grid(state: Tensor, layout: str) -> tuple[int, int]:
    height = layout.split().index("h")
    return state.shape[height], state.shape[height + 1]


def _strides_of(size: tuple[int, int], grid: tuple[int, int]) -> list[int] | None:
    """Return the strides under which a picture has such a map, rounded up or down, or None."""
    fitting = [
        stride
        for stride in range(1, max(size) + 1)
        if all(n in (s // stride, -(-s // stride)) for s, n in zip(size, grid, strict=True))
    ]
    return fitting or None


def _stride(size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Return the stride of a map: one that divides the picture, where there is one."""
    fitting = _strides_of(size, grid) or [round(size[0] / grid[0])]
    whole = [s for s in fitting if size[0] % s == 0 and size[1] % s == 0]
    return (whole or fitting)[0]


def _patch(earlier: Sequence[Firing], size: tuple[int, int], length: int) -> int | None:
    """Return the pixels per patch: the last convolution's, or the first linear map's of patches."""
    for firing in reversed(earlier):
        module, state = firing.module, firing.state
        if isinstance(module, nn.Conv2d) and state is not None and state.ndim == 4:
            grid = (state.shape[2], state.shape[3])
            single = module.in_channels == 3
            patch = module.stride[0] if single else _stride(size, grid)
            fits = grid == (size[0] // patch, size[1] // patch) and grid[0] * grid[1] <= length
            return patch if fits else None
    for firing in earlier:
        if isinstance(firing.module, nn.Linear):
            side = round((firing.module.in_features / 3) ** 0.5)
            return side if 3 * side * side == firing.module.in_features else None
    return None


def _check_order(module: nn.Module, block: Firing, size: tuple[int, int], read: Read) -> None:
    """Change one patch of a picture, then another, and see in which token each shows up."""
    height, width = size[0] // read.patch, size[1] // read.patch
    cells = {1: (0, width - 1), 2: (height - 1, 0)}
    pictures = trial_pictures(module, size)[:1].repeat(PICTURES, 1, 1, 1)
    for picture, (row, column) in cells.items():
        rows, columns = (slice(n * read.patch, (n + 1) * read.patch) for n in (row, column))
        pictures[picture, :, rows, columns] *= -2
    trace = watch(module, lambda: module(pictures))
    given = next(firing.given for firing in trace.firings if firing.name == block.name)
    if given is None or given.shape != block.shape:
        return
    tokens = rearrange(given, f"{read.layout} -> b l c")
    for picture, (row, column) in cells.items():
        changed = (tokens[picture] - tokens[0]).abs().amax(dim=-1)
        found = (changed > changed.max() / 2).nonzero().flatten().tolist()
        expected = read.prefix + row * width + column
        if expected not in found or len(found) > NEIGHBOURS:
            raise MisreadError(
                f"the patch in row {row}, column {column} of {height} x {width} shows up in tokens "
                f"{found[:5]}, expected token {expected}, after {read.prefix} that are no patches: "
                f"{type(module).__name__} has them in another order, or mixes them before its "
                "first block. If the order is right, pass `prefix`, which skips this check; if it "
                "is not, write a family (docs/towers.md)"
            )

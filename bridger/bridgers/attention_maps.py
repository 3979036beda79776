"""Where Bridgers look: the weights of their cross-attention, computed only when asked for.

torch's fused attention gives no weights. While `recording` is open in a thread (or asyncio's task)
`MultiheadAttention` computes them beside it; results are those of a run that nothing recorded.

Shapes: R rows, M cells of the zoomed map (H' W'), L tokens, D hidden width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from einops import rearrange
from torch import Tensor, nn

if TYPE_CHECKING:
    from bridger.bridgers.bridger import BridgerStack

Recorded: TypeAlias = dict[nn.Module, list[Tensor]]
"""By module the weights (R, Q, K) of each of its calls."""

_recorded: ContextVar[Recorded | None] = ContextVar("bridger_attention", default=None)


class Looks(NamedTuple):
    """Where one stage's Bridger looked in one forward, each row averaged over heads.

    Attributes:
        stage: its number, from 0.
        vision: (R, M, L), where each cell read the tokens; None where no cell did.
        text: (R, L, M), where each token read the cells; None where no token did.
    """

    stage: int
    vision: Tensor | None
    text: Tensor | None


@contextmanager
def recording(on: bool = True) -> Iterator[Recorded]:
    """Record cross-attention in what this thread runs meanwhile; `looks_of` makes sense of it.

    Args:
        on: whether to do so.
    """
    recorded: Recorded = {}
    token = _recorded.set(recorded if on else _recorded.get())
    try:
        yield recorded
    finally:
        _recorded.reset(token)


def is_recording() -> bool:
    """Whether `recording` is open in this thread."""
    return _recorded.get() is not None


@torch.no_grad()
def record(
    attention: nn.Module, query: Tensor, key: Tensor, num_heads: int, mask: Tensor | None
) -> None:
    """Keep the weights of one call, if they are asked for.

    Args:
        attention: whose call it is.
        query: (R, Q, D), projected.
        key: (R, K, D), projected.
        num_heads: heads.
        mask: (R, K), true where a key may be read.
    """
    recorded = _recorded.get()
    if recorded is None:
        return
    with torch.autocast(query.device.type, enabled=False):
        q, k = (rearrange(x.float(), "r n (h d) -> r h n d", h=num_heads) for x in (query, key))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~rearrange(mask, "r k -> r 1 1 k"), -torch.inf)
        weights = scores.softmax(dim=-1).mean(dim=1)
    recorded.setdefault(attention, []).append(weights)


def looks_of(bridgers: BridgerStack, recorded: Recorded, forwards: int) -> list[list[Looks]]:
    """Sort what was recorded by forwards and stages.

    What a module under `interactor.vision` read is the tokens, and what one under
    `interactor.text` read is the cells. Where there are several of them, their mean is taken.

    Args:
        bridgers: that ran.
        recorded: by `recording`.
        forwards: how many of them there were.
    """
    calls = {module: iter(weights) for module, weights in recorded.items()}

    def look(stage: int, bridger: nn.Module) -> Looks:
        found: dict[str, list[Tensor]] = {"vision": [], "text": []}
        for name, module in bridger.named_modules():
            part, _, inner = name.partition(".")
            side = inner.partition(".")[0]
            if part == "interactor" and side in found and module in calls:
                found[side].append(next(calls[module]))
        means = {side: torch.stack(w).mean(dim=0) if w else None for side, w in found.items()}
        return Looks(stage, **means)

    stages = [(stage, bridgers.at(stage)) for stage in range(len(bridgers))]
    return [[look(stage, b) for stage, b in stages if b is not None] for _ in range(forwards)]

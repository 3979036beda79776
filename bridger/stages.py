"""Which blocks of the two towers meet: what `attach_bridgers(stages=...)` accepts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bridger.config import did_you_mean

Stages = int | Sequence[tuple[int | str, int | str]]


def resolve_stages(
    stages: Stages, vision_blocks: Sequence[str], text_blocks: Sequence[str]
) -> tuple[tuple[int, int], ...]:
    """Return the stages as pairs of block indices, vision then text.

    Args:
        stages: k takes the blocks ceil(i n / k), i = 1..k, of each tower's n; or (vision, text)
            pairs of 0-based indices, negative ones counted from the end, or of module names.
        vision_blocks: names of the vision tower's blocks, in order.
        text_blocks: names of the text tower's blocks, in order.

    Raises:
        TypeError: `stages` is neither a number nor pairs.
        ValueError: more stages than blocks, an unknown block, or stages out of order.
    """
    if isinstance(stages, bool) or not isinstance(stages, (int, Sequence)):
        raise TypeError(
            f"stages must be a number or a list of (vision, text) pairs, got {stages!r}"
        )
    if isinstance(stages, int):
        vision = _spread(stages, len(vision_blocks), "vision")
        text = _spread(stages, len(text_blocks), "text")
        return tuple(zip(vision, text, strict=True))
    pairs = []
    for pair in stages:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"each stage must be a (vision block, text block) pair, got {pair!r}")
        pairs.append(
            (_index(pair[0], vision_blocks, "vision"), _index(pair[1], text_blocks, "text"))
        )
    _check_order(pairs)
    return tuple(pairs)


def _spread(count: int, blocks: int, tower: str) -> list[int]:
    if not 1 <= count <= blocks:
        raise ValueError(
            f"stages={count} does not fit the {tower} tower: it has {blocks} blocks, "
            f"so choose 1 to {blocks} stages"
        )
    return [math.ceil(i * blocks / count) - 1 for i in range(1, count + 1)]


def _index(block: int | str, names: Sequence[str], tower: str) -> int:
    if isinstance(block, str):
        if block not in names:
            raise ValueError(
                f"the {tower} tower has no block {block!r}: {did_you_mean(block, list(names))}"
            )
        return list(names).index(block)
    if isinstance(block, bool) or not isinstance(block, int):
        raise TypeError(f"a block of the {tower} tower is given by index or name, got {block!r}")
    if not -len(names) <= block < len(names):
        raise ValueError(
            f"block {block} is out of range: the {tower} tower has {len(names)} blocks, "
            f"0 to {len(names) - 1}"
        )
    return block % len(names)


def _check_order(pairs: list[tuple[int, int]]) -> None:
    if not pairs:
        raise ValueError("stages is empty: give at least one (vision, text) pair of blocks")
    for (vision, text), (next_vision, next_text) in zip(pairs, pairs[1:], strict=False):
        if next_vision <= vision or next_text <= text:
            raise ValueError(
                f"stages are out of order: {(vision, text)} is followed by "
                f"{(next_vision, next_text)}; both indices must grow from stage to stage"
            )

"""Which blocks of the two towers meet: what `attach_bridgers(stages=...)` accepts.

In place of a text block, None means the finished text: the text tower has run to its end before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from bridger.bridgers.config import Direction
from bridger.config import did_you_mean

Stages = int | Sequence[tuple[int | str, int | str | None]]
Pairs = tuple[tuple[int, int | None], ...]


def resolve_stages(
    stages: Stages,
    vision_blocks: Sequence[str],
    text_blocks: Sequence[str],
    direction: Direction | None = "both",
) -> Pairs:
    """Return the stages as pairs of block indices, vision then text.

    Args:
        stages: k takes the blocks ceil(i n / k), i = 1..k, of each tower's n; or (vision, text)
            pairs of 0-based indices, negative ones counted from the end, or of module names.
            None in place of every text block is the finished text.
        vision_blocks: names of the vision tower's blocks, in order.
        text_blocks: names of the text tower's blocks, in order.
        direction: of the Bridgers. With "to_vision" every stage reads the finished text, and a
            number counts vision blocks alone; with the others none does. None: there are no
            Bridgers and pairs may be of either kind.

    Raises:
        TypeError: `stages` is neither a number nor pairs.
        ValueError: more stages than blocks, an unknown block, stages out of order, or text blocks
            that do not fit the direction.
    """
    if isinstance(stages, bool) or not isinstance(stages, (int, Sequence)):
        raise TypeError(
            f"stages must be a number or a list of (vision, text) pairs, got {stages!r}"
        )
    if isinstance(stages, int):
        vision = _spread(stages, len(vision_blocks), "vision")
        if direction == "to_vision":
            return tuple((block, None) for block in vision)
        text = _spread(stages, len(text_blocks), "text")
        return tuple(zip(vision, text, strict=True))
    pairs: list[tuple[int, int | None]] = []
    for pair in stages:
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"each stage must be a (vision block, text block) pair, got {pair!r}")
        text_block = None if pair[1] is None else _index(pair[1], text_blocks, "text")
        pairs.append((_index(pair[0], vision_blocks, "vision"), text_block))
    _check_order(pairs)
    _check_direction(pairs, direction)
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


def _check_order(pairs: list[tuple[int, int | None]]) -> None:
    if not pairs:
        raise ValueError("stages is empty: give at least one (vision, text) pair of blocks")
    if len({text is None for _, text in pairs}) == 2:
        raise ValueError(
            f"stages mix text blocks with the finished text (None), found {pairs}: "
            "give a text block in every pair, or None in every pair"
        )
    for (vision, text), (next_vision, next_text) in zip(pairs, pairs[1:], strict=False):
        text_grows = text is None or next_text is None or next_text > text
        if next_vision <= vision or not text_grows:
            raise ValueError(
                f"stages are out of order: {(vision, text)} is followed by "
                f"{(next_vision, next_text)}; both indices must grow from stage to stage"
            )


def _check_direction(pairs: list[tuple[int, int | None]], direction: Direction | None) -> None:
    finished = pairs[0][1] is None
    if finished and direction not in (None, "to_vision"):
        raise ValueError(
            f"stages {pairs} read the finished text (None), which Bridgers cannot change: set "
            "their direction='to_vision', or give a text block in every pair"
        )
    if not finished and direction == "to_vision":
        raise ValueError(
            f"Bridgers with direction='to_vision' read the finished text, found stages {pairs}: "
            "give None in place of every text block, or set direction='both'"
        )

"""Stages: which blocks meet."""

from __future__ import annotations

import math

import pytest

from bridger.stages import resolve_stages

TWELVE = [f"resblocks.{i}" for i in range(12)]
RESNET = ["layer1", "layer2", "layer3", "layer4"]


def test_a_number_takes_evenly_spread_blocks_and_always_the_last() -> None:
    assert resolve_stages(3, TWELVE, TWELVE) == ((3, 3), (7, 7), (11, 11))
    assert resolve_stages(3, RESNET, TWELVE) == ((1, 3), (2, 7), (3, 11))
    for blocks in range(1, 25):
        names = [str(i) for i in range(blocks)]
        for count in range(1, blocks + 1):
            found = [v for v, _ in resolve_stages(count, names, names)]
            assert found == [math.ceil(i * blocks / count) - 1 for i in range(1, count + 1)]
            assert found[-1] == blocks - 1 and len(set(found)) == count


def test_pairs_by_index_from_either_end_and_by_name() -> None:
    assert resolve_stages([(1, 5), (-1, -1)], RESNET, TWELVE) == ((1, 5), (3, 11))
    assert resolve_stages([("layer2", "resblocks.3")], RESNET, TWELVE) == ((1, 3),)


def test_one_way_every_stage_reads_the_finished_text() -> None:
    pairs = ((1, None), (3, None))
    for stages in (2, [(1, None), (3, None)], [("layer2", None), (-1, None)]):
        assert resolve_stages(stages, RESNET, TWELVE, "to_vision") == pairs  # type: ignore[arg-type]
    assert resolve_stages(4, RESNET, ["only"], "to_vision")[-1] == (3, None)
    # Without Bridgers pairs decide, and a number means blocks of both towers.
    assert resolve_stages([(1, None), (3, None)], RESNET, TWELVE, None) == pairs
    assert resolve_stages([(1, 0)], RESNET, TWELVE, None) == ((1, 0),)
    assert resolve_stages(2, RESNET, TWELVE, None) == ((1, 5), (3, 11))


@pytest.mark.parametrize(
    ("stages", "direction", "words"),
    [
        ([(1, None), (3, 11)], "to_vision", "mix text blocks with the finished text"),
        ([(1, 3), (3, None)], "both", "a text block in every pair, or None in every pair"),
        ([(1, 3), (3, None)], None, "mix text blocks"),
        ([(1, None)], "both", "set their direction='to_vision'"),
        ([(1, 3)], "to_vision", "give None in place of every text block"),
        ([(3, None), (1, None)], "to_vision", "out of order"),
        ([(3, None), (3, None)], "to_vision", "out of order"),
        (5, "to_vision", "vision tower: it has 4 blocks"),
    ],
)
def test_stages_that_do_not_fit_the_direction(
    stages: object, direction: object, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        resolve_stages(stages, RESNET, TWELVE, direction)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stages", "error", "words"),
    [
        (0, ValueError, "1 to 4"),
        (5, ValueError, "vision tower: it has 4 blocks"),
        (True, TypeError, "number or a list"),
        (2.0, TypeError, "number or a list"),
        ([], ValueError, "at least one"),
        ([3], TypeError, "pair"),
        (["ab"], TypeError, "pair"),
        ([(None, 3)], TypeError, "vision tower is given by index or name, got None"),
        ([(4, 0)], ValueError, "block 4 is out of range.*0 to 3"),
        ([(0, -13)], ValueError, "text tower has 12 blocks"),
        ([("layr2", 0)], ValueError, "did you mean 'layer2'"),
        ([(1, 3), (1, 7)], ValueError, "out of order"),
        ([(1, 7), (2, 3)], ValueError, "both indices must grow"),
    ],
)
def test_bad_stages_say_what_would_be_right(
    stages: object, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        resolve_stages(stages, RESNET, TWELVE)  # type: ignore[arg-type]

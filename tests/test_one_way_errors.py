"""What is refused where Bridgers read a finished text, and what comes through of others' errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers_conformance import SMALL, features, trace
from helpers_one_way import CONFIGS, acting, misaligned, one_way
from helpers_towers import ids, images
from torch import Tensor

from bridger import BridgerConfig, attach_bridgers
from bridger.bridgers import BridgerStack, Interactor
from bridger.bridgers import interactor as interactor_module
from bridger.bridgers.zoom import Size
from bridger.lockstep import StageError


@pytest.mark.parametrize(
    ("stages", "config", "words"),
    [
        ([(0, None), (3, 3)], CONFIGS["paper"], "mix text blocks with the finished text"),
        ([(0, 1), (3, None)], SMALL, "mix text blocks with the finished text"),
        ([(0, 1), (3, None)], None, "mix text blocks with the finished text"),
        ([(0, None), (3, None)], SMALL, "set their direction='to_vision'"),
        ([(0, 0), (3, 3)], CONFIGS["paper"], "give None in place of every text block"),
        ([(3, None), (0, None)], CONFIGS["paper"], "out of order"),
        ([(None, None)], CONFIGS["paper"], "vision tower is given by index or name, got None"),
        (5, CONFIGS["paper"], "vision tower: it has 4 blocks"),
    ],
)
def test_stages_that_do_not_fit_leave_the_towers_alone(
    stages: Any, config: BridgerConfig | None, words: str
) -> None:
    vision, text = misaligned()
    before = trace(vision), trace(text)
    with pytest.raises((TypeError, ValueError), match=words):
        attach_bridgers(vision, text, stages, config)
    assert (trace(vision), trace(text)) == before


def test_an_unknown_direction() -> None:
    with pytest.raises(ValueError, match="did you mean 'to_vision'"):
        BridgerConfig(direction="to_visoin")  # type: ignore[arg-type]


def test_interactors_that_always_update_the_text_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(interactor_module, "_INTERACTORS", dict(interactor_module._INTERACTORS))

    @interactor_module.register_interactor("stubborn")
    class Stubborn(Interactor):
        def __init__(self, config: BridgerConfig) -> None:
            super().__init__(config)

        def forward(
            self, vision: Tensor, text: Tensor, token_mask: Tensor | None, size: Size
        ) -> tuple[Tensor, Tensor]:
            return vision, text

    BridgerStack(BridgerConfig(interactor="stubborn"), [8], [16], [12])
    with pytest.raises(TypeError, match="takes no updates_text"):
        BridgerStack(one_way(interactor="stubborn"), [8], [16], [12])


def test_errors_of_either_tower_and_of_bridgers_come_through() -> None:
    encoder, batch = acting(), (images(1, 56), ids(1))
    expected = features(encoder(*batch))
    assert encoder.bridgers is not None
    for module in (
        encoder.text.blocks[1].module,
        encoder.vision.blocks[1].module,
        encoder.bridgers.at(1),
    ):

        def fail(*_: object) -> None:
            raise RuntimeError("broken on purpose")

        handle = module.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="broken on purpose"):
            encoder(*batch)
        handle.remove()
        found = features(encoder(*batch))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_vision_tower_that_skips_a_stage_is_noticed() -> None:
    encoder = acting()
    blocks: Any = encoder.vision.module.blocks
    encoder.vision.module.blocks = blocks[:2]
    with pytest.raises(StageError, match="vision tower ended before stage 1"):
        encoder(images(1, 56), ids(1))

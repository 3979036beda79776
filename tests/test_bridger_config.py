"""Options of Bridgers that can be, and those that are refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from helpers_bridgers import FULL, SMALL, make_stack, run_stack, states
from torch import Tensor

from bridger.bridgers import BridgerConfig, BridgerStack, Interactor, Zoom
from bridger.bridgers import interactor as interactor_module
from bridger.bridgers.zoom import Size


@pytest.mark.parametrize("name", ["paper", "etris_vit", "etris_resnet"])
def test_config_survives_json(name: str) -> None:
    config = BridgerConfig.preset(name, dropout=0.25)
    assert BridgerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_paper_is_the_default_and_configs_are_frozen() -> None:
    assert BridgerConfig() == BridgerConfig.preset("paper")
    with pytest.raises(dataclasses.FrozenInstanceError):
        BridgerConfig().hidden_dim = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"num_heads": 7},
            r"num_heads=7 does not divide hidden_dim=64.*\[1, 2, 4, 8, 16, 32, 64\]",
        ),
        ({"hidden_dim": 0}, "hidden_dim must be a positive whole number, not 0"),
        ({"hidden_dim": 64.0}, "hidden_dim must be a positive whole number"),
        ({"num_heads": True}, "num_heads must be a positive whole number"),
        ({"ffn_dim": -1}, "ffn_dim must be a whole number, 0 or more, got -1"),
        ({"zoom_stride": 0}, "zoom_stride must be a positive whole number"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
        ({"dropout": "a"}, "dropout must be a number"),
        ({"carry": "outputs"}, "carry='outputs' is unknown: did you mean 'output'"),
        ({"interactor": "atention"}, "interactor='atention' is unknown: did you mean 'attention'"),
        ({"zoom_out": 3}, "zoom_out=3 is unknown: known"),
        ({"init": "none"}, "init='none' is unknown"),
        ({"mask_padding": 1}, "mask_padding must be True or False"),
        ({"pre_norm": 1}, "pre_norm must be True or False"),
        ({"share": True, "reverse_last_zoom": True}, "set reverse_last_zoom=False"),
        ({"hiden_dim": 3}, "has no option 'hiden_dim': did you mean 'hidden_dim'"),
    ],
)
def test_bad_options_say_what_was_wrong(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BridgerConfig.from_dict(changes)


def test_unknown_preset_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'etris_vit'"):
        BridgerConfig.preset("etris_vits")


@pytest.mark.parametrize(
    ("share", "sizes", "words"),
    [
        (True, ([6, 8], [16, 16], [12, 12]), r"same vision widths at every stage, found \[6, 8\]"),
        (True, ([6, 6], [8, 16], [12, 12]), "same vision strides at every stage"),
        (True, ([6, 6], [16, 16], [12, 8]), "same text widths at every stage"),
        (False, ([], [], []), "at least one stage"),
        (False, ([6, 6], [16], [12, 12]), "one number per stage"),
        (False, ([6, 6], [16, 0], [12, 12]), r"vision strides must be positive, found \[16, 0\]"),
    ],
)
def test_bad_stages_say_what_was_wrong(
    share: bool, sizes: tuple[list[int], list[int], list[int]], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        BridgerStack(BridgerConfig(**SMALL, share=share), *sizes)


def test_bad_shapes_say_what_was_expected() -> None:
    stack = make_stack(BridgerConfig(**SMALL), [6], [16])
    (vision,), (text,) = states([6], [(2, 2)])
    for arguments, words in [
        ((0, vision[:, :4], text, FULL), r"vision map \(B, 6, H, W\), found \(2, 4, 2, 2\)"),
        ((0, vision, text[..., :4], FULL), r"text tokens \(2, L, 12\).*found \(2, 5, 4\)"),
        ((0, vision, text[:1], FULL), r"text tokens \(2, L, 12\).*found \(1, 5, 12\)"),
        ((0, vision, text, FULL[:, :3]), r"bool token_mask \(2, 5\), found torch.bool \(2, 3\)"),
        ((0, vision, text, FULL.long()), "bool token_mask .* found torch.int64"),
        ((1, vision, text, FULL), "stage from 0 to 0, found 1"),
    ]:
        with pytest.raises(ValueError, match=words):
            stack(*arguments, None, (32, 32))


def test_a_new_interactor_is_one_class(monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(interactor_module._INTERACTORS)
    monkeypatch.setattr(interactor_module, "_INTERACTORS", known)

    @interactor_module.register_interactor("nothing")
    class Nothing(Interactor):
        def forward(
            self, vision: Tensor, text: Tensor, token_mask: Tensor | None, size: Size
        ) -> tuple[Tensor, Tensor]:
            return vision, text

    stack = make_stack(BridgerConfig(interactor="nothing"), [6], [16])
    maps, texts = states([6], [(2, 2)])
    assert run_stack(stack, maps, texts, FULL, (32, 32))[0][0].shape == maps[0].shape
    with pytest.raises(ValueError, match="'nothing' exists already"):
        interactor_module.register_interactor("nothing")(Nothing)


def test_zoom_layers_stand_alone() -> None:
    zoom = Zoom(3, 5, 2, parts="norm_relu", zero=True)
    assert not zoom(torch.randn(1, 3, 5, 5), (3, 3)).any()
    assert "scale=True" in repr(zoom)

"""What recipes put into towers beside Bridgers or in their place: peft, biases, bottlenecks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families_text import LONGER, build
from helpers_conformance import trace
from helpers_rivals import SMALL, answers, towers, trained
from helpers_towers import hf_text, hf_vision, ids, images

from bridger import BridgedModel, attach_bridgers
from bridger.training import Recipe

pytest.importorskip("peft")

FEED_FORWARD = r"transformer\.resblocks\.\d\.mlp\.(c_fc|c_proj)"
LAST = r"transformer\.resblocks\.\d\.mlp\.c_proj"
CONVOLUTIONS = r"layer\d\.\d\.conv[123]"
LORA = {
    "vision": {"peft_type": "LORA", "r": 2, "target_modules": CONVOLUTIONS},
    "text": {"peft_type": "LORA", "r": 2, "target_modules": FEED_FORWARD},
}
RIVALS: dict[str, dict[str, Any]] = {
    "LoRA": {"peft": LORA},
    "LoRA, vision": {"peft": {"vision": LORA["vision"]}},
    "LoRA and Bridgers": {"peft": LORA, "bridgers": "paper"},
    "IA3": {
        "peft": {
            "vision": {
                "peft_type": "IA3",
                "target_modules": CONVOLUTIONS,
                "feedforward_modules": [],
            },
            "text": {
                "peft_type": "IA3",
                "target_modules": FEED_FORWARD,
                "feedforward_modules": LAST,
            },
        }
    },
    "VeRA, text": {"peft": {"text": {"peft_type": "VERA", "r": 4, "target_modules": FEED_FORWARD}}},
    "LN-tuning, text": {
        "peft": {"text": {"peft_type": "LN_TUNING", "target_modules": r".*\.ln_[12]|ln_final"}}
    },
    "bottlenecks after": {"bottlenecks": {"width": 3}},
    "bottlenecks beside": {"bottlenecks": {"width": 3, "place": "beside"}, "bridgers": "paper"},
    "bottlenecks, text": {"bottlenecks": {"width": 3, "towers": ["text"]}},
    "biases": {"trainable": ["vision.*.bias", "text.*bias"]},
}
each = pytest.mark.parametrize("changes", RIVALS.values(), ids=RIVALS)


@each
def test_a_rival_is_trained_saved_and_loaded(changes: dict[str, Any], tmp_path: Path) -> None:
    vision, text = towers()
    before = trace(text)
    model = SMALL.replace(**changes).build(vision, text, None)
    first = {name: p.clone() for name, p in model.named_parameters() if p.requires_grad}
    expected = answers(trained(model))
    moved = [not torch.equal(p, first[n]) for n, p in model.named_parameters() if n in first]
    assert all(moved) and len(moved) == len(model.trainable_parameters())
    model.save_pretrained(tmp_path)
    model.detach()
    assert trace(text) == before
    vision, text = towers()
    before = trace(text)
    again = BridgedModel.from_pretrained(tmp_path, vision, text)
    assert torch.equal(answers(again), expected)
    again.detach()
    assert trace(text) == before


@each
def test_it_starts_from_what_the_towers_give(changes: dict[str, Any]) -> None:
    """With the same head, and the same Bridgers where there are any."""
    recipe = SMALL.replace(**changes)
    model = recipe.build(*towers(), None)
    plain = recipe.replace(peft={}, bottlenecks={}).build(*towers(), None)
    torch.testing.assert_close(answers(model), answers(plain), rtol=1e-5, atol=1e-5)
    for mine, others in zip(
        model.heads["head"].parameters(), plain.heads["head"].parameters(), strict=True
    ):
        assert torch.equal(mine, others)


@each
def test_it_learns_at_the_rate_of_towers(changes: dict[str, Any]) -> None:
    recipe = SMALL.replace(**changes)
    model = recipe.build(*towers(), None)
    assert set(recipe.learning_rates(model).values()) == {0.01}
    inside = sum(p.numel() for p in model.trainable_parameters())
    inside -= sum(p.numel() for p in model.heads["head"].parameters())
    named = {group["name"]: group["params"] for group in model.parameter_groups()}
    named.pop("head")
    assert sum(p.numel() for group in named.values() for p in group) == inside > 0


@each
def test_towers_are_left_alone_where_building_fails(changes: dict[str, Any]) -> None:
    vision, text = towers()
    before = trace(text)
    with pytest.raises(ValueError):
        SMALL.replace(**changes, stages=9).build(vision, text, None)
    with pytest.raises(ValueError):
        SMALL.replace(**changes, head={"width": 33}).build(vision, text, None)
    assert trace(text) == before
    attach_bridgers(vision, text, 2)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"visoin": {}}, "peft='visoin' is unknown: did you mean 'vision'"),
        ({"vision": {"r": 4}}, 'peft.vision must be a config of peft with its "peft_type"'),
        ({"text": {"peft_type": "LORAA"}}, "peft.text.peft_type='LORAA' is unknown.*'LORA'"),
        ({"text": {"peft_type": "LORA", "rank": 4}}, "peft.text has no option 'rank' for LORA"),
        ({"vision": {"peft_type": "PROMPT_TUNING"}}, "virtual tokens before texts"),
    ],
)
def test_configs_of_peft_that_cannot_be_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe(peft=config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"width": 0}, "width must be a positive integer"),
        ({"place": "besides"}, "place='besides' is unknown: did you mean 'beside'"),
        ({"towers": ["visual"]}, "towers='visual' is unknown"),
        ({"towers": []}, "towers must name a side"),
        ({"widths": 3}, "no option 'widths'.*'width'"),
    ],
)
def test_bottlenecks_that_cannot_be_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe(bottlenecks=config)


def test_configs_that_do_not_fit_the_towers_are_refused() -> None:
    vision, text = towers()
    before = trace(text)
    for config, words in (
        ({"vision": {"peft_type": "LORA", "target_modules": "nothing"}}, "peft=.*not found"),
        ({"vision": {"peft_type": "VERA", "target_modules": CONVOLUTIONS}}, "VeRA"),
        ({"text": {"peft_type": "LORA", "target_modules": ["out_proj"]}}, "would do nothing"),
        ({"text": {"peft_type": "LORA", "target_modules": ["c_fc"], "bias": "all"}}, "biases"),
    ):
        with pytest.raises(ValueError, match=words):
            SMALL.replace(peft=config).build(vision, text, None)
        assert trace(text) == before


def test_virtual_tokens_come_before_texts_that_can_have_them(tmp_path: Path) -> None:
    config = {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}
    recipe = SMALL.replace(peft={"text": {**config, "task_type": "FEATURE_EXTRACTION"}})
    bert = build("BertModel", **LONGER)
    vision, text = hf_vision(), bert()
    before = trace(text)
    model = recipe.build(vision, text, None)
    groups = {group["name"]: group["params"] for group in model.parameter_groups()}
    assert [tuple(p.shape) for p in groups["peft"]] == [(2, text.config.hidden_size)]
    model.save_pretrained(tmp_path)
    expected = model.eval().encode(images(2), ids(2)).tokens
    model.detach()
    assert trace(text) == before
    again = BridgedModel.from_pretrained(tmp_path, hf_vision(), bert())
    assert torch.equal(again.encode(images(2), ids(2)).tokens, expected)
    with pytest.raises(ValueError, match="peft=.*virtual tokens work before encoders that read"):
        recipe.build(hf_vision(), hf_text(), None)

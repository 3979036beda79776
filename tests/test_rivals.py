"""What recipes put into towers beside Bridgers or in their place: peft, biases, bottlenecks."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import reduce
from families_text import LONGER, build
from helpers_conformance import trace
from helpers_towers import PAIRS, hf_text, hf_vision, ids, images
from torch import Tensor, nn
from torch.nn import functional as F

from bridger import BridgedModel, attach_bridgers
from bridger.bottlenecks import BottleneckConfig, insert_bottlenecks
from bridger.training import Recipe

pytest.importorskip("peft")

SMALL = Recipe(
    stages=2,
    bridgers=None,
    head={"width": 32, "num_layers": 1, "num_heads": 2},
    tower_learning_rate=0.01,
)
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


def towers() -> tuple[nn.Module, nn.Module]:
    """A ResNet and a text tower of CLIP, which holds the ResNet too."""
    vision, text = PAIRS["open_clip_resnet"]()
    return vision, text


def answers(model: BridgedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(images(2, 64), ids(2)).heads["head"].logits


def trained(model: BridgedModel) -> BridgedModel:
    """Take a few steps on all that is trained."""
    optimizer = torch.optim.Adam(model.trainable_parameters(), lr=0.01)
    model.train()
    for _ in range(3):
        labels = (images(2, 64)[:, 0] > 0).float()
        model(images(2, 64), ids(2), labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


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


# Bottleneck adapters.

PLACES = ("after", "beside")


def bottlenecked(place: str, **options: Any) -> BridgedModel:
    """A model without Bridgers whose bottleneck adapters have learnt something."""
    model = SMALL.replace(bottlenecks={"width": 3, "place": place, **options}).build(
        *towers(), None
    )
    with torch.no_grad():
        for parameter in model.encoder.tower_tensors.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


@pytest.mark.parametrize("place", PLACES)
def test_maps_are_those_of_the_formula(place: str) -> None:
    model = bottlenecked(place, towers=["vision"])
    numbers = dict(model.encoder.tower_tensors.items())
    visual, _ = towers()
    x: Any = visual.stem(images(2, 64))
    maps = []
    for name in ("layer1", "layer2", "layer3", "layer4"):
        block: Any = getattr(visual, name)
        at = f"vision:{name}/{len(block) - 1}/bottleneck_adapter"
        down, up = (
            (numbers[f"{at}/{way}/weight"][:, :, 0, 0], numbers[f"{at}/{way}/bias"])
            for way in ("down", "up")
        )
        y = block(x)
        given = (y if place == "after" else x).movedim(1, -1)
        narrow = F.relu(F.linear(given, *down))
        height, width = y.shape[-2:]
        pooled = reduce(narrow, "b (h i) (w j) c -> b h w c", "mean", h=height, w=width)
        x = y + F.linear(pooled, *up).movedim(-1, 1)
        maps.append(x)
    with torch.no_grad():
        found = model.encode(images(2, 64), ids(2))
    torch.testing.assert_close(found.maps[0], maps[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", PLACES)
def test_tokens_are_those_of_the_formula(place: str) -> None:
    model = bottlenecked(place, towers=["text"])
    numbers = dict(model.encoder.tower_tensors.items())
    _, text = towers()
    clip: Any = text
    words = ids(2)
    x = clip.token_embedding(words) + clip.positional_embedding[: words.shape[1]]
    mask = clip.attn_mask[: words.shape[1], : words.shape[1]]
    for index, block in enumerate(clip.transformer.resblocks):
        at = f"text:transformer/resblocks/{index}/bottleneck_adapter"
        down, up = (
            (numbers[f"{at}/{w}/weight"], numbers[f"{at}/{w}/bias"]) for w in ("down", "up")
        )
        y = block(x, attn_mask=mask)
        x = y + F.linear(F.relu(F.linear(y if place == "after" else x, *down)), *up)
    with torch.no_grad():
        found = model.encode(images(2, 64), words)
    torch.testing.assert_close(found.tokens, clip.ln_final(x), rtol=1e-4, atol=1e-4)


def outputs(vision: nn.Module, text: nn.Module) -> list[Tensor]:
    clip: Any = text
    with torch.no_grad():
        return [vision(images(2, 64)), clip.encode_text(ids(2))]


def test_plain_calls_of_towers_stay_as_they_were() -> None:
    vision, text = towers()
    before, seen = outputs(vision, text), trace(text)
    model = trained(SMALL.replace(bottlenecks={"width": 3}).build(vision, text, None))
    assert all(map(torch.equal, outputs(vision, text), before))
    model.detach()
    assert all(map(torch.equal, outputs(vision, text), before)) and trace(text) == seen


def test_copies_of_a_model_run_and_detach_by_themselves(tmp_path: Path) -> None:
    model = bottlenecked("after")
    expected = answers(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(answers(other), expected)
        other.detach()
        assert not [n for n, _ in other.encoder.towers.named_modules() if "bottleneck" in n]
        assert torch.equal(answers(model), expected)


def test_adapters_with_bottlenecks_stand_beside_others_on_the_same_towers(tmp_path: Path) -> None:
    model = bottlenecked("after")
    model.save_pretrained(tmp_path / "mine")
    other = bottlenecked("beside")
    other.save_pretrained(tmp_path / "beside")
    vision, text = towers()
    plain = SMALL.build(vision, text, None).eval()
    without = answers(plain)
    plain.load_adapter("mine", tmp_path / "mine")
    plain.set_adapter("mine")
    assert torch.equal(answers(plain), answers(model))
    with pytest.raises(ValueError, match="needs .*beside.*hold .*after"):
        plain.load_adapter("others", tmp_path / "beside")
    plain.set_adapter("default")
    assert torch.equal(answers(plain), without)


def test_users_can_put_them_in_and_take_them_out(tmp_path: Path) -> None:
    vision, text = towers()
    before = trace(text)
    config = BottleneckConfig(3)
    inserted = insert_bottlenecks(vision, text, config)
    with pytest.raises(ValueError, match="hold bottleneck adapters already"):
        insert_bottlenecks(vision, text)
    encoder = attach_bridgers(vision, text, 2, None, trainable=config.trainable)
    assert len(encoder.tower_tensors) == 4 * 8  # of four blocks in each tower
    model = BridgedModel(encoder, {}).eval()
    model.save_pretrained(tmp_path)
    model.detach()
    assert trace(text) != before  # what the user has put in stays
    inserted.remove()
    inserted.remove()
    assert trace(text) == before
    again = BridgedModel.from_pretrained(tmp_path, vision, text)
    assert again.encoder.tower_tensors.keys() == encoder.tower_tensors.keys()


def test_blocks_that_run_all_their_children_keep_theirs_further_inside() -> None:
    regnet: Any = pytest.importorskip("timm").create_model("regnetx_002", num_classes=0).eval()
    with torch.no_grad():
        before = regnet(images(1, 64))
        inserted = insert_bottlenecks(regnet, towers()[1], BottleneckConfig(3, towers=("vision",)))
        assert torch.equal(regnet(images(1, 64)), before)
    inserted.remove()


def test_blocks_that_cannot_have_one_beside_them_are_told() -> None:
    swin = pytest.importorskip("timm").create_model(
        "swin_tiny_patch4_window7_224", img_size=64, window_size=4, num_classes=0
    )
    with pytest.raises(ValueError, match=r"layers.1.*turns .* into .*Use place='after'"):
        insert_bottlenecks(swin, towers()[1], BottleneckConfig(3, "beside"))
    insert_bottlenecks(swin, towers()[1], BottleneckConfig(3, "after")).remove()

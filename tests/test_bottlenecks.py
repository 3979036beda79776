"""Bottleneck adapters in towers' blocks: what they compute, and that they can be taken out."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import reduce
from helpers_conformance import trace
from helpers_rivals import SMALL, answers, towers, trained
from helpers_towers import ids, images
from torch import Tensor, nn
from torch.nn import functional as F

from bridger import BridgedModel, attach_bridgers
from bridger.bottlenecks import BottleneckConfig, insert_bottlenecks

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

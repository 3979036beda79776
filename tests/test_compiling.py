"""Compiled blocks, Bridgers and heads give what uncompiled ones give, and towers do not notice.

The backend "eager" traces and guards as the others do, and runs the same kernels as without.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers_conformance import SMALL, changed, close, features, trace
from helpers_towers import PAIRS, ids, images, pictures
from torch import Tensor, nn

from bridger import BridgedModel, attach_bridgers
from bridger.heads import ReferringSegmentationHead

HEAD = {"width": 64, "num_layers": 1, "num_heads": 2, "dropout": 0.0}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model_of(pair: str, **options: Any) -> tuple[BridgedModel, Tensor]:
    vision, text = PAIRS[pair]()
    encoder = changed(attach_bridgers(vision, text, 2, SMALL, **options))
    return encoder.with_head(ReferringSegmentationHead, **HEAD).eval(), pictures(pair)


def outcome(model: BridgedModel, pixels: Tensor, words: Tensor) -> list[Tensor]:
    """Logits and all gradients of one step."""
    model.zero_grad()
    labels = torch.ones(2, *pixels.shape[-2:])
    out = model(pixels, words, labels=labels)
    out.loss.backward()
    return [out.logits.detach(), *(p.grad.clone() for p in model.trainable_parameters())]


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["open_clip_vit", "open_clip_resnet", "hf_clip_plain"])
def test_compiled_is_the_same(pair: str) -> None:
    model, pixels = model_of(pair, trainable=["positions"])
    expected = outcome(model, pixels, ids(2))
    towers = model.encoder.vision.module, model.encoder.text.module
    before = [trace(tower) for tower in towers]
    model.compile(backend="eager")
    assert [trace(tower) for tower in towers] == before
    found = outcome(model, pixels, ids(2))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.slow
def test_blocks_bridgers_and_head_are_compiled() -> None:
    seen: list[str] = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append("graph")
        return graph.forward

    model, pixels = model_of("open_clip_vit")
    with torch.no_grad():
        expected = model(pixels, ids(2)).logits
        model.compile(backend=backend)
        assert torch.equal(model(pixels, ids(2)).logits, expected)
        # Blocks of one class share their graph; the two Bridgers differ in what they carry.
        count = len(seen)
        assert count >= 2 + len(model.encoder.stages) + 1
        model(pixels, ids(2))
        model.encoder.vision.module(pixels)  # called alone it runs as before
    assert len(seen) == count


def test_copies_are_not_compiled() -> None:
    model, pixels = model_of("hf_clip_projection")
    with torch.no_grad():
        expected = features(model.encode(pixels, ids(2)))
        model.compile(backend="eager")
        twin = copy.deepcopy(model)
        assert twin.encoder._compiled is None
        found = features(twin.encode(pixels, ids(2)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_tensors_inside_blocks_are_refused() -> None:
    model, _ = model_of("open_clip_vit", trainable=["vision.transformer.resblocks.0.ln_1.*"])
    with pytest.raises(ValueError, match="without the adapter's own 'transformer.resbl"):
        model.compile(backend="eager")


@pytest.mark.slow
def test_a_tower_that_moves_after_compiling() -> None:
    model, pixels = model_of("open_clip_vit")
    with torch.no_grad():
        expected = model(pixels, ids(2)).logits
        model.compile(backend="eager")
        found = model.double()(pixels.double(), ids(2)).logits
    torch.testing.assert_close(found.float(), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_a_tower_that_changes_its_blocks_says_so() -> None:
    import transformers

    config = transformers.SwinConfig(image_size=56, patch_size=2, embed_dim=16, depths=[1, 1, 1])
    config.num_heads = [2, 2, 2]
    vision = transformers.SwinModel(config)
    encoder = attach_bridgers(vision, PAIRS["hf_clip_plain"]()[1], 2, SMALL)
    encoder.compile(backend="eager")
    with pytest.raises(ValueError, match="is compiled, but this tower's call changes something"):
        encoder(images(2, 56), ids(2))


def test_blocks_that_got_other_layers_are_compiled_anew() -> None:
    vision, text = PAIRS["open_clip_vit"]()
    encoder = attach_bridgers(vision, text, 2, SMALL).eval()
    batch = images(2), ids(2)
    with torch.no_grad():
        before = encoder(*batch).maps[-1]
        encoder.compile(backend="eager")
        close(encoder(*batch).maps[-1], before)
        mlp: Any = encoder.vision.blocks[1].module.mlp
        mlp.c_fc = nn.Sequential(mlp.c_fc, nn.Tanh())
        other = encoder(*batch).maps[-1]
        assert not torch.allclose(other, before, atol=1e-3)
        encoder._compiled = None
        close(other, encoder(*batch).maps[-1])

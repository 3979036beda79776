"""Towers in other number and memory formats, and with other kernels, than those they came in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers_conformance import (
    SMALL,
    changed,
    features,
    forwards,
    kept_for_backward,
    replayed,
    trace,
)
from helpers_towers import PAIRS, hf_text, hf_vision, ids, images, open_clip_vit, pictures
from torch import Tensor, nn

from bridger import BridgedEncoder, BridgedModel, attach_bridgers
from bridger.heads import ReferringSegmentationHead


def close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        assert (a.float() - b).norm() < tolerance * b.norm()


def small(name: str, **options: Any) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = getattr(transformers, f"{name}Config")(**size, intermediate_size=32, **options)
    model: nn.Module = getattr(transformers, f"{name}Model")(config)
    return model


VISION = {"image_size": 32, "patch_size": 8}
TEXT = {"vocab_size": 64, "max_position_embeddings": 40}


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ("CLIPVision", "CLIPText"),
        ("Dinov2", "Bert"),
        ("SiglipVision", "Roberta"),
        ("ViT", "ModernBert"),
    ],
)
def test_attention_by_sdpa_and_eager_agree(vision: str, text: str) -> None:
    outputs = []
    for kernel in ("eager", "sdpa"):
        words = {**TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 63}
        if text == "ModernBert":
            words |= {"cls_token_id": 1, "sep_token_id": 2}
        kernels = {"attn_implementation": kernel}
        towers = small(vision, **VISION, **kernels), small(text, **words, **kernels)
        for tower in towers:
            assert tower.config._attn_implementation == kernel  # type: ignore[union-attr]
        bridged = changed(attach_bridgers(*towers, 2, SMALL)).eval()
        out = features(bridged(images(2), ids(2)))
        sum(tensor.square().sum() for tensor in out).backward()
        assert bridged.bridgers is not None
        outputs.append([*out, *(p.grad for p in bridged.bridgers.parameters())])
    for a, b in zip(*outputs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def bridged_pair(pair: str) -> tuple[BridgedEncoder, Tensor]:
    """Bridged towers with something to say, and pictures that they take."""
    return changed(attach_bridgers(*PAIRS[pair](), 2, SMALL)).eval(), pictures(pair)


@pytest.mark.parametrize("pair", sorted(PAIRS))
def test_channels_last(pair: str) -> None:
    bridged, pixels = bridged_pair(pair)
    with torch.no_grad():
        expected = features(bridged(pixels, ids(2)))
        bridged.to(memory_format=torch.channels_last)
        found = features(bridged(pixels.to(memory_format=torch.channels_last), ids(2)))
    close(found, expected, 1e-4)


@pytest.mark.parametrize("pair", ["hf_clip_projection", "open_clip_vit", "open_clip_resnet"])
def test_float16(pair: str) -> None:
    bridged, pixels = bridged_pair(pair)
    with torch.no_grad():
        exact = features(bridged(pixels, ids(2)))
    with torch.autocast("cpu", torch.float16):
        out = features(bridged(pixels, ids(2)))
        sum(tensor.float().square().sum() for tensor in out).backward()
    close(out, exact, 0.02)
    assert bridged.bridgers is not None
    assert all(torch.isfinite(p.grad).all() for p in bridged.bridgers.parameters())
    with torch.no_grad():
        close(features(bridged.half()(pixels, ids(2))), exact, 0.02)


def torchaos(tower: nn.Module) -> None:
    """Turn a tower's linear layers into torchao's with eight-bit weights."""
    torchao = pytest.importorskip("torchao.quantization")
    torchao.quantize_(tower, torchao.Int8WeightOnlyConfig())


def bitsandbytes(tower: nn.Module) -> None:
    """Turn linear layers into bitsandbytes' of eight bits, outside of torch's attention."""
    library = pytest.importorskip("bitsandbytes.nn")
    for parent in list(tower.modules()):
        if isinstance(parent, nn.MultiheadAttention):
            continue
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                sizes = (layer.in_features, layer.out_features, layer.bias is not None)
                eight = library.Linear8bitLt(*sizes, has_fp16_weights=False)
                eight.load_state_dict(layer.state_dict())
                setattr(parent, name, eight.to("cpu"))


def hf_pair() -> tuple[nn.Module, nn.Module]:
    return hf_vision(), hf_text()


def open_clip_pair() -> tuple[nn.Module, nn.Module]:
    clip = open_clip_vit()
    return clip.visual, clip


# open_clip casts its states to the dtype of a weight, which is int8 in bitsandbytes' layers.
@pytest.mark.parametrize(
    ("quantise", "pair"),
    [(torchaos, hf_pair), (torchaos, open_clip_pair), (bitsandbytes, hf_pair)],
)
def test_eight_bit_weights(
    quantise: Callable[[nn.Module], None], pair: Callable[[], tuple[nn.Module, nn.Module]]
) -> None:
    vision, text = pair()
    for tower in [text] if vision in set(text.modules()) else [vision, text]:
        quantise(tower)
    kinds = {f"{type(p.data).__name__} {p.dtype}" for p in vision.parameters()}
    assert any(kind != "Tensor torch.float32" for kind in kinds), kinds
    bridged = changed(attach_bridgers(vision, text, 2, SMALL)).eval()
    out = bridged(images(2), ids(2))
    with torch.no_grad():
        again = replayed(bridged, images(2), ids(2))
    close(features(out), again, 1e-5)
    sum(tensor.square().sum() for tensor in features(out)).backward()
    assert bridged.bridgers is not None
    assert all(p.grad is not None for p in bridged.bridgers.parameters())
    bridged.detach()


def kept(model: BridgedModel) -> int:
    return kept_for_backward(lambda: model(images(2), ids(2), labels=torch.ones(2, 32, 32)))


@pytest.mark.parametrize("parts", [(hf_vision, hf_text), (open_clip_vit,)])
def test_recomputing_keeps_less_and_is_undone(parts: Any) -> None:
    given = [part() for part in parts]
    vision, text = given if len(given) == 2 else (given[0].visual, given[0])
    before = trace(vision), trace(text)
    encoder = attach_bridgers(vision, text, 2, SMALL)
    head = {"width": 32, "num_layers": 2, "num_heads": 2}
    model = encoder.with_head(ReferringSegmentationHead, **head).train()
    whole = kept(model)
    assert model.memory == "fast"
    model.save_memory("balanced")
    some = kept(model)
    assert model.memory == "balanced" and not model.encoder.recomputing and some < 0.95 * whole
    model.activation_checkpointing_enable()
    assert model.memory == "low" and kept(model) < 0.6 * whole and kept(model) < 0.9 * some
    model.save_memory("balanced")
    assert kept(model) == some
    model.activation_checkpointing_disable()
    assert kept(model) == whole
    model.activation_checkpointing_enable()
    model.detach()
    assert (trace(vision), trace(text)) == before


def test_a_librarys_own_switch_is_followed_and_stays() -> None:
    vision, text = hf_vision(), hf_text()
    kind = "activation" if hasattr(vision, "activation_checkpointing_enable") else "gradient"
    options = {f"{kind}_checkpointing_kwargs": {"use_reentrant": False}}
    model = BridgedModel(attach_bridgers(vision, text, 2, SMALL), {}).train()
    getattr(vision, f"{kind}_checkpointing_enable")(**options)
    counts = [forwards(model.train().encoder, (images(2), ids(2))) for _ in range(2)]
    assert counts[0]["vision"] > counts[0]["text"]  # the same layers on both sides
    model.activation_checkpointing_enable()
    model.activation_checkpointing_disable()
    assert forwards(model.encoder, (images(2), ids(2))) == counts[0]


def test_checkpoints_that_would_lose_gradients_are_refused() -> None:
    model = BridgedModel(attach_bridgers(hf_vision(), hf_text(), 2, SMALL), {})
    with pytest.raises(ValueError, match="re-entrant.*use_reentrant out"):
        model.activation_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ValueError, match="every layer is recomputed.*every_n_layers"):
        model.activation_checkpointing_enable(every_n_layers=2)
    with pytest.raises(ValueError, match=r"one of \('fast', 'balanced', 'low'\), got 'high'"):
        model.save_memory("high")

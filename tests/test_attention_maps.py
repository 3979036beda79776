"""Where Bridgers look: equal to torch's own attention, row by row, and nothing else changes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from helpers_conformance import SMALL, changed
from torch import Tensor, nn

from bridger import BridgedModel, BridgerConfig, attach_bridgers, load_tiny_clip
from bridger.bridgers import MultiheadAttention
from bridger.bridgers.attention_maps import recording
from bridger.config import Config
from bridger.heads import Head, HeadOutput, ReferringSegmentationHead, SemanticSegmentationHead
from bridger.predictions import Attention

HEAD = {"width": 32, "num_layers": 1, "num_heads": 2}
SAID = ["the owl", "the small red umbrella on the left"]
ONE_WAY = [("layer1", None), ("layer2", None), ("layer4", None)]
CONFIGS: dict[str, BridgerConfig] = {
    "paper": SMALL,
    "one head, pre-norm": SMALL.replace(num_heads=1, pre_norm=True),
    "without self-attention": SMALL.replace(self_attention=False, ffn_dim=0),
    "skipped": SMALL.replace(skip=(1,)),
    "to vision": SMALL.replace(direction="to_vision"),
    "to text": SMALL.replace(direction="to_text"),
    "padding read": SMALL.replace(mask_padding=False),
    "smaller cells": SMALL.replace(zoom_stride=8),
    "dense": SMALL.replace(interactor="dense"),
    "gate": BridgerConfig.preset("etris_vit", hidden_dim=16, num_heads=2),
    "released": BridgerConfig.preset("etris_resnet", hidden_dim=16, ffn_dim=16),
}


def make(config: BridgerConfig | None, head: Any = ReferringSegmentationHead) -> BridgedModel:
    """Tiny CLIP with Bridgers that say something."""
    vision, text, processor = load_tiny_clip()
    one_way = config is not None and config.direction == "to_vision"
    encoder = attach_bridgers(vision, text, ONE_WAY if one_way else 3, config)
    if config is not None:
        changed(encoder)
    model = encoder.with_head(head, **(HEAD if head is ReferringSegmentationHead else {})).eval()
    model.processor = processor
    return model


def picture(height: int = 60, width: int = 100, seed: int = 0) -> npt.NDArray[np.uint8]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def torchs(ours: MultiheadAttention, query: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
    """The weights (B, Q, K) of torch's own module with the same numbers."""
    theirs = nn.MultiheadAttention(query.shape[-1], ours.num_heads, batch_first=True).eval()
    theirs.load_state_dict(ours.state_dict())
    padding = None if mask is None else ~mask
    with torch.no_grad():
        weights: Tensor = theirs(query, source, source, key_padding_mask=padding)[1]
    return weights


@contextmanager
def watching(model: BridgedModel) -> Iterator[list[tuple[str, Tensor]]]:
    """By hooks of its own: for each cross-attention in turn whose it is, and torch's weights."""
    seen: list[tuple[str, Tensor]] = []

    def hook(side: str) -> Callable[..., None]:
        def keep(module: Any, args: Any, output: Any) -> None:
            if args[0] is not args[1]:
                seen.append((side, torchs(module, *(*args, None)[:3])))

        return keep

    assert model.encoder.bridgers is not None
    handles = [
        module.register_forward_hook(hook("vision" if ".vision" in name else "text"))
        for name, module in model.encoder.bridgers.named_modules()
        if isinstance(module, MultiheadAttention)
    ]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", CONFIGS)
def test_maps_are_those_of_torchs_attention(name: str) -> None:
    config, image = CONFIGS[name], picture()
    model = make(config)
    with watching(model) as seen:
        found = model.predict(image, SAID, return_attention=True)
    cells = 128 // config.zoom_stride
    expected = iter(seen)
    for stage in found.attention[0].stages:
        for side in ("vision", "text"):
            at = [one.stages[found.attention[0].stages.index(stage)] for one in found.attention]
            ours = [a.picture_to_text if side == "vision" else a.text_to_picture for a in at]
            if ours[0] is None:
                continue
            whose, weights = next(expected)
            assert whose == side
            for row, (one, maps) in enumerate(zip(found.attention, ours, strict=True)):
                tokens = len(one.tokens)  # padding comes behind them
                if side == "vision":
                    wanted = weights[row, :, :tokens].reshape(cells, cells, tokens)
                    sums = maps.sum(axis=-1)
                else:
                    wanted = weights[row, :tokens].reshape(tokens, cells, cells)
                    sums = maps.sum(axis=(-2, -1))
                torch.testing.assert_close(torch.from_numpy(maps), wanted, rtol=1e-4, atol=1e-6)
                np.testing.assert_allclose(sums, 1, rtol=1e-5)
    assert next(expected, None) is None, "a call of cross-attention is in no map"


@pytest.mark.parametrize("name", CONFIGS)
def test_asking_changes_no_bit_of_the_answer(name: str) -> None:
    model, image = make(CONFIGS[name]), picture()
    plain, asked = model.predict(image, SAID), model.predict(image, SAID, return_attention=True)
    assert np.array_equal(plain.probabilities, asked.probabilities)
    assert np.array_equal(plain.masks, asked.masks) and plain.attention == ()


def test_a_stage_has_what_its_bridger_reads() -> None:
    def read(config: BridgerConfig) -> list[tuple[int, bool, bool]]:
        stages = make(config).predict(picture(), "the owl", return_attention=True).attention[0]
        return [
            (one.stage, one.picture_to_text is not None, one.text_to_picture is not None)
            for one in stages.stages
        ]

    assert read(SMALL) == [(0, True, True), (1, True, True), (2, True, True)]
    assert read(CONFIGS["skipped"]) == [(0, True, True), (2, True, True)]
    # What nothing reads of the last Bridger's other state is not computed.
    assert read(CONFIGS["to vision"]) == [(0, True, True), (1, True, True), (2, True, False)]
    assert read(CONFIGS["to text"]) == [(0, True, True), (1, True, True), (2, False, True)]


def test_a_shared_bridger_is_told_apart_by_stages() -> None:
    vision, text, processor = load_tiny_clip()
    encoder = attach_bridgers(vision, text, 3, SMALL.replace(zoom="pointwise"))
    changed(encoder)
    model = encoder.with_head(ReferringSegmentationHead, **HEAD).eval()
    model.processor = processor
    assert encoder.bridgers is not None
    # Stages of these towers differ in width: share what can be shared, the interactor.
    for one in encoder.bridgers.stages:
        one.interactor = encoder.bridgers.stages[0].interactor
    with watching(model) as seen:
        found = model.predict(picture(), "the owl", return_attention=True, rows_at_once=1)
    theirs = [weights[0] for side, weights in seen if side == "text"]
    ours = [one.text_to_picture.reshape(-1, 64) for one in found.attention[0].stages]
    assert len(theirs) == len(ours) == 3
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.from_numpy(our), their, rtol=1e-4, atol=1e-6)


def test_tokens_are_the_tokenizers_and_padding_is_left_out_where_it_is_masked() -> None:
    masked = make(SMALL).predict(picture(), SAID, return_attention=True).attention
    assert masked[0].tokens == ("<start>", "the", "owl", "<end>")
    read = make(CONFIGS["padding read"]).predict(picture(), SAID, return_attention=True).attention
    assert len(read[0].tokens) == len(read[1].tokens) == len(masked[1].tokens) > 4
    assert read[0].tokens[:4] == masked[0].tokens and len(set(read[0].tokens[4:])) == 1


def alike(one: Sequence[Attention], other: Sequence[Attention]) -> None:
    assert [a.tokens for a in one] == [a.tokens for a in other]
    for a, b in zip(one, other, strict=True):
        assert a.placement == b.placement
        for mine, theirs in zip(a.stages, b.stages, strict=True):
            for field in ("stage", "text_to_picture", "picture_to_text"):
                found, wanted = getattr(mine, field), getattr(theirs, field)
                if wanted is None:
                    assert found is None
                    continue
                np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["paper", "to text"])
def test_several_pictures_and_chunks_look_as_each_alone(name: str) -> None:
    model = make(CONFIGS[name])
    images = [picture(seed=1), picture(80, 50, seed=2), picture(seed=3)]
    alone = [model.predict(i, SAID, return_attention=True).attention for i in images]
    together = model.predict(images, [SAID] * 3, return_attention=True)
    for found, wanted in zip(together, alone, strict=True):
        alike(found.attention, wanted)
    chunked = model.predict(images[1], SAID, return_attention=True, rows_at_once=1)
    alike(chunked.attention, alone[1])
    words = [SAID, SAID[::-1], ["the dog", "the ball"]]
    mixed = model.predict(images, words, return_attention=True)
    alike(mixed[0].attention, alone[0])
    alike(mixed[1].attention, alone[1][::-1])
    assert [one.tokens[2] for one in mixed[2].attention] == ["dog", "ball"]


def test_class_names_are_sequences_of_their_own() -> None:
    model = make(SMALL, SemanticSegmentationHead)
    found = model.predict(picture(), ["owl", "dog"], return_attention=True, rows_at_once=1)
    assert [one.find(name) for one, name in zip(found.attention, ("owl", "dog"), strict=True)]
    assert len(found.attention) == 2


def test_threads_record_what_they_run_and_no_more() -> None:
    attention = MultiheadAttention(8, 2).eval()
    query, source = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    opened, ran = threading.Event(), threading.Event()

    def run_meanwhile() -> None:
        opened.wait()
        attention(query, source)
        ran.set()

    other = threading.Thread(target=run_meanwhile)
    other.start()
    with recording() as recorded:
        opened.set()
        ran.wait()
        assert recorded == {}
        attention(query, source)
    other.join()
    attention(query, source)
    (weights,) = recorded[attention]
    torch.testing.assert_close(weights, torchs(attention, query, source, None))


def test_several_threads_ask_at_once() -> None:
    model = make(SMALL)
    images = [picture(seed=seed) for seed in range(4)]
    alone = [model.predict(image, SAID, return_attention=True) for image in images]
    found: dict[int, Any] = {}

    def ask(number: int, looks: bool) -> None:
        found[number] = model.predict(images[number], SAID, return_attention=looks)

    threads = [threading.Thread(target=ask, args=(n, n % 2 == 0)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, wanted in enumerate(alone):
        assert np.array_equal(found[number].masks, wanted.masks)
        if number % 2:
            assert found[number].attention == ()
        else:
            alike(found[number].attention, wanted.attention)


def test_autocast_and_masks_leave_rows_that_sum_to_one() -> None:
    attention = MultiheadAttention(8, 2).eval()
    query, source = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])
    with recording() as recorded, torch.autocast("cpu", torch.bfloat16):
        attention(query, source, mask)
    (weights,) = recorded[attention]
    assert weights.dtype == torch.float32 and not weights[0, :, 2:].any()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3))
    wanted = torchs(attention, query, source, mask)
    torch.testing.assert_close(weights, wanted, rtol=0.05, atol=0.01)


@pytest.mark.slow
def test_compiled_bridgers_tell_too() -> None:
    model = make(SMALL)
    wanted = model.predict(picture(), SAID, return_attention=True)
    torch._dynamo.reset()
    assert model.encoder.bridgers is not None
    for bridger in model.encoder.bridgers.stages:
        bridger.compile(backend="eager")
    compiled = model.predict(picture(), SAID)
    asked = model.predict(picture(), SAID, return_attention=True)
    alike(asked.attention, wanted.attention)
    assert np.array_equal(asked.masks, compiled.masks)
    torch._dynamo.reset()


# What is refused.


@dataclass(frozen=True)
class ShareConfig(Config):
    """No options."""


class ShareHead(Head):
    """Says a number of every picture, and holds no attention."""

    config_class = ShareConfig

    def forward(self, features: Any, labels: Any = None, expression_mask: Any = None) -> HeadOutput:
        n = features.num_expressions
        return HeadOutput(features.sentence.mean(-1).reshape(-1, n).float())

    def results(self, output: HeadOutput, processor: Any, placements: Any, texts: Any) -> list[Any]:
        return [row.tolist() for row in output.logits]


def test_where_there_is_nothing_to_tell_it_is_said() -> None:
    image, model = picture(), make(SMALL)
    with pytest.raises(ValueError, match="no Bridgers.*leave return_attention out"):
        make(None).predict(image, "the owl", return_attention=True)
    with model.disable(), pytest.raises(ValueError, match="disabled"):
        model.predict(image, "the owl", return_attention=True)
    with pytest.raises(ValueError, match="as a whole: leave window out"):
        model.predict(image, "the owl", return_attention=True, window=64)
    with pytest.raises(TypeError, match="list holds no attention"):
        make(SMALL, ShareHead).predict(image, "the owl", return_attention=True)
    assert model.encoder.bridgers is not None
    for bridger in model.encoder.bridgers.stages:
        bridger.interactor = Silent()
    with pytest.raises(ValueError, match="does not say where it looks"):
        model.predict(image, "the owl", return_attention=True)


class Silent(nn.Module):
    """An interactor without attention."""

    def forward(self, vision: Tensor, text: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return vision, text

"""What holds for every head, whatever its task: `helpers_head_rows.ROWS` has small ones of each."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_head_rows import CLASSES, COUNT, ROWS, WORDS, HeadRow, own_heads, rows_of
from helpers_heads import features
from helpers_towers import hf_text, hf_vision
from helpers_words import word_tokenizer
from torch import Tensor, nn

from bridger import BridgedModel, BridgerConfig, Processor, attach_bridgers
from bridger.features import BridgedFeatures, EncoderSpec, Mentions
from bridger.heads import Head, HeadOutput, get_head
from bridger.tiny_clip import load_tiny_clip

SPECS = {
    "hierarchical": EncoderSpec((6, 10, 12), (8, 16, 32), 20, 12, True, 12, 50.0),
    "flat": EncoderSpec((10, 10, 12), (16, 16, 16), 20, 12, True, 12, 30.0, -5.0),
    "no joint space": EncoderSpec((6, 10, 14), (4, 16, 32), 20, 12, False),
}
SIZE = (64, 96)
PRESENT = own_heads()
GIVEN = [name for name, row in ROWS.items() if row.name in PRESENT]


@pytest.fixture(params=GIVEN)
def row(request: pytest.FixtureRequest) -> HeadRow:
    return ROWS[request.param]


@pytest.fixture(params=sorted(SPECS))
def spec(request: pytest.FixtureRequest) -> EncoderSpec:
    return SPECS[request.param]


def given(spec: EncoderSpec, batch: int = 2, expressions: int = COUNT) -> BridgedFeatures:
    return features(spec, batch, expressions, SIZE)


def leaves(values: Any) -> list[Tensor]:
    """Return all tensors within features and labels."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, BridgedFeatures):
        values = vars(values)
    if isinstance(values, dict):
        values = list(values.values())
    return sum(map(leaves, values), []) if isinstance(values, (list, tuple)) else []


def tensors(output: HeadOutput) -> dict[str, Tensor]:
    """Return all tensors of an output by name."""
    values = {f.name: getattr(output, f.name) for f in dataclasses.fields(output)}
    named = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return {**named, **{f"losses.{name}": loss for name, loss in output.losses.items()}}


def equal(found: HeadOutput, expected: HeadOutput) -> bool:
    first, second = tensors(found), tensors(expected)
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def close(found: Tensor, expected: Tensor) -> None:
    """Compare at the scale of the finite values; infinite ones (padding) must be the same."""
    finite = expected[expected.isfinite()]
    scale = float(finite.detach().abs().max()) if finite.numel() else 1.0
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5 * max(scale, 1.0))


def test_every_head_of_the_library_has_a_row() -> None:
    missing = set(PRESENT) - {row.name for row in ROWS.values()}
    assert not missing, f"add small options and labels of {missing} to helpers_head_rows.ROWS"


def test_it_comes_back_from_its_config_and_its_tensors(row: HeadRow, spec: EncoderSpec) -> None:
    head = row.build(spec)
    saved = json.loads(json.dumps(head.config.to_dict()))
    again = get_head(row.name).from_spec(spec, **saved).eval()
    assert again.config == head.config and hash(again.config) == hash(head.config)
    again.load_state_dict(head.state_dict())
    asked = given(spec)
    assert equal(again(asked), head(asked))
    for other in (copy.deepcopy(head), pickle.loads(pickle.dumps(head))):
        assert equal(other(asked), head(asked))


def test_logits_begin_with_pictures_and_classes(row: HeadRow, spec: EncoderSpec) -> None:
    head = row.build(spec)
    for batch in (1, 2):
        output = head(given(spec, batch), row.labels(batch, COUNT, SIZE))
        assert output.logits.shape[:2] == (batch, COUNT)
        assert output.logits.dtype == torch.float32 == output.loss.dtype
        assert output.loss.shape == () and output.loss.isfinite()
        if output.losses:
            torch.testing.assert_close(sum(output.losses.values()), output.loss)


def test_pictures_do_not_see_each_other(row: HeadRow, spec: EncoderSpec) -> None:
    head, asked = row.build(spec), given(spec, batch=3)
    together = tensors(head(asked))
    for picture in range(3):
        rows = list(range(picture * COUNT, (picture + 1) * COUNT))
        alone = tensors(head(rows_of(asked, rows, COUNT)))
        assert alone.keys() == together.keys()
        for name, tensor in alone.items():
            close(tensor[0], together[name][picture])


def test_expressions_do_not_see_each_other(row: HeadRow, spec: EncoderSpec) -> None:
    if row.joined:
        pytest.skip("all rows of text give one answer")
    head, asked = row.build(spec), given(spec)
    together = tensors(head(asked))
    for expression in range(COUNT):
        alone = tensors(head(rows_of(asked, [expression, COUNT + expression], 1)))
        for name, tensor in alone.items():
            close(tensor[:, 0], together[name][:, expression])


def test_chunks_of_texts_are_merged_into_the_whole(row: HeadRow, spec: EncoderSpec) -> None:
    head, asked = row.build(spec), given(spec)
    first = head(rows_of(asked, [0, 1, COUNT, COUNT + 1], 2))
    rest = rows_of(asked, [2, COUNT + 2], 1)
    mentions = dataclasses.replace(Mentions.of_expressions(rest.token_mask, 1), first_class=2)
    last = head(rest.naming(mentions))
    whole, merged = tensors(head(asked)), tensors(head.merge([first, last]))
    assert merged.keys() == whole.keys()
    for name, tensor in merged.items():
        close(tensor, whole[name])


def test_padding_tokens_do_not_count(row: HeadRow, spec: EncoderSpec) -> None:
    head, asked = row.build(spec), given(spec)
    before = head(asked)
    asked.tokens[~asked.token_mask] = 1e3
    assert equal(head(asked), before)
    longer = dataclasses.replace(
        asked,
        tokens=torch.cat([asked.tokens, torch.full_like(asked.tokens, -1e3)], dim=1),
        token_mask=torch.cat([asked.token_mask, torch.zeros_like(asked.token_mask)], dim=1),
    )
    for name, tensor in tensors(head(longer)).items():
        close(tensor, tensors(before)[name])


def test_the_loss_reaches_every_parameter(row: HeadRow, spec: EncoderSpec) -> None:
    head = row.build(spec).train()
    head(given(spec), row.labels(2, COUNT, SIZE)).loss.backward()
    unreached = [name for name, p in head.named_parameters() if p.requires_grad and p.grad is None]
    assert not unreached
    silent = [
        name for name, p in head.named_parameters() if p.grad is not None and not p.grad.any()
    ]
    assert not silent
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_give_float32(
    row: HeadRow, spec: EncoderSpec, dtype: torch.dtype
) -> None:
    head, asked = row.build(spec), given(spec)
    half = dataclasses.replace(
        asked,
        maps=tuple(maps.to(dtype) for maps in asked.maps),
        tokens=asked.tokens.to(dtype),
        sentence=asked.sentence.to(dtype),
        pooled=None if asked.pooled is None else asked.pooled.to(dtype),
    )
    labels = row.labels(2, COUNT, SIZE)
    found, expected = head(half, labels), head(asked, labels)
    for name, tensor in tensors(found).items():
        assert tensor.dtype == torch.float32, name
    distance = (found.logits - expected.logits).abs().mean() / expected.logits.std()
    assert distance < 0.05
    torch.testing.assert_close(found.loss, expected.loss, rtol=0.1, atol=0.05)


def test_autocast_gives_float32_and_gradients(row: HeadRow, spec: EncoderSpec) -> None:
    head, asked, labels = row.build(spec), given(spec), row.labels(2, COUNT, SIZE)
    with torch.autocast("cpu", torch.bfloat16):
        output = head(asked, labels)
    assert output.logits.dtype == output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, head(asked, labels).loss, rtol=0.1, atol=0.05)
    output.loss.backward()
    trained = [p for p in head.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


def test_pictures_that_show_nothing_have_a_finite_loss(row: HeadRow, spec: EncoderSpec) -> None:
    if row.nothing is None:
        pytest.skip("every expression means something")
    head = row.build(spec).train()
    loss = head(given(spec), row.nothing(2, COUNT, SIZE)).loss
    assert loss.isfinite()
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in head.parameters())


def test_the_same_seed_gives_the_same_bits(row: HeadRow, spec: EncoderSpec) -> None:
    asked, labels = given(spec), row.labels(2, COUNT, SIZE)
    head = row.build(spec)
    found = []
    for model in (head, copy.deepcopy(head)):
        torch.manual_seed(5)
        output = model.train()(asked, labels)
        output.loss.backward()
        found.append((output, [p.grad for p in model.parameters() if p.grad is not None]))
    assert equal(found[0][0], found[1][0])
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))
    # Eval mode draws nothing, moves nothing, and features and labels stay as they were.
    state = copy.deepcopy(head.eval().state_dict())
    before, chance = copy.deepcopy(leaves((asked, labels))), torch.get_rng_state()
    head(asked, labels)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(t, state[name]) for name, t in head.state_dict().items())
    assert all(map(torch.equal, before, leaves((asked, labels))))


@pytest.mark.parametrize("part", ["map", "tokens", "sentence"])
def test_features_of_other_widths_are_refused(row: HeadRow, part: str) -> None:
    spec = SPECS["hierarchical"]
    widths = {
        "map": {"map_widths": (6, 11, 12)},
        "tokens": {"token_width": 21},
        "sentence": {"sentence_width": 13},
    }
    asked = given(dataclasses.replace(spec, **widths[part]))
    with pytest.raises(ValueError, match="build it from the spec of the encoder"):
        row.build(spec)(asked)


def test_a_mask_of_another_shape_is_refused(row: HeadRow) -> None:
    head, asked = row.build(SPECS["flat"]), given(SPECS["flat"])
    with pytest.raises(ValueError, match=r"expression_mask must be \(B, N\) = \(2, "):
        head(asked, expression_mask=torch.ones(1, COUNT, dtype=torch.bool))


def test_misspelt_options_get_a_suggestion(row: HeadRow) -> None:
    known = [field.name for field in dataclasses.fields(get_head(row.name).config_class)]
    for name in known:
        with pytest.raises(ValueError, match=f"no option '{name}_'.*'{name}'"):
            get_head(row.name).from_spec(SPECS["flat"], **{f"{name}_": 1})
    with pytest.raises(ValueError, match="has no preset 'defualt': did you mean 'default'"):
        get_head(row.name).from_spec(SPECS["flat"], "defualt")


def with_padding(labels: Any) -> Any:
    """Give labels that have a row for each class one more, of a class that is padding."""
    if isinstance(labels, Tensor) and labels.is_floating_point():
        return torch.cat([labels, torch.zeros_like(labels[:, :1])], dim=1)
    return labels


def test_expressions_that_are_padding_do_not_count(row: HeadRow, spec: EncoderSpec) -> None:
    """Whatever they hold: outputs, loss and gradients are those without them."""
    if row.joined:
        pytest.skip("a fixed list of classes is not padded")
    head, asked, labels = row.build(spec), given(spec), row.labels(2, COUNT, SIZE)
    expected, pulls = judged(head, asked, labels)
    mask = torch.tensor([[True] * COUNT + [False]] * 2)
    padding = mask.logical_not().flatten()
    for scale in (0.0, 10.0):
        padded = rows_of(asked, [0, 1, 2, 0, 3, 4, 5, 3], COUNT + 1)
        for tensor in (*padded.maps, padded.tokens, padded.sentence, padded.pooled):
            if tensor is not None:
                tensor[padding] += scale * torch.randn(tensor[padding].shape)
        found, found_pulls = judged(head, padded, with_padding(labels), mask)
        for name, tensor in tensors(found).items():
            value = tensors(expected)[name]
            close(tensor[:, :COUNT] if tensor.ndim else tensor, value)
        for name, pull in found_pulls.items():
            close(pull, pulls[name])


def judged(
    head: Head, asked: BridgedFeatures, labels: Any, mask: Tensor | None = None
) -> tuple[HeadOutput, dict[str, Tensor]]:
    """Return an output, and the gradients of its loss by the parameters' names."""
    head.zero_grad()
    output = head(asked, labels, mask)
    output.loss.backward()
    grads = {name: p.grad for name, p in head.named_parameters() if p.grad is not None}
    return output, copy.deepcopy(grads)


# On bridged towers.

SMALL = BridgerConfig.preset("paper", hidden_dim=16, num_heads=2, ffn_dim=16)


def tiny_clip() -> tuple[nn.Module, nn.Module, Processor]:
    vision, text, processor = load_tiny_clip()
    return vision, text, processor


def flat() -> tuple[nn.Module, nn.Module, Processor]:
    """ViT and text tower without a space that they share."""
    processor = Processor(32, [0.5] * 3, [0.5] * 3, word_tokenizer(), 8)
    return hf_vision(projection=False), hf_text(projection=False, eos=3), processor


@pytest.mark.parametrize("towers", [pytest.param(tiny_clip, marks=pytest.mark.slow), flat])
def test_on_bridged_towers_it_trains_comes_back_and_predicts(
    row: HeadRow, towers: Callable[[], tuple[nn.Module, nn.Module, Processor]], tmp_path: Path
) -> None:
    vision, text, processor = towers()
    model = attach_bridgers(vision, text, 2, SMALL).with_head(get_head(row.name), **row.options)
    model.processor = processor
    size = processor.image_size
    words = list(CLASSES) if row.classes else WORDS
    asked = model.heads["head"].texts(processor, words)
    batch = {"pixel_values": torch.randn(2, 3, *size), **asked.batch(2)}
    labels = row.labels(2, COUNT, size)
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=2e-4)
    losses = []
    for _ in range(3):
        torch.manual_seed(1)  # the same dropout, so that losses compare
        loss = model.train()(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval().save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(**batch).heads["head"]
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    before = model.predict(picture, words, **row.asked)
    model.detach()
    again = BridgedModel.from_pretrained(tmp_path, *towers()[:2])
    with torch.no_grad():
        assert equal(again(**batch).heads["head"], expected)
    found = again.predict(picture, words, **row.asked)
    assert type(found).__name__ == row.prediction
    assert found.found() == before.found() == json.loads(json.dumps(found.found()))
    assert found.overlay(picture).size[0] >= 60
    if row.classes:
        assert again.predict(picture, **row.asked).found() == found.found()

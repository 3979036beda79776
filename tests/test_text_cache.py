"""Class names through models: in chunks, in both modes, and texts that are read once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers_conformance import SMALL, changed, features
from helpers_one_way import one_way
from helpers_towers import hf_text, hf_vision, images
from test_texts import CLASSES, MODES, processor
from torch import Tensor

from bridger import BridgedModel, attach_bridgers, text_cache
from bridger.answering import answer
from bridger.features import Mentions
from bridger.heads import SemanticSegmentationHead
from bridger.heads.class_names import mean_by_class, read_mentions
from bridger.texts import Texts

# Through models.


def model(config: Any = SMALL, **options: Any) -> BridgedModel:
    """A pair of transformers' towers that read the small tokenizer, and a head."""
    stages = [(1, None), (3, None)] if getattr(config, "direction", "") == "to_vision" else 2
    encoder = attach_bridgers(hf_vision(), hf_text(eos=3), stages, config, **options)
    if config is not None:
        changed(encoder)
    made = encoder.with_head(SemanticSegmentationHead).eval()
    made.processor = processor()
    return made


def plainly(made: BridgedModel, pixels: Tensor, texts: Texts) -> Tensor:
    """Logits of one forward with all texts beside every picture."""
    with torch.no_grad():
        logits: Tensor = made(pixels, **texts.batch(len(pixels))).logits
    return logits


def answered(made: BridgedModel, pixels: Tensor, texts: Texts, rows: int = 64) -> Tensor:
    return answer(made, "head", pixels, texts, rows).logits


CONFIGS: dict[str, Any] = {"both": SMALL, "to_vision": one_way(), "none": None}
ALONE = ["to_vision", "none"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("config", CONFIGS)
def test_chunks_give_what_one_forward_gives(config: str, mode: str) -> None:
    made, pixels = model(CONFIGS[config]), images(2)
    templates = ["{}", "the {}"] if mode == "separate" else ["the {}"]
    texts = Texts.of_classes(processor(), CLASSES, mode, templates)
    whole = plainly(made, pixels, texts)
    assert whole.shape[1] == 5 and not torch.equal(whole[:, 0], whole[:, 1])
    for rows in (1, 4, 64):
        torch.testing.assert_close(answered(made, pixels, texts, rows), whole)


def test_separate_and_joint_agree_about_one_class() -> None:
    made, pixels = model(), images(2)
    texts = [Texts.of_classes(processor(), ["red ball"], mode) for mode in MODES]
    assert torch.equal(plainly(made, pixels, texts[0]), plainly(made, pixels, texts[1]))
    two = [Texts.of_classes(processor(), ["red ball", "dog"], mode) for mode in MODES]
    assert not torch.allclose(plainly(made, pixels, two[0]), plainly(made, pixels, two[1]))


def test_mentions_fit_texts_that_towers_pad() -> None:
    made = model(word_length=12)
    texts = Texts.of_classes(processor(), ["dog", "red ball"])
    assert texts.input_ids.shape[1] == 4
    with torch.no_grad():
        seen = made.encode(images(2), **texts.batch(2))
        assert seen.mentions is not None and seen.mentions.tokens.shape == (1, 2, 12)
        assert int(seen.mentions.tokens.sum()) == 3
        other = Texts.of_classes(processor(), ["dog", "cat", "owl"]).mentions
        with pytest.raises(ValueError, match="do not fit 2 images with 2 texts of 12 tokens"):
            made.encode(images(2), texts.input_ids.expand(2, -1, -1), mentions=other)


def test_read_mentions_and_their_means_against_loops() -> None:
    texts = Texts.of_classes(processor(), CLASSES, "joint", ["the {}"])
    made = model()
    with torch.no_grad():
        seen = made.encode(images(2), **texts.batch(2))
    read, mentions = read_mentions(seen), texts.mentions
    assert mentions is not None
    for b in range(2):
        for m, (row, k) in enumerate(zip(mentions.rows, mentions.classes, strict=True)):
            at = b * len(texts.input_ids) + int(row)
            kept = [seen.tokens[at, i] for i in range(12) if mentions.tokens[0, m, i]]
            torch.testing.assert_close(read.tokens[b, m], sum(kept) / len(kept))
            assert torch.equal(read.sentence[b, m], seen.sentence[at])
            own = [read.tokens[b, o] for o in range(len(mentions.rows)) if mentions.classes[o] == k]
            found = mean_by_class(read.tokens, mentions)[b, k]
            torch.testing.assert_close(found, sum(own) / len(own))
    alone = Mentions(torch.tensor([0, 1]), torch.tensor([1, 0]), mentions.tokens[:, :2], 2)
    values = torch.randn(2, 2, 3)
    assert torch.equal(mean_by_class(values, alone), values.flip(1))


# Texts that are read once.


class Reading:
    """Counts the rows that the text tower reads."""

    def __init__(self, made: BridgedModel) -> None:
        self.rows: list[int] = []
        block = made.encoder.text.blocks[0].module
        self.handle = block.register_forward_pre_hook(
            lambda _, args: self.rows.append(len(args[0]))
        )

    def taken(self) -> list[int]:
        rows, self.rows = self.rows, []
        return rows


def asked() -> Texts:
    return Texts.of_classes(processor(), CLASSES)


@pytest.mark.parametrize("config", ALONE)
def test_a_text_that_was_read_gives_the_same_features(config: str) -> None:
    encoder, pixels, texts = model(CONFIGS[config]).encoder, images(2), asked()
    with torch.no_grad():
        text = encoder.read_text(texts.input_ids, texts.attention_mask)
        found = encoder(pixels, text=text)
        given = texts.batch(2)
        expected = encoder(pixels, given["input_ids"], given["attention_mask"])
    assert found.num_expressions == 7 and found.token_mask.equal(expected.token_mask)
    for a, b in zip(features(found), features(expected), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(TypeError, match="either input_ids"):
        encoder(pixels, given["input_ids"], text=text)


def test_gradients_pass_through_a_text_that_was_read() -> None:
    encoder, pixels, texts = model(one_way()).encoder, images(2), asked()
    assert encoder.bridgers is not None
    outcomes = []
    for read in (True, False):
        encoder.zero_grad()
        words = texts.batch(2)
        out = (
            encoder(pixels, text=encoder.read_text(texts.input_ids, texts.attention_mask))
            if read
            else encoder(pixels, words["input_ids"], words["attention_mask"])
        )
        sum(t.square().mean() for t in features(out)).backward()
        outcomes.append([p.grad.clone() for p in encoder.bridgers.parameters()])
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)


def test_texts_that_depend_on_the_picture_are_not_read_before() -> None:
    made, pixels, texts = model(), images(2), asked()
    reading = Reading(made)
    assert not made.encoder.text_alone
    with pytest.raises(ValueError, match="Bridgers write to the text"):
        made.encoder.read_text(texts.input_ids)
    for _ in range(2):
        answered(made, pixels, texts)
        assert reading.taken() == [14]
    with made.disable():
        assert made.encoder.text_alone
        text = made.encoder.read_text(texts.input_ids, texts.attention_mask)
        torch.testing.assert_close(answered(made, pixels, texts), plainly(made, pixels, texts))
    with pytest.raises(ValueError, match="Bridgers write to the text"):
        made.encoder(pixels, text=text)
    made.detach()
    with pytest.raises(RuntimeError, match="detached"):
        made.encoder.read_text(texts.input_ids)


@pytest.mark.parametrize("config", ALONE)
def test_a_text_is_read_once_for_all_pictures(config: str) -> None:
    made, texts = model(CONFIGS[config]), asked()
    reading = Reading(made)
    for number, rows in enumerate(([7, 1], [1], [1])):
        pixels = images(2, seed=number)
        found = answered(made, pixels, asked())  # by what it says, whichever object says it
        assert reading.taken() == rows  # one row to see whether the rest may be believed
        torch.testing.assert_close(found, plainly(made, pixels, texts))
        reading.taken()
    answered(made, pixels, texts, 3)
    assert reading.taken() == [1, 3, 3, 1]
    answered(made, pixels, texts, 3)
    assert reading.taken() == [1]
    answered(made, pixels, Texts.of_classes(processor(), ["dog"]))
    assert reading.taken() == [1]  # one is not worth keeping
    made.train()
    answered(made, pixels, texts)
    assert reading.taken() == [14]


def stepped(made: BridgedModel) -> None:
    """A step of training that moves the adapter's text tensors."""
    made.train()
    optimiser = torch.optim.SGD(made.trainable_parameters(), lr=0.5)
    words = asked().batch(2)
    made(images(2), **words).logits.square().mean().backward()
    optimiser.step()
    made.eval()


def loaded(made: BridgedModel) -> None:
    """Other tensors in place of the adapter's."""
    generator = torch.Generator().manual_seed(5)
    state = {
        name: tensor + 0.2 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in made.encoder.tower_tensors.state_dict().items()
    }
    made.encoder.tower_tensors.load_state_dict(state)


def averaged(made: BridgedModel) -> None:
    """As averages of weights are put in place, past what counts versions."""
    for parameter in made.encoder.tower_tensors.parameters():
        parameter.data.mul_(1.5)


def other_tower(made: BridgedModel) -> None:
    """The user's own tower gets other weights."""
    made.encoder.text.module.load_state_dict(hf_text(eos=3, seed=3).state_dict())


def replaced(made: BridgedModel) -> None:
    norm: Any = made.encoder.text.module.text_model.final_layer_norm
    norm.weight = torch.nn.Parameter(norm.weight.detach().flip(0))


def hooked(made: BridgedModel) -> None:
    norm: Any = made.encoder.text.module.text_model.final_layer_norm
    norm.register_forward_hook(lambda module, args, output: 1.1 * output)


CHANGES = [stepped, loaded, averaged, other_tower, replaced, hooked]


@pytest.mark.parametrize("config", ALONE)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_text_is_read_again_when_its_tower_changes(
    config: str, change: Callable[[BridgedModel], None]
) -> None:
    trained = ["text.*layers.2.*"] if change is not replaced else []
    made, pixels, texts = model(CONFIGS[config], trainable=trained), images(2), asked()
    before = answered(made, pixels, texts)
    change(made)
    found = answered(made, pixels, texts)
    torch.testing.assert_close(found, plainly(made, pixels, texts))
    assert not torch.allclose(found, before)


def test_a_change_of_words_that_the_first_text_does_not_hold() -> None:
    made, pixels, texts = model(None), images(2), asked()
    before = answered(made, pixels, texts)
    table: Any = made.encoder.text.module.get_input_embeddings()
    with torch.no_grad():
        table.weight[8] *= -1  # "owl"
    found = answered(made, pixels, texts)
    torch.testing.assert_close(found, plainly(made, pixels, texts))
    assert torch.equal(found[:, 0], before[:, 0]) and not torch.allclose(found, before)


def test_disabling_reads_the_towers_own_text() -> None:
    made, pixels, texts = model(one_way(), trainable=["text.*layers.2.*"]), images(2), asked()
    averaged(made)
    for _ in range(2):
        enabled = answered(made, pixels, texts)
        torch.testing.assert_close(enabled, plainly(made, pixels, texts))
        with made.disable():
            disabled = answered(made, pixels, texts)
            torch.testing.assert_close(disabled, plainly(made, pixels, texts))
        assert not torch.allclose(enabled, disabled)


def test_switches_of_peft_are_seen() -> None:
    peft = pytest.importorskip("peft")
    made, pixels, texts = model(None), images(2), asked()
    tower: Any = made.encoder.text.module
    before = answered(made, pixels, texts)
    config = peft.LoraConfig(target_modules=["q_proj", "fc1"], r=4, init_lora_weights=False)
    peft.inject_adapter_in_model(config, tower)
    made.eval()
    layers = [m for m in tower.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    with_lora = answered(made, pixels, texts)
    torch.testing.assert_close(with_lora, plainly(made, pixels, texts))
    assert not torch.allclose(with_lora, before)
    for layer in layers:
        layer.enable_adapters(False)
    torch.testing.assert_close(answered(made, pixels, texts), before)
    for layer in layers:
        layer.enable_adapters(True)
        layer.set_scale("default", 3.0)
    found = answered(made, pixels, texts)
    torch.testing.assert_close(found, plainly(made, pixels, texts))
    assert not torch.allclose(found, with_lora)


def test_what_is_kept_is_bounded_and_goes_with_its_encoder(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, pixels = model(None), images(1)
    lists = [["dog", "cat"], ["owl", "ball"], ["left", "right"]]
    texts = [Texts.of_classes(processor(), names) for names in lists]
    one = made.encoder.read_text(texts[0].input_ids).nbytes
    monkeypatch.setattr(text_cache, "CACHE_BYTES", 2 * one)
    reading = Reading(made)
    for which, rows in ((0, [2, 1]), (1, [1, 2]), (0, [1]), (2, [1, 2]), (0, [1]), (1, [1, 2])):
        answered(made, pixels, texts[which])
        assert reading.taken() == rows
    monkeypatch.setattr(text_cache, "CACHE_BYTES", one - 1)  # less than any takes
    for _ in range(2):
        answered(made, pixels, texts[2])
        assert reading.taken() == [1, 2]
    encoder = weakref.ref(made.encoder)
    del made, reading
    gc.collect()
    assert encoder() is None


def test_inference_mode_leaves_nothing_behind_that_training_trips_over() -> None:
    made, pixels, texts = model(one_way()), images(2), asked()
    with torch.inference_mode():
        inside = answered(made, pixels, texts)
    torch.testing.assert_close(answered(made, pixels, texts), inside)
    stepped(made)

"""The classification head's scores: CLIP's own, those by text, those of a fixed list."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from families_transformers_vision import whole
from helpers_classification import (
    ANIMALS,
    APART,
    POOLED,
    SMALL,
    TEMPLATES,
    asked,
    given,
    head_of,
    tiny,
)
from helpers_heads import SPEC
from helpers_towers import EOS, SOS, hf_clip, ids, images, open_clip_vit
from torch import Tensor

import bridger
from bridger import attach_bridgers
from bridger.answering import answer
from bridger.data.scenes import make_scene
from bridger.data.sprites import kinds
from bridger.features import BridgedFeatures, EncoderSpec, Mentions
from bridger.heads import ClassificationHead
from bridger.texts import Texts

# CLIP's own scores.


@pytest.mark.parametrize("templates", [("{}",), TEMPLATES], ids=["one template", "templates"])
def test_fresh_on_tiny_clip_it_gives_the_zero_shot_scores(templates: tuple[str, ...]) -> None:
    clip: Any = bridger.load_tiny_clip()[1]
    model = tiny(templates=templates)
    assert model.processor is not None
    scenes = [make_scene("val", index).image for index in range(3)]
    pixels = torch.stack([model.processor.image(scene)[0] for scene in scenes])
    names = [*ANIMALS, "dartboard", "bear", "rooster"]
    with torch.no_grad():
        picture = clip.encode_image(pixels, normalize=True)
        text = []
        for name in names:  # OpenAI's notebook: normalise, average, normalise
            words = model.processor.text([template.format(name) for template in templates])
            rows = clip.encode_text(padded(words["input_ids"], 24), normalize=True)
            text.append(F.normalize(rows.mean(dim=0), dim=-1))
        expected = (clip.logit_scale.exp() * picture @ torch.stack(text).T).softmax(dim=-1)
    texts = Texts.of_classes(model.processor, names, "separate", templates)
    found = asked(model, pixels, texts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert expected.max() > 0.5  # these scores say something
    predicted = model.predict(scenes[0], names)
    np.testing.assert_allclose(predicted.probabilities, expected[0], atol=1e-5)


def padded(words: Tensor, length: int) -> Tensor:
    """Ids of the length that open_clip's text tower wants."""
    return F.pad(words, (0, length - words.shape[1]))


def mentions_of(words: Tensor, of_class: Sequence[int]) -> Mentions:
    """Mentions of classes in rows of ids, each named by all but the first and the last token."""
    inner = (words != SOS) & (words != EOS) & (words != 0)
    classes = torch.tensor(of_class)
    return Mentions(torch.arange(len(words)), classes, inner[None], int(classes.max()) + 1)


@pytest.mark.parametrize("build", [hf_clip, open_clip_vit], ids=["transformers", "open_clip"])
@pytest.mark.parametrize("of_class", [(0, 1, 2, 3), (0, 0, 1, 1)], ids=["names", "templates"])
def test_fresh_on_other_clips_it_gives_their_zero_shot_scores(
    build: Callable[[], Any], of_class: tuple[int, ...]
) -> None:
    clip, pixels, words = build(), images(2, 32), ids(4)
    vision = getattr(clip, "visual", clip)
    with torch.no_grad():
        if vision is clip:
            plain = clip(input_ids=words, pixel_values=pixels)
            per_phrase, text, picture = (
                plain.logits_per_image,
                plain.text_embeds,
                plain.image_embeds,
            )
        else:
            picture, text, scale = clip(pixels, words)
            per_phrase = scale * picture @ text.T
        classes = torch.tensor(of_class)
        text = torch.stack([text[classes == k].mean(dim=0) for k in classes.unique()])
        cosines = F.normalize(picture, dim=-1) @ F.normalize(text, dim=-1).T
        expected = (clip.logit_scale.exp() * cosines).softmax(dim=-1)
        if len(classes.unique()) == len(classes):  # as the library itself has it
            torch.testing.assert_close(expected, per_phrase.softmax(dim=-1), atol=1e-6, rtol=0)
    model = attach_bridgers(vision, clip, 2, SMALL).with_head(ClassificationHead).eval()
    with torch.no_grad():
        logits = model(
            pixels, words.expand(2, -1, -1), mentions=mentions_of(words, of_class)
        ).logits
    torch.testing.assert_close(logits.softmax(dim=-1), expected, atol=1e-5, rtol=0)


def test_fresh_on_siglip_it_gives_its_sigmoid_scores() -> None:
    siglip: Any = whole("SiglipModel", None, pad_token_id=1)()
    siglip.logit_scale.data.fill_(math.log(3.0))
    siglip.logit_bias.data.fill_(-1.5)
    pixels, words = images(2, 64), ids(3)
    with torch.no_grad():
        # SigLIP reads texts of a fixed length, padding and all; bridger brings them to it.
        length = siglip.config.text_config.max_position_embeddings
        words[words == 0] = 1
        filled = F.pad(words, (0, length - words.shape[1]), value=1)
        plain = siglip(input_ids=filled, pixel_values=pixels)
        model = attach_bridgers(siglip, siglip, 2, SMALL).with_head(
            ClassificationHead, multi_label=True
        )
        every = words.expand(2, -1, -1)
        logits = model.eval()(pixels, every, every != 1).logits
    torch.testing.assert_close(logits.sigmoid(), plain.logits_per_image.sigmoid())
    assert plain.logits_per_image.std() > 0.01


@pytest.mark.parametrize(
    ("spec", "options", "scale"),
    [
        (replace(POOLED, logit_scale=31.0), {}, 31.0),
        (replace(POOLED, logit_scale=31.0), {"logit_scale": 7.0}, 7.0),
        (POOLED, {}, 100.0),
        (replace(APART, logit_scale=31.0), {}, 1 / 0.07),
    ],
)
def test_the_scale_is_the_option_the_towers_own_or_clips(
    spec: EncoderSpec, options: Mapping[str, float], scale: float
) -> None:
    scores: Any = ClassificationHead.from_spec(spec, **options).scores
    assert scores.log_scale.exp().item() == pytest.approx(scale)


# Scores by text.


def by_hand(head: ClassificationHead, seen: BridgedFeatures, row: int, named: Tensor) -> Tensor:
    """The cosine of one row's picture with its text, of which some tokens are named."""
    scores: Any = head.scores
    pooled = seen.maps[-1][row].mean(dim=(-2, -1)) if seen.pooled is None else seen.pooled[row]
    picture, text = scores.image(pooled), scores.text.sentence(seen.sentence[row])
    text = text + scores.text.tokens.weight @ seen.tokens[row][named].mean(dim=0)
    return scores.log_scale.exp() * torch.dot(picture / picture.norm(), text / text.norm())


@pytest.mark.parametrize("spec", [SPEC, POOLED, APART], ids=["last map", "pooled", "apart"])
def test_scores_are_scaled_cosines_of_each_row_with_its_own_text(spec: EncoderSpec) -> None:
    head, seen = head_of(spec, width=9), given(spec)
    logits = head(seen).logits
    assert logits.shape == (2, 3) and logits.dtype == torch.float32
    expected = [by_hand(head, seen, row, seen.token_mask[row]) for row in range(6)]
    torch.testing.assert_close(logits, torch.stack(expected).reshape(2, 3))


def test_only_towers_that_share_no_space_get_projections() -> None:
    shared, apart = head_of(POOLED), head_of(APART, width=9)
    assert {name for name, _ in shared.named_parameters()} == {
        "scores.log_scale",
        "scores.text.tokens.weight",
    }
    assert apart.scores.image.weight.shape == (9, 18)  # type: ignore[union-attr]


def test_what_padding_holds_plays_no_part() -> None:
    head, seen = head_of(), given()
    logits = head(seen).logits
    seen.tokens[~seen.token_mask] = math.nan
    assert torch.equal(head(seen).logits, logits)


def test_the_mentions_of_a_class_are_averaged_on_both_sides() -> None:
    head, seen = head_of(), given(batch=1)
    tokens = seen.token_mask[None]
    mentions = Mentions(torch.tensor([0, 1, 2]), torch.tensor([1, 0, 1]), tokens, 2)
    logits = head(replace(seen, mentions=mentions)).logits
    scores: Any = head.scores
    text = torch.stack(
        [
            seen.sentence[r] + scores.text.tokens.weight @ seen.tokens[r][tokens[0, r]].mean(dim=0)
            for r in range(3)
        ]
    )
    assert seen.pooled is not None
    picture, text = (F.normalize(side, dim=-1) for side in (seen.pooled, text))
    mean_picture, mean_text = (picture[0] + picture[2]) / 2, (text[0] + text[2]) / 2
    twice = F.cosine_similarity(mean_picture, mean_text, dim=0)
    expected = torch.stack([F.cosine_similarity(picture[1], text[1], dim=0), twice])
    torch.testing.assert_close(logits[0], scores.log_scale.exp() * expected)


def test_one_class_is_the_same_separate_and_joint() -> None:
    model, pixels = tiny(noise=0.05), images(2, 128)
    assert model.processor is not None
    one, other = (
        Texts.of_classes(model.processor, ["boxing glove"], mode) for mode in ("separate", "joint")
    )
    logits = [answer(model, "head", pixels, texts).logits for texts in (one, other)]
    assert torch.equal(*logits)


def test_packed_names_share_a_sentence_and_are_told_apart_by_their_tokens() -> None:
    model, pixels = tiny(text_mode="joint"), images(2, 128)
    assert model.processor is not None
    texts = Texts.of_classes(model.processor, ANIMALS, "joint")
    assert len(texts.input_ids) == 1
    fresh = answer(model, "head", pixels, texts).logits
    torch.testing.assert_close(fresh, fresh[:, :1].expand(-1, 3))
    moved = answer(tiny(noise=0.05, text_mode="joint"), "head", pixels, texts).logits
    assert (moved.std(dim=1) > 0.1).all()


@pytest.mark.parametrize("mode", ["separate", "joint"])
@pytest.mark.parametrize("scores", ["text", "fixed"])
def test_chunks_give_the_scores_of_all_texts_at_once(scores: str, mode: str) -> None:
    names = tuple(kind.name for kind in kinds()[:30])
    model = tiny(noise=0.05, classes=names, scores=scores, text_mode=mode)
    assert model.processor is not None
    texts, pixels = model.heads["head"].texts(model.processor, None), images(2, 128)
    rows = len(texts.input_ids)
    assert rows > 1
    whole_list = asked(model, pixels, texts)
    assert whole_list.shape == (2, 30) and whole_list.std() > 1e-3
    parts = asked(model, pixels, texts, rows=1 if mode == "joint" else 7)
    torch.testing.assert_close(parts, whole_list, atol=1e-5, rtol=1e-5)


# Scores of a fixed list.


def test_the_linear_probe_begins_at_zero_and_reads_the_standardised_feature() -> None:
    fresh = ClassificationHead.from_spec(POOLED, scores="fixed", classes=("owl", "cat"))
    seen = given(n=2)
    assert (fresh(seen).logits == 0).all()
    head = head_of(scores="fixed", classes=("owl", "cat"))
    assert seen.pooled is not None
    pooled = seen.pooled
    standard = (pooled - pooled.mean(-1, keepdim=True)) / pooled.std(-1, False, keepdim=True)
    layer = head.scores.linear
    mean = standard.reshape(2, 2, -1).mean(dim=1)
    expected = mean @ layer.weight.T + layer.bias
    torch.testing.assert_close(head(seen).logits, expected, atol=1e-4, rtol=1e-4)
    ragged = torch.tensor([[True, True], [True, False]])
    expected[1] = standard.reshape(2, 2, -1)[1, 0] @ layer.weight.T + layer.bias
    torch.testing.assert_close(
        head(seen, expression_mask=ragged).logits, expected, atol=1e-4, rtol=1e-4
    )


def test_a_linear_probe_without_bridgers_learns_frozen_features() -> None:
    vision, text, _ = bridger.load_tiny_clip()
    bridged = attach_bridgers(vision, text, 1, None)
    model = bridged.with_head(ClassificationHead, scores="fixed", classes=ANIMALS)
    assert [group["name"] for group in model.parameter_groups()] == ["head"]
    assert model.processor is not None
    batch = model.heads["head"].texts(model.processor, None).batch(3)
    shown = [model.processor.image(make_scene("val", index).image)[0] for index in range(3)]
    batch["pixel_values"], batch["labels"] = torch.stack(shown), torch.arange(3)
    optimizer = torch.optim.Adam(model.trainable_parameters(), lr=0.05)
    model.train()
    for _ in range(20):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (model(**batch).logits.argmax(dim=1) == batch["labels"]).all() and loss < 0.1


def test_fixed_classes_are_not_asked_about_others() -> None:
    model = tiny(scores="fixed", classes=(("owl", "night bird"), "drum"))
    picture = make_scene("val", 0).image
    expected = model.predict(picture)
    assert expected.names == ("owl", "drum")
    again = model.predict(picture, [("owl", "night bird"), "drum"])
    assert np.array_equal(again.probabilities, expected.probabilities)
    for words in ("owl", ["drum", "owl"], ["owl", "drum", "cat"]):
        with pytest.raises(ValueError, match=r"2 fixed classes.*\['owl', 'drum'\]"):
            model.predict(picture, words)
    with pytest.raises(ValueError, match="2 fixed classes, but the texts are about 3"):
        model.heads["head"](given(model.encoder.spec), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("scores", ["text", "fixed"])
def test_only_none_asks_about_the_trained_classes(scores: str) -> None:
    model = tiny(scores=scores, classes=("owl", "drum"))
    picture = make_scene("val", 0).image
    assert model.predict(picture).names == ("owl", "drum")
    with pytest.raises(ValueError, match="at least one class name, found none"):
        model.predict(picture, [])
    for words in (5, np.array(["owl", "drum"]), {"owl": 1}):
        with pytest.raises(TypeError, match="expected a list of class names, found"):
            model.predict(picture, words)
    with pytest.raises(ValueError, match="keeps no class names of its own"):
        tiny().predict(picture)
    with pytest.raises(TypeError, match="2 pictures need as many texts, got 5"):
        model.predict([picture, picture], 5)

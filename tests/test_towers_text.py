"""Text towers: their own features, any length, masks, refused texts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers_towers import (
    CONTEXT,
    EOS,
    SOS,
    TEXT_MODULES,
    VOCAB,
    Watch,
    hf_clip,
    hf_text,
    ids,
    open_clip_vit,
)
from torch import Tensor, nn

from bridger.towers import (
    find_text_tower,
)
from bridger.towers.text import through_first, through_highest
from bridger.towers.views import tensor_at

TEXT = pytest.mark.parametrize("kind", TEXT_MODULES)


def _own_text_feature(given: Any, input_ids: Tensor) -> Tensor:
    if hasattr(given, "encode_text"):
        return given.encode_text(input_ids)
    if hasattr(given, "get_text_features"):
        features = given.get_text_features(input_ids)
        return features if isinstance(features, Tensor) else features.pooler_output
    result = given(input_ids)
    if isinstance(result, Tensor):
        return result
    key = "text_embeds"
    return result[key] if key in result else result.pooler_output


@TEXT
def test_sentences_and_tokens_are_the_towers_own(kind: str) -> None:
    given = TEXT_MODULES[kind]()
    tower = find_text_tower(given)
    prepared, mask = tower.prepare(ids())
    with Watch(tower) as states:
        result = tower.call(prepared, mask, {})
    last = tower.read_tokens(3, states[-1])
    tokens = tower.tokens(last, result, {})
    sentence = tower.sentence(tokens, prepared, result)
    assert torch.equal(sentence, _own_text_feature(given, ids()))
    assert tokens.shape == (2, CONTEXT, tower.token_width)
    assert sentence.shape == (2, tower.sentence_width)
    if kind.startswith("hf"):
        own = getattr(given, "text_model", given)(ids())
        assert torch.equal(tokens, own.last_hidden_state)
    # the sentence is the projected token of the end of text
    end = tokens[torch.arange(2), (prepared == EOS).int().argmax(1)]
    projection = getattr(tower.module, "text_projection", None)
    if isinstance(projection, nn.Module):
        end = projection(end)
    elif projection is not None:
        end = end @ projection
    assert torch.allclose(end, sentence, atol=1e-6)


@TEXT
@pytest.mark.parametrize("length", [6, 9])
def test_any_length_says_the_same_as_the_full_table(kind: str, length: int) -> None:
    tower = find_text_tower(TEXT_MODULES[kind]())
    features = []
    for texts in (ids(length=CONTEXT), ids(length=length)):
        prepared, mask = tower.prepare(texts)
        with Watch(tower) as states:
            result = tower.call(prepared, mask, {})
        tokens = tower.tokens(states[-1], result, {})
        features.append((tokens[mask], tower.sentence(tokens, prepared, result)))
    assert torch.allclose(features[0][0], features[1][0], atol=2e-6)
    assert torch.allclose(features[0][1], features[1][1], atol=2e-6)


@TEXT
def test_a_text_alone_equals_the_same_text_in_a_batch(kind: str) -> None:
    tower = find_text_tower(TEXT_MODULES[kind]())
    batch = ids(3)

    def sentence(texts: Tensor) -> Tensor:
        prepared, mask = tower.prepare(texts)
        result = tower.call(prepared, mask, {})
        return tower.sentence(torch.empty(0), prepared, result)

    together = sentence(batch)
    for row, text in enumerate(batch):
        length = int((text == EOS).nonzero()[0]) + 1
        assert torch.allclose(sentence(text[None, :length])[0], together[row], atol=1e-5)


@TEXT
def test_masks_end_with_the_first_end_of_text(kind: str) -> None:
    tower = find_text_tower(TEXT_MODULES[kind]())
    texts = ids(2, words=4)
    texts[0, 8:] = EOS if kind.startswith("hf") else 0  # transformers pads with the end of text
    prepared, mask = tower.prepare(texts)
    assert mask.dtype == torch.bool and mask.shape == prepared.shape
    assert mask.sum(1).tolist() == [6, 5] and mask[0, :6].all() and mask[1, :5].all()


@TEXT
def test_a_users_mask_is_taken_as_it_is(kind: str) -> None:
    tower = find_text_tower(TEXT_MODULES[kind]())
    given = torch.tensor([[1] * 7 + [0] * 3, [1] * 4 + [0] * 6])
    prepared, mask = tower.prepare(ids(length=10), given)
    assert mask[:, :10].tolist() == given.bool().tolist() and not mask[:, 10:].any()
    unmasked = tower.call(*tower.prepare(ids(length=10)), {})
    masked = tower.call(prepared, mask, {})
    nothing = torch.empty(0)
    assert torch.equal(
        tower.sentence(nothing, prepared, masked), tower.sentence(nothing, prepared, unmasked)
    )


@TEXT
def test_bad_texts_are_named(kind: str) -> None:
    tower = find_text_tower(TEXT_MODULES[kind]())
    good, ones = ids(), torch.ones(2, CONTEXT)
    for bad, mask, words in [
        (good[0], None, r"must be \(B, L\) and not empty, found \(12,\)"),
        (good[:, :0], None, r"not empty, found \(2, 0\)"),
        (good.float(), None, "int64 or int32, found torch.float32"),
        (ids(length=13), None, "at most 12 tokens, found 13: cut the texts"),
        (good + 1, None, f"0 ... {VOCAB - 1}, found .* tower's own tokenizer"),
        (good - 1, None, f"0 ... {VOCAB - 1}, found -1"),
        (torch.full((2, 5), 7), None, "row 0 of input_ids has no end-of-text.*2 of 2 rows"),
        (good, ones[:, :5], r"like input_ids \(2, 12\), found \(2, 5\)"),
        (good, 0 * ones, "row 0 of attention_mask has no true token"),
        (good, ones.flip(1).cumsum(1) > 4, "from a row's first token on.*pad on the right"),
    ]:
        with pytest.raises(ValueError, match=words):
            tower.prepare(bad, mask)


@TEXT
def test_written_tokens_replace_the_state(kind: str) -> None:
    tower = find_text_tower(TEXT_MODULES[kind]())
    prepared, mask = tower.prepare(ids())

    def same(index: int, output: Any) -> Any:
        return tower.write_tokens(index, output, tower.read_tokens(index, output).double())

    def other(index: int, output: Any) -> Any:
        return tower.write_tokens(index, output, 2 * tower.read_tokens(index, output))

    sentences = []
    for replace in (None, same, other):
        with Watch(tower, replace):
            result = tower.call(prepared, mask, {})
        sentences.append(tower.sentence(torch.empty(0), prepared, result))
    assert torch.equal(sentences[0], sentences[1])
    assert not torch.allclose(sentences[0], sentences[2], atol=1e-3)
    state = torch.zeros(2, 3, 4)
    assert tower.write_tokens(0, (state, None), state + 1)[1] is None
    with pytest.raises(ValueError, match=r"holds tokens \(2, 3, 4\), found \(4, 3, 4\)"):
        tower.write_tokens(0, state, state.repeat(2, 1, 1))


@TEXT
@pytest.mark.parametrize("length", [7, CONTEXT])
def test_trained_text_positions_stand_in_and_learn(kind: str, length: int) -> None:
    given = TEXT_MODULES[kind]()
    tower = find_text_tower(given)
    (name,) = tower.position_names()
    own = tensor_at(tower.module, name)
    prepared, mask = tower.prepare(ids(length=length))
    before = tower.sentence(torch.empty(0), prepared, tower.call(prepared, mask, {}))
    table = (own + torch.randn_like(own)).detach().requires_grad_()
    result = tower.call(prepared, mask, {name: table})
    after = tower.sentence(torch.empty(0), prepared, result)
    assert not torch.allclose(before, after, atol=1e-3)
    after.sum().backward()
    assert table.grad is not None and (table.grad[:6] != 0).any(dim=1).all()
    again = tower.call(prepared, mask, {name: own.clone()})
    assert torch.equal(tower.sentence(torch.empty(0), prepared, again), before)
    assert tensor_at(tower.module, name) is own
    with pytest.raises(ValueError, match="must have the tower's own shape"):
        tower.call(prepared, mask, {name: table[:5]})


def test_trained_final_norms_reach_tokens_and_sentence() -> None:
    for build, name in [
        (open_clip_vit, "ln_final.bias"),
        (hf_clip, "text_model.final_layer_norm.bias"),
    ]:
        tower = find_text_tower(build())
        shift = {name: tensor_at(tower.module, name) + 1}
        prepared, mask = tower.prepare(ids())
        with Watch(tower) as states:
            result = tower.call(prepared, mask, shift)
        tokens = tower.tokens(states[-1], result, shift)
        assert torch.allclose(tokens, tower.tokens(states[-1], result, {}) + 1, atol=1e-6)


def test_transformers_old_configs_end_at_the_highest_id() -> None:
    tower = find_text_tower(hf_text(eos=2))
    texts = ids()
    texts[0, 1] = 2
    prepared, mask = tower.prepare(texts)
    assert mask.sum(1).tolist() == [6, 5]
    result = tower.call(prepared, mask, {})
    assert torch.equal(result, tower.module(texts).text_embeds)


def test_open_clips_eos_pooling_needs_the_eos() -> None:
    try:
        clip = open_clip_vit(text=dict(pool_type="eos", eos_id=5))
    except TypeError:
        pytest.skip("open_clip before 3.0 does not pool at an id of its own")
    tower = find_text_tower(clip)
    texts = torch.tensor([[SOS, 9, 5, 5, 0], [SOS, 5, 0, 0, 0]])
    assert tower.prepare(texts)[1].sum(1).tolist() == [3, 2]
    with pytest.raises(ValueError, match="row 1 of input_ids has no end-of-text id 5 .1 of 2"):
        tower.prepare(torch.tensor([[SOS, 5], [SOS, 9]]))


@pytest.mark.parametrize(
    ("text", "pad", "lengths"),
    [
        (dict(pool_type="last", proj_bias=True), 1, [4, 3]),  # SigLIP: one padding id is read
        (dict(pool_type="last"), 0, [4, 3]),
        (dict(pool_type="argmax"), 0, [4, 3]),
    ],
)
def test_towers_without_a_causal_mask_see_their_trained_length(
    text: dict[str, Any], pad: int, lengths: list[int]
) -> None:
    clip = open_clip_vit(custom=True, text=dict(no_causal_mask=True, **text))
    tower = find_text_tower(clip)
    ends = 1 if pad == 1 else EOS
    texts = torch.tensor([[SOS, 9, 8, ends, pad], [SOS, 9, ends, pad, pad]])
    padded, mask = tower.prepare(texts)
    assert padded.shape == mask.shape == (2, CONTEXT) and mask.sum(1).tolist() == lengths
    assert (padded[:, 5:] == pad).all()
    full = torch.full((2, CONTEXT), pad)
    full[:, :5] = texts
    assert torch.equal(tower.call(padded, mask, {}), clip.encode_text(full))


def test_left_padding_is_refused_where_the_pad_id_decides() -> None:
    clip = open_clip_vit(custom=True, text=dict(no_causal_mask=True, pool_type="last"))
    with pytest.raises(ValueError, match="the padding id.*pad on the right"):
        find_text_tower(clip).prepare(torch.tensor([[0, 0, 5, 6]]))


def test_masks_of_rows() -> None:
    hits = torch.tensor([[0, 1, 0, 1], [0, 0, 0, 1]]).bool()
    assert through_first(hits, "hit").tolist() == [[True, True, False, False], [True] * 4]
    assert through_highest(torch.tensor([[3, 9, 9, 1]])).tolist() == [[True, True, False, False]]
    assert through_highest(torch.tensor([[4]])).tolist() == [[True]]

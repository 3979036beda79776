"""Every class of text towers in `families_text` held to the same invariants."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from families_text import (
    BART,
    FROM_PAD,
    RELATIVE,
    ROWS,
    T5,
    build,
    coca,
    dual_encoder,
    hf_text_encoder,
    whole,
)
from helpers_conformance import SMALL, changed, features, trace
from helpers_families import TextRow
from helpers_towers import CONTEXT, EOS, SOS, VOCAB, Watch, fill, hf_vision, ids, images
from torch import Tensor, nn

from bridger import attach_bridgers
from bridger.towers import TextTower, find_text_tower
from bridger.towers.text import ANY_LENGTH
from bridger.towers.views import tensor_at

CLOSE = {"atol": 2e-5, "rtol": 1e-4}
UNMASKED = ("transformers/Siglip", "transformers/MetaClip2")


class Case(NamedTuple):
    row: TextRow
    given: nn.Module
    tower: TextTower

    def ids(self, batch: int = 2, length: int = CONTEXT) -> Tensor:
        return ids(batch, length, pad=self.row.pad)


# Virtual tokens have tests of their own, in test_prompts.py.
PLAIN = [row for row in ROWS if not row.name.startswith("peft/")]


@pytest.fixture(scope="module", params=PLAIN, ids=lambda row: row.name)
def case(request: pytest.FixtureRequest) -> Case:
    """A row's model, built once: no test may change it."""
    given = request.param.build()
    return Case(request.param, given, find_text_tower(given))


class Ran(NamedTuple):
    tokens: Tensor
    sentence: Tensor
    mask: Tensor
    states: list[Tensor]


def run(
    tower: TextTower,
    texts: Tensor,
    mask: Tensor | None = None,
    tensors: dict[str, Tensor] | None = None,
    replace: Any = None,
) -> Ran:
    prepared, mask = tower.prepare(texts, mask)
    with Watch(tower, replace) as states:
        result = tower.call(prepared, mask, tensors or {})
    last = tower.read_tokens(len(tower.blocks) - 1, states[-1])
    tokens = tower.tokens(last, result, tensors or {})
    return Ran(tokens, tower.sentence(tokens, prepared, result), mask, states)


def own_features(given: Any, texts: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens and sentence as the model's own forward makes them, without the tower's code."""
    kind = type(given).__name__
    if kind in ("CoCa", "CustomTextCLIP"):
        given, kind = given.text, type(given.text).__name__
    if kind == "HFTextEncoder":
        given.output_tokens = False
        return given.transformer(texts, mask.long()).last_hidden_state, given(texts)
    if kind == "TextTransformer":
        sentence, tokens = given(texts)
        return tokens, sentence
    if kind == "BertForSequenceClassification":
        given = given.bert
    encoder = given.text_model if hasattr(given, "text_projection") else given
    encoder = getattr(encoder, "text_model", encoder)
    masked = {} if kind.startswith(("Siglip", "MetaClip2")) else {"attention_mask": mask.long()}
    result = encoder(texts, **masked)
    if kind == "ChineseCLIPModel":  # whose get_text_features fails on itself in 4.57
        sentence = given.text_projection(result.last_hidden_state[:, 0])
    elif hasattr(given, "get_text_features"):
        features = given.get_text_features(texts, **masked)
        sentence = features if isinstance(features, Tensor) else features.pooler_output
    elif kind.endswith("WithProjection"):
        sentence = given(texts).text_embeds
    else:
        sentence = getattr(result, "pooler_output", None)
    if sentence is not None:
        return result.last_hidden_state, sentence
    tokens = result.last_hidden_state
    mean = kind.endswith(("Encoder", "EncoderModel", "Stack")) or (
        getattr(given.config, "classifier_pooling", "") == "mean"
    )
    if not mean:
        return tokens, tokens[:, 0]
    return tokens, torch.stack([row[real].mean(0) for row, real in zip(tokens, mask, strict=True)])


def test_blocks_fire_once_in_order_and_are_named_below_what_was_given(case: Case) -> None:
    with Watch(case.tower) as states:
        case.tower.call(*case.tower.prepare(case.ids()), {})
    assert len(states) == len(case.tower.blocks) == 3
    for index, (block, state) in enumerate(zip(case.tower.blocks, states, strict=True)):
        assert case.given.get_submodule(block.name) is block.module
        assert [piece for piece in block.name.split(".") if piece.isdigit()][0] == str(index)
        assert case.tower.read_tokens(index, state).shape == (2, CONTEXT, block.width)
    described = case.tower.describe()
    assert json.loads(json.dumps(described)) == described


def test_sentence_and_tokens_are_the_models_own(case: Case) -> None:
    with torch.no_grad():
        ran = run(case.tower, case.ids())
        prepared, mask = case.tower.prepare(case.ids())
        tokens, sentence = own_features(case.given, prepared, mask)
    assert torch.equal(ran.tokens, tokens)
    torch.testing.assert_close(ran.sentence, sentence, atol=1e-6, rtol=1e-6)
    assert ran.tokens.shape == (2, CONTEXT, case.tower.token_width)
    assert ran.sentence.shape == (2, case.tower.sentence_width)


def test_padding_and_company_change_nothing(case: Case) -> None:
    with torch.no_grad():
        full = run(case.tower, case.ids(3))
        short = run(case.tower, case.ids(3, length=7))
        torch.testing.assert_close(short.tokens[short.mask], full.tokens[full.mask], **CLOSE)
        torch.testing.assert_close(short.sentence, full.sentence, **CLOSE)
        for row, text in enumerate(case.ids(3)):
            length = int((text == EOS).nonzero()[0]) + 1
            alone = run(case.tower, text[None, :length])
            torch.testing.assert_close(alone.sentence[0], full.sentence[row], **CLOSE)
            torch.testing.assert_close(alone.tokens[0, :length], full.tokens[row, :length], **CLOSE)


def test_a_written_change_reaches_the_output(case: Case) -> None:
    tower = case.tower

    def same(index: int, output: Any) -> Any:
        written = tower.write_tokens(index, output, tower.read_tokens(index, output).double())
        assert type(written) is type(output)
        if isinstance(output, tuple):
            assert len(written) == len(output) and written[1:] == output[1:]
        return written

    def changed_at(block: int) -> Any:
        def change(index: int, output: Any) -> Any:
            tokens = tower.read_tokens(index, output)
            noise = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(index))
            return tower.write_tokens(index, output, tokens + noise) if index == block else None

        return change

    with torch.no_grad():
        plain = run(tower, case.ids())
        kept = run(tower, case.ids(), replace=same)
        assert torch.equal(kept.sentence, plain.sentence)
        for block in (0, len(tower.blocks) - 1):
            changed = run(tower, case.ids(), replace=changed_at(block)).sentence
            if block and "CoCa" in case.row.name:
                continue  # only the class token, which is no word, makes its sentence
            assert not torch.allclose(changed, plain.sentence, atol=1e-3)


def test_a_users_mask_is_taken(case: Case) -> None:
    tower, texts = case.tower, case.ids()
    given = torch.tensor([[1] * 5 + [0] * 7, [1] * 4 + [0] * 8])
    with torch.no_grad():
        ran = run(tower, texts, given)
        plain = run(tower, texts)
    assert ran.mask.tolist() == given.bool().tolist()
    masked_out = ran.tokens[0, :5], plain.tokens[0, :5]
    if case.row.name.startswith(UNMASKED):
        assert torch.equal(*masked_out) and torch.equal(ran.sentence, plain.sentence)
    elif "CoCa" in case.row.name:  # causal but for its class token
        torch.testing.assert_close(*masked_out)
        assert not torch.allclose(ran.sentence, plain.sentence, atol=1e-3)
    else:
        assert not torch.allclose(*masked_out, atol=1e-3)


def test_trained_positions_stand_in_and_learn(case: Case) -> None:
    tower = case.tower
    names = tower.position_names()
    assert bool(names) == ("positions" not in case.row.exceptions)
    if not names:
        return
    before = run(tower, case.ids()).sentence
    for name in names:
        own = tensor_at(tower.module, name)
        table = (own + torch.randn_like(own)).detach().requires_grad_()
        after = run(tower, case.ids(), tensors={name: table}).sentence
        assert not torch.allclose(before, after, atol=1e-3), name
        after.square().sum().backward()
        assert table.grad is not None and bool((table.grad != 0).any()), name
        again = run(tower, case.ids(), tensors={name: own.clone()}).sentence
        assert torch.equal(again, before) and tensor_at(tower.module, name) is own
    for parameter in tower.module.parameters():
        parameter.grad = None


@pytest.fixture(scope="module")
def vision() -> Iterator[Any]:
    yield hf_vision()


def test_bridgers_start_silent_learn_and_leave_no_trace(case: Case, vision: Any) -> None:
    before = trace(case.given)
    x, texts = images(2), case.ids()
    bridged = attach_bridgers(vision, case.given, 2, SMALL).eval()
    try:
        with torch.no_grad():
            fresh = bridged(x, texts)
            with bridged.disable():
                plain = bridged(x, texts)
        assert all(torch.equal(a, b) for a, b in zip(features(fresh), features(plain), strict=True))
        out = changed(bridged)(x, texts)
        assert not torch.equal(out.sentence, fresh.sentence)
        sum(tensor.square().sum() for tensor in features(out)).backward()
        assert bridged.bridgers is not None
        silent = [k for k, p in bridged.bridgers.named_parameters() if p.grad is None]
        assert not silent and all(p.grad is None for p in case.given.parameters())
    finally:
        bridged.detach()
    assert trace(case.given) == before


def test_texts_that_no_table_holds_or_no_mask_fits_are_refused(case: Case) -> None:
    tower, texts = case.tower, case.ids()
    if tower.max_length != ANY_LENGTH:
        with pytest.raises(ValueError, match="at most 12 tokens, found 13: cut the texts"):
            tower.prepare(case.ids(length=13))
    with pytest.raises(ValueError, match=f"0 ... {VOCAB - 1}, found .* tower's own tokenizer"):
        tower.prepare(texts + 1)
    with pytest.raises(ValueError, match="row 0 of attention_mask has no true token"):
        tower.prepare(texts, torch.zeros(2, CONTEXT))
    if not case.row.name.startswith(UNMASKED):
        left = torch.tensor([[case.row.pad, SOS, 9, EOS]])
        with pytest.raises(ValueError, match="the padding id.*pad on the right"):
            tower.prepare(left)
        assert tower.prepare(left, torch.ones(1, 4))[1].sum() == 4  # a given mask decides


def test_descriptions_are_the_same_alone_and_in_a_whole() -> None:
    for part in (whole("Siglip", at="text_model"), whole("Siglip")):
        assert find_text_tower(part()).describe() == find_text_tower(whole("Siglip")()).describe()
    clip = coca()
    assert find_text_tower(clip).describe() == find_text_tower(clip.text).describe()
    nested = find_text_tower(hf_text_encoder()).describe()
    assert nested["inner"] == "transformers Roberta" and nested["class"] == "HFTextEncoder"


@pytest.mark.parametrize(
    ("name", "at", "options"),
    [
        ("BertForSequenceClassification", "bert", {}),
        ("BertForTokenClassification", "bert", {}),
        ("BertForNextSentencePrediction", "bert", {}),
        ("BertForQuestionAnswering", "bert", {}),
        ("BertForMaskedLM", "bert", {}),
        ("RobertaForSequenceClassification", "roberta", FROM_PAD),
        ("DebertaV2ForSequenceClassification", "deberta", RELATIVE),
        ("T5ForTokenClassification", "transformer", T5),
    ],
)
def test_a_tasks_head_is_left_out(name: str, at: str, options: dict[str, Any]) -> None:
    config = f"{name.partition('For')[0]}Config"
    given = build(name, config, **options)()
    tower, alone = find_text_tower(given), find_text_tower(given.get_submodule(at))
    assert tower.describe() == alone.describe() and tower.sentence_width == 32
    texts = ids(pad=tower.pad_id)  # type: ignore[attr-defined]
    assert torch.equal(run(tower, texts).sentence, run(alone, texts).sentence)


def test_the_encoder_of_a_translator_is_taken_where_the_whole_is_refused() -> None:
    for name in ("Bart", "MBart", "M2M100", "Marian"):
        model = build(f"{name}Model", **BART)()
        with pytest.raises(TypeError, match=r"in one: .* or what model.get_encoder\(\) returns"):
            find_text_tower(model)
        tower = find_text_tower(model.get_encoder())
        assert (len(tower.blocks), tower.max_length, tower.sentence_width) == (3, CONTEXT, 32)


def test_siglip_2_pads_with_zero_whatever_its_config_says() -> None:
    options = dict(hidden_size=8, num_attention_heads=1, intermediate_size=8, pad_token_id=1)
    model = build("SiglipTextModel", vocab_size=256_000, num_hidden_layers=1, **options)()
    prepared, mask = find_text_tower(model).prepare(torch.tensor([[7, 8, 1]]))
    assert prepared[0].tolist() == [7, 8, 1] + [0] * 9 and mask.sum() == 3


def test_metaclip_2_needs_the_end_of_text_even_where_that_is_id_2() -> None:
    tower = find_text_tower(build("MetaClip2TextModel", eos_token_id=2)())
    assert tower.prepare(torch.tensor([[SOS, 9, 2, EOS]]))[1].sum() == 3
    for mask in (None, torch.ones(1, 3)):
        with pytest.raises(ValueError, match="has no end-of-text id 2"):
            tower.prepare(torch.tensor([[SOS, 9, EOS]]), mask)


def test_configs_that_ask_for_tuples_or_hidden_states_change_nothing() -> None:
    for name in ("BertModel", "SiglipTextModel"):
        model = build(name)()
        expected = run(find_text_tower(model), ids()).sentence
        model.config.return_dict = False
        model.config.output_hidden_states = True
        assert torch.equal(run(find_text_tower(model), ids()).sentence, expected)


def test_without_a_padding_id_every_token_is_real() -> None:
    tower = find_text_tower(build("BertModel", pad_token_id=None)())
    assert tower.prepare(ids())[1].all()


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (
            build("GPT2Model", n_head=2, n_embd=32, n_layer=1),
            "GPT2Model cannot be a text .*decoder",
        ),
        (build("LlamaModel"), "decoder, made to continue texts: expected an encoder that reads"),
        (build("BloomForCausalLM", "BloomConfig", n_head=2), "decoder, made to continue texts"),
        (build("T5Model", d_kv=16, d_ff=48, num_layers=1), "encoder alone, such as T5EncoderModel"),
        (build("AlbertModel", embedding_size=16), "ALBERT runs one block object over and over"),
        (
            build("AlbertForMaskedLM", "AlbertConfig", embedding_size=16),
            "ALBERT runs one block object over and over",
        ),
        (
            build("ErnieForSequenceClassification", "ErnieConfig"),
            "puts a task's head on an encoder.*pass the encoder inside it, model.base_model",
        ),
    ],
)
def test_models_that_cannot_be_text_towers_are_refused_with_the_reason(
    factory: Any, words: str
) -> None:
    with pytest.raises(TypeError, match=words):
        find_text_tower(factory())


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        (build("BertModel", is_decoder=True), "is built with is_decoder=True"),
        (dual_encoder(build("DistilBertModel", dim=32, n_heads=2)), "DistilBertModel has none"),
        (lambda: hf_text_encoder(pooler="max_pooler"), "pooler_type='max_pooler' cannot run"),
    ],
)
def test_towers_built_in_ways_that_cannot_work_are_refused(factory: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_text_tower(factory())


def test_open_clips_max_pooler_indeed_fails_by_itself() -> None:
    with pytest.raises(RuntimeError, match="bool"):
        hf_text_encoder(pooler="max_pooler")(ids(pad=1))


def test_a_part_that_is_missing_is_named() -> None:
    model = fill(build("BertModel")())
    model.encoder.blocks = model.encoder.layer
    del model.encoder.layer
    with pytest.raises(ValueError, match=r"expected to have encoder.layer, .*version of transf"):
        find_text_tower(model)

"""Virtual tokens of peft before the texts of a tower; `test_conformance.py` has rows for them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from families_text import FROM_PAD, LONGER, MODERN, RELATIVE, T5, build
from helpers_conformance import SMALL, features, same, trace
from helpers_towers import CONTEXT, hf_text, hf_vision, ids, images, open_clip_vit

from bridger import BridgedEncoder, BridgedModel, attach_bridgers
from bridger.recomputing import switch_on

peft: Any = pytest.importorskip("peft")

VIRTUAL = 3
TASK = {"task_type": "FEATURE_EXTRACTION", "num_virtual_tokens": VIRTUAL}
KINDS: dict[str, Any] = {
    "prompt tuning": lambda: peft.PromptTuningConfig(**TASK),
    "p-tuning": lambda: peft.PromptEncoderConfig(**TASK, encoder_hidden_size=8),
    "prefix tuning": lambda: peft.PrefixTuningConfig(**TASK),
    "projected prefix tuning": lambda: peft.PrefixTuningConfig(
        **TASK, prefix_projection=True, encoder_hidden_size=8
    ),
}
PADDED = {**FROM_PAD, "max_position_embeddings": CONTEXT + 2 + VIRTUAL}
MODELS: dict[str, tuple[Any, int]] = {
    "Bert": (build("BertModel", **LONGER), 0),
    "Roberta": (build("RobertaModel", **PADDED), 1),
    "XLMRoberta": (build("XLMRobertaModel", **PADDED), 1),
    "Electra": (build("ElectraModel", **LONGER, embedding_size=32), 0),
    "MPNet": (build("MPNetModel", **PADDED), 1),
    "DebertaV2": (build("DebertaV2Model", **RELATIVE, **LONGER), 0),
    "ModernBert": (build("ModernBertModel", **MODERN, **LONGER), 0),
    "T5": (build("T5EncoderModel", "T5Config", **T5), 0),
}
PREFIXED = ("Bert", "Roberta", "XLMRoberta", "Electra")
CASES = [
    pytest.param(name, kind, marks=() if (name, kind) in FAST else pytest.mark.slow)
    for FAST in [{("Bert", "prompt tuning"), ("Roberta", "prefix tuning")}]
    for name in MODELS
    for kind in KINDS
    if "prefix" not in kind or name in PREFIXED
]
every_case = pytest.mark.parametrize(("name", "kind"), CASES)


def wrapped(name: str, kind: str) -> Any:
    """A text model behind virtual tokens."""
    torch.manual_seed(0)
    return peft.get_peft_model(MODELS[name][0](), KINDS[kind]()).eval()


def bridge(text: Any, **options: Any) -> BridgedEncoder:
    return attach_bridgers(hf_vision(), text, 2, SMALL, **options)


def change(encoder: BridgedEncoder) -> BridgedModel:
    """A model whose trained parts have all learnt something."""
    model = BridgedModel(encoder, {})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@every_case
def test_texts_are_read_as_by_the_wrapped_model(name: str, kind: str) -> None:
    text = wrapped(name, kind)
    words = ids(2, pad=MODELS[name][1])
    encoder = bridge(text).eval()
    _, mask = encoder.text.prepare(words)
    with torch.no_grad():
        states = text(input_ids=words, attention_mask=mask.long()).last_hidden_state
        out = encoder(images(2), words)
    assert torch.equal(out.tokens, states[:, -words.shape[1] :])
    with torch.no_grad():  # they depend on what the virtual tokens are
        for parameter in text.prompt_encoder.parameters():
            parameter.add_(torch.randn(parameter.shape))
        assert not torch.equal(encoder(images(2), words).tokens, out.tokens)


@every_case
def test_they_are_trained_counted_and_saved(name: str, kind: str, tmp_path: Path) -> None:
    plain = MODELS[name][0]()
    text = wrapped(name, kind)
    model = change(bridge(text))
    words = ids(2, pad=MODELS[name][1])
    sum(t.square().sum() for t in features(model.encode(images(2), words))).backward()
    own = list(text.prompt_encoder.parameters())
    assert all(p.grad is not None and p.grad.any() for p in own)
    assert all(p.grad is None for p in text.base_model.parameters())
    groups = {group["name"]: group["params"] for group in model.parameter_groups()}
    assert set(groups["peft"]) == set(own)

    model.save_pretrained(tmp_path)
    before = trace(plain)
    again = BridgedModel.from_pretrained(tmp_path, hf_vision(), plain)
    with torch.no_grad():
        expected = model.encode(images(2), words)
        assert same(again.encode(images(2), words), expected)
    again.detach()
    assert trace(plain) == before
    with pytest.raises(ValueError, match="virtual tokens.*cannot be merged"):
        BridgedModel.from_pretrained(tmp_path, hf_vision(), plain).merge_peft()


def test_a_wrapped_tower_takes_the_adapters_virtual_tokens(tmp_path: Path) -> None:
    model = change(bridge(wrapped("Bert", "prompt tuning")))
    model.save_pretrained(tmp_path)
    other = wrapped("Bert", "p-tuning")
    kept = copy.deepcopy(other.state_dict())
    again = BridgedModel.from_pretrained(tmp_path, hf_vision(), other)
    assert same(again.encode(images(2), ids(2)), model.encode(images(2), ids(2)))
    assert all(torch.equal(value, kept[key]) for key, value in other.state_dict().items())


def test_bridgers_leave_the_virtual_states_alone() -> None:
    encoder = change(bridge(wrapped("Bert", "prompt tuning"))).encoder
    first = encoder.text.blocks[encoder.stages[0][1]].module
    following = encoder.text.blocks[encoder.stages[0][1] + 1].module
    seen: dict[str, Any] = {}
    # Hooks that come before and after the encoder's own.
    first.register_forward_hook(lambda m, a, out: seen.update(out=out), prepend=True)
    following.register_forward_pre_hook(lambda m, args: seen.update(given=args[0]))
    with torch.no_grad():
        encoder(images(2), ids(2))
    out = seen["out"][0] if isinstance(seen["out"], tuple) else seen["out"]
    assert torch.equal(seen["given"][:, :VIRTUAL], out[:, :VIRTUAL])
    assert not torch.equal(seen["given"][:, VIRTUAL:], out[:, VIRTUAL:])


@pytest.mark.parametrize("kind", ["prompt tuning", "prefix tuning"])
def test_they_take_up_positions(kind: str) -> None:
    encoder = bridge(wrapped("Bert", kind))
    assert encoder.text.max_length == CONTEXT
    with pytest.raises(ValueError, match=f"at most {CONTEXT} tokens"):
        encoder(images(1), torch.ones(1, CONTEXT + 1, dtype=torch.long))


def test_half_towers_keep_virtual_tokens_in_float32() -> None:
    text = wrapped("Bert", "prompt tuning")
    model = change(bridge(text))
    with torch.no_grad():
        exact = model.encode(images(2), ids(2)).tokens
        halved = model.bfloat16().encode(images(2), ids(2)).tokens
    assert {p.dtype for p in text.prompt_encoder.parameters()} == {torch.float32}
    assert (halved - exact).norm() < 0.1 * exact.norm()


def test_a_start_from_words_is_not_repeated_when_loading(tmp_path: Path) -> None:
    text = wrapped("Bert", "prompt tuning")
    config = text.peft_config["default"]
    config.prompt_tuning_init, config.prompt_tuning_init_text = "TEXT", "find the object"
    config.tokenizer_name_or_path = str(tmp_path / "there-is-no-tokenizer")
    model = change(bridge(text))
    model.save_pretrained(tmp_path)
    again = BridgedModel.from_pretrained(tmp_path, hf_vision(), MODELS["Bert"][0]())
    assert same(again.encode(images(2), ids(2)), model.encode(images(2), ids(2)))


# What is refused.


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (hf_text, "prompt tuning"),
        (hf_text, "prefix tuning"),
        (MODELS["MPNet"][0], "prefix tuning"),
        (MODELS["T5"][0], "prefix tuning"),
    ],
)
def test_models_in_which_they_fail(model: Any, kind: str) -> None:
    text = peft.get_peft_model(model(), KINDS[kind]())
    before = trace(text)
    with pytest.raises(TypeError, match="fails in .*BERT and its kin.*such as LoRA"):
        bridge(text)
    assert trace(text) == before


def test_a_task_for_which_peft_ignores_them() -> None:
    config = peft.PromptTuningConfig(
        num_virtual_tokens=3, token_dim=32, num_layers=3, num_attention_heads=2
    )
    text = peft.PeftModel(MODELS["Bert"][0](), config)
    with pytest.raises(TypeError, match="task_type='FEATURE_EXTRACTION'"):
        bridge(text)


def test_they_are_for_texts_alone() -> None:
    text = wrapped("Bert", "prompt tuning")
    with pytest.raises(TypeError, match="virtual tokens, which peft puts before texts alone"):
        attach_bridgers(text, hf_text(), 2, SMALL)
    with pytest.raises(TypeError, match="found the text tower"):
        attach_bridgers(MODELS["Bert"][0](), open_clip_vit(), 2, SMALL)


def test_another_tower_than_the_adapters(tmp_path: Path) -> None:
    change(bridge(wrapped("Bert", "prompt tuning"))).save_pretrained(tmp_path)
    plain = hf_text()
    before = trace(plain)
    with pytest.raises((TypeError, ValueError), match="fails in|other towers"):
        BridgedModel.from_pretrained(tmp_path, hf_vision(), plain)
    assert trace(plain) == before


def test_they_are_no_tower_that_one_could_pass() -> None:
    with pytest.raises(TypeError, match="known: ") as error:
        bridge(torch.nn.Linear(3, 3))
    assert "peft" not in str(error.value) and "transformers Bert" in str(error.value)


def test_a_word_embedding_of_the_adapter_is_read_behind_virtual_tokens(tmp_path: Path) -> None:
    encoder = bridge(wrapped("Bert", "prompt tuning"), trainable=["text.*word_embeddings*"])
    model = change(encoder)
    out = model.encode(images(2), ids(2))
    sum(t.square().sum() for t in features(out)).backward()
    (owned,) = encoder.tower_tensors.values()
    assert owned.grad is not None and owned.grad.any()
    with torch.no_grad(), model.disable():
        assert not torch.equal(model.encode(images(2), ids(2)).tokens, out.tokens)
    model.save_pretrained(tmp_path)
    again = BridgedModel.from_pretrained(tmp_path, hf_vision(), MODELS["Bert"][0]())
    assert same(again.encode(images(2), ids(2)), out)


def test_only_the_active_ones_are_trained() -> None:
    text = wrapped("Bert", "prompt tuning")
    text.add_adapter("idle", KINDS["prompt tuning"]())
    model = change(bridge(text))
    groups = {group["name"]: group["params"] for group in model.parameter_groups()}
    assert set(groups["peft"]) == set(text.prompt_encoder["default"].parameters())
    model.detach()
    assert all(p.requires_grad for p in text.prompt_encoder.parameters())


def test_others_made_active_later(tmp_path: Path) -> None:
    text = wrapped("Bert", "prompt tuning")
    text.add_adapter("two", peft.PromptTuningConfig(**{**TASK, "num_virtual_tokens": 2}))
    model = change(bridge(text))
    text.set_adapter("two")
    with pytest.raises(ValueError, match="attached with the virtual tokens 'default'.*'two'"):
        model.encode(images(2), ids(2))
    with pytest.raises(ValueError, match="attached with the virtual tokens"):
        model.save_pretrained(tmp_path)
    text.set_adapter("default")
    model.save_pretrained(tmp_path)


@pytest.mark.parametrize("nested", [False, True])
def test_layers_that_the_wrapping_has_frozen(nested: bool) -> None:
    text = MODELS["Bert"][0]()
    layers = peft.get_peft_model(text, peft.LoraConfig(target_modules=["query"]))
    prompted = peft.get_peft_model(layers if nested else text, KINDS["prompt tuning"]())
    with pytest.raises(ValueError, match="froze the layers.*once the model is wrapped"):
        bridge(prompted)


@pytest.mark.parametrize("first", ["peft", "bridgers"])
def test_layers_put_in_behind_them(first: str, tmp_path: Path) -> None:
    text = wrapped("Bert", "prompt tuning")
    config = peft.LoraConfig(target_modules=["query"])
    if first == "peft":
        peft.get_peft_model(text.get_base_model(), config)
    model = BridgedModel(bridge(text), {})
    if first == "bridgers":
        peft.get_peft_model(text.get_base_model(), config)
    model = change(model.encoder)
    out = model.encode(images(2), ids(2))
    sum(t.square().sum() for t in features(out)).backward()
    (group,) = [g["params"] for g in model.parameter_groups() if g["name"] == "peft"]
    assert len(group) == 7 and all(p.grad is not None and p.grad.any() for p in group)
    model.save_pretrained(tmp_path)
    again = BridgedModel.from_pretrained(tmp_path, hf_vision(), MODELS["Bert"][0]())
    assert same(again.encode(images(2), ids(2)), out)


def test_a_prefix_that_checkpointing_would_drop() -> None:
    text = wrapped("Bert", "prefix tuning")
    encoder = bridge(text)
    switch_on(text)
    for module in text.modules():  # as for other towers in which checkpointing is wanted
        module.training = True
    with pytest.raises(ValueError, match="drops the cache.*gradient_checkpointing_disable"):
        encoder(images(2), ids(2))


def test_more_of_them_than_positions() -> None:
    config = peft.PromptTuningConfig(**{**TASK, "num_virtual_tokens": 20})
    with pytest.raises(ValueError, match="20 virtual tokens.*position table .* has 15"):
        bridge(peft.get_peft_model(MODELS["Bert"][0](), config))

"""peft applied to a whole model of which only a part is a tower."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_conformance import SMALL, same
from helpers_towers import SMALL_BERT, hf_text, hf_vision, ids, images, open_clip_vit
from test_peft import comes_back
from torch import nn

from bridger import BridgedModel, attach_bridgers

peft: Any = pytest.importorskip("peft")
transformers: Any = pytest.importorskip("transformers")


def siglip() -> nn.Module:
    text = {**SMALL_BERT, "vocab_size": 64, "max_position_embeddings": 16, "projection_size": 32}
    vision = {**SMALL_BERT, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = transformers.SiglipConfig(text_config=text, vision_config=vision)
    return transformers.SiglipModel(config)


def t5() -> nn.Module:
    size = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 3, "num_heads": 2}
    torch.manual_seed(0)
    return transformers.T5EncoderModel(transformers.T5Config(**size, vocab_size=64))


def vit_classifier() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SMALL_BERT, image_size=32, patch_size=8)
    return transformers.ViTForImageClassification(config)


def convnext_classifier() -> nn.Module:
    config = transformers.ConvNextConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 2, 1])
    return transformers.ConvNextForImageClassification(config)


def bert_classifier() -> nn.Module:
    config = transformers.BertConfig(**SMALL_BERT, vocab_size=64)
    return transformers.BertForTokenClassification(config)


def lora(target: Any, **options: Any) -> Any:
    return peft.LoraConfig(target_modules=target, r=2, **options)


Side = Callable[[nn.Module], nn.Module]
SELF: Side = lambda whole: whole  # noqa: E731

# (whole model, the vision and the text model among it, what peft is asked for)
WHOLES: dict[str, tuple[Callable[[], nn.Module], Side | None, Side | None, Callable[[], Any]]] = {
    "both halves of SigLIP": (siglip, SELF, SELF, lambda: lora(["k_proj", "fc1"])),
    "one half of SigLIP": (
        siglip,
        SELF,
        None,
        lambda: lora(r"vision_model.*\.(k_proj|fc2)", lora_alpha=8),
    ),
    "SigLIP at ranks of their own": (
        siglip,
        SELF,
        SELF,
        lambda: lora(
            ["k_proj", "fc1"],
            rank_pattern={r"vision_model\.encoder\.layers\.1\.mlp\.fc1": 3, "k_proj": 1},
            alpha_pattern={"text_model.*k_proj": 16},
        ),
    ),
    "some layers of SigLIP": (
        siglip,
        SELF,
        SELF,
        lambda: lora(["k_proj"], layers_to_transform=[0, 2], layers_pattern="layers"),
    ),
    "whole layers of SigLIP": (
        siglip,
        SELF,
        SELF,
        lambda: lora(["k_proj"], modules_to_save=["post_layernorm", "final_layer_norm"]),
    ),
    "IA3 in SigLIP": (
        siglip,
        SELF,
        SELF,
        lambda: peft.IA3Config(
            target_modules=r".*\.(k_proj|fc2)",
            feedforward_modules=r"(vision|text)_model.*fc2",
        ),
    ),
    "norms of SigLIP": (
        siglip,
        SELF,
        SELF,
        lambda: peft.LNTuningConfig(target_modules=["layer_norm1"]),
    ),
    "attention of open_clip as a whole": (
        open_clip_vit,
        SELF,
        None,
        lambda: lora(r"visual.*\.attn"),
    ),
    "T5's encoder": (t5, None, SELF, lambda: lora(["q", "v"])),
    "a classifier's encoder": (
        vit_classifier,
        SELF,
        None,
        lambda: lora(r".*layers?\.\d+\..*(query|q_proj)"),
    ),
    "open_clip's, for its vision": (open_clip_vit, SELF, None, lambda: lora(r"visual.*c_fc")),
}


def pair(name: str, whole: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return the two models that the user passes."""
    _, vision, text, _ = WHOLES[name]
    return vision(whole) if vision else hf_vision(), text(whole) if text else hf_text()


@pytest.mark.parametrize("first", ["peft", "bridgers"])
@pytest.mark.parametrize("name", WHOLES)
def test_what_lies_in_the_towers_is_trained_saved_and_merged(
    name: str, first: str, tmp_path: Path
) -> None:
    build, *_, config = WHOLES[name]
    whole, plain = build(), build()
    if first == "peft":
        wrapped = peft.get_peft_model(whole, config())
        model = BridgedModel(attach_bridgers(*pair(name, wrapped), 2, SMALL), {})
    else:
        model = BridgedModel(attach_bridgers(*pair(name, whole), 2, SMALL), {})
        wrapped = peft.get_peft_model(whole, config())
    own = [p for n, p in wrapped.named_parameters() if p.requires_grad]
    trained = {id(p) for p in model.trainable_parameters()}
    assert own and {id(p) for p in own} <= trained
    assert comes_back(model, tmp_path, *pair(name, plain))
    expected = model.encode(images(2), ids(2))
    model.merge_peft()
    torch.testing.assert_close(model.encode(images(2), ids(2)).tokens, expected.tokens)
    torch.testing.assert_close(model.encode(images(2), ids(2)).maps[-1], expected.maps[-1])


def test_such_an_adapter_also_loads_into_the_encoders_alone(tmp_path: Path) -> None:
    whole, plain = siglip(), siglip()
    wrapped = peft.get_peft_model(whole, lora(["k_proj", "fc1"]))
    model = BridgedModel(attach_bridgers(wrapped, wrapped, 2, SMALL), {})
    assert comes_back(model, tmp_path, plain.vision_model, plain.text_model)


def test_tensors_come_back_to_the_half_that_they_were_in(tmp_path: Path) -> None:
    # The halves of SigLIP have layers of the same names and shapes.
    whole = siglip()
    peft.get_peft_model(whole.vision_model, lora(["k_proj"]))
    outer = peft.get_peft_model(whole, lora(r"text_model.*k_proj"))
    model = BridgedModel(attach_bridgers(outer, outer, 2, SMALL), {})
    assert comes_back(model, tmp_path / "a", siglip(), siglip())
    wrapped = peft.get_peft_model(siglip(), lora(["k_proj"]))
    wrapped.add_adapter("idle", lora(r"text_model.*(q_proj|fc1|fc2|v_proj|out_proj)"))
    model = BridgedModel(attach_bridgers(wrapped, wrapped, 2, SMALL), {})
    assert comes_back(model, tmp_path / "b", siglip(), siglip())


def test_one_name_in_an_encoder_and_around_it_is_refused() -> None:
    whole = siglip()
    peft.get_peft_model(whole.vision_model, lora(["k_proj"]))
    outer = peft.get_peft_model(whole, lora(["q_proj"]))
    with pytest.raises(ValueError, match=f"{type(whole.vision_model).__name__} was wrapped twice"):
        attach_bridgers(outer, outer, 2, SMALL)


def test_a_copy_of_the_model_has_its_own(tmp_path: Path) -> None:
    wrapped = peft.get_peft_model(siglip(), lora(["k_proj"]))
    model = BridgedModel(attach_bridgers(wrapped, wrapped, 2, SMALL), {}).eval()
    twin = copy.deepcopy(model)
    before = twin.encode(images(2), ids(2))
    assert comes_back(model, tmp_path, siglip(), siglip())  # changes the first
    assert same(twin.encode(images(2), ids(2)), before)
    assert comes_back(twin, tmp_path, siglip(), siglip())


REFUSED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any], str]] = {
    "the half that is no tower": (
        siglip,
        lambda: lora(["k_proj"]),
        r"at text_model\..*in neither tower.*exclude_modules",
    ),
    "a classifier": (
        vit_classifier,
        lambda: lora(["query", "q_proj"], modules_to_save=["classifier"]),
        "at classifier .*in neither tower.*modules_to_save",
    ),
    "shared numbers": (
        siglip,
        lambda: peft.VeraConfig(target_modules=r"vision_model.*k_proj", r=4),
        "VERA.*share numbers.*that encoder itself",
    ),
    "whole layers whose names others end with": (
        convnext_classifier,
        lambda: lora(r".*pwconv1", modules_to_save=["convnext.layernorm"]),
        r"modules_to_save=\['layernorm'\] would mean other layers",
    ),
    "whole layers alone": (
        siglip,
        lambda: lora(r"text_model.*k_proj", modules_to_save=["post_layernorm"]),
        r"only copies of whole layers.*trainable=",
    ),
    "values by patterns of another kind": (
        siglip,
        lambda: peft.FourierFTConfig(
            target_modules=r"vision_model.*k_proj", n_frequency=5, n_frequency_pattern={"k_proj": 9}
        ),
        "n_frequency_pattern cannot be read",
    ),
    "an option that names parts of the whole": (
        bert_classifier,
        lambda: lora(["query"], trainable_token_indices={"word_embeddings": [1]}),
        "trainable_token_indices cannot be read.*that encoder itself",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_could_not_be_saved_is_refused(name: str) -> None:
    build, config, said = REFUSED[name]
    wrapped = peft.get_peft_model(build(), config())
    is_text = name == "an option that names parts of the whole"
    pair = (hf_vision(), wrapped) if is_text else (wrapped, hf_text())
    if name == "whole layers alone":
        pair = (wrapped, wrapped)
    with pytest.raises(ValueError, match=said):
        attach_bridgers(*pair, 2, SMALL)

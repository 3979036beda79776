"""A folder alone brings its towers back to the last bit, or says that it cannot."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers_families import TextRow, VisionRow, all_rows
from helpers_towers import PAIRS, hf_clip, hf_text, hf_vision, ids, images
from test_etris import inputs as etris_inputs
from test_etris import small as small_etris
from torch import Tensor

import bridger
from bridger import BridgedModel, BridgerConfig, attach_bridgers, etris, load_towers
from bridger.adapter_files import ADAPTER_FILES, read, read_recipe, write
from bridger.heads import ReferringSegmentationHead
from bridger.named_towers.of_adapter import towers_of
from bridger.towers import find_text_tower, find_vision_tower

SMALL = BridgerConfig.preset("paper", hidden_dim=16, num_heads=2, ffn_dim=16)
HEAD = {"width": 32, "num_layers": 1, "num_heads": 2}
LOADABLE = [
    row
    for row in all_rows()
    if isinstance(row, (VisionRow, TextRow))
    and row.name.startswith("transformers/")
    and hasattr(transformers, row.name.split("/")[1].split()[0])
    and not row.name.endswith(("no pooler", "/NomicBertModel"))  # which has its tensors recut
]


def bridged(vision: Any, text: Any, stages: int = 2) -> BridgedModel:
    """A model whose Bridgers say something."""
    torch.manual_seed(0)
    encoder = attach_bridgers(vision, text, stages, SMALL)
    model = encoder.with_head(ReferringSegmentationHead, **HEAD)
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model.eval()


def answers(model: BridgedModel, pixels: Tensor, words: Tensor) -> list[Tensor]:
    """What heads and features say: the logits, every map, the sentence and the pooled picture."""
    with torch.no_grad():
        features = model.encoder(pixels, words)
        found = [model(pixels, words).logits, *features.maps, features.sentence, features.pooled]
    return [tensor for tensor in found if tensor is not None]


def comes_back(model: BridgedModel, folder: Path, pixels: Tensor, words: Tensor) -> BridgedModel:
    """Save, load from the folder alone, and compare to the last bit."""
    expected = answers(model, pixels, words)
    model.save_pretrained(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = BridgedModel.from_pretrained(folder)
    assert again.tower_source == model.tower_source
    found = answers(again, pixels, words)
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))
    return again


def loaded(build: Callable[[], Any], folder: Path, cls: Any = None) -> Any:
    """A model as `from_pretrained` gives it, from a checkpoint on this machine."""
    made = build()
    made.save_pretrained(folder)
    return (cls or type(made)).from_pretrained(folder)


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.name, marks=() if row.fast else pytest.mark.slow)
        for row in LOADABLE
    ],
)
def test_every_class_of_transformers_comes_back(row: VisionRow | TextRow, tmp_path: Path) -> None:
    model = loaded(row.build, tmp_path / "checkpoint")
    name = f"transformers:{tmp_path / 'checkpoint'}#{type(model).__name__}"
    tiny_vision, tiny_text, _ = load_towers("tiny")
    if isinstance(row, VisionRow):
        made = bridged(model, tiny_text)
        assert made.tower_source == f"{name},tiny"
        comes_back(made, tmp_path / "adapter", images(2, *row.image_size), ids(2))
    else:
        made = bridged(tiny_vision, model)
        assert made.tower_source == f"tiny,{name}"
        comes_back(made, tmp_path / "adapter", images(2, 64), ids(2, pad=row.pad))


@pytest.mark.parametrize("projected", [True, False])
def test_parts_of_one_checkpoint_are_loaded_by_their_classes(
    projected: bool, tmp_path: Path
) -> None:
    suffix = "WithProjection" if projected else ""
    vision_class, text_class = f"CLIPVisionModel{suffix}", f"CLIPTextModel{suffix}"
    vision = loaded(hf_clip, tmp_path / "clip", getattr(transformers, vision_class))
    text = getattr(transformers, text_class).from_pretrained(tmp_path / "clip")
    model = bridged(vision, text)
    name = f"transformers:{tmp_path / 'clip'}"
    assert model.tower_source == f"{name}#{vision_class},{name}#{text_class}"
    again = comes_back(model, tmp_path / "adapter", images(), ids())
    assert type(again.encoder.vision.given).__name__ == vision_class


@pytest.mark.parametrize("pair", ["whole twice", "two wholes", "whole and part"])
def test_wholes_on_both_sides(pair: str, tmp_path: Path) -> None:
    clip = loaded(hf_clip, tmp_path / "clip")
    name = f"transformers:{tmp_path / 'clip'}#CLIPModel"
    other: Any = clip
    if pair == "two wholes":
        other = type(clip).from_pretrained(tmp_path / "clip")
    if pair == "whole and part":
        other = transformers.CLIPTextModel.from_pretrained(tmp_path / "clip")
        name = f"{name},transformers:{tmp_path / 'clip'}#CLIPTextModel"
    model = bridged(clip, other)
    assert model.tower_source == name
    comes_back(model, tmp_path / "adapter", images(), ids())


def test_a_dual_encoder_of_two_models(tmp_path: Path) -> None:
    vision = loaded(lambda: hf_vision(projection=False), tmp_path / "vision")
    text = loaded(lambda: hf_text(projection=False), tmp_path / "text")
    dual = transformers.VisionTextDualEncoderModel(vision_model=vision, text_model=text)
    assert bridged(dual, dual).tower_source is None  # its projections are nowhere
    dual.save_pretrained(tmp_path / "dual")
    again = transformers.VisionTextDualEncoderModel.from_pretrained(tmp_path / "dual")
    model = bridged(again, again)
    assert model.tower_source == f"transformers:{tmp_path / 'dual'}#VisionTextDualEncoderModel"
    comes_back(model, tmp_path / "adapter", images(), ids())
    # Its parts may still be called after what they once came from.
    again.vision_model.config._name_or_path = again.vision_model.name_or_path = "openai/clip"
    assert bridged(again.vision_model, again).tower_source is None


def test_towers_and_copies_keep_the_name_of_what_they_hold(tmp_path: Path) -> None:
    clip = loaded(hf_clip, tmp_path / "clip")
    name = f"transformers:{tmp_path / 'clip'}#CLIPModel"
    model = bridged(find_vision_tower(clip), find_text_tower(clip))
    assert model.tower_source == name
    comes_back(model, tmp_path / "adapter", images(), ids())
    duplicate = copy.deepcopy(clip)
    assert bridged(duplicate, duplicate).tower_source == name  # the checkpoint says so
    tiny = load_towers("tiny")[1]
    duplicate = copy.deepcopy(tiny)
    assert bridged(duplicate, duplicate).tower_source is None  # nothing says so


@pytest.mark.slow
@pytest.mark.parametrize("whole", [True, False])
def test_layers_of_peft_around_towers(whole: bool, tmp_path: Path) -> None:
    import peft

    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    clip = loaded(hf_clip, tmp_path / "clip")
    given: Any = peft.get_peft_model(clip, lora)
    if not whole:
        peft.inject_adapter_in_model(
            lora, clip := transformers.CLIPModel.from_pretrained(clip.name_or_path)
        )
        given = clip
    model = bridged(given, given)
    assert model.tower_source == f"transformers:{tmp_path / 'clip'}#CLIPModel"
    comes_back(model, tmp_path / "adapter", images(), ids())


def test_virtual_tokens_around_a_text_tower(tmp_path: Path) -> None:
    import peft

    row = next(row for row in LOADABLE if row.name == "transformers/RobertaModel")
    config = peft.PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=3)
    text = loaded(row.build, tmp_path / "text")
    model = bridged(load_towers("tiny")[0], peft.get_peft_model(text, config).eval())
    assert model.tower_source == f"tiny,transformers:{tmp_path / 'text'}#RobertaModel"
    comes_back(model, tmp_path / "adapter", images(2, 64), ids(2, 8, pad=1))


@pytest.mark.parametrize("named", [True, False])
def test_merged_towers_have_no_name(named: bool, tmp_path: Path) -> None:
    import peft

    vision, text = load_towers("tiny")[:2] if named else [loaded(hf_clip, tmp_path / "clip")] * 2
    lora = peft.LoraConfig(
        target_modules=["c_fc"] if named else ["q_proj"], init_lora_weights=False
    )
    peft.inject_adapter_in_model(lora, text)
    model = bridged(vision, text)
    assert model.tower_source is not None
    model.merge_peft()
    assert model.tower_source is None
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match="does not say where its towers come from: pass them"):
        BridgedModel.from_pretrained(tmp_path / "adapter")
    model.detach()
    assert bridged(vision, text).tower_source is None


def _other_config(folder: Path) -> Any:
    return transformers.CLIPModel.from_pretrained(
        folder, vision_config={"hidden_act": "relu"}, projection_dim=24
    )


def _from_config(folder: Path) -> Any:
    return transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(folder))


def _trained(folder: Path) -> Any:
    model = transformers.CLIPModel.from_pretrained(folder)
    with torch.no_grad():
        model.visual_projection.weight += 0.1
    return model


def _subclass(folder: Path) -> Any:
    kind = type("OwnModel", (transformers.CLIPModel,), {})
    return kind.from_pretrained(folder)


def _without_files(folder: Path) -> Any:
    model = transformers.CLIPModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    return model


@pytest.mark.parametrize(
    "change", [_other_config, _from_config, _trained, _subclass, _without_files]
)
def test_a_name_that_would_make_other_towers_is_none(
    change: Callable[[Path], Any], tmp_path: Path
) -> None:
    hf_clip().save_pretrained(tmp_path / "clip")
    clip = change(tmp_path / "clip").eval()
    assert clip.name_or_path == str(tmp_path / "clip")
    model = bridged(clip, clip)
    assert model.tower_source is None
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"adapter does not say .*or their name as towers= "):
        BridgedModel.from_pretrained(tmp_path / "adapter")


@pytest.mark.parametrize("loses", [True, False])
def test_a_pooler_that_is_not_in_the_checkpoint(loses: bool, tmp_path: Path) -> None:
    config = transformers.RobertaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=20,
    )  # fmt: skip
    transformers.RobertaForMaskedLM(config).save_pretrained(tmp_path / "text")
    vision = load_towers("tiny")[0]
    options = {"add_pooling_layer": False} if loses else {}
    text = transformers.RobertaModel.from_pretrained(tmp_path / "text", **options)
    assert bridged(vision, text).tower_source is None
    # By name, the pooler is random as well, but the same each time, and it is told.
    with pytest.warns(UserWarning, match=r"lacks pooler.dense.bias, pooler.dense.weight: they are"):
        vision, text, _ = load_towers(f"tiny,transformers:{tmp_path / 'text'}")
    model = bridged(vision, text)
    expected = answers(model, images(2, 64), ids(2, pad=1))
    model.save_pretrained(tmp_path / "adapter")
    torch.manual_seed(5)
    with pytest.warns(UserWarning, match="the same each time"):
        again = BridgedModel.from_pretrained(tmp_path / "adapter")
    assert all(map(torch.equal, answers(again, images(2, 64), ids(2, pad=1)), expected))


@pytest.mark.parametrize("random", ["open_clip:RN50@64", "timm:resnet10t@96,tiny"])
@pytest.mark.slow
def test_random_towers_are_the_same_each_time(random: str, tmp_path: Path) -> None:
    state = torch.get_rng_state()
    vision, text, _ = load_towers(random)
    assert "tiny" in random or torch.equal(torch.get_rng_state(), state)
    model = bridged(vision, text)
    assert model.tower_source == random
    comes_back(model, tmp_path / "adapter", images(2, 96), ids(2))


@pytest.mark.parametrize("variant", ["vit_b16", pytest.param("rn50", marks=pytest.mark.slow)])
def test_the_towers_of_released_checkpoints(variant: str, tmp_path: Path) -> None:
    torch.save(small_etris(variant), tmp_path / "best.pth")
    model = etris.load(tmp_path / "best.pth", 17)
    assert model.tower_source == f"etris:{tmp_path / 'best.pth'}@17"
    pixels, words = etris_inputs(model.processor.image_size[0])  # type: ignore[index,union-attr]
    again = comes_back(model, tmp_path / "adapter", pixels, words)
    assert etris.to_state_dict(again).keys() == etris.to_state_dict(model).keys()
    model.detach()
    mixed = bridged(model.encoder.vision.module, load_towers("tiny")[1])
    assert mixed.tower_source == f"etris:{tmp_path / 'best.pth'}@17,tiny"
    comes_back(mixed, tmp_path / "mixed", pixels, ids())


def test_a_named_source_is_checked_for_its_form_alone(tmp_path: Path) -> None:
    vision, text = PAIRS["open_clip_vit"]()
    model = bridged(vision, text)
    assert model.tower_source is None
    for name in (
        "open_clip:ViT-B-16:openai@416",
        "timm:vit_base_patch14_reg4_dinov2:lvd142m@448,transformers:a/b@main#T5EncoderModel",
        "torchvision:resnet18:DEFAULT,tiny",
        None,
    ):
        model.tower_source = name
        assert model.tower_source == name
    for name in ("ViT-B-16", "open_clip:", "timm:resnet50", "tiny,timm:resnet50", "open_clip:a@b"):
        with pytest.raises(ValueError, match=r"tiny \(the embedded|whole number of pixels"):
            model.tower_source = name
    with pytest.raises(ValueError, match=r"after # stands a class of transformers, got '1'"):
        model.tower_source = "transformers:a/b#1"
    with pytest.raises(TypeError, match="is a string, got 3"):
        model.tower_source = 3  # type: ignore[assignment]
    model.tower_source = "open_clip:ViT-B-16:openai"
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "bridger_config.json").read_text())["tower_source"] == (
        "open_clip:ViT-B-16:openai"
    )


def test_older_adapters_are_found_by_the_recipe_beside_them(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    model = bridged(*load_towers("tiny")[:2])
    expected = answers(model, images(2, 64), ids())
    model.tower_source = None
    model.save_pretrained(tmp_path)
    assert "towers: unknown, name them with --towers" in "".join(run("inspect", tmp_path)[1:])
    (tmp_path / "recipe.json").write_text(json.dumps({"towers": "tiny"}))
    again = BridgedModel.from_pretrained(tmp_path)
    assert all(map(torch.equal, answers(again, images(2, 64), ids()), expected))
    assert "towers: tiny" in "".join(run("inspect", tmp_path)[1:])


@pytest.mark.parametrize(
    ("written", "said"),
    [("{", "is not JSON"), ("[]", "must be a JSON object"), ('{"towers": 3}', '"towers" of')],
)
def test_a_recipe_that_cannot_be_read_is_told_where_it_matters(
    written: str, said: str, tmp_path: Path
) -> None:
    model = bridged(*load_towers("tiny")[:2])
    model.save_pretrained(tmp_path)
    (tmp_path / "recipe.json").write_text(written)
    assert towers_of(tmp_path) == "tiny"
    with pytest.raises(ValueError, match=f"recipe.json.*{said}|{said}.*recipe.json"):
        read_recipe(tmp_path)
    model.tower_source = None
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="recipe.json"):
        BridgedModel.from_pretrained(tmp_path)


def test_a_source_that_is_no_name_is_told(tmp_path: Path) -> None:
    bridged(*load_towers("tiny")[:2]).save_pretrained(tmp_path)
    config, tensors = read(tmp_path)
    write(tmp_path, ADAPTER_FILES, {**config, "tower_source": ["tiny"]}, tensors)
    with pytest.raises(
        ValueError, match=r'"tower_source" of the bridger_config in .* \[\'tiny\'\]'
    ):
        BridgedModel.from_pretrained(tmp_path)


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    clip = loaded(hf_clip, tmp_path / "clip")
    bridged(clip, clip).save_pretrained(tmp_path / "adapter")
    (tmp_path / "clip").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"was made for the towers .*pass them, or their"):
        BridgedModel.from_pretrained(tmp_path / "adapter")
    again = BridgedModel.from_pretrained(
        tmp_path / "adapter", towers=f"transformers:{tmp_path / 'moved'}"
    )
    assert again.tower_source == f"transformers:{tmp_path / 'moved'}"


def test_names_last_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf_clip().save_pretrained(tmp_path / "my" / "clip")
    monkeypatch.chdir(tmp_path)
    clip = transformers.CLIPModel.from_pretrained("my/clip")
    expected = f"transformers:{tmp_path / 'my' / 'clip'}"
    assert bridged(clip, clip).tower_source == f"{expected}#CLIPModel"
    vision, text, _ = bridger.load_towers("transformers:my/clip")
    assert bridged(vision, text).tower_source == expected


def test_no_path_of_towers_is_saved_beside_their_source(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    clip = loaded(hf_clip, tmp_path / "clip")
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(
        r=2, target_modules=["q_proj"], base_model_name_or_path=str(tmp_path / "clip")
    )
    peft.inject_adapter_in_model(lora, clip)
    model = bridged(clip, clip)
    source, model.tower_source = model.tower_source, None
    model.save_pretrained(tmp_path / "adapter")
    for file in ("bridger_config.json", "bridger.safetensors"):
        assert str(tmp_path).encode() not in (tmp_path / "adapter" / file).read_bytes()
    config = json.loads((tmp_path / "adapter" / "bridger_config.json").read_text())
    assert config["towers"]["vision"]["name"] is None
    assert config["encoder"]["peft"][0]["config"]["base_model_name_or_path"] is None
    again = BridgedModel.from_pretrained(tmp_path / "adapter", towers=source)
    assert not [w for w in recwarn if "name is" in str(w.message)]
    assert again.encoder.peft_parts()

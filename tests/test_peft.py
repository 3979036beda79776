"""Layers of peft inside the towers: trained, counted, saved, loaded and merged like the rest."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_conformance import SMALL, same, trace
from helpers_towers import hf_clip, hf_text, hf_vision, ids, images, open_clip_resnet, open_clip_vit
from torch import Tensor, nn

from bridger import BridgedModel, adapter_files, attach_bridgers, checkpoint
from bridger.heads import ReferringSegmentationHead
from bridger.tower_peft import inject_peft

peft: Any = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:Unsupported layer type")

LORA = {"r": 4, "lora_dropout": 0.5}


def bert() -> nn.Module:
    from transformers import BertConfig, BertModel

    size = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    torch.manual_seed(0)
    return BertModel(BertConfig(**size, intermediate_size=32, vocab_size=64))


def timm_vit(num_classes: int = 0) -> nn.Module:
    import timm

    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=num_classes, **options)


def open_clip_pair() -> tuple[nn.Module, nn.Module]:
    clip = open_clip_vit()
    return clip.visual, clip


# (both towers, side that is tuned, what peft is asked for)
CASES: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module]], str, Callable[[], Any]]] = {
    "LoRA in open_clip's feed-forward": (
        open_clip_pair,
        "vision",
        lambda: peft.LoraConfig(target_modules=["c_fc", "c_proj"], **LORA),
    ),
    "LoRA in open_clip's attention": (
        open_clip_pair,
        "vision",
        lambda: peft.LoraConfig(target_modules=["attn"], r=4),
    ),
    "LoRA in both of open_clip's towers": (
        open_clip_pair,
        "text",
        lambda: peft.LoraConfig(target_modules=["c_fc"], **LORA),
    ),
    "IA3 in open_clip's feed-forward": (
        open_clip_pair,
        "vision",
        lambda: peft.IA3Config(target_modules=["c_fc", "c_proj"], feedforward_modules=["c_proj"]),
    ),
    "VeRA in open_clip's feed-forward": (
        open_clip_pair,
        "vision",
        lambda: peft.VeraConfig(target_modules=["c_fc", "c_proj"], r=8),
    ),
    "LN-tuning in open_clip's": (
        open_clip_pair,
        "vision",
        lambda: peft.LNTuningConfig(target_modules=["ln_1", "ln_2"]),
    ),
    "LoRA in transformers' CLIP": (
        lambda: (hf_vision(), hf_text()),
        "vision",
        lambda: peft.LoraConfig(target_modules=["q_proj", "v_proj"], **LORA),
    ),
    "VeRA in transformers' CLIP": (
        lambda: (hf_vision(), hf_text()),
        "text",
        lambda: peft.VeraConfig(target_modules=["q_proj"], r=8, save_projection=False),
    ),
    "LoRA and a whole layer in BERT": (
        lambda: (hf_vision(), bert()),
        "text",
        lambda: peft.LoraConfig(target_modules=["query"], modules_to_save=["pooler"], r=4),
    ),
    "DoRA in timm's ViT": (
        lambda: (timm_vit(), hf_text()),
        "vision",
        lambda: peft.LoraConfig(target_modules=["qkv"], use_dora=True, **LORA),
    ),
    "LoRA in a ResNet": (
        lambda: (open_clip_resnet().visual, open_clip_vit(custom=True).text),
        "vision",
        lambda: peft.LoraConfig(target_modules=["conv1", "conv3"], r=4),
    ),
}
FAST = ("LoRA in open_clip's attention", "LoRA in transformers' CLIP", "LoRA and a whole layer in")


def change(model: BridgedModel) -> None:
    """Let everything that is trained have learnt something."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def comes_back(model: BridgedModel, folder: Path, vision: nn.Module, text: nn.Module) -> bool:
    """Whether a changed model is the same bits after saving, on plain towers."""
    change(model)
    model.eval().save_pretrained(folder)
    again = BridgedModel.from_pretrained(folder, vision, text)
    return same(again.encode(images(2), ids(2)), model.encode(images(2), ids(2)))


class Tuned:
    """A pair of towers with peft in one of them, before or after bridging, and its plain twin."""

    def __init__(self, name: str, first: str) -> None:
        build, self.side, config = CASES[name]
        self.drops = "lora_dropout=0.5" in repr(config())
        self.vision, self.text = build()
        self.plain = copy.deepcopy((self.vision, self.text))
        self.size = (64, 64) if "ResNet" in name else (32, 32)
        torch.manual_seed(1)
        if first == "peft":
            wrapped = peft.get_peft_model(getattr(self, self.side), config())
            towers = {"vision": self.vision, "text": self.text, self.side: wrapped}
            self.encoder = attach_bridgers(towers["vision"], towers["text"], 2, SMALL)
        else:
            self.encoder = attach_bridgers(self.vision, self.text, 2, SMALL)
            peft.get_peft_model(getattr(self, self.side), config())
        head = {"width": 64, "num_layers": 1, "num_heads": 2, "dropout": 0.0}
        self.model = self.encoder.with_head(ReferringSegmentationHead, **head)

    def inputs(self) -> tuple[Tensor, Tensor]:
        return images(2, *self.size), ids(2)

    def group(self) -> list[nn.Parameter]:
        groups = {group["name"]: group["params"] for group in self.model.parameter_groups()}
        tuned: list[nn.Parameter] = groups["peft"]
        return tuned

    def change(self) -> None:
        change(self.model)

    def loss(self) -> Tensor:
        loss: Tensor = self.model(*self.inputs(), labels=torch.ones(2, *self.size)).loss
        return loss


@pytest.fixture(
    params=[
        pytest.param(name, marks=() if name.startswith(FAST) else pytest.mark.slow)
        for name in CASES
    ]
)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture(params=["peft", "bridgers"])
def tuned(name: str, request: pytest.FixtureRequest) -> Tuned:
    return Tuned(name, first=request.param)


def test_all_of_it_is_trained_and_nothing_else(tuned: Tuned) -> None:
    tuned.change()
    tuned.model.train()
    tuned.loss().backward()
    assert tuned.group() and all(p.grad is not None and p.grad.any() for p in tuned.group())
    trained = set(tuned.model.trainable_parameters())
    for module in (tuned.vision, tuned.text):
        assert all(p.grad is None for p in module.parameters() if p not in trained)


def test_it_is_counted_once(tuned: Tuned, capsys: pytest.CaptureFixture[str]) -> None:
    tuned.model.print_trainable_parameters()
    own = sum(p.numel() for p in tuned.group())
    # A whole layer that is trained stands beside the tower's own, which stays frozen.
    towers = [p for module in (tuned.vision, tuned.text) for p in module.parameters()]
    frozen = sum({p.data_ptr(): p.numel() for p in towers}.values()) - own
    said = capsys.readouterr().out
    assert f"peft {own:,}" in said and f"frozen towers: {frozen:,}" in said


def test_only_its_dropout_follows_the_mode(tuned: Tuned) -> None:
    towers = [module for tower in (tuned.vision, tuned.text) for module in tower.modules()]
    tuned.model.train()
    tuned.change()
    assert tuned.encoder.bridgers is not None
    tuned.encoder.bridgers.eval()  # they have dropout of their own
    losses = {tuned.loss().item() for _ in range(2)}
    assert len(losses) == 1 + tuned.drops
    tuned.model.eval()
    assert not any(module.training for module in towers)


def test_saved_loaded_detached_and_merged(tuned: Tuned, tmp_path: Path) -> None:
    tuned.change()
    tuned.model.eval()
    tuned.model.save_pretrained(tmp_path)
    expected = tuned.model(*tuned.inputs()).logits
    before = [trace(tower) for tower in tuned.plain]
    again = BridgedModel.from_pretrained(tmp_path, *tuned.plain)
    assert torch.equal(again(*tuned.inputs()).logits, expected)
    own = again.adapter_state_dict()
    assert all(torch.equal(own[k], v) for k, v in tuned.model.adapter_state_dict().items())
    again.detach()
    assert [trace(tower) for tower in tuned.plain] == before
    merged = BridgedModel.from_pretrained(tmp_path, *tuned.plain)
    merged.merge_peft()
    torch.testing.assert_close(merged(*tuned.inputs()).logits, expected, atol=1e-4, rtol=1e-4)
    assert not [k for k in merged.adapter_state_dict() if k.startswith("peft")]
    with pytest.raises(ValueError, match="nothing to merge"):
        merged.merge_peft()


def test_detaching_leaves_what_the_user_put_there(tuned: Tuned) -> None:
    tuned.change()
    towers = (tuned.vision, tuned.text)
    names = [list(tower.state_dict()) for tower in towers]
    tuned.model.detach()
    assert [list(tower.state_dict()) for tower in towers] == names
    assert all(parameter.requires_grad for parameter in tuned.group())


def test_a_copy_is_its_own(tuned: Tuned) -> None:
    tuned.change()
    tuned.model.eval()
    twin = copy.deepcopy(tuned.model)
    assert same(twin.encode(*tuned.inputs()), tuned.model.encode(*tuned.inputs()))
    with torch.no_grad():
        for parameter in tuned.group():
            parameter.add_(1)
    assert not same(twin.encode(*tuned.inputs()), tuned.model.encode(*tuned.inputs()))
    twin.detach()


def test_half_towers_keep_what_is_trained_in_float32(name: str, tuned: Tuned) -> None:
    tuned.change()
    tuned.model.eval()
    with torch.no_grad():
        exact = tuned.model(*tuned.inputs()).logits
        kept = [parameter.clone() for parameter in tuned.group()]
        halved = tuned.model.bfloat16()(*tuned.inputs()).logits
    assert (halved - exact).norm() < 0.1 * exact.norm()
    if "whole layer" not in name:  # a copy of a layer has its tower's dtype
        assert all(torch.equal(a, b) for a, b in zip(kept, tuned.group(), strict=True))
    assert torch.bfloat16 in {p.dtype for p in tuned.vision.parameters()}


def test_it_goes_with_tower_tensors_of_the_adapter(tmp_path: Path) -> None:
    vision, text = hf_vision(), hf_text()
    plain = copy.deepcopy((vision, text))
    peft.get_peft_model(vision, peft.LoraConfig(target_modules=["fc1"], bias="none"))
    encoder = attach_bridgers(vision, text, 2, SMALL, trainable=["positions", "vision.*.bias"])
    model = BridgedModel(encoder, {})
    assert not [name for name in encoder.tower_tensors if "lora" in name]
    assert comes_back(model, tmp_path, *plain)


def test_two_active_adapters(tmp_path: Path) -> None:
    vision, text = hf_vision(), hf_text()
    plain = copy.deepcopy((vision, text))
    wrapped = peft.get_peft_model(vision, peft.LoraConfig(target_modules=["fc1"]), "one")
    wrapped.add_adapter("two", peft.LoraConfig(target_modules=["fc1", "fc2"], r=2))
    wrapped.add_adapter("idle", peft.LoraConfig(target_modules=["fc2"]))
    wrapped.base_model.set_adapter(["one", "two"])
    model = BridgedModel(attach_bridgers(wrapped, text, 2, SMALL), {})
    assert comes_back(model, tmp_path, *plain)
    assert not any("idle" in name for name, _ in plain[0].named_modules())


def test_training_goes_on_after_loading(tmp_path: Path) -> None:
    tuned = Tuned("LoRA in transformers' CLIP", first="peft")
    tuned.model.save_pretrained(tmp_path)
    again = BridgedModel.from_pretrained(tmp_path, *tuned.plain).train()
    optimizer = torch.optim.SGD(again.trainable_parameters(), lr=0.1)
    labels = torch.ones(2, 32, 32)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = again(*tuned.inputs(), labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("whole_first", [False, True])
def test_one_config_inside_another(whole_first: bool, tmp_path: Path) -> None:
    clip = open_clip_vit()
    plain = copy.deepcopy(clip)
    inside = (clip.visual, peft.LoraConfig(target_modules=["c_proj"]))
    around = (clip, peft.LoraConfig(target_modules=r"transformer\..*c_fc"))
    for module, config in (around, inside) if whole_first else (inside, around):
        peft.get_peft_model(module, config)
    model = BridgedModel(attach_bridgers(clip.visual, clip, 2, SMALL), {})
    assert comes_back(model, tmp_path, plain.visual, plain)


def test_towers_of_two_models_get_each_their_own(tmp_path: Path) -> None:
    tuned = Tuned("LoRA in open_clip's feed-forward", first="peft")
    tuned.change()
    tuned.model.eval().save_pretrained(tmp_path)
    one, two = open_clip_vit(), open_clip_vit()
    again = BridgedModel.from_pretrained(tmp_path, one.visual, two)
    assert torch.equal(again(*tuned.inputs()).logits, tuned.model(*tuned.inputs()).logits)


def test_after_merging_nothing_is_trained_in_the_towers() -> None:
    tuned = Tuned("LoRA and a whole layer in BERT", first="bridgers")
    tuned.model.merge_peft()
    tuned.model.train()
    assert not any(p.requires_grad for p in tuned.text.parameters())
    assert not any(module.training for module in tuned.text.modules())
    tuned.model.detach()


# What is refused.


@pytest.mark.parametrize("first", ["peft", "bridgers"])
def test_lora_that_would_do_nothing(first: str) -> None:
    clip = open_clip_vit()
    config = peft.LoraConfig(target_modules=["out_proj"])
    if first == "peft":
        peft.get_peft_model(clip.visual, config)
        with pytest.raises(ValueError, match="would do nothing.*exclude_modules, or target the a"):
            attach_bridgers(clip.visual, clip, 2, SMALL)
        return
    model = BridgedModel(attach_bridgers(clip.visual, clip, 2, SMALL), {})
    peft.get_peft_model(clip.visual, config)
    with pytest.raises(ValueError, match="would do nothing"):
        model.trainable_parameters()


def test_layers_made_through_a_model_around_the_tower() -> None:
    clip = open_clip_vit()
    peft.get_peft_model(clip, peft.LoraConfig(target_modules=["c_fc"]))
    with pytest.raises(ValueError, match="made through a model around it.*pass that model"):
        attach_bridgers(clip.visual, hf_text(), 2, SMALL)
    attach_bridgers(clip.visual, clip, 2, SMALL)  # the model around both is at hand


def test_an_attention_pool_that_never_calls_its_layers() -> None:
    clip = open_clip_resnet()
    peft.get_peft_model(clip.visual, peft.LoraConfig(target_modules=["v_proj"]))
    with pytest.raises(ValueError, match="attnpool.v_proj of the vision tower would do nothing"):
        attach_bridgers(clip.visual, clip, 2, SMALL)


def test_biases_of_the_tower_are_bridgers_to_train() -> None:
    vision = hf_vision()
    peft.get_peft_model(vision, peft.LoraConfig(target_modules=["fc1"], bias="lora_only"))
    with pytest.raises(ValueError, match="bias='none' and attach_bridgers"):
        attach_bridgers(vision, hf_text(), 2, SMALL)


def test_an_initialisation_that_changes_the_tower() -> None:
    vision = hf_vision()
    peft.get_peft_model(vision, peft.LoraConfig(target_modules=["fc1"], init_lora_weights="pissa"))
    with pytest.raises(ValueError, match="'pissa' changes the vision tower's own weights"):
        attach_bridgers(vision, hf_text(), 2, SMALL)


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_an_adapter_cannot_change_the_towers_it_is_loaded_onto(start: str, tmp_path: Path) -> None:
    tuned = Tuned("LoRA in transformers' CLIP", first="peft")
    tuned.model.save_pretrained(tmp_path)
    config, tensors = adapter_files.read(tmp_path)
    for entry in config["encoder"]["peft"]:
        entry["config"]["init_lora_weights"] = start
    adapter_files.write(tmp_path, adapter_files.ADAPTER_FILES, config, tensors)
    vision, text = tuned.plain
    before = [copy.deepcopy(tower.state_dict()) for tower in (vision, text)]
    with pytest.raises(ValueError, match="tower's own weights"):
        BridgedModel.from_pretrained(tmp_path, vision, text)
    for tower, kept in zip((vision, text), before, strict=True):
        found = tower.state_dict()
        assert list(found) == list(kept) and all(torch.equal(found[n], t) for n, t in kept.items())


def test_loading_into_a_tower_that_holds_peft(tmp_path: Path) -> None:
    tuned = Tuned("LoRA in transformers' CLIP", first="peft")
    tuned.model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="vision tower holds layers of peft"):
        BridgedModel.from_pretrained(tmp_path, tuned.vision, tuned.text)
    vision, text = tuned.plain
    peft.get_peft_model(text, peft.LoraConfig(target_modules=["fc1"]))
    before = trace(text)
    with pytest.raises(ValueError, match="text tower holds layers of peft"):
        BridgedModel.from_pretrained(tmp_path, vision, text)
    assert trace(text) == before


def test_layers_that_these_towers_do_not_have(tmp_path: Path) -> None:
    vision, text = hf_vision(), hf_text()
    peft.get_peft_model(vision, peft.LoraConfig(target_modules=["fc1"]))
    peft.get_peft_model(text, peft.LoraConfig(target_modules=["fc2"]))
    model = BridgedModel(attach_bridgers(vision, text, 2, SMALL), {})
    config = checkpoint.describe(model)
    config["encoder"]["peft"][1]["config"]["target_modules"] = ["elsewhere"]
    plain = {"vision": hf_vision(), "text": hf_text()}
    before = [trace(tower) for tower in plain.values()]
    with pytest.raises(ValueError, match="do not fit these towers.*elsewhere"):
        inject_peft(plain, config["encoder"]["peft"])
    assert [trace(tower) for tower in plain.values()] == before


def test_a_failed_loading_leaves_the_towers_alone(tmp_path: Path) -> None:
    tuned = Tuned("LoRA in transformers' CLIP", first="peft")
    tuned.model.save_pretrained(tmp_path)
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = tmp_path / "bridger.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    del tensors[next(name for name in tensors if name.startswith("peft"))]
    save_file(tensors, path, metadata)
    before = [trace(tower) for tower in tuned.plain]
    with pytest.raises(ValueError, match="missing: peft"):
        BridgedModel.from_pretrained(tmp_path, *tuned.plain)
    assert [trace(tower) for tower in tuned.plain] == before


def test_a_loaded_model_that_is_dropped_takes_its_layers_along(tmp_path: Path) -> None:
    tuned = Tuned("LoRA in transformers' CLIP", first="peft")
    tuned.model.save_pretrained(tmp_path)
    before = [trace(tower) for tower in tuned.plain]
    loaded = BridgedModel.from_pretrained(tmp_path, *tuned.plain)
    loaded(*tuned.inputs())
    assert [trace(tower) for tower in tuned.plain] != before
    del loaded
    assert [trace(tower) for tower in tuned.plain] == before


def test_an_attention_pool_with_peft_is_read_with_it() -> None:
    """Each cell of the dense map is what the pool makes of a picture of that patch alone."""
    from bridger.towers.dense import value_path

    torch.manual_seed(0)
    for batch_first in (True, False):
        pool = nn.ModuleDict({"attn": nn.MultiheadAttention(16, 2, batch_first=batch_first)})
        wrapped = peft.get_peft_model(pool, peft.LoraConfig(target_modules=["attn"], r=4))
        with torch.no_grad():
            for parameter in wrapped.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        tokens = torch.randn(2, 5, 16)
        read = value_path(pool["attn"], tokens)
        wrapped.merge_and_unload()
        torch.testing.assert_close(read, value_path(pool["attn"], tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("first", ["peft", "bridgers"])
def test_tower_tensors_keep_their_names_when_peft_comes_and_goes(
    first: str, tmp_path: Path
) -> None:
    vision, text = hf_vision(), hf_text()
    plain = copy.deepcopy((vision, text))
    config = peft.LoraConfig(target_modules=["fc1"])
    if first == "peft":
        peft.get_peft_model(vision, config)
    encoder = attach_bridgers(vision, text, 2, SMALL, trainable="vision.*.bias")
    names = list(encoder.tower_tensors)
    if first == "bridgers":
        peft.get_peft_model(vision, config)
    model = BridgedModel(encoder, {})
    assert comes_back(model, tmp_path, *plain)
    sum(map.square().sum() for map in model.encode(images(2), ids(2)).maps).backward()
    assert all(p.grad is not None for p in encoder.tower_tensors.values())
    expected = model.encode(images(2), ids(2)).maps[-1]
    model.merge_peft()
    merged = model.encode(images(2), ids(2)).maps[-1]
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path)
    model.detach()
    again = BridgedModel.from_pretrained(tmp_path, vision, plain[1])
    assert names == list(again.encoder.tower_tensors)
    assert torch.equal(again.encode(images(2), ids(2)).maps[-1], merged)


WHOLE = [
    lambda: peft.LoraConfig(target_modules=["query"], modules_to_save=["pooler"]),
    lambda: peft.LNTuningConfig(target_modules=["LayerNorm"]),
]


@pytest.mark.parametrize("config", WHOLE)
def test_layers_of_which_peft_trains_a_copy(config: Callable[[], Any]) -> None:
    """Tensors of the layer itself would be trained without effect."""
    text = bert()
    encoder = attach_bridgers(hf_vision(), text, 2, SMALL, trainable="text.*.bias")
    every = set(encoder.tower_tensors)
    peft.get_peft_model(text, config())
    with pytest.raises(ValueError, match="peft trains a copy of the layer at .* out of `trainabl"):
        BridgedModel(encoder, {}).trainable_parameters()
    encoder.detach()
    encoder = attach_bridgers(hf_vision(), text, 2, SMALL, trainable="text.*.bias")
    without = every - set(encoder.tower_tensors)
    assert without and all("pooler" in name or "LayerNorm" in name for name in without)


def test_idle_adapters_are_no_tensors_of_the_tower() -> None:
    vision = hf_vision()
    wrapped = peft.get_peft_model(vision, peft.LoraConfig(target_modules=["fc1"]), "one")
    wrapped.add_adapter("idle", peft.LoraConfig(target_modules=["fc2"]))
    encoder = attach_bridgers(wrapped, hf_text(), 2, SMALL, trainable="vision.*")
    assert not [name for name in encoder.tower_tensors if "lora" in name]


def test_an_adapter_that_peft_cannot_merge_leaves_all_as_it_was() -> None:
    vision = hf_vision()
    peft.get_peft_model(vision, peft.LoraConfig(target_modules=["fc1"]))
    model = BridgedModel(attach_bridgers(vision, hf_text(), 2, SMALL), {})
    change(model)
    with torch.no_grad():
        list(model.trainable_parameters())[-1].fill_(float("nan"))
    before = copy.deepcopy(vision.state_dict())
    with pytest.raises(ValueError, match=r"layers\.\d\.mlp\.fc1.*Nothing was merged"):
        model.merge_peft()
    after = vision.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[k], v) for k, v in before.items() if not v.isnan().any())


@pytest.mark.parametrize("config", WHOLE)
def test_a_merged_copy_gets_the_modes_of_what_it_replaces(config: Callable[[], Any]) -> None:
    text = bert().train()
    flags = {name: p.requires_grad for name, p in text.named_parameters()}
    encoder = attach_bridgers(hf_vision(), text, 2, SMALL)
    peft.get_peft_model(text, config())
    encoder.merge_peft()
    encoder.detach()
    assert all(module.training for module in text.modules())
    assert {name: p.requires_grad for name, p in text.named_parameters()} == flags


def test_an_adapter_without_peft_on_a_tower_that_holds_some(tmp_path: Path) -> None:
    BridgedModel(attach_bridgers(hf_vision(), hf_text(), 2, SMALL), {}).save_pretrained(tmp_path)
    vision = hf_vision()
    peft.get_peft_model(vision, peft.LoraConfig(target_modules=["fc1"]))
    with pytest.raises(ValueError, match="vision tower holds layers of peft.*saved without any"):
        BridgedModel.from_pretrained(tmp_path, vision, hf_text())


def lora_at(*layers: str) -> Any:
    return peft.LoraConfig(target_modules=list(layers), r=4)


def test_a_second_wrapping_that_forgets_the_first() -> None:
    vision = hf_vision()
    peft.get_peft_model(vision, lora_at("fc1"))
    model = BridgedModel(attach_bridgers(vision, hf_text(), 2, SMALL), {})
    peft.get_peft_model(vision, lora_at("fc2"))
    with pytest.raises(ValueError, match="fc1.*no config.*wrapped twice.*add_adapter"):
        model.trainable_parameters()
    with pytest.raises(ValueError, match="wrapped twice"):
        attach_bridgers(vision, hf_text(), 2, SMALL)


def test_a_wrapping_around_another() -> None:
    inner = peft.get_peft_model(hf_vision(), lora_at("fc1"))
    with pytest.raises(ValueError, match="wrapped twice.*add_adapter"):
        attach_bridgers(peft.get_peft_model(inner, lora_at("fc2")), hf_text(), 2, SMALL)


def roberta() -> nn.Module:
    from families_text import FROM_PAD, build

    return build("RobertaModel", **FROM_PAD)()


READ_OFF: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "words of BERT": (bert, lambda: lora_at("word_embeddings")),
    "words of CLIP": (hf_text, lambda: lora_at("token_embedding")),
    "words of open_clip": (open_clip_vit, lambda: lora_at("token_embedding")),
    "positions of RoBERTa": (roberta, lambda: lora_at("position_embeddings")),
    "some words": (
        bert,
        lambda: peft.TrainableTokensConfig(
            token_indices=[3, 4], target_modules=["word_embeddings"]
        ),
    ),
    "some words beside LoRA": (
        bert,
        lambda: peft.LoraConfig(
            target_modules=["query"], trainable_token_indices={"word_embeddings": [3, 4]}
        ),
    ),
}


@pytest.mark.parametrize("name", READ_OFF)
def test_layers_that_families_read_sizes_off(name: str, tmp_path: Path) -> None:
    build, config = READ_OFF[name]
    text, plain = build().requires_grad_(False), build()  # peft < 0.20 cannot copy it otherwise
    sizes = attach_bridgers(hf_vision(), plain, 2, SMALL).text.describe()
    peft.get_peft_model(text, config())
    model = BridgedModel(attach_bridgers(hf_vision(), text, 2, SMALL), {})
    assert model.encoder.text.describe() == sizes
    assert comes_back(model, tmp_path, hf_vision(), plain)
    expected = model.encode(images(2), ids(2)).tokens
    model.merge_peft()
    torch.testing.assert_close(model.encode(images(2), ids(2)).tokens, expected)
    assert not any(p.requires_grad for p in text.parameters())


def test_lora_on_the_first_convolution() -> None:
    visual = open_clip_vit().visual
    peft.get_peft_model(visual, lora_at("conv1"))
    model = BridgedModel(attach_bridgers(visual, hf_text(), 2, SMALL), {})
    change(model)
    model.encode(images(2), ids(2)).maps[-1].sum().backward()
    assert all(p.grad is not None for p in model.parameter_groups()[-1]["params"])


def torchvision_resnet() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18()


UNUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "the text half of CLIP": (hf_clip, "q_proj"),
    "a classifier of timm": (lambda: timm_vit(num_classes=5), "head"),
    "a classifier of torchvision": (torchvision_resnet, "fc"),
}


@pytest.mark.parametrize("first", ["peft", "bridgers"])
@pytest.mark.parametrize("name", UNUSED)
def test_layers_that_no_feature_needs(name: str, first: str, tmp_path: Path) -> None:
    build, layer = UNUSED[name]
    vision = build()
    before = trace(vision)
    said = "no feature needs peft's layer at vision.*exclude_modules"
    if first == "peft":
        peft.get_peft_model(vision, lora_at(layer))
        before = trace(vision)
        with pytest.raises(ValueError, match=said):
            attach_bridgers(vision, hf_text(), 2, SMALL)
        assert trace(vision) == before
        return
    model = BridgedModel(attach_bridgers(vision, hf_text(), 2, SMALL), {})
    peft.get_peft_model(vision, lora_at(layer))
    for refused in (model.parameter_groups, lambda: model.save_pretrained(tmp_path)):
        with pytest.raises(ValueError, match=said):
            refused()


def test_both_halves_of_a_model_that_is_both_towers(tmp_path: Path) -> None:
    clip, plain = hf_clip(), hf_clip()
    peft.get_peft_model(clip, lora_at("q_proj"))
    model = BridgedModel(attach_bridgers(clip, clip, 2, SMALL), {})
    assert comes_back(model, tmp_path, plain, plain)


def test_the_towers_run_once_more_only_where_peft_has_come() -> None:
    vision, calls = hf_vision(), []
    block = vision.vision_model.encoder.layers[0]
    block.register_forward_hook(lambda *_: calls.append(0))
    model = BridgedModel(attach_bridgers(vision, hf_text(), 2, SMALL), {})
    model.parameter_groups()
    assert not calls
    peft.get_peft_model(vision, lora_at("fc1"))
    for _ in range(2):
        model.parameter_groups()
    assert len(calls) == 1

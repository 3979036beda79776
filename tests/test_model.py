"""BridgedModel: outputs, losses, saving and loading, prediction, bad input."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_towers import PAIRS, ids, images
from helpers_words import word_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bridger
from bridger import BridgedModel, BridgerConfig, attach_bridgers
from bridger.heads import ReferringSegmentationHead

SMALL = BridgerConfig.preset("paper", hidden_dim=16, num_heads=2, ffn_dim=16)
HEAD = {"width": 32, "num_layers": 1, "num_heads": 2}


def make(pair: str = "open_clip_vit", **options: object) -> BridgedModel:
    """A model with numbers of its own everywhere, so that nothing hides behind zeros."""
    torch.manual_seed(0)
    vision, text = PAIRS[pair]()
    bridged = attach_bridgers(vision, text, 2, SMALL, **options)  # type: ignore[arg-type]
    model = bridged.with_head(ReferringSegmentationHead, **HEAD)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def batch(pair: str = "open_clip_vit") -> tuple[Tensor, Tensor]:
    return images(2, 64 if "resnet" in pair else 32), ids(2)


@pytest.mark.parametrize("pair", sorted(PAIRS))
def test_saved_and_loaded_into_fresh_towers_gives_the_same_bits(pair: str, tmp_path: Path) -> None:
    model = make(pair, trainable=["positions"])
    with torch.no_grad():
        expected = model(*batch(pair)).logits
    model.save_pretrained(tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir())[:2] == [
        "bridger.safetensors",
        "bridger_config.json",
    ]
    modes = {p.stat().st_mode for p in (tmp_path / "adapter").iterdir() if p.is_file()}
    assert len(modes) == 1  # who may read the config may read the weights
    again = BridgedModel.from_pretrained(tmp_path / "adapter", *PAIRS[pair]())
    with torch.no_grad():
        assert torch.equal(again(*batch(pair)).logits, expected)
    saved = load_file(tmp_path / "adapter" / "bridger.safetensors")
    assert not any(name.startswith(("towers.", "encoder.towers.")) for name in saved)


def test_loss_is_the_weighted_sum_and_labels_go_by_name() -> None:
    vision, text = PAIRS["open_clip_vit"]()
    bridged = attach_bridgers(vision, text, 2, SMALL)
    model = bridged.with_heads(
        first=(ReferringSegmentationHead, HEAD), second=(ReferringSegmentationHead, HEAD)
    ).eval()
    model.loss_weights["second"] = 0.5
    x, words = batch()
    labels = (images(2, 32)[:, 0] > 0).float()
    out = model(x, words, labels={"first": labels, "second": labels})
    losses = [out.heads[name].loss for name in ("first", "second")]
    assert losses[0] is not None and losses[1] is not None and out.loss is not None
    torch.testing.assert_close(out.loss, losses[0] + 0.5 * losses[1])
    torch.testing.assert_close(out["loss"], out.loss)
    with pytest.raises(ValueError, match="dict by head name"):
        model(x, words, labels=labels)
    with pytest.raises(ValueError, match="unknown heads.*third"):
        model(x, words, labels={"third": labels})
    assert "loss" not in model(x, words)


def test_trainable_parameters_are_what_the_loss_reaches() -> None:
    model = make(trainable=["positions"]).train()
    model(*batch(), labels=torch.ones(2, 32, 32)).loss.backward()
    trainable = {id(p) for p in model.trainable_parameters()}
    reached = {id(p) for p in model.parameters() if p.grad is not None}
    assert reached == trainable
    assert [g["name"] for g in model.parameter_groups()] == ["bridgers", "tower_tensors", "head"]


@pytest.mark.parametrize("name", ["bridgers", "tower_tensors", "peft"])
def test_a_head_with_the_name_of_another_part_is_refused(name: str) -> None:
    encoder = attach_bridgers(*PAIRS["open_clip_vit"](), 2, SMALL)
    with pytest.raises(ValueError, match=f"cannot be called '{name}'.*choose another name"):
        encoder.with_heads(**{name: (ReferringSegmentationHead, HEAD)})


def test_print_trainable_parameters_counts(capsys: pytest.CaptureFixture[str]) -> None:
    model = make()
    model.print_trainable_parameters()
    line = capsys.readouterr().out
    count = sum(p.numel() for p in model.trainable_parameters())
    assert f"{count:,}" in line and "frozen towers" in line and "%" in line


def test_the_summary_has_a_line_for_every_stage() -> None:
    for share in (False, True):
        vision, text = PAIRS["open_clip_vit"]()
        config = SMALL.replace(share=share)
        encoder = attach_bridgers(vision, text, 2, config)
        model = encoder.with_head(ReferringSegmentationHead, width=64)
        lines = model.summary((64, 32)).splitlines()
        assert len(lines) == 5 and "8 x 4" in lines[1] and "8 x 4" in lines[2]
        assert encoder.bridgers is not None
        bridger = sum(p.numel() for p in encoder.bridgers.stages[-1].parameters())
        assert lines[2].endswith(f"{bridger:,}") and lines[3].startswith("head head: referring")
        assert "4 x 4" in model.summary()  # what the tower was built for
    plain = attach_bridgers(*PAIRS["open_clip_vit"](), 2, None).summary()
    assert plain.splitlines()[1].endswith("none")


def test_an_adapter_for_other_towers_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    make("open_clip_vit").save_pretrained(tmp_path)
    vision, text = PAIRS["hf_clip_plain"]()
    hooks = [len(m._forward_hooks) for m in [*vision.modules(), *text.modules()]]
    with pytest.raises(ValueError, match="made for other towers") as error:
        BridgedModel.from_pretrained(tmp_path, vision, text)
    assert "library is 'transformers', expected 'open_clip'" in str(error.value)
    assert [len(m._forward_hooks) for m in [*vision.modules(), *text.modules()]] == hooks
    assert all(p.requires_grad for p in vision.parameters())


def test_broken_and_foreign_files_are_named(tmp_path: Path) -> None:
    towers = PAIRS["open_clip_vit"]()
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        BridgedModel.from_pretrained(tmp_path / "nothing", *towers)
    make().save_pretrained(tmp_path)
    file = tmp_path / "bridger.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        BridgedModel.from_pretrained(tmp_path, *towers)
    save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match="not written by bridger"):
        BridgedModel.from_pretrained(tmp_path, *towers)


def rewrite(folder: Path, change: dict[str, object], drop: str | None = None) -> None:
    """Change the config inside the weights file, or leave a tensor out."""
    file = folder / "bridger.safetensors"
    config = json.loads((folder / "bridger_config.json").read_text()) | change
    text = json.dumps(config)
    tensors = {k: v for k, v in load_file(file).items() if k != drop}
    save_file(tensors, file, metadata={"bridger_config": text})
    (folder / "bridger_config.json").write_text(text)


def test_later_formats_unknown_options_and_missing_tensors_are_named(tmp_path: Path) -> None:
    towers = PAIRS["open_clip_vit"]()
    make().save_pretrained(tmp_path)
    rewrite(tmp_path, {"format_version": 99})
    with pytest.raises(ValueError, match="upgrade"):
        BridgedModel.from_pretrained(tmp_path, *towers)
    rewrite(tmp_path, {"format_version": 1}, drop="bridgers.nothing")
    name = next(k for k in load_file(tmp_path / "bridger.safetensors") if k.startswith("heads."))
    rewrite(tmp_path, {}, drop=name)
    with pytest.raises(ValueError, match=f"missing: {name}"):
        BridgedModel.from_pretrained(tmp_path, *towers)
    config = json.loads((tmp_path / "bridger_config.json").read_text())
    config["encoder"]["bridgers"]["hiden_dim"] = 3
    rewrite(tmp_path, {"encoder": config["encoder"]})
    with pytest.raises(ValueError, match="did you mean 'hidden_dim'"):
        BridgedModel.from_pretrained(tmp_path, *towers)
    assert all(not m._forward_hooks for m in towers[0].modules())


def test_unknown_and_missing_keys_of_the_config_are_named(tmp_path: Path) -> None:
    towers = PAIRS["open_clip_vit"]()
    make().save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "bridger_config.json").read_text())
    encoder, heads = whole["encoder"], whole["heads"]
    cases: list[tuple[dict[str, object], str]] = [
        ({"encodr": {}}, "unknown key 'encodr': did you mean 'encoder'"),
        ({"encoder": {**encoder, "trainble": []}}, "\"encoder\".*'trainble'.* mean 'trainable'"),
        ({"encoder": {k: v for k, v in encoder.items() if k != "stages"}}, r"lacks \['stages'\]"),
        ({"encoder": {**encoder, "peft": [{"side": "vision"}]}}, r"\"peft\".* lacks \['path',"),
        ({"encoder": []}, "must be a JSON object"),
        ({"towers": {"vision": whole["towers"]["vision"]}}, r"\"towers\".* lacks \['text'\]"),
        ({"towers": {**whole["towers"], "text": {}}}, r"text tower .* lacks \['library'"),
        ({"heads": {"head": {"type": heads["head"]["type"]}}}, r"'head'.* lacks \['config', 'loss"),
        ({"format_version": "1"}, "must be a whole number, found '1'"),
    ]
    for change, words in cases:
        (tmp_path / "bridger_config.json").write_text(json.dumps(whole))
        rewrite(tmp_path, change)
        with pytest.raises(ValueError, match=words) as error:
            BridgedModel.from_pretrained(tmp_path, *towers)
        assert "bridger.safetensors" in str(error.value)
    file = tmp_path / "bridger.safetensors"
    for text, words in (
        ("{nope", "is not JSON"),
        ("[1]", "must be a JSON object"),
        ("{}", "lacks"),
    ):
        save_file(load_file(file), file, metadata={"bridger_config": text})
        (tmp_path / "bridger_config.json").write_text(text)
        with pytest.raises(ValueError, match=f"bridger.safetensors.*{words}"):
            BridgedModel.from_pretrained(tmp_path, *towers)


@pytest.mark.parametrize("failing", ["weights", "tokenizer", "processor"])
def test_a_save_that_fails_leaves_the_old_adapter(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("the disk is full")

    model = make()
    model.processor = bridger.Processor(32, [0.5] * 3, [0.5] * 3, word_tokenizer(), 8)
    model.save_pretrained(tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    model = make(trainable=["positions"])
    words = word_tokenizer(sep_token="[EOS]")
    model.processor = bridger.Processor(64, [0.4] * 3, [0.5] * 3, words, 9)
    if failing == "weights":
        monkeypatch.setattr("safetensors.torch.save_file", fail)
    elif failing == "tokenizer":
        monkeypatch.setattr(type(words), "save_pretrained", fail)
    else:
        monkeypatch.setattr(bridger.Processor, "to_dict", fail)
    with pytest.raises(OSError, match="full"):
        model.save_pretrained(tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.undo()
    model.save_pretrained(tmp_path)
    again = BridgedModel.from_pretrained(tmp_path, *PAIRS["open_clip_vit"]())
    assert again.processor is not None and again.processor.max_length == 9
    modes = {p.stat().st_mode for p in tmp_path.rglob("*") if p.is_file()}
    assert len(modes) == 1 and len(list(tmp_path.iterdir())) == 4


def test_a_crash_between_the_two_files_keeps_the_weights_own_config(tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    (tmp_path / "bridger_config.json").write_text("{}")
    with pytest.warns(UserWarning, match="does not belong"):
        again = BridgedModel.from_pretrained(tmp_path, *PAIRS["open_clip_vit"]())
    assert again.encoder.config == model.encoder.config


def test_saving_over_an_adapter_leaves_no_temporary_files(tmp_path: Path) -> None:
    for _ in range(2):
        make().save_pretrained(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    with pytest.raises(NotADirectoryError, match="is a file"):
        make().save_pretrained(tmp_path / "bridger_config.json")


def test_predict_without_a_processor_says_what_to_pass() -> None:
    model = make()
    model.processor = None
    with pytest.raises(RuntimeError, match=r"model.processor = bridger.Processor\("):
        model.predict(np.zeros((8, 8, 3), np.uint8), "a dog")
    with pytest.raises(ValueError, match="threshold"):
        model.predict(np.zeros((8, 8, 3), np.uint8), "a dog", threshold=2)
    with pytest.raises(ValueError, match="2 pictures need as many texts, got 1"):
        model.predict([np.zeros((8, 8, 3), np.uint8)] * 2, "a dog")


def test_predict_leaves_every_module_in_its_mode() -> None:
    vision, text, _ = bridger.load_tiny_clip()
    model = attach_bridgers(vision, text, 2, SMALL).with_head(ReferringSegmentationHead, **HEAD)
    model.train()
    assert model.encoder.bridgers is not None
    model.encoder.bridgers.stages[0].eval()  # one part is held still, as fine-tuning often does
    modes = [module.training for module in model.modules()]
    model.predict(np.zeros((8, 8, 3), np.uint8), "the owl")
    assert [module.training for module in model.modules()] == modes


def test_checkpointed_blocks_and_autocast_give_equal_gradients() -> None:
    x, words = batch()
    labels = torch.ones(2, 32, 32)
    grads = []
    for checkpointing in (False, True):
        model = make()
        for tower in (model.encoder.vision.module, model.encoder.text.module):
            tower.set_grad_checkpointing(checkpointing)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(x, words, labels=labels).loss
        loss.backward()
        grads.append([p.grad for p in model.trainable_parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_detach_gives_the_towers_back() -> None:
    model = make()
    vision: nn.Module = model.encoder.vision.module
    model.detach()
    assert all(not m._forward_hooks for m in vision.modules())


def test_bridgers_alone_are_saved_and_encode(tmp_path: Path) -> None:
    vision, text = PAIRS["open_clip_vit"]()
    model = attach_bridgers(vision, text, 2, SMALL).with_heads()
    with pytest.raises(RuntimeError, match="no head"):
        model(*batch())
    model.save_pretrained(tmp_path)
    again = BridgedModel.from_pretrained(tmp_path, *PAIRS["open_clip_vit"]())
    assert torch.equal(again.encode(*batch()).sentence, model.eval().encode(*batch()).sentence)


def test_half_precision_on_disk_is_half_the_size_and_comes_back_in_float32(tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "half", dtype=torch.float16)
    whole, half = (
        (tmp_path / name / "bridger.safetensors").stat().st_size for name in ("whole", "half")
    )
    assert half < 0.75 * whole  # names and the config weigh much in a model this small
    again = BridgedModel.from_pretrained(tmp_path / "half", *PAIRS["open_clip_vit"]())
    assert all(p.dtype == torch.float32 for p in again.trainable_parameters())
    pairs = zip(model.trainable_parameters(), again.trainable_parameters(), strict=True)
    assert all(torch.equal(a.half().float(), b) for a, b in pairs)


def test_a_head_must_be_a_class_of_heads() -> None:
    vision, text = PAIRS["open_clip_vit"]()
    encoder = attach_bridgers(vision, text, 2, SMALL)
    for wrong in ("referring_segmentation", nn.Linear(3, 3), nn.Linear):
        with pytest.raises(TypeError, match="class of heads, such as Referring.*get_head"):
            encoder.with_head(wrong)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("pair", sorted(PAIRS))
def test_other_weights_of_the_same_towers_are_told(pair: str, tmp_path: Path) -> None:
    make(pair).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor when they come in another precision
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            vision, text = (tower.to(dtype) for tower in PAIRS[pair]())
            BridgedModel.from_pretrained(tmp_path, vision, text).detach()
    vision, text = PAIRS[pair]()
    with torch.no_grad():
        for parameter in vision.parameters():
            parameter.copy_(parameter.flip(0) + 0.1 * torch.randn(parameter.shape))
    with pytest.warns(UserWarning, match="vision tower has other weights"):
        BridgedModel.from_pretrained(tmp_path, vision, text)

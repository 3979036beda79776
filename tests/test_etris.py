"""Released ETRIS checkpoints: the released code's outputs, and its state dict to the last bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from procedural_weights import fill
from safetensors import safe_open
from torch import Tensor

from bridger import BridgedModel, attach_bridgers, etris, load_towers
from bridger.heads import ReferringSegmentationHead

GOLDEN = Path(__file__).parent / "golden"
VARIANTS = ["vit_b16", "rn50"]
START, STOP, WORD_LENGTH = 6174, 6175, 17  # the ends of the small vocabulary
ODD_SIZES = {514: 66, 2305: 289, 677: 5}  # all others above 31 are shrunk to an eighth


def layout(variant: str) -> tuple[dict[str, tuple[int, ...]], set[str]]:
    """Return a released state dict's shapes by name, and which are transposed convolutions."""
    read = json.loads((GOLDEN / f"etris_{variant}.layout.json").read_text())
    shapes = {name: tuple(shape) for name, shape in read["shapes"].items()}
    return shapes, set(read["transposed_convolutions"])


def released(variant: str) -> dict[str, Tensor]:
    """Return the state dict that the golden outputs were made with."""
    shapes, transposed = layout(variant)
    return {name: fill(name, shape, name in transposed) for name, shape in shapes.items()}


def small(variant: str) -> dict[str, Tensor]:
    """Return a state dict of the same names whose widths are an eighth."""
    shapes, transposed = layout(variant)
    return {
        name: fill(name, tuple(map(_shrunk, shape)), name in transposed)
        for name, shape in shapes.items()
    }


def _shrunk(size: int) -> int:
    return ODD_SIZES.get(size, size // 8 if size >= 32 and size % 8 == 0 else size)


def inputs(size: int, words: int = 5) -> tuple[Tensor, Tensor]:
    """Return two pictures and two texts, the second one as long as they get."""
    ids = torch.zeros(2, WORD_LENGTH, dtype=torch.long)
    ids[0, : words + 2] = torch.tensor([START, *range(3, 3 + words), STOP])
    ids[1] = torch.tensor([START, *range(20, 18 + WORD_LENGTH), STOP])
    return torch.randn(2, 3, size, size), ids


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


# The released code's outputs.


def golden_errors(variant: str) -> dict[str, float]:
    """Return each output's largest error, relative to the largest value of the golden one."""
    with safe_open(GOLDEN / f"etris_{variant}.safetensors", "pt") as file:
        seed = int(file.metadata()["seed"])
        golden = {name: file.get_tensor(name) for name in file.keys()}
    model = etris.from_state_dict(released(variant))
    head = model.heads["head"]
    taken = {}
    for name, part in (("neck", head.hierarchical_alignment), ("decoder", head.global_alignment)):
        part.register_forward_hook(lambda m, i, out, name=name: taken.update({name: out}))
    noise = np.random.RandomState(seed).standard_normal((2, 3, 416, 416))
    with torch.no_grad():
        features = model.encode(torch.from_numpy(noise.astype(np.float32)), golden["input_ids"])
        logits = head(features).logits
    found = {
        "text_tokens": features.tokens,
        "text_state": features.sentence,
        **{f"vision_{i}": m[:, ::32, ::3, ::3] for i, m in enumerate(features.maps)},
        **{name: out[:, ::16, ::5, ::5] for name, out in taken.items()},
        "logits": logits,
    }
    assert set(found) | {"input_ids"} == set(golden)
    return {n: float((t - golden[n]).abs().max() / golden[n].abs().max()) for n, t in found.items()}


def test_rn50_computes_what_the_released_code_does() -> None:
    errors = golden_errors("rn50")
    assert max(errors.values()) < 1e-4, errors


@pytest.mark.slow
def test_vit_computes_what_the_released_code_does() -> None:
    errors = golden_errors("vit_b16")
    assert max(errors.values()) < 1e-4, errors


# Both ways.


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_state_dict_comes_back_bit_for_bit(variant: str) -> None:
    state = small(variant)
    same(etris.to_state_dict(etris.from_state_dict(state)), state)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_the_layout_leaves_out_comes_back_too(variant: str) -> None:
    state = {"logit_scale": None, **small(variant)}
    state = {("backbone.logit_scale" if n == "logit_scale" else n): t for n, t in state.items()}
    state["backbone.logit_scale"] = torch.tensor(4.6)
    means = [name for name in state if name.endswith("running_mean")]
    for i, name in enumerate(means):
        state[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(i)
    state["backbone.transformer.resblocks.0.attn_mask"] = torch.randn(17, 17)
    state["proj.txt.bias"] = state["proj.txt.bias"].half()
    ddp = {f"module.{name}": tensor for name, tensor in state.items()}
    same(etris.to_state_dict(etris.from_state_dict(ddp)), ddp)
    same(etris.to_state_dict(copy.deepcopy(etris.from_state_dict({"state_dict": ddp}))), ddp)


def test_a_whole_training_checkpoint_is_read_and_written(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in small("vit_b16").items()}
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([parameter])
    parameter.sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [35])
    whole = {
        "epoch": 3,
        "cur_iou": 0.5,
        "prec": {"Pr@50": 0.4},
        "state_dict": state,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    torch.save(whole, tmp_path / "best_model.pth")
    model = etris.load(tmp_path / "best_model.pth", 22)
    assert model.processor.max_length == model.encoder.word_length == 22
    etris.save(model, tmp_path / "again.pth")
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["again.pth", "best_model.pth"]
    same(torch.load(tmp_path / "again.pth", weights_only=True)["state_dict"], state)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_gives_the_same_logits_on_fresh_towers(variant: str, tmp_path: Path) -> None:
    state = small(variant)
    model = etris.from_state_dict(state)
    pixels, ids = inputs(64)
    with torch.no_grad():
        expected = model(pixels, ids).logits
    model.save_pretrained(tmp_path)
    # Fresh towers have what pretraining left: other positions, other statistics.
    for name, tensor in state.items():
        if name.endswith(("positional_embedding", "running_mean")) and "backbone" in name:
            state[name] = torch.randn_like(tensor)
    clip = etris.from_state_dict(state).encoder.text.module
    fresh = BridgedModel.from_pretrained(tmp_path, clip.visual, clip)
    assert fresh.encoder.word_length == WORD_LENGTH
    with torch.no_grad():
        assert torch.equal(fresh(pixels, ids).logits, expected)
    same(etris.to_state_dict(fresh), etris.to_state_dict(model))


def test_an_adapter_remembers_what_its_checkpoint_was_like(tmp_path: Path) -> None:
    state = small("vit_b16")
    state["backbone.transformer.resblocks.0.attn_mask"] = torch.randn(17, 17)
    state["proj.txt.bias"] = state["proj.txt.bias"].half()
    state = {f"module.{name}": tensor for name, tensor in state.items()}
    model = etris.from_state_dict(state)
    model.save_pretrained(tmp_path / "first")
    clip = model.encoder.text.module
    BridgedModel.from_pretrained(tmp_path / "first", clip.visual, clip).save_pretrained(tmp_path)
    same(etris.to_state_dict(BridgedModel.from_pretrained(tmp_path, clip.visual, clip)), state)
    config = json.loads((tmp_path / "bridger_config.json").read_text())
    other = attach_bridgers(clip.visual, clip).with_heads()
    other.save_pretrained(tmp_path)
    assert "etris" in config
    assert "etris" not in json.loads((tmp_path / "bridger_config.json").read_text())


def test_training_changes_what_the_released_code_trains() -> None:
    state = small("rn50")
    model = etris.from_state_dict(state).train()
    pixels, ids = inputs(64)
    optimizer = torch.optim.SGD(model.trainable_parameters(), lr=0.1)
    model(pixels, ids, labels=torch.rand(2, 64, 64)).loss.backward()
    optimizer.step()
    after = etris.to_state_dict(model)
    changed = {name for name, tensor in state.items() if not torch.equal(after[name], tensor)}
    in_towers = {name for name in changed if name.startswith("backbone")}
    positions = {name for name in in_towers if name.endswith("positional_embedding")}
    # The frozen ResNet's BatchNorms are in train mode there, all of them.
    running = {name for name in state if name.endswith(("running_mean", "running_var"))}
    assert in_towers == positions | {name for name in running if name.startswith("backbone")}
    for part in ("bridger.zoom_in.0.weight", "neck.txt_proj.weight", "proj.txt.weight"):
        assert part in changed
    assert "backbone.positional_embedding" in changed
    assert "backbone.visual.attnpool.positional_embedding" in changed


# How texts are taken.


def test_the_id_0_is_padding_wherever_it_stands() -> None:
    model = etris.from_state_dict(small("vit_b16"))
    pixels, ids = inputs(64)
    ids[1, 4] = 0
    with torch.no_grad():
        features = model.encode(pixels, ids)
    assert torch.equal(features.token_mask, ids != 0)


def test_a_text_does_not_depend_on_how_far_it_is_padded() -> None:
    model = etris.from_state_dict(small("vit_b16"))
    pixels, ids = inputs(64)
    with torch.no_grad():
        whole = model(pixels[:1], ids[:1]).logits
        assert torch.equal(model(pixels[:1], ids[:1, :7]).logits, whole)
        assert torch.equal(model(pixels[:1], ids[:1, :7], torch.ones(1, 7)).logits, whole)
        with pytest.raises(ValueError, match="trained on 17 tokens, got 20"):
            model(pixels[:1], torch.nn.functional.pad(ids[:1], (0, 3)))


# What does not fit.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone.visual.attnpool.connect.0.weight": None}, "missing: .*connect.0.weight"),
        ({"neck.aggr.0.weight": torch.zeros(2, 2, 1, 1)}, r"expected \(64, 192, 1, 1\), found"),
        ({"neck.extra.weight": torch.zeros(3)}, "unexpected: neck.extra.weight"),
        ({"backbone.positional_embedding": None}, "none of the name 'backbone.positional"),
        ({"proj.txt.bias": torch.zeros(289).double()}, "proj.txt.bias .torch.float64"),
    ],
)
def test_what_is_no_released_checkpoint_is_named(
    change: dict[str, Tensor | None], words: str
) -> None:
    state = {**small("rn50"), **change}
    state = {name: tensor for name, tensor in state.items() if tensor is not None}
    with pytest.raises(ValueError, match=words):
        etris.from_state_dict(state)


def test_numbers_of_heads_are_arguments() -> None:
    model = etris.from_state_dict(small("rn50"), bridger_heads=2, decoder_heads=4)
    assert model.encoder.config.num_heads == 2
    assert model.heads["head"].config.num_heads == 4
    assert etris.from_state_dict(small("rn50")).encoder.config.num_heads == 4


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": small("vit_b16"), "path": tmp_path}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint of tensors"):
        etris.load(tmp_path / "bad.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"list.pth: expected a state dict by name, found .*list"):
        etris.load(tmp_path / "list.pth")
    with pytest.raises(FileNotFoundError):
        etris.load(tmp_path / "none.pth")


@pytest.mark.parametrize("broken", [b"", b"hello", b"not a checkpoint", b"a,b\n", b"PK", 1000, -9])
def test_broken_files_are_named(broken: bytes | int, tmp_path: Path) -> None:
    file = tmp_path / "cut.pth"
    torch.save({"state_dict": {"a": torch.zeros(1000)}}, file)
    file.write_bytes(file.read_bytes()[:broken] if isinstance(broken, int) else broken)
    with pytest.raises(ValueError, match=r"cut.pth cannot be read as .*: expected the .pth that"):
        etris.load(file)


def test_towers_of_a_checkpoint_take_texts_of_a_given_length(tmp_path: Path) -> None:
    for name in ("etris.pth", "at@22"):
        torch.save(small("vit_b16"), tmp_path / name)
    lengths = {"etris.pth": 17, "etris.pth@22": 22, "at@22": 17, "at@22@9": 9}
    for name, length in lengths.items():
        _, _, processor = load_towers(f"etris:{tmp_path / name}")
        assert processor is not None and processor.max_length == length


def test_a_model_of_another_form_has_no_released_state_dict() -> None:
    clip = etris.from_state_dict(small("vit_b16")).encoder.text.module
    other = attach_bridgers(clip.visual, clip, stages=2).with_head(
        ReferringSegmentationHead, width=32, num_heads=4, num_layers=1
    )
    with pytest.raises(ValueError, match="preset etris_vit or etris_resnet") as error:
        etris.to_state_dict(other)
    assert "expected 3 stages, found 2" in str(error.value)
    assert "keep_inert" in str(error.value)


def test_a_new_model_of_the_released_form_gives_all_names() -> None:
    clip = etris.from_state_dict(small("vit_b16")).encoder.text.module
    encoder = attach_bridgers(clip.visual, clip, config="etris_vit", trainable=["positions"])
    model = encoder.with_head(ReferringSegmentationHead, preset="etris", width=64, num_heads=8)
    names = set(etris.to_state_dict(model))
    left_out = {n for n in names if n.endswith(("num_batches_tracked", "logit_scale"))}
    assert names - left_out == set(layout("vit_b16")[0])

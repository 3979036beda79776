"""Several adapters on one pair of towers: switching is loading, without the loading."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_adapters import EACH_PAIR, MASKS, SMALL, alone, answers, batch, equal, numbers, saved
from helpers_conformance import kept_for_backward, trace
from helpers_head_rows import CLASSES, COUNT, ROWS, WORDS
from helpers_towers import PAIRS, hf_text, hf_vision, open_clip_vit
from helpers_words import word_tokenizer
from torch import Tensor, nn

from bridger import BridgedModel, Processor, attach_bridgers
from bridger.adapter_files import read
from bridger.heads import get_head
from bridger.tiny_clip import SHIPPED

ONE_WAY = SMALL.replace(direction="to_vision")


@pytest.fixture
def model(tmp_path: Path) -> BridgedModel:
    """Two adapters that differ in everything: "default" acts, "other" rests."""
    saved(tmp_path, 1)
    saved(tmp_path, 2, config=ONE_WAY, stages=3, trainable=["positions"])
    loaded = BridgedModel.from_pretrained(tmp_path / "1", *PAIRS["open_clip_vit"]())
    loaded.load_adapter("other", tmp_path / "2")
    return loaded


def plain(vision: nn.Module, text: nn.Module, pair: str) -> list[Tensor]:
    """What the towers' blocks give when they are called on their own."""
    seen: list[Tensor] = []
    encoder = attach_bridgers(vision, text, 2, None)
    with torch.no_grad():
        for side, given in zip((encoder.vision, encoder.text), batch(pair), strict=True):
            block = side.blocks[-1].module
            hook = block.register_forward_hook(
                lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out)
            )
            args = (given,) if side is encoder.vision else side.prepare(given)
            side.call(*args, {})
            hook.remove()
    encoder.detach()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("pair", EACH_PAIR)
def test_what_is_set_gives_the_bits_of_what_is_loaded_alone(pair: str, tmp_path: Path) -> None:
    folders = {
        "default": saved(tmp_path, 1, pair),
        "twin": saved(tmp_path, 2, pair),
        "one way": saved(tmp_path, 3, pair, config=ONE_WAY, stages=3, trainable=["positions"]),
        "no bridgers": saved(tmp_path, 4, pair, config=None, stages=1),
        "no heads": saved(tmp_path, 5, pair, heads={}),
    }
    expected = {name: alone(folder, pair) for name, folder in folders.items()}
    vision, text = PAIRS[pair]()
    before = trace(vision), trace(text)
    own = plain(vision, text, pair)
    model = BridgedModel.from_pretrained(folders["default"], vision, text)
    towers = {id(module) for module in model.encoder.towers.modules()} - {id(model.encoder.towers)}
    for name, folder in folders.items():
        if name != "default":
            model.load_adapter(name, folder)
            assert model.active_adapter == "default" and not model.training
    assert model.adapter_names == list(folders)
    for name in [*folders, *reversed(folders), "one way"]:
        model.set_adapter(name)
        assert model.active_adapter == name
        assert equal(answers(model, pair), expected[name]), name
        inside = {id(module) for module in model.encoder.towers.modules()}
        assert inside - {id(model.encoder.towers)} == towers
        again = plain(vision, text, pair)
        assert all(torch.equal(a, b) for a, b in zip(again, own, strict=True))
    for name in folders:
        if name != "one way":
            model.delete_adapter(name)
    assert model.adapter_names == ["one way"]
    assert equal(answers(model, pair), expected["one way"])
    model.detach()
    assert (trace(vision), trace(text)) == before


def flat(seed: int, row: Any) -> BridgedModel:
    """A small head of any kind on towers that have nothing in common."""
    torch.manual_seed(seed)
    towers = hf_vision(projection=False), hf_text(projection=False, eos=3)
    encoder = attach_bridgers(*towers, 2, SMALL)
    model = encoder.with_heads(**{f"head{seed}": (get_head(row.name), row.options)})
    model.processor = Processor(32, [0.5] * 3, [0.5] * 3, word_tokenizer(), 8 + seed)
    return model.eval()


@pytest.mark.parametrize("other", sorted(ROWS))
def test_heads_of_every_kind_stand_side_by_side(other: str, tmp_path: Path) -> None:
    rows = {"default": ROWS["referring"], "other": ROWS[other]}
    for seed, (name, row) in enumerate(rows.items()):
        flat(seed, row).save_pretrained(tmp_path / name)
    pixels = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0))

    def found(model: BridgedModel, name: str) -> Any:
        row = rows[name]
        words = list(CLASSES) if row.classes else WORDS
        return model.predict(pixels, words, **row.asked).found()

    expected = {}
    for name in rows:
        fresh = hf_vision(projection=False), hf_text(projection=False, eos=3)
        expected[name] = found(BridgedModel.from_pretrained(tmp_path / name, *fresh), name)
    towers = hf_vision(projection=False), hf_text(projection=False, eos=3)
    model = BridgedModel.from_pretrained(tmp_path / "default", *towers)
    model.load_adapter("other", tmp_path / "other")
    for seed, name in [(1, "other"), (0, "default"), (1, "other")]:
        model.set_adapter(name)
        assert list(model.heads) == [f"head{seed}"] == list(model.loss_weights)
        assert model.processor is not None and model.processor.max_length == 8 + seed
        assert found(model, name) == expected[name]
    labels = rows["other"].labels(2, COUNT, (32, 32))
    words = list(CLASSES) if rows["other"].classes else WORDS
    text = model.heads["head1"].texts(model.processor, words).batch(2)
    loss = model.train()(torch.randn(2, 3, 32, 32), **text, labels=labels).loss
    assert loss is not None and loss.isfinite()


def train(model: BridgedModel, steps: int = 3) -> list[float]:
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW(model.train().trainable_parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(*batch(), labels=torch.ones(2, 32, 32)).loss
        assert loss is not None
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_only_the_one_that_acts_is_trained(model: BridgedModel, tmp_path: Path) -> None:
    towers = copy.deepcopy(model.encoder.towers.state_dict())
    first = numbers(model)
    model.set_adapter("other")
    second = numbers(model)
    losses = train(model)
    trained = numbers(model)
    assert not equal(trained, second)
    twin = BridgedModel.from_pretrained(tmp_path / "2", *PAIRS["open_clip_vit"]())
    assert train(twin) == losses and equal(numbers(twin), trained)
    assert equal(model.encoder.towers.state_dict(), towers)
    model.set_adapter("default")
    assert equal(numbers(model), first)
    train(model)
    model.set_adapter("other")
    assert equal(numbers(model), trained)


def test_what_rests_is_no_part_of_the_model(model: BridgedModel, tmp_path: Path) -> None:
    only = BridgedModel.from_pretrained(tmp_path / "1", *PAIRS["open_clip_vit"]())
    assert list(model.state_dict()) == list(only.state_dict())
    assert len(list(model.parameters())) == len(list(only.parameters()))
    model.save_pretrained(tmp_path / "again")
    (config, own), (expected, others) = (read(tmp_path / name) for name in ("again", "1"))
    assert config == expected and equal(own, others)
    model.set_adapter("other")
    model.save_pretrained(tmp_path / "second")
    assert equal(alone(tmp_path / "second"), alone(tmp_path / "2"))


def storages(*models: BridgedModel) -> dict[int, int]:
    """Bytes of every storage that a model or one of its resting adapters holds, once each."""
    found: dict[int, int] = {}
    for model in models:
        resting = [rest[0] for rest in model._resting.values() if rest is not None]
        for one in (model, *resting):
            for tensor in [*one.parameters(), *one.buffers()]:
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return found


def test_an_adapter_costs_its_own_tensors_alone(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    model = BridgedModel.from_pretrained(tmp_path / "1", *PAIRS["open_clip_vit"]())
    before = sum(storages(model).values())
    own = sum(tensor.nbytes for tensor in model.adapter_state_dict().values())
    for count in range(1, 4):
        model.load_adapter(f"more {count}", tmp_path / "1")
        assert sum(storages(model).values()) == before + count * own
    model.set_adapter("more 2")
    model.delete_adapter("default")
    gc.collect()
    assert sum(storages(model).values()) == before + 2 * own


# Modes, devices, numbers.


def test_mode_and_dtype_follow_the_model_at_hand(model: BridgedModel) -> None:
    first = answers(model)
    model.train()
    model.set_adapter("other")
    assert all(module.training for module in (model, model.heads["masks"], model.encoder.bridgers))
    assert not any(module.training for module in model.encoder.vision.module.modules())
    model.eval()
    model.to(torch.float64)
    model.set_adapter("default")
    assert not any(module.training for module in model.modules())
    kinds = {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}
    assert kinds == {torch.float64}
    model.float()
    assert equal(answers(model), first)
    model.bfloat16()  # the towers alone
    model.set_adapter("other")
    own = {tensor.dtype for tensor in model.adapter_state_dict().values()}
    assert own - {torch.int64} == {torch.float32}
    model.heads.requires_grad_(False)  # type: ignore[attr-defined]
    model.set_adapter("default")
    assert all(p.requires_grad for p in model.heads["masks"].parameters())


def kept(model: BridgedModel) -> int:
    model.train()
    return kept_for_backward(lambda: model(*batch(), labels=torch.ones(2, 32, 32)))


def test_activation_checkpointing_follows_the_model_at_hand(model: BridgedModel) -> None:
    whole = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        whole[name] = kept(model)
    model.activation_checkpointing_enable()
    assert kept(model) < 0.7 * whole["other"]
    model.set_adapter("default")
    assert kept(model) < 0.7 * whole["default"]
    model.activation_checkpointing_disable()
    assert kept(model) == whole["default"]
    model.set_adapter("other")
    assert kept(model) == whole["other"]


@pytest.mark.slow
def test_compiling_is_of_one_adapter(model: BridgedModel) -> None:
    first = answers(model)
    other = answers_of(model, "other")
    model.set_adapter("default")
    model.compile(backend="eager")
    model.set_adapter("other")
    assert model.encoder._compiled is None and equal(answers(model), other)
    model.set_adapter("default")
    assert model.encoder._compiled is not None
    for name, tensor in answers(model).items():
        torch.testing.assert_close(tensor, first[name])


def answers_of(model: BridgedModel, name: str) -> dict[str, Tensor]:
    model.set_adapter(name)
    return answers(model)


def pickled(model: BridgedModel) -> Any:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_a_copy_has_adapters_and_towers_of_its_own(model: BridgedModel, copied: Any) -> None:
    expected = {name: answers_of(model, name) for name in model.adapter_names}
    twin = copied(model)
    assert twin.adapter_names == model.adapter_names and twin.active_adapter == "other"
    shared = storages(twin).keys() & storages(model).keys()
    assert not shared
    model.detach()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    for name in ("default", "other"):
        assert equal(answers_of(twin, name), expected[name])
    twin.detach()


def test_texts_that_were_read_are_those_of_the_adapter(tmp_path: Path) -> None:
    row = ROWS["semantic"]
    for seed in (1, 2):
        torch.manual_seed(seed)
        towers = hf_vision(projection=False), hf_text(projection=False, eos=3)
        encoder = attach_bridgers(*towers, 2, ONE_WAY, trainable="text.*layer_norm*")
        with torch.no_grad():
            for parameter in encoder.tower_tensors.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        model = encoder.with_heads(masks=(get_head(row.name), row.options))
        model.processor = Processor(32, [0.5] * 3, [0.5] * 3, word_tokenizer(), 8)
        model.save_pretrained(tmp_path / str(seed))
    picture = torch.rand(3, 32, 32)

    def asked(model: BridgedModel) -> Tensor:
        return torch.as_tensor(model.predict(picture, list(CLASSES)).probabilities)

    towers = hf_vision(projection=False), hf_text(projection=False, eos=3)
    model = BridgedModel.from_pretrained(tmp_path / "1", *towers)
    model.load_adapter("2", tmp_path / "2")
    first = asked(model)
    model.set_adapter("2")
    second = asked(model)
    assert not torch.equal(first, second)
    fresh = hf_vision(projection=False), hf_text(projection=False, eos=3)
    assert torch.equal(second, asked(BridgedModel.from_pretrained(tmp_path / "2", *fresh)))
    model.set_adapter("default")
    assert torch.equal(asked(model), first)


def test_some_heads_and_shipped_adapters_are_loaded() -> None:
    model = BridgedModel.from_pretrained("tiny")
    model.load_adapter("heads", "tiny-heads", heads=["classification"])
    model.set_adapter("heads")
    assert list(model.heads) == ["classification"]
    assert model.encoder.config is None and model.encoder.tower_source == "tiny"
    assert SHIPPED.keys() >= {"tiny", "tiny-heads"}


# What is refused.


def test_names_that_are_taken_unknown_or_none(model: BridgedModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'other' already.*delete_adapter\('other'\)"):
        model.load_adapter("other", tmp_path / "2")
    for name in ("", None, 3):
        with pytest.raises(ValueError, match="must be a string"):
            model.load_adapter(name, tmp_path / "2")  # type: ignore[arg-type]
    for act in (model.set_adapter, model.delete_adapter):
        with pytest.raises(ValueError, match="no adapter 'othr': did you mean 'other'"):
            act("othr")
    with pytest.raises(ValueError, match=r"'default' acts.*set_adapter\('other'\)"):
        model.delete_adapter("default")
    model.delete_adapter("other")
    with pytest.raises(ValueError, match=r"only one.*detach\(\)"):
        model.delete_adapter("default")
    with pytest.raises(FileNotFoundError):
        model.load_adapter("other", tmp_path / "nothing")
    assert model.adapter_names == ["default"]


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_an_adapter_for_other_towers_leaves_all_as_it_was(
    model: BridgedModel, tmp_path: Path
) -> None:
    saved(tmp_path, 3, "hf_clip_plain")
    expected = answers(model)
    before = trace(model.encoder.text.module)
    wrong = "library is 'open_clip', expected 'transformers'"
    with pytest.raises(ValueError, match=wrong), quiet():
        model.load_adapter("third", tmp_path / "3")
    with pytest.raises(ValueError, match=r"list of the names.*\['masks'\]; got \['boxes'\]"):
        model.load_adapter("third", tmp_path / "1", heads=["boxes"])
    gc.collect()
    assert trace(model.encoder.text.module) == before
    assert model.adapter_names == ["default", "other"] and equal(answers(model), expected)


def test_towers_with_other_weights_are_told_of_where_it_was_called(
    model: BridgedModel, tmp_path: Path
) -> None:
    clip = open_clip_vit(seed=7)
    encoder = attach_bridgers(clip.visual, clip, 2, SMALL)
    encoder.with_heads(masks=MASKS).save_pretrained(tmp_path / "3")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.load_adapter("third", tmp_path / "3")
    assert [str(one.message).split(" has ")[0] for one in told] == [
        "the vision tower",
        "the text tower",
    ]
    assert {one.filename for one in told} == {__file__}


def test_a_detached_or_disabled_model_does_not_switch(model: BridgedModel, tmp_path: Path) -> None:
    with model.disable(), pytest.raises(RuntimeError, match=r"leave model.disable\(\)"):
        model.set_adapter("other")
    model.detach()
    with pytest.raises(RuntimeError, match="detached"):
        model.set_adapter("other")
    with pytest.raises(RuntimeError, match="detached"):
        model.load_adapter("third", tmp_path / "2")
    model.delete_adapter("other")


def test_a_model_that_is_spread_over_processes_does_not_switch(tmp_path: Path) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    pair = "hf_clip_plain"
    model = BridgedModel.from_pretrained(saved(tmp_path, 1, pair), *PAIRS[pair]())
    model.load_adapter("other", tmp_path / "1")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        for act in (
            lambda: model.set_adapter("other"),
            lambda: model.load_adapter("third", tmp_path / "1"),
            lambda: model.add_weighted_adapter(["default"], [1], "third"),
        ):
            with pytest.raises(RuntimeError, match="before FSDP wraps it"):
                act()
    finally:
        distributed.destroy_process_group()


def test_dropped_models_leave_the_towers_as_they_were(tmp_path: Path) -> None:
    clip = open_clip_vit()
    before = trace(clip)
    saved(tmp_path, 1)
    model = BridgedModel.from_pretrained(tmp_path / "1", clip.visual, clip)
    model.load_adapter("other", tmp_path / "1")
    model.set_adapter("other")
    model.add_weighted_adapter(["default", "other"], [1, 1], "mean")
    del model
    gc.collect()
    assert trace(clip) == before


@pytest.mark.slow
def test_the_benchmark_of_switching_runs() -> None:
    script = Path(__file__).parent.parent / "examples" / "benchmarks" / "adapters.py"
    command = [sys.executable, str(script), "--small", "--switches", "4"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for library in ("bridger", "peft"):
        assert f"{library}: 5 adapters of " in printed
    assert printed.count("set_adapter:") == 2 == printed.count("tensors of one more adapter:")

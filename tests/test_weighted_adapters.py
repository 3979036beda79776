"""The weighted average of adapters of one shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_adapters import (
    EACH_PAIR,
    HEAD,
    MASKS,
    SMALL,
    answers,
    batch,
    equal,
    numbers,
    saved,
)
from helpers_head_rows import ROWS
from helpers_towers import PAIRS, hf_text, hf_vision
from torch import Tensor

from bridger import BridgedModel, attach_bridgers
from bridger.heads import ReferringSegmentationHead, get_head


def loaded(folder: Path, *seeds: int, pair: str = "open_clip_vit", **options: Any) -> BridgedModel:
    """A model with adapters that are called after their seeds; the first one is "default"."""
    folders = [saved(folder, seed, pair, **options) for seed in seeds]
    model = BridgedModel.from_pretrained(folders[0], *PAIRS[pair]())
    for seed, one in zip(seeds[1:], folders[1:], strict=True):
        model.load_adapter(str(seed), one)
    return model


def numbers_of(model: BridgedModel, name: str) -> dict[str, Tensor]:
    model.set_adapter(name)
    return numbers(model)


@pytest.mark.parametrize("pair", EACH_PAIR)
def test_it_is_the_sum_of_weights_times_numbers(pair: str, tmp_path: Path) -> None:
    model = loaded(tmp_path, 1, 2, 3, pair=pair, trainable=["positions"])
    for name, seed in (("2", 4), ("3", 5)):  # statistics of their own, too
        model.set_adapter(name)
        generator = torch.Generator().manual_seed(seed)
        for key, buffer in model.heads.named_buffers():  # type: ignore[attr-defined]
            if key.endswith("running_mean"):
                buffer.normal_(generator=generator)
    model.add_weighted_adapter(["default", "2", "3"], [2, 1, 5], "sum")
    assert model.active_adapter == "3" and model.adapter_names[-1] == "sum"
    own = [numbers_of(model, name) for name in ("default", "2", "3")]
    average = numbers_of(model, "sum")
    for key, tensor in average.items():
        a, b, c = (one[key].numpy().astype("float64") for one in own)
        expected = (2 * a + b + 5 * c) / 8
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6, atol=1e-7)
    assert not equal(average, own[0])


def test_the_average_of_an_adapter_with_itself_or_alone_is_the_adapter(tmp_path: Path) -> None:
    model = loaded(tmp_path, 1, 2)
    first, second = answers(model), numbers_of(model, "2")
    model.add_weighted_adapter(["default", "default"], [0.3, 0.7], "twice")
    model.add_weighted_adapter(["2"], [4], "one")
    model.add_weighted_adapter(["2", "default", "2"], [0.1, 0, 0.6], "nothing of the other")
    assert equal(numbers_of(model, "one"), second)
    assert equal(numbers_of(model, "nothing of the other"), second)
    model.set_adapter("twice")
    assert equal(answers(model), first)


def test_an_average_is_an_adapter_of_its_own(tmp_path: Path) -> None:
    model = loaded(tmp_path, 1, 2)
    model.add_weighted_adapter(["default", "2"], [1, 1], "mean")
    before = numbers_of(model, "mean")
    expected = answers(model)
    model.save_pretrained(tmp_path / "mean")
    fresh = BridgedModel.from_pretrained(tmp_path / "mean", *PAIRS["open_clip_vit"]())
    assert equal(answers(fresh), expected)
    first = numbers_of(model, "default")
    model.set_adapter("mean")
    model.train()(*batch(), labels=torch.ones(2, 32, 32)).loss.backward()
    torch.optim.SGD(model.trainable_parameters(), lr=1.0).step()
    assert not equal(numbers(model), before)
    assert equal(numbers_of(model, "default"), first)
    model.delete_adapter("mean")
    again = answers(model.eval())
    model.add_weighted_adapter(["default", "2"], [1, 1], "mean")
    assert equal(numbers_of(model, "mean"), before)
    model.set_adapter("default")
    assert equal(answers(model), again)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ROWS))
def test_heads_of_every_kind_are_averaged(name: str, tmp_path: Path) -> None:
    row = ROWS[name]
    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        encoder = attach_bridgers(hf_vision(), hf_text(eos=3), 2, None)
        model = encoder.with_heads(one=(get_head(row.name), row.options))
        model.heads["one"].load_state_dict(row.build(encoder.spec).state_dict())
        folders.append(tmp_path / str(seed))
        model.save_pretrained(folders[-1])
    model = BridgedModel.from_pretrained(folders[0], hf_vision(), hf_text(eos=3))
    model.load_adapter("two", folders[1])
    model.add_weighted_adapter(["default", "two"], [1, 3], "both")
    own = [numbers_of(model, one) for one in ("default", "two")]
    for key, tensor in numbers_of(model, "both").items():
        expected = 0.25 * own[0][key].double() + 0.75 * own[1][key].double()
        torch.testing.assert_close(tensor, expected.to(tensor.dtype))


# What is refused.


def test_every_difference_is_named(tmp_path: Path) -> None:
    model = loaded(tmp_path, 1)
    saved(
        tmp_path,
        2,
        config=SMALL.replace(hidden_dim=32, dropout=0.2),
        stages=3,
        trainable=["positions"],
        heads={
            "masks": (ReferringSegmentationHead, {**HEAD, "width": 64}),
            "more": MASKS,
        },
    )
    model.load_adapter("2", tmp_path / "2")
    with pytest.raises(ValueError, match="only adapters of one shape") as error:
        model.add_weighted_adapter(["default", "2"], [1, 1], "mean")
    said = str(error.value)
    for part in (
        "encoder.stages is [[1, 1], [3, 3]] in 'default', [[1, 1], [2, 2], [3, 3]] in '2'",
        "encoder.bridgers.hidden_dim is 16 in 'default', 32 in '2'",
        "encoder.bridgers.dropout is 0.1 in 'default', 0.2 in '2'",
        "encoder.trainable is [] in 'default', ['positions'] in '2'",
        "heads.masks.config.width is 32 in 'default', 64 in '2'",
        "heads.more is missing in 'default'",
        "tower_tensors.vision:positional_embedding is missing in 'default'",
    ):
        assert part in said
    assert model.adapter_names == ["default", "2"]


def test_whole_numbers_must_be_equal_but_for_counts_of_batches(tmp_path: Path) -> None:
    model = loaded(tmp_path, 1, 2)
    for name, count in (("default", 3), ("2", 4)):
        model.set_adapter(name)
        model.heads["masks"].register_buffer("steps", torch.tensor([count]))
        for module in model.heads["masks"].modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.num_batches_tracked is not None
                module.num_batches_tracked.fill_(count)
    with pytest.raises(ValueError, match=r"heads.masks.steps is \[3\] in 'default', \[4\] in '2'"):
        model.add_weighted_adapter(["default", "2"], [1, 1], "mean")
    model.heads["masks"].steps.fill_(3)
    model.add_weighted_adapter(["default", "2"], [1, 1], "mean")
    own = numbers_of(model, "mean")
    counts = {int(own[key]) for key in own if key.endswith("num_batches_tracked")}
    assert counts == {3} and int(own["heads.masks.steps"]) == 3


def test_weights_and_names_that_cannot_be(tmp_path: Path) -> None:
    model = loaded(tmp_path, 1, 2)
    for names, weights, words in (
        (["default", "2"], [1], "as many weights"),
        ([], [], "a list of adapters"),
        ("2", [1], "a list of adapters"),
        (["default", "2"], [1, -1], "the weight of '2' must be a number, 0 or more"),
        (["default", "2"], [1, float("nan")], "must be a number, 0 or more"),
        (["default", "2"], [1, "a"], "must be a number, 0 or more"),
        (["default", "2"], [0, 0], "cannot all be 0"),
        (["default", "3"], [1, 1], "no adapter '3'"),
    ):
        with pytest.raises(ValueError, match=words):
            model.add_weighted_adapter(names, weights, "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'2' already"):
        model.add_weighted_adapter(["default", "2"], [1, 1], "2")
    assert model.adapter_names == ["default", "2"]

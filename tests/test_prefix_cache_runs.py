"""Prefixes that are kept while training and evaluating, by recipes and commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_evaluation import few, untrained_model
from safetensors.torch import load_file

from bridger.evaluation import evaluate
from bridger.prefix import PrefixCache
from bridger.training import Recipe

HEAD = {"width": 64, "num_layers": 1, "num_heads": 2}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[PrefixCache]:
    """Every cache that is made."""
    caches: list[PrefixCache] = []
    begin = PrefixCache.__init__

    def remember(self: PrefixCache, *args: Any) -> None:
        begin(self, *args)
        caches.append(self)

    monkeypatch.setattr(PrefixCache, "__init__", remember)
    return caches


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_an_evaluation_gives_the_same_figures(where: str, tmp_path: Path) -> None:
    model = untrained_model()
    split = few(tmp_path, [(0, 1, 2), (1, 2, 3), (2, 1, 1)])
    plain = evaluate(model, split, batch_size=2)
    place = tmp_path / "kept" if where == "folder" else where
    model.encoder.cache_prefix(place, dtype=torch.float32)
    cache = model.encoder.prefix_cache
    for _ in range(2):
        assert evaluate(model, split, batch_size=2).metrics() == plain.metrics()
    assert cache is not None and cache.hits >= cache.misses > 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix_cache": 3}, 'prefix_cache must be "memory", a folder or null, got 3'),
        ({"prefix_cache": "memory", "augment": ["flip"]}, "no picture is seen twice"),
    ],
)
def test_recipes_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Recipe(**options)


@pytest.mark.slow
def test_training_learns_the_same(
    run: Run, scenes: Path, made: list[PrefixCache], tmp_path: Path
) -> None:
    """Pictures come again, in other batches: weights are the same up to what their sums round."""
    options = ["--epochs", 4, "--set", f"head={json.dumps(HEAD)}", "--set", "batch_size=3"]
    argv = ["train", "--data", scenes, "--report-to", "none", *options]
    for name, more in (("plain", []), ("kept", ["--prefix-cache", "memory"])):
        code, _, err = run(*argv, "--out", tmp_path / name, *more)
        assert code == 0, err
    plain, kept = (load_file(tmp_path / n / "bridger.safetensors") for n in ("plain", "kept"))
    for name, tensor in plain.items():
        torch.testing.assert_close(kept[name], tensor, atol=1e-3, rtol=1e-3)
    (cache,) = made
    assert sum(side == "vision" for side, _ in cache._store._rows) == 6 + 2  # of train and val
    assert cache.hits >= 3 * 6
    assert Recipe.load(tmp_path / "kept" / "recipe.json").prefix_cache == "memory"


@pytest.mark.slow
def test_commands_share_a_folder(
    run: Run, scenes: Path, adapter: Path, made: list[PrefixCache], tmp_path: Path
) -> None:
    argv = ["evaluate", adapter, "--data", scenes, "--json", tmp_path / "figures.json"]
    figures = []
    for more in ([], ["--prefix-cache", tmp_path / "kept"], ["--prefix-cache", tmp_path / "kept"]):
        code, _, err = run(*argv, *more)
        assert code == 0, err
        figures.append(json.loads((tmp_path / "figures.json").read_text())["results"])
    assert figures[1] == figures[2]
    assert [len(of) for of in figures] == [len(figures[0])] * 3
    first, second = made
    assert first.misses > 0 and second.misses == 0 and second.hits == first.hits + first.misses


@pytest.mark.slow
def test_an_adapter_that_trains_its_prefix_is_told(run: Run, scenes: Path, tmp_path: Path) -> None:
    code, _, err = run(
        *("train", "--data", scenes, "--out", tmp_path, "--steps", 1, "--report-to", "none"),
        *("--prefix-cache", "memory", "--set", 'trainable=["positions"]'),
    )
    assert code != 0
    assert "cannot be kept" in err and "leave prefix_cache out" in err

"""The share of a training step that waits for its data, on two recipes.

    python examples/benchmarks/waiting_for_data.py                      # the quickstart's
    python examples/benchmarks/waiting_for_data.py --recipe etris-vit-b16 --steps 3 --batch 4

The quickstart trains on its scenes (128 pixels); any other recipe on JPEGs as large as COCO's
(`data_loading.py` says how they are made), with random towers at the recipe's own picture size.
Each row is one pass over as many batches: "cold" fits every picture anew, "warm" finds all of them
in the cache. Waiting is the time inside `next()` of the DataLoader, by the clock; the first step of
a pass, which starts workers and imports modules, does not count. With workers on the same CPUs as
the model, both slow each other down.
"""

from __future__ import annotations

import argparse
import os
import runpy
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from bridger import load_towers
from bridger.data import RaggedRefCollator, RefCOCO, RefCollator
from bridger.data.scenes import write_scenes
from bridger.model import BridgedModel
from bridger.training import Recipe
from bridger.training.schedule import Schedule

Batches = Iterator[dict[str, torch.Tensor]]


def make_loader(recipe: Recipe, model: BridgedModel, folder: Path, workers: int) -> Any:
    """Return the batches of a run of `recipe`, with the cache that training has."""
    options = {"num_workers": workers, "persistent_workers": workers > 0}
    count = recipe.steps_for() * recipe.batch_size
    if recipe.expressions == 1:
        made = runpy.run_path(str(Path(__file__).parent / "data_loading.py"))
        samples = made["make_pictures"](folder, count)
        return DataLoader(
            samples, recipe.batch_size, collate_fn=RefCollator(model.processor), **options
        )
    write_scenes(folder, {"train": count})
    items = Schedule(RefCOCO(folder, "train"), count, recipe.expressions, recipe.seed)
    return DataLoader(
        items, recipe.batch_size, collate_fn=RaggedRefCollator(model.processor), **options
    )


def train(
    model: BridgedModel, optimizer: torch.optim.Optimizer, batches: Batches
) -> tuple[list[float], list[float]]:
    """Train on every batch; return the seconds of waiting and of the rest, by step."""
    waiting, working = [], []
    while True:
        start = time.perf_counter()
        batch = next(batches, None)
        there = time.perf_counter()
        if batch is None:
            return waiting, working
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        waiting.append(there - start)
        working.append(time.perf_counter() - there)


def measure(recipe: Recipe, workers: int) -> Iterator[str]:
    """Yield a row for the cold cache and one for the warm."""
    torch.manual_seed(recipe.seed)
    model = recipe.build(*load_towers(recipe.towers)).train()
    optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=recipe.learning_rate)
    with tempfile.TemporaryDirectory() as folder:
        loader = make_loader(recipe, model, Path(folder), workers)
        for cache in ("cold", "warm"):
            waiting, working = (seconds[1:] for seconds in train(model, optimizer, iter(loader)))
            share = sum(waiting) / (sum(waiting) + sum(working))
            yield (
                f"| {cache} | {workers} | {1000 * statistics.median(waiting):.1f} ms "
                f"| {1000 * statistics.median(working):.0f} ms | {100 * share:.1f} % |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, help="default: the recipe's")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    args = parser.parse_args()
    recipe = Recipe.preset(args.recipe, steps=args.steps, precision="float32")
    recipe = recipe.replace(
        batch_size=args.batch or recipe.batch_size, towers=recipe.towers.replace(":openai", "")
    )
    print(
        f"{args.recipe}: {recipe.steps} steps of {recipe.batch_size} pictures, {recipe.towers}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} CPUs, "
        f"{torch.backends.cpu.get_cpu_capability()}"
    )
    print("\n| cache | workers | waiting | working | share that waits |")
    print("| --- | --- | --- | --- | --- |")
    for workers in args.workers:
        for row in measure(recipe, workers):
            print(row, flush=True)


if __name__ == "__main__":
    main()

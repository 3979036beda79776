"""Run stores with made-up figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from bridger._json import save_json
from bridger.evaluation.metrics import referring_ratios, values_of
from bridger.studies.drawing import can_plot
from bridger.studies.results import Row, StudyResults
from bridger.studies.search import Found
from bridger.studies.store import (
    RESULT_FILE,
    Cases,
    Run,
    Store,
    cases_file,
    picture_file,
)

SPLITS = ("val", "testA", "testB")
LEVELS = {"val": 0.0, "testA": -0.09, "testB": -0.02}
STEPS = 330


class Made(NamedTuple):
    """A row to make up."""

    name: str
    mean: float = 0.42
    tower_parameters: int = 0
    group: str | None = None
    size: str | None = None
    step: float = 0.4
    peak: int = 900
    reason: str | None = None


COMPARED = (
    Made("the head alone", 0.405, 0, None, None, 0.31, 846),
    Made("Bridgers, 16 wide", 0.425, 19_900, "Bridgers", "16", 0.41, 961),
    Made("Bridgers, 64 wide", 0.438, 121_000, "Bridgers", "64", 0.43, 978),
    Made("Bridgers, 128 wide", 0.441, 404_000, "Bridgers", "128", 0.47, 1009),
    Made("LoRA, rank 2", 0.411, 14_300, "LoRA", "r 2", 0.44, 990),
    Made("LoRA, rank 8", 0.423, 57_200, "LoRA", "r 8", 0.45, 996),
    Made("LoRA, rank 32", 0.427, 229_000, "LoRA", "r 32", 0.47, 1011),
    Made("BitFit", 0.409, 3_900, "BitFit", None, 0.43, 985),
    Made("LayerNorm tuning", 0.408, 2_600, "LN-tuning", None, 0.42, 984),
    Made("bottlenecks, 8 wide", 0.413, 25_000, "bottlenecks", "8", 0.4, 940),
    Made("bottlenecks, 32 wide", 0.421, 97_000, "bottlenecks", "32", 0.42, 953),
    Made("full fine-tuning", 0.445, 2_260_000, "full fine-tuning", None, 0.62, 1190),
    Made("Compacter", reason="the library adapters asks for transformers 4.57"),
)

FEW = COMPARED[:3] + COMPARED[-1:]
drawing = pytest.mark.skipif(not can_plot(), reason="needs matplotlib")


def row_of(results: StudyResults, name: str) -> Row:
    """The row of that name."""
    return next(row for row in results.rows if row.name == name)


def write_study(root: Path, made: Sequence[Made] = COMPARED, seeds: int = 3) -> StudyResults:
    """Write the runs of rows to a store, with pictures, and return the rows.

    At one seed and split all runs find the same expressions hard, as in truth.
    """
    store = Store(root)
    questions = [
        {"split": "testB", "index": i, "image": f"{i}.png", "words": words}
        for i, words in enumerate(["the left <b>cup</b> & saucer", "the red kite above the lock"])
    ]
    store.write_questions({"train": "a", "val": "b"}, questions)
    rows = []
    for place, each in enumerate(made):
        if each.reason:
            rows.append(Row(each.name, (), each.group, each.size, each.reason))
            continue
        runs = [_write_run(root, place, each, seed, questions) for seed in range(seeds)]
        rows.append(Row(each.name, tuple(runs), each.group, each.size))
    figures = {3e-4: 0.30, 1e-3: 0.33, 3e-3: 0.31}
    return StudyResults(
        "compare",
        "The same head and the same updates, with Bridgers and with their rivals.",
        made[1].name if len(made) > 1 else made[0].name,
        SPLITS,
        tuple(rows),
        (Found(made[0].name, ("learning_rate",), figures, 412.0),),
    )


def _write_run(root: Path, place: int, made: Made, seed: int, questions: Sequence[Any]) -> Run:
    folder = root / f"{place:012x}" / f"seed-{seed}"
    (folder / picture_file(0)).parent.mkdir(parents=True)
    own = np.random.default_rng(1000 * seed + place)
    mean = made.mean + own.normal(0, 0.008)
    splits = {}
    for split in SPLITS:
        cases = _cases(split, mean + LEVELS[split], own)
        cases.save(folder / cases_file(split))
        splits[split] = {
            **values_of(referring_ratios(cases.intersection, cases.union)),
            "loss": 0.2,
        }
    result = {
        "setting": made.name,
        "seed": seed,
        "recipe": {},
        "splits": splits,
        "parameters": {"bridgers": made.tower_parameters, "head": 310_000, "frozen": 2_300_000},
        "bytes": 4 * (made.tower_parameters + 310_000) + 5_000,
        "steps": STEPS,
        "seconds": {
            "step": made.step * own.normal(1, 0.02),
            "training": 330 * made.step,
            "evaluation": 30.0,
            "all": 330 * made.step + 40,
        },
        "memory": {"peak": made.peak * 2**20 + int(own.integers(2**22)), "loaded": 700 * 2**20},
        "samples": {"order": f"{seed:016x}", "data": {"train": "a", "val": "b"}},
        "environment": {"machine": "a machine x 2", "threads": 1, "torch": "2.14.1"},
    }
    save_json(folder / RESULT_FILE, result)
    save_json(folder / "history.json", _history(mean, own))
    for number in range(len(questions)):
        pixels = np.full((128, 128, 3), (40 * place % 256, 90 * number % 256, 160), np.uint8)
        pixels[32:96, 20 + 5 * place : 80 + 5 * place] = 230
        Image.fromarray(pixels).save(folder / picture_file(number))
    return Run(folder, made.name, seed, result)


def _cases(split: str, mean: float, own: np.random.Generator) -> Cases:
    """Make 60 pictures of 4 expressions each, hard and easy ones alike in all runs."""
    common = np.random.default_rng(SPLITS.index(split))
    hard = common.normal(0, 0.2, 60).repeat(4) + common.normal(0, 0.1, 240)
    hard -= hard.mean()
    area = common.integers(400, 3000, 240)
    noise = own.normal(0, 0.06, 240)
    iou = (mean + hard + noise - noise.mean()).clip(0.01, 0.99)
    # |P| = |T| = area: I = 2 a iou / (1 + iou), U = 2 a - I.
    intersection = np.rint(2 * area * iou / (1 + iou)).astype(np.int64)
    return Cases(np.arange(60).repeat(4), intersection, 2 * area - intersection)


def _history(mean: float, own: np.random.Generator) -> list[dict[str, float]]:
    entries: list[dict[str, float]] = []
    for step in range(10, STEPS + 1, 10):
        loss = 0.12 + (0.6 - mean) * np.exp(-step / 80) + own.normal(0, 0.006)
        entries.append({"step": step, "loss": float(loss)})
        if step in (160, STEPS):
            figure = mean * (0.55 if step < STEPS else 1.0) + own.normal(0, 0.004)
            entries.append({"step": step, "eval_mIoU": float(figure), "eval_loss": 0.2})
    return entries

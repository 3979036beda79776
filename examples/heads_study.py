"""Every head with Bridgers and without, over several seeds: mean and spread, time and memory.

    python examples/heads_study.py --out heads-study
    python examples/heads_study.py --out heads-study --tasks detection --seeds 0
    python examples/heads_study.py --out heads-study --short          # a smoke run

Each run is a process of its own with one thread, two at once, and leaves a JSON file; runs that
are finished are not repeated. Classification is learned from 1, 4 and 16 pictures of each class,
beside Tiny CLIP's zero-shot answers and a linear probe on the frozen tower.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bridger.studies.results import Spread

RECIPES = {
    "semantic_segmentation": "scenes-semantic",
    "detection": "scenes-detection",
    "referring_comprehension": "scenes-comprehension",
    "classification": "scenes-classification",
}
FIGURES = {
    "semantic_segmentation": ("mIoU seen", "mIoU unseen"),
    "detection": ("mAP", "mAP50", "mAP unseen"),
    "referring_comprehension": ("Acc@0.5",),
    "classification": ("top1", "top1 seen", "top1 unseen"),
}
SPLITS = {"referring_comprehension": ("val", "testA", "testB")}
COUNTS = {
    "semantic_segmentation": {"train": 1500, "val": 0, "test": 100},
    "detection": {"train": 1500, "val": 0, "test": 100},
    "referring_comprehension": {"train": 1500, "val": 60, "testA": 60, "testB": 60},
    "classification": {"train": 2400, "val": 0, "test": 240},
}
LAYOUTS = {
    "semantic_segmentation": "segmented",
    "detection": "boxed",
    "referring_comprehension": "refcoco",
    "classification": "classified",
}
SHOTS = (1, 4, 16)
VARIANTS: dict[str, dict[str, Any]] = {"Bridgers": {}, "head alone": {"bridgers": None}}
PROBE = {"bridgers": None, "head": {"scores": "fixed"}, "learning_rate": 1e-2}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("heads-study"))
    parser.add_argument("--tasks", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--short", action="store_true", help="a smoke run of the study itself")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # one run, in this process
    args = parser.parse_args()
    if args.run:
        perform(json.loads(args.run))
        return 0
    out = args.out / "short" if args.short else args.out
    for task in args.tasks:
        write_data(out, task, args.short)
    plans = [plan for task in args.tasks for plan in plans_of(out, task, args.seeds)]
    for plan in plans:
        plan["short"] = args.short
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run_once, plans))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    for task in args.tasks:
        print(*table(task, [plan for plan in plans if plan["task"] == task]), "", sep="\n")
    return 0


def write_data(out: Path, task: str, short: bool) -> None:
    """Write a task's scenes, unless they are there."""
    from bridger.data.scenes import write_scenes

    folder = out / "data" / task
    complete = folder / "complete"
    if not complete.exists():
        shutil.rmtree(folder, ignore_errors=True)
        counts = {s: min(n, 48) if short else n for s, n in COUNTS[task].items()}
        write_scenes(folder, counts, layout=LAYOUTS[task])
        complete.touch()


def plans_of(out: Path, task: str, seeds: list[int]) -> list[dict[str, Any]]:
    """Return what is to be run for a task."""
    variants = VARIANTS
    if task == "classification":
        few = {**VARIANTS, "linear probe": PROBE}
        variants = {
            f"{name}, {shots} shots": {**changes, "shots": shots}
            for shots in SHOTS
            for name, changes in few.items()
        }
        variants = {"zero-shot": {"bridgers": None, "steps": 0}, **variants}
    return [
        {
            "task": task,
            "variant": variant,
            "changes": {**changes, "seed": seed},
            "data": str(out / "data" / task),
            "file": str(out / task / f"{variant.replace(', ', '-').replace(' ', '-')}-{seed}.json"),
        }
        for variant, changes in variants.items()
        for seed in (seeds if variant != "zero-shot" else seeds[:1])
    ]


def run_once(plan: dict[str, Any]) -> None:
    """Run in a process of its own, unless it was run already."""
    if not Path(plan["file"]).is_file():
        print(f"{plan['task']}: {plan['variant']}, seed {plan['changes']['seed']}", flush=True)
        command = [sys.executable, __file__, "--run", json.dumps(plan)]
        one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, env=one_thread, stdout=subprocess.DEVNULL)


def perform(plan: dict[str, Any]) -> None:
    """Train and judge one adapter, and write what came out."""
    from bridger import load_towers
    from bridger.tasks import get_task
    from bridger.training import Recipe, train

    task, changes = get_task(plan["task"]), dict(plan["changes"])
    if plan["short"] and changes.get("steps") != 0:
        changes["steps"] = 2
    data = task.open(plan["data"], "train")
    recipe = Recipe.preset(RECIPES[plan["task"]])
    if "head" in changes:
        changes["head"] = {**recipe.head, **changes["head"]}
    started = time.monotonic()
    if changes.get("steps") == 0:
        del changes["steps"]
        recipe = recipe.replace(**changes).with_head_options(task.head_options(data))
        model, trained = recipe.build(*load_towers(recipe.towers)).eval(), 0
    else:
        folder = Path(plan["file"]).with_suffix("")
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
        model = train(recipe.replace(**changes, report_to=()), data, folder, quiet=True)
        trained = sum(p.numel() for p in model.trainable_parameters())
    seconds = time.monotonic() - started
    splits = {
        split: task.evaluate(model, task.open(plan["data"], split), model.head_name()).metrics()
        for split in SPLITS.get(plan["task"], ("test",))
    }
    result = {
        "splits": splits,
        "seconds": seconds,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "trained": trained,
    }
    file = Path(plan["file"])
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(result, indent=2) + "\n")
    unfinished.replace(file)


def table(task: str, plans: list[dict[str, Any]]) -> list[str]:
    """Lay out a task's runs in Markdown, shares in percent."""
    columns = [(s, f) for s in SPLITS.get(task, ("test",)) for f in FIGURES[task]]
    names = [
        figure if len(SPLITS.get(task, "1")) == 1 else f"{s} {figure}" for s, figure in columns
    ]
    head = ["", *names, "trained parameters", "seconds", "MB"]
    lines = [f"{task}:", "", _row(head), _row(["---"] * len(head))]
    of_variant: dict[str, list[dict[str, Any]]] = {}
    for plan in plans:
        of_variant.setdefault(plan["variant"], []).append(
            json.loads(Path(plan["file"]).read_text())
        )
    for variant, runs in of_variant.items():
        cells = [_cell([run["splits"][s].get(f) for run in runs]) for s, f in columns]
        costs = [max(run[name] for run in runs) for name in ("trained", "seconds", "megabytes")]
        lines.append(_row([variant, *cells, *(f"{cost:,.0f}" for cost in costs)]))
    return lines


def _cell(values: list[float | None]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "-"
    mean, deviation = Spread.of(there)
    spread = f" +- {100 * deviation:.1f}" if len(there) > 1 else ""
    return f"{100 * mean:.1f}{spread}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())

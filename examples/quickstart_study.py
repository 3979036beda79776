"""The quickstart with Bridgers and without, over several seeds: mean and spread.

    python examples/quickstart_study.py --out quickstart-study
    python examples/quickstart_study.py --out quickstart-study --variants no-decoder

The head's decoder (its global alignment) also lets every cell of the map read the words;
"no-decoder" compares the two without it.

Every run has a folder with its metrics.json; runs that are finished are not repeated, and one
that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from bridger.cli.quickstart import METRICS_FILE, SPLITS, Plan, perform
from bridger.training import Recipe

PLAIN_HEAD = {**Recipe.preset("quickstart").head, "global_alignment": False}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "decoder": {"bridgers": {}, "head-alone": {"bridgers": None}},
    "no-decoder": {
        "bridgers-no-decoder": {"head": PLAIN_HEAD},
        "head-alone-no-decoder": {"bridgers": None, "head": PLAIN_HEAD},
    },
}
"""What differs from the quickstart's recipe."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("quickstart-study"))
    parser.add_argument("--variants", choices=sorted(VARIANTS), default="decoder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="updates of each run")
    parser.add_argument("--short", action="store_true", help="a smoke run of the study itself")
    args = parser.parse_args()

    scores: dict[str, dict[str, list[float]]] = {}
    try:
        for seed in args.seeds:
            for variant, changes in VARIANTS[args.variants].items():
                out = args.out / f"{variant}-seed-{seed}"
                plan = Plan(out, args.out / "scenes", args.steps, seed, changes, args.short)
                results = run_once(plan)
                for split in SPLITS:
                    of_split = scores.setdefault(variant, {}).setdefault(split, [])
                    of_split.append(results["splits"][split]["mIoU"])
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    study = {
        variant: {split: summarize(values) for split, values in splits.items()}
        for variant, splits in scores.items()
    }
    report(study, len(args.seeds))
    (args.out / f"study-{args.variants}.json").write_text(json.dumps(study, indent=2) + "\n")
    return 0


def run_once(plan: Plan) -> dict[str, Any]:
    """Return a run's figures, from its folder if it is finished."""
    finished = plan.out / METRICS_FILE
    if not finished.exists():
        print(f"\n== {plan.out.name}", flush=True)
        return perform(plan)
    results: dict[str, Any] = json.loads(finished.read_text())
    if plan.steps and results["recipe"]["steps"] != plan.steps:
        raise SystemExit(f"{plan.out} was run with other steps: choose another --out")
    return results


def summarize(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation (of the sample) of one figure over the seeds."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.mean(values), "std": spread, "values": values}


def report(study: dict[str, Any], seeds: int) -> None:
    """Print a line per variant."""
    print(f"\nmIoU in percent, mean and standard deviation over {seeds} seeds")
    print(f"{'':<22}" + "".join(f"{split:>16}" for split in SPLITS))
    for variant, splits in study.items():
        cells = (f"{100 * s['mean']:.2f} +- {100 * s['std']:.2f}" for s in splits.values())
        print(f"{variant:<22}" + "".join(f"{cell:>16}" for cell in cells))


if __name__ == "__main__":
    sys.exit(main())

"""One row of a results table: train a recipe, judge it on every split, keep everything.

    python examples/refcoco/row.py etris-vit-b16-refcoco --data datasets --out rows
    python examples/refcoco/row.py etris-vit-b16-refcoco --data datasets --set batch_size=16
    torchrun --nproc-per-node 2 examples/refcoco/row.py etris-vit-b16-refcoco --data datasets

A row that is finished is not repeated, and one that was interrupted goes on from its last
checkpoint. Its folder becomes the adapter, with evaluation.json and report/ beside it; table.py
makes the table. A recipe is a name (`bridger recipes`) or a JSON file; with --seeds, each seed is
a row of its own.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bridger.__main__ import run
from bridger.cli.main import build_parser
from bridger.cli.main import main as bridger
from bridger.cli.train import recipe_from
from bridger.training import Recipe
from bridger.training.run import has_checkpoint

TRAINED, EVALUATION = "bridger_config.json", "evaluation.json"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", metavar="RECIPE", help="a name or a JSON file")
    parser.add_argument("--data", required=True, metavar="DIR", help="as for `bridger train`")
    parser.add_argument("--dataset", nargs="+", metavar="NAME", help="default: the recipe's")
    parser.add_argument("--out", type=Path, default=Path("rows"), metavar="DIR")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="S", help="default: the recipe's")
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="OPTION=VALUE"
    )
    args = parser.parse_args()
    for seed in args.seeds or [None]:
        if code := run_row(args, seed):
            return code
    return 0


def run_row(args: argparse.Namespace, seed: int | None) -> int:
    """Train and judge one row; return the exit code of what failed, or 0."""
    name = Path(args.recipe).stem if args.recipe.endswith(".json") else args.recipe
    folder = args.out / (name if seed is None else f"{name}-seed-{seed}")
    where = ["--data", args.data, *(["--dataset", *args.dataset] if args.dataset else [])]
    train = ["train", args.recipe, *where, "--out", str(folder)]
    train += [] if seed is None else ["--seed", str(seed)]
    train += [part for change in args.changes for part in ("--set", change)]
    if (folder / TRAINED).exists():
        if changed := other_recipe(train, folder):
            print(f"{folder} is of another recipe ({changed}): choose another --out")
            return 1
        if (folder / EVALUATION).exists():
            print(f"{folder} is finished")
            return 0
    else:
        train += ["--resume"] if has_checkpoint(folder) else []
        if code := bridger(train):
            return code
    result = ["--json", str(folder / EVALUATION), "--report", str(folder / "report")]
    return bridger(["evaluate", str(folder), *where, *result])


def other_recipe(train: list[str], folder: Path) -> str:
    """Return in which options a finished row differs from what is asked for."""
    asked = recipe_from(build_parser().parse_args(train))
    return ", ".join(asked.differences(Recipe.load(folder / "recipe.json")))


if __name__ == "__main__":
    sys.exit(run(main))

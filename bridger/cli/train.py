"""`bridger train`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.cli.adapters import (
    add_device_option,
    add_import_option,
    add_prefix_cache_option,
    trains_on_cpu,
)
from bridger.cli.base import add_data_options, command, megabytes, say, whole
from bridger.cli.train_data import open_training

if TYPE_CHECKING:
    from bridger.training import Recipe

HELP = "tune Bridgers and a head, by a recipe"
ABOUT = """\
Without RECIPE the embedded towers are tuned, which needs no GPU and no
download; `bridger recipes` lists those for CLIP and others. What validates best
is saved to --out, with the recipe beside it. Ctrl-C saves; --resume goes on.
"""
EXAMPLES = """\
  bridger train --data scenes --out my-adapter
  bridger train --data scenes --out my-adapter --resume
  bridger train --data scenes --out alone --steps 500 --set bridgers=null
  bridger train etris-vit-b16-refcoco --data coco --out vit --set precision=bf16
  bridger train --head detection --data boxes --out detector
  bridger train mine.json --data my-folder --out mine --device cpu
  bridger train --import my_head.py --head my_head --data my-folder --out mine
  torchrun --nproc-per-node 2 -m bridger train etris-r50-refcoco --data coco --out r50
"""
REFERRING = "referring_segmentation"
CHANGES = ("steps", "epochs", "seed", "report_to", "prefix_cache")
"""Options of the recipe that have an argument of their own."""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="RECIPE",
        help="a name (`bridger recipes` lists them) or a JSON file, as every run leaves one "
        "(default: the one for scenes of the head's task)",
    )
    parser.add_argument(
        "--head",
        metavar="NAME",
        help="what is trained: referring_segmentation, clipseg, referring_comprehension, "
        "semantic_segmentation, detection, classification, or one of your own (default: what the "
        "recipe says, else referring_segmentation)",
    )
    add_data_options(parser)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="becomes the adapter's folder"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--steps", type=whole(1), metavar="N", help="updates (default: as the recipe has it)"
    )
    length.add_argument(
        "--epochs", type=whole(1), metavar="N", help="times through the data, in place of steps"
    )
    parser.add_argument("--seed", type=whole(0), metavar="S", help="of everything drawn by chance")
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="change an option of the recipe (`bridger recipes NAME` prints them), or one inside "
        "it: head.width=96; values are JSON; may be given often",
    )
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        help="split to train on (default: train, or the only one of another name to train on, "
        "such as train2017)",
    )
    parser.add_argument(
        "--validation",
        metavar="SPLIT",
        help="split that chooses the adapter, none: the last one is kept (default: val, where "
        "there is one)",
    )
    parser.add_argument(
        "--report-to",
        nargs="+",
        metavar="NAME",
        help="where logs go: tensorboard, wandb, ..., as transformers knows them, or none "
        "(default: as the recipe says, tensorboard)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in --out"
    )
    add_prefix_cache_option(parser, "as the recipe says, nothing is kept")
    add_device_option(parser)
    add_import_option(parser)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, and say what was saved."""
    from bridger.adapter_files import WEIGHTS_FILE
    from bridger.tasks import get_task
    from bridger.training.run import has_checkpoint, train

    use_cpu = trains_on_cpu(args.device)
    recipe = recipe_from(args)
    training, validation = open_training(recipe, args.data, args.validation, args.split)
    say(f"training on {training.name} {training.split}: {get_task(recipe.task).size(training)}")
    started = time.monotonic()
    try:
        model = train(
            recipe,
            training,
            args.out,
            validation=validation,
            resume=args.resume,
            use_cpu=use_cpu,
        )
    except KeyboardInterrupt as interruption:
        if not has_checkpoint(args.out):
            raise KeyboardInterrupt("before anything was trained") from interruption
        message = f"go on with `{_resuming(args)}`"
        raise KeyboardInterrupt(message) from interruption
    model.print_trainable_parameters()
    size = (args.out / WEIGHTS_FILE).stat().st_size
    say(
        f"saved {args.out} ({megabytes(size)}) after {time.monotonic() - started:.0f} s",
        "next:",
        f"  {command('evaluate', args.out, '--data', args.data)}",
        f"  {command('demo', args.out)}",
        f"  {command('push', args.out, 'USER/NAME')}",
    )
    return {"adapter": str(args.out), "bytes": size, "recipe": recipe.to_dict()}


def _resuming(args: argparse.Namespace) -> str:
    """Return the command that goes on: its recipe lies in --out."""
    given = {"--split": args.split, "--validation": args.validation}
    if args.device != "auto":
        given["--device"] = args.device
    options = [word for option, value in given.items() if value for word in (option, value)]
    options += [word for name in args.imports for word in ("--import", name)]
    return command("train", "--data", args.data, "--out", args.out, *options, "--resume")


def recipe_from(args: argparse.Namespace) -> Recipe:
    """Return the recipe that the arguments describe."""
    from bridger.adapter_files import RECIPE_FILE
    from bridger.tasks import get_task
    from bridger.training import Recipe
    from bridger.training.recipe_files import find_recipe

    if args.resume and args.recipe is None and (args.out / RECIPE_FILE).is_file():
        recipe = Recipe.load(args.out / RECIPE_FILE)
    else:
        recipe = find_recipe(args.recipe or get_task(args.head or REFERRING).recipe)
    if args.head not in (None, recipe.task):
        raise ValueError(
            f"--head {args.head} does not fit the recipe, which trains {recipe.task}: leave one "
            f"of them out"
        )
    # All at once: an option may mean something only beside another one.
    changed = recipe.replace(**_changes(recipe, args))
    # Figures that were published for other data are nothing to aim at.
    return changed if changed.datasets == recipe.datasets else changed.replace(aims={})


def _changes(recipe: Recipe, args: argparse.Namespace) -> dict[str, Any]:
    """Return what differs from the recipe, by option."""
    given = {name: getattr(args, name) for name in CHANGES}
    given["datasets"] = args.dataset
    changes = {name: value for name, value in given.items() if value is not None}
    if changes.get("report_to") == ["none"]:
        changes["report_to"] = []
    for text in args.changes:
        name, value = _parse_change(text)
        option, dot, inner = name.partition(".")
        if not dot:
            changes[name] = value
            continue
        group = changes.get(option, getattr(recipe, option, None))
        if not isinstance(group, Mapping):
            raise ValueError(f"--set {name}: {option!r} is no group of options, such as head.width")
        changes[option] = {**group, inner: value}
    return changes


def _parse_change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set wants OPTION=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value  # a word without quotes

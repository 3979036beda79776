"""`bridger train`."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger.cli.base import add_data_options, megabytes, open_data, say, whole

if TYPE_CHECKING:
    from bridger.training import Recipe

HELP = "tune Bridgers and head on referring expressions"
EXAMPLES = """\
  bridger train --data scenes --out my-adapter
  bridger train --data scenes --out my-adapter --resume
  bridger train --data scenes --out alone --steps 500 --set bridgers=null
  bridger train --data refcoco --out vit --recipe etris --set batch_size=16
"""


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_data_options(parser)
    parser.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="becomes the adapter's folder"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE",
        help="quickstart (default), etris, or a JSON file as every run leaves one",
    )
    parser.add_argument("--steps", type=whole(1), metavar="N", help="updates")
    parser.add_argument("--seed", type=whole(0), metavar="S", help="of everything drawn by chance")
    parser.add_argument(
        "--set",
        dest="changes",
        action="append",
        default=[],
        metavar="OPTION=VALUE",
        help="change an option of the recipe (bridger.training.Recipe lists them), or one inside "
        "it: head.width=96; values are JSON; may be given often",
    )
    parser.add_argument(
        "--validation",
        default="val",
        metavar="SPLIT",
        help="split that chooses the adapter, none: the last one is kept (default: val)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in --out"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, and say what was saved."""
    from bridger.checkpoint import WEIGHTS_FILE
    from bridger.training.run import has_checkpoint, train

    recipe = recipe_from(args)
    training = open_data(args, "train")
    validation = None
    if args.validation != "none":
        validation = open_data(args, args.validation)
    started = time.monotonic()
    try:
        model = train(recipe, training, args.out, validation=validation, resume=args.resume)
    except KeyboardInterrupt as interruption:
        if not has_checkpoint(args.out):
            raise KeyboardInterrupt("before anything was trained") from interruption
        message = f"go on with `bridger train ... --out {args.out} --resume`"
        raise KeyboardInterrupt(message) from interruption
    model.print_trainable_parameters()
    size = (args.out / WEIGHTS_FILE).stat().st_size
    say(
        f"saved {args.out} ({megabytes(size)}) after {time.monotonic() - started:.0f} s",
        f"next: bridger evaluate {args.out} --data {args.data}",
    )
    return {"adapter": str(args.out), "bytes": size, "recipe": recipe.to_dict()}


def recipe_from(args: argparse.Namespace) -> Recipe:
    """Return the recipe that the arguments describe."""
    from bridger.training import Recipe
    from bridger.training.run import RECIPE_FILE

    name = args.recipe or "quickstart"
    if args.resume and args.recipe is None and (args.out / RECIPE_FILE).is_file():
        recipe = Recipe.load(args.out / RECIPE_FILE)
    elif "." in name or "/" in name:
        recipe = Recipe.load(name)
    else:
        recipe = Recipe.preset(name)
    for text in args.changes:
        recipe = _changed(recipe, *_parse_change(text))
    given = {option: getattr(args, option) for option in ("steps", "seed")}
    return recipe.replace(**{name: value for name, value in given.items() if value is not None})


def _changed(recipe: Recipe, name: str, value: Any) -> Recipe:
    option, dot, inner = name.partition(".")
    if not dot:
        return recipe.replace(**{name: value})
    before = getattr(recipe, option, None)
    if not isinstance(before, Mapping):
        raise ValueError(f"--set {name}: {option!r} is no group of options, such as head.width")
    return recipe.replace(**{option: {**before, inner: value}})


def _parse_change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set wants OPTION=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value  # a word without quotes

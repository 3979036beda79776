"""`bridger recipes`."""

from __future__ import annotations

import argparse
import json
from shutil import get_terminal_size
from textwrap import fill, indent
from typing import TYPE_CHECKING, Any

from bridger.cli.base import say

if TYPE_CHECKING:
    from bridger.training import Recipe

HELP = "list the recipes with what each trains, or print one whole"
EXAMPLES = """\
  bridger recipes
  bridger recipes etris-vit-b16-refcoco
  bridger recipes quickstart > mine.json
  bridger train mine.json --data scenes --out my-adapter
"""
INDENT = "    "


def register(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "recipe",
        nargs="?",
        metavar="NAME|FILE.json",
        help="print this one as JSON, with all its options, to be saved and edited",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Print the list, or one recipe."""
    from bridger.training.recipe_files import find_recipe, recipe_names

    if args.recipe is not None:
        options = find_recipe(args.recipe).to_dict()
        say(json.dumps(options, indent=2, ensure_ascii=False))
        return options
    recipes = {name: find_recipe(name) for name in recipe_names()}
    longest, width = max(map(len, recipes)), get_terminal_size().columns
    for name, recipe in recipes.items():
        note = recipe.note.split(". ")[0].rstrip(".")
        about = indent(fill(f"{note}.{_aims(recipe)}", width - len(INDENT)), INDENT)
        say(f"{name:<{longest}}  {recipe.task}", about)
    return {name: recipe.to_dict() for name, recipe in recipes.items()}


def _aims(recipe: Recipe) -> str:
    if not recipe.aims:
        return ""
    splits: dict[str, float] = recipe.aims["splits"]
    figures = " / ".join(f"{figure:.2f}" for figure in splits.values())
    return f" Published {recipe.aims['metric']} on {' / '.join(splits)}: {figures}."

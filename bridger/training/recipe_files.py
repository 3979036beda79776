"""Recipes as files: those in the package by name, and a file's inheritance.

A recipe file is a JSON object with the options of `Recipe`. With "base", the name of a recipe in
the package, it holds only what differs from that one; a group of options, such as "head", takes
the place of the base's group as a whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridger._json import check_object, read_json
from bridger.config import did_you_mean

if TYPE_CHECKING:
    from bridger.training.recipes import Recipe

FOLDER = Path(__file__).parent.parent / "recipes"
BASE = "base"


def recipe_names() -> list[str]:
    """Return the names of the recipes in the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def recipe_path(name: str) -> Path:
    """Return the file of a recipe in the package.

    Raises:
        ValueError: there is none of that name.
    """
    names = recipe_names()
    if name not in names:
        raise ValueError(
            f"there is no recipe {name!r}: {did_you_mean(name, names)} (`bridger recipes` lists "
            "them; a file of your own ends in .json)"
        )
    return FOLDER / f"{name}.json"


def plain(number: float) -> float:
    """Return a number as a file shall hold it: whole ones as such."""
    return int(number) if number == int(number) else number


def read_inherited(path: Path) -> list[dict[str, Any]]:
    """Read a recipe file and those that it stands on, the first one first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: one of them is no JSON object, or stands on an unknown recipe or on itself.
    """
    chain: list[dict[str, Any]] = []
    seen: list[Path] = []
    while True:
        if path in seen:
            raise ValueError(f"{seen[0]} stands on itself: {' -> '.join(p.stem for p in seen)}")
        seen.append(path)
        values = _read(path)
        base = values.pop(BASE, None)
        chain.insert(0, values)
        if base is None:
            return chain
        try:
            path = recipe_path(str(base))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe file {path}")
    values: dict[str, Any] = read_json(path)
    check_object(values, path)
    return values


def find_recipe(name: str) -> Recipe:
    """Return a recipe by its name in the package, or by its file's path.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is none of this name, or it cannot be followed.
    """
    from bridger.training.recipes import Recipe

    if name.endswith(".json") or "/" in name:
        return Recipe.load(name)
    return Recipe.preset(name)

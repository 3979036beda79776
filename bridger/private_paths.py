"""Paths of this machine in an adapter's files, which others would read once it is on the Hub."""

from __future__ import annotations

import json
import ntpath
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bridger._json import read_json
from bridger.adapter_files import ADAPTER_FILES, RECIPE_FILE, read_recipe, read_saved_config
from bridger.named_towers.origins import origins_of
from bridger.processing import FILE as PROCESSOR_FILE
from bridger.words import TOKENIZER_FOLDER

FILES = (RECIPE_FILE, PROCESSOR_FILE, f"{TOKENIZER_FOLDER}/tokenizer_config.json")
"""What is looked at beside the config; the words of a tokenizer may well look like paths."""


def blank_paths(folder: Path) -> None:
    """Take the towers out of a recipe where their name has a path: the card says what they are."""
    recipe = read_recipe(folder) or {}
    towers = recipe.get("towers")
    if towers and any(origin.is_local for origin in origins_of(towers)):
        del recipe["towers"]
        (folder / RECIPE_FILE).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def warn_of_paths(folder: Path) -> None:
    """Warn of every path that stays; that of the towers `warn_of_towers` tells."""
    said = {ADAPTER_FILES.config: {**read_saved_config(folder), "tower_source": None}}
    for name in FILES:
        if (folder / name).is_file():
            said[name] = read_json(folder / name)
    found = [f"{key} = {path} in {name}" for name in said for key, path in _paths(said[name])]
    if found:
        warnings.warn(
            f"others will read these paths of this machine: {'; '.join(found)}",
            UserWarning,
            stacklevel=4,
        )


def _paths(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the keys and the values of what is a path, however deep."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, key)
    elif isinstance(value, str) and _is_certainly_path(value):
        yield key, value


def _is_certainly_path(value: str) -> bool:
    """Whether it is a path whatever it is of: patterns begin with a dot, too."""
    is_windows = bool(ntpath.splitdrive(value)[0]) and ntpath.isabs(value)
    return os.path.isabs(value) or is_windows or value.startswith(("~/", "./", "../"))

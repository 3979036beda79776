"""Reading JSON that others may have written: what is wrong is said with the file's name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def parse_json(text: str | bytes, where: object) -> Any:
    """Return what JSON says.

    Args:
        text: JSON; bytes in UTF-8.
        where: it stands, for messages.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def read_json(path: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON.
    """
    return parse_json(path.read_bytes(), path)


def check_object(values: Any, where: object) -> None:
    """Refuse what is no JSON object, with a ValueError."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a JSON object, found {values!r}")

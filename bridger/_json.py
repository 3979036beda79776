"""Reading JSON that others may have written, and writing it for them.

What is wrong is said with the file's name; what is written is JSON that all tools read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridger._files import replacing


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


def save_json(path: Path, values: Any) -> None:
    """Write JSON to a file that appears whole or not at all.

    What is no number, as the losses of a training that diverged, is null: JSON has no other word.
    """
    with replacing(path) as partial:
        text = json.dumps(_finite(values), indent=1, ensure_ascii=False, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")


def _finite(values: Any) -> Any:
    """Return values with None for what is no number."""
    if isinstance(values, Mapping):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values

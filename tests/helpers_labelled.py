"""Small data sets with labels of classes, as the readers for them expect them on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (12, 16)  # height, width


def write_picture(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    shades = np.add.outer(np.arange(size[0]), np.arange(size[1])) * 3
    Image.fromarray(shades.astype(np.uint8)).convert("RGB").save(path)
    return path


def write_map(path: Path, numbers: Any, palette: bool = False) -> Path:
    """Write numbers (h, w), in 16 bits where they are uint16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(numbers))
    if palette:
        # Colours in which no number could be guessed from how bright it is.
        image.putpalette([(37 * i + 11 * c) % 256 for i in range(256) for c in range(3)])
    image.save(path)
    return path


def write_text(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_json(path: Path, values: Any) -> Path:
    return write_text(path, json.dumps(values))


def blocks(*numbers: int, dtype: Any = np.uint8) -> Any:
    """Fill SIZE with equally wide columns of numbers."""
    columns = np.array(numbers, dtype=dtype)[np.arange(SIZE[1]) * len(numbers) // SIZE[1]]
    return np.broadcast_to(columns, SIZE).copy()

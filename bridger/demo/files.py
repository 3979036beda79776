"""What visitors download: masks and label maps as PNG, what was found as JSON, several as a zip."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bridger.demo.rows import rows_of
from bridger.predictions import Prediction, SemanticPrediction
from bridger.predictions.masks import picture_of

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Download:
    """A file by its name, as bytes."""

    name: str
    data: bytes

    def write(self, folder: Path) -> str:
        """Write it to a folder that is there; return its path."""
        path = folder / self.name
        path.write_bytes(self.data)
        return str(path)


def download_of(result: Any) -> Download:
    """Return a result as one file: a mask as PNG, other things as JSON, several files zipped.

    Masks are 0 and 255. Label maps hold the numbers of the classes that stand in found.json.
    """
    found = json.dumps(_about(result), indent=2, default=str).encode()
    if isinstance(result, Prediction):
        if len(result) == 1:
            return Download("mask.png", _png(picture_of(result.masks[0])))
        masks = {
            f"mask-{number}.png": _png(picture_of(mask))
            for number, mask in enumerate(result.masks, 1)
        }
        return _zipped("masks.zip", {**masks, "found.json": found})
    if isinstance(result, SemanticPrediction):
        numbers, _ = result.numbers()
        return _zipped("labels.zip", {"labels.png": _png(numbers), "found.json": found})
    return Download("found.json", found)


def overlay_file(overlay: Image.Image) -> Download:
    """Return a drawing as one file."""
    return Download("overlay.png", _png(np.asarray(overlay)))


def what_is_downloaded(result: Any) -> str:
    """Return what the button says."""
    if isinstance(result, Prediction):
        return "Download the mask" if len(result) == 1 else "Download the masks"
    if isinstance(result, SemanticPrediction):
        return "Download the label map"
    return "Download the result"


def _about(result: Any) -> Any:
    rows = rows_of(result)
    if isinstance(result, SemanticPrediction):
        return {
            "found": rows,
            "classes": list(result.names),
            "background": result.numbers()[1],
        }
    return rows


def _png(array: npt.NDArray[Any]) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def _zipped(name: str, files: Mapping[str, bytes]) -> Download:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for inner, data in files.items():
            archive.writestr(inner, data)
    return Download(name, file.getvalue())

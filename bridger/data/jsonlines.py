"""One line of a folder of referring data of one's own: a JSON object to a sample and back.

| key | what it holds |
| --- | --- |
| "image" | file of the picture |
| "sentence" or "sentences" | an expression, or a list of them |
| "mask" | file of the mask; what is not black is the object, or what has the "value" |
| "polygons" | [[x0, y0, x1, y1, ...], ...] in pixels |
| "box" | [x0, y0, x1, y1] in pixels, ends exclusive |
| "segmentation" | polygons or run lengths as in COCO's files, or a list of such |
| "none" | true: the sentences mean nothing in the picture |

Exactly one of the last five. Optional: "kinds" (of the sentences), "ref_id", "ann_ids", "sent_ids",
"size" ([height, width]), "source" (name of the data set) and "picture" (key of the picture, see
`ReferringDataset.picture_keys`), as a conversion writes them. Paths are relative to the file's
folder, or absolute. null is as good as no key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridger.data.base import Sample
from bridger.data.line_checks import check_line, parts_of, short
from bridger.data.masks import Box, MaskFile, Outline, Segments


@dataclass(frozen=True)
class Line:
    """A checked line.

    Attributes:
        values: its keys and values, without those that are null.
    """

    values: Mapping[str, Any]

    @property
    def image(self) -> str:
        """The picture's file as it is written in the line."""
        image: str = self.values["image"]
        return image

    @property
    def picture(self) -> str | None:
        """The picture's key where the line has one."""
        return self.values.get("picture")

    @property
    def source(self) -> str | None:
        """Name of the data set that the line was converted from."""
        return self.values.get("source")

    @property
    def sentences(self) -> tuple[str, ...]:
        """At least one."""
        if "sentence" in self.values:
            return (self.values["sentence"],)
        return tuple(self.values["sentences"])

    def sample(self, folder: Path, source: str, number: int, first_sentence: int) -> Sample:
        """Return what the line says.

        Args:
            folder: what paths are relative to.
            source: name of the data set, where the line has none.
            number: of the line, the id of the ref and its object where the line has none.
            first_sentence: id of the first sentence where the line has none.
        """
        values, sentences = self.values, self.sentences
        size = values.get("size")
        return Sample(
            image_path=folder / self.image,
            sentences=sentences,
            outline=_outline(values, folder),
            ref_id=values.get("ref_id", number),
            ann_ids=tuple(values.get("ann_ids", () if "none" in values else (number,))),
            sent_ids=tuple(
                values.get("sent_ids", range(first_sentence, first_sentence + len(sentences)))
            ),
            kinds=tuple(values.get("kinds", ("",) * len(sentences))),
            size=None if size is None else (size[0], size[1]),
            source=self.source or source,
        )


def read_line(text: bytes) -> Line:
    """Read a line and check it.

    Raises:
        ValueError: what is wrong with it, and how to mend it.
    """
    try:
        values = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 ({error.reason} at byte {error.start})") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"expected one whole JSON object, found {short(text.decode('utf-8'))} ({error}); an "
            f"object may not be spread over several lines"
        ) from error
    if not isinstance(values, dict):
        raise ValueError(
            f'expected a JSON object such as {{"image": ..., "sentence": ..., "mask": ...}}, found '
            f"{short(values)}"
        )
    # pandas writes null where a table has no value.
    values = {key: value for key, value in values.items() if value is not None}
    check_line(values)
    return Line(values)


def write_line(sample: Sample, picture: str, folder: Path) -> bytes:
    """Write a sample as a line that reads as the same sample.

    Args:
        sample: the sample.
        picture: key of its picture.
        folder: the absolute path, without links, of the folder that the line's file is in.

    Raises:
        TypeError: the mask is made of something that has no form in JSON.
        ValueError: the line could not be read again, as with an empty sentence.
    """
    values: dict[str, Any] = {"image": _from(folder, sample.image_path)}
    if picture != os.path.realpath(sample.image_path):
        values["picture"] = picture
    values["sentences"] = list(sample.sentences)
    if any(sample.kinds):
        values["kinds"] = list(sample.kinds)
    outline = sample.outline
    if isinstance(outline, MaskFile):
        values["mask"] = _from(folder, outline.path)
        values["value"] = outline.value
    elif isinstance(outline, Box):
        values["box"] = list(outline.corners)
    elif not isinstance(outline, Segments):
        raise TypeError(f"a mask of {type(outline).__name__} cannot be written as JSON")
    elif outline.parts:
        values["segmentation"] = list(map(_plain, outline.parts))
    else:
        values["none"] = True
    values |= {
        "ref_id": sample.ref_id,
        "ann_ids": list(sample.ann_ids),
        "sent_ids": list(sample.sent_ids),
        "size": None if sample.size is None else list(sample.size),
        "source": sample.source,
    }
    kept = {key: value for key, value in values.items() if value is not None}
    try:
        check_line(kept)
    except ValueError as error:
        raise ValueError(f"ref {sample.ref_id} of {sample.source}: {error}") from error
    return json.dumps(kept, ensure_ascii=False).encode("utf-8") + b"\n"


def _from(folder: Path, path: Path) -> str:
    """Return a path as seen from a folder; absolute where the two have but the root in common."""
    absolute = os.path.abspath(path)
    try:
        if os.path.dirname(common := os.path.commonpath([folder, absolute])) != common:
            return os.path.relpath(absolute, folder)
    except ValueError:  # different drives
        pass
    return absolute


def _plain(part: Any) -> Any:
    """Return a segmentation as JSON has it: run lengths may come as bytes."""
    if isinstance(part, Mapping) and isinstance(part["counts"], bytes):
        return {**part, "counts": part["counts"].decode("ascii")}
    return part


def _outline(values: Mapping[str, Any], folder: Path) -> Outline:
    if "mask" in values:
        return MaskFile(folder / values["mask"], values.get("value"))
    if "box" in values:
        x0, y0, x1, y1 = values["box"]
        return Box((x0, y0, x1, y1))
    if "polygons" in values:
        return Segments((values["polygons"],))
    return Segments(tuple(parts_of(values.get("segmentation", []))))

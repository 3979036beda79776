"""What a line of a folder of one's own must be; `jsonlines.py` has the table of its keys."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from bridger.config import did_you_mean

MASKS = ("mask", "polygons", "box", "segmentation", "none")
KEYS = (
    "image",
    "sentence",
    "sentences",
    *MASKS,
    "value",
    "kinds",
    "ref_id",
    "ann_ids",
    "sent_ids",
    "size",
    "source",
    "picture",
)
FARTHEST = 1e9  # pixels; no picture has as many on a side


def check_line(values: dict[str, Any]) -> None:
    """Check a line's keys and values; "none": false is taken out.

    Raises:
        ValueError: what is wrong, and how to mend it.
    """
    for key in values:
        if key not in KEYS:
            raise ValueError(f"there is no key {key!r}: {did_you_mean(key, list(KEYS))}")
    _expect(isinstance(values.get("image"), str) and values["image"], values, "image", "a file")
    _check_sentences(values)
    _check_mask(values)
    _check_rest(values)


def parts_of(segmentation: Any) -> list[Any]:
    """Return the objects of "segmentation": one, or a list of them."""
    if isinstance(segmentation, Mapping):
        return [segmentation]
    several = all(
        isinstance(part, Mapping) or all(isinstance(polygon, list) for polygon in part)
        for part in segmentation
    )
    return segmentation if several else [segmentation]


def _check_sentences(values: dict[str, Any]) -> None:
    if ("sentence" in values) == ("sentences" in values):
        found = "both" if "sentence" in values else "neither"
        raise ValueError(f'expected either "sentence" or "sentences", found {found}')
    if "sentences" in values:
        good = isinstance(values["sentences"], list) and values["sentences"]
        _expect(good, values, "sentences", "a list of at least one sentence")
    for sentence in values.get("sentences", [values.get("sentence")]):
        if not isinstance(sentence, str) or not sentence.strip():
            raise ValueError(f"expected a sentence such as 'the red car', found {short(sentence)}")


def _check_mask(values: dict[str, Any]) -> None:
    if values.get("none") is False:
        del values["none"]
    given = [key for key in MASKS if key in values]
    if len(given) != 1:
        raise ValueError(
            f"expected exactly one of {', '.join(MASKS)}, found {' and '.join(given) or 'no one'}"
            + ("" if given else '; where nothing is meant, write "none": true')
        )
    kind, value = given[0], values[given[0]]
    if "value" in values and (kind != "mask" or type(values["value"]) is not int):
        raise ValueError(
            f'"value" is the whole number that an object has in its "mask", found '
            f"{short(values['value'])} beside {kind!r}"
        )
    if kind == "mask":
        _expect(isinstance(value, str) and value, values, kind, "a file")
    elif kind == "none":
        _expect(value is True, values, kind, "true")
    elif kind == "box":
        _check_box(value)
    elif kind == "segmentation":
        _check_segmentation(value)
    else:
        _expect(isinstance(value, list) and value, values, kind, "[[x0, y0, x1, y1, ...], ...]")
        for polygon in value:
            _check_polygon(polygon, 6)


def _check_box(box: Any) -> None:
    if not _are_numbers(box) or len(box) != 4:
        raise ValueError(f"expected a box [x0, y0, x1, y1] in pixels, found {short(box)}")
    if box[0] >= box[2] or box[1] >= box[3]:
        raise ValueError(
            f"a box is [x0, y0, x1, y1] with x0 < x1 and y0 < y1, found {box}; where it is "
            f"[x, y, width, height], as in COCO's files, write [x, y, x + width, y + height]"
        )
    _check_pixels(box)


def _check_segmentation(value: Any) -> None:
    expected = "COCO's polygons, run lengths, or a list of such"
    if not isinstance(value, (list, dict)):
        raise ValueError(f'"segmentation": expected {expected}, found {short(value)}')
    if isinstance(value, list) and not all(isinstance(part, (list, dict)) for part in value):
        raise ValueError(f'"segmentation": expected {expected}, found {short(value)}')
    for part in parts_of(value):
        if isinstance(part, list):
            for polygon in part:
                _check_polygon(polygon, 0)
        elif not {"size", "counts"} <= set(part) or not _are_sizes(part["size"], 2):
            raise ValueError(
                f'run lengths are {{"size": [height, width], "counts": ...}}, found {short(part)}'
            )
        elif not isinstance(part["counts"], str) and not _are_ids(part["counts"]):
            raise ValueError(f"run lengths are a list or a string, found {short(part['counts'])}")


def _check_polygon(polygon: Any, least: int) -> None:
    if not _are_numbers(polygon):
        raise ValueError(f"expected a polygon [x0, y0, x1, y1, ...], found {short(polygon)}")
    if len(polygon) % 2 or len(polygon) < least:
        raise ValueError(
            f"a polygon has an x and a y for each of three corners or more, found {len(polygon)} "
            f"numbers: {short(polygon)}"
        )
    if least:
        _check_pixels(polygon)


def _check_pixels(numbers: list[float]) -> None:
    if 0 <= min(numbers) and max(numbers) <= 1 and any(x not in (0, 1) for x in numbers):
        raise ValueError(
            f"expected pixels, found {short(numbers)}: shares of the width and height, it seems; "
            f"multiply them by these"
        )


def _check_rest(values: Mapping[str, Any]) -> None:
    count = len(values.get("sentences", [""]))
    if "kinds" in values:
        kinds = values["kinds"]
        good = isinstance(kinds, list) and len(kinds) == count
        good = good and all(isinstance(kind, str) for kind in kinds)
        _expect(good, values, "kinds", f"a list of {count} strings, one a sentence")
    if "ref_id" in values:
        _expect(type(values["ref_id"]) is int, values, "ref_id", "a whole number")
    if "ann_ids" in values:
        _expect(_are_ids(values["ann_ids"]), values, "ann_ids", "a list of whole numbers")
    if "sent_ids" in values:
        good = _are_ids(values["sent_ids"]) and len(values["sent_ids"]) == count
        _expect(good, values, "sent_ids", f"a list of {count} whole numbers, one a sentence")
    if "size" in values:
        _expect(_are_sizes(values["size"], 2), values, "size", "[height, width] in pixels")
    for key in ("source", "picture"):
        if key in values:
            _expect(isinstance(values[key], str) and values[key], values, key, "a name")


def _expect(good: Any, values: Mapping[str, Any], key: str, what: str) -> None:
    if not good:
        found = short(values[key]) if key in values else "no such key"
        raise ValueError(f'"{key}": expected {what}, found {found}')


def _are_numbers(values: Any) -> bool:
    """Whether it is a list of numbers that can be pixels; NaN cannot, but no bound shows it."""
    if not isinstance(values, list) or not set(map(type, values)) <= {int, float}:
        return False
    return not values or (
        -FARTHEST < min(values) and max(values) < FARTHEST and not math.isnan(sum(values))
    )


def _are_ids(values: Any) -> bool:
    return isinstance(values, list) and set(map(type, values)) <= {int}


def _are_sizes(values: Any, count: int) -> bool:
    return _are_ids(values) and len(values) == count and min(values) > 0


def short(value: Any) -> str:
    """Show a value, cut where it is long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return repr(text) if len(text) <= 60 else repr(text[:57]) + "..."

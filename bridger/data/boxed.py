"""Detection: pictures with boxes of classes, from JSON files as COCO has them."""

from __future__ import annotations

import os
import reprlib
import sys
import warnings
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bridger.data.boxed_layouts import BoxedFiles, boxed_files
from bridger.data.class_lists import class_names, split_names
from bridger.data.instances import stream
from bridger.data.label_layouts import pick_split, require_folder
from bridger.data.labelled import BoxedPicture, Complain, LabelledDataset, refuse

BROKEN = ("raise", "drop")
ROUNDING = 1.0  # pixels that a box may reach out of its picture
UNKNOWN_IDS = "annotations of classes or pictures that are not in the file"
ODD = "annotations that are not like COCO's"
FLAT = "boxes without area"
OUTSIDE = "boxes that reach out of their pictures; COCO's boxes are [x, y, width, height]"
CORNERS = "boxes that look like x0 y0 x1 y1; COCO's are x y width height"
MOSTLY = 0.9  # of all boxes, where they look like something


class Picture(NamedTuple):
    """What is kept of a picture: its file's name, and (h, w)."""

    name: str
    size: tuple[int, int]


class Boxes(NamedTuple):
    """n boxes of all pictures, those of a picture together.

    `pictures` (n,) are numbers of pictures, `corners` (n, 4) x0 y0 x1 y1; the rest (n,).
    """

    ids: npt.NDArray[np.int64]
    pictures: npt.NDArray[np.int64]
    corners: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float32]

    def of(self, index: Any) -> Boxes:
        """Return some of them, by anything that numpy takes for an index."""
        return Boxes(*(column[index] for column in self))


class COCOBoxes(LabelledDataset[BoxedPicture]):
    """The pictures of one split, those without any box among them; see `open_boxed`.

    Args:
        split: name of the split.
        files: its files.
        broken: see `open_boxed`.
        report: see `open_boxed`.

    Attributes:
        path: the JSON file, which pycocotools reads as well.
        category_ids: COCO's id of each class.
        image_ids: COCO's id of each picture.
    """

    def __init__(
        self,
        split: str,
        files: BoxedFiles,
        broken: str = "raise",
        report: Complain | None = None,
    ) -> None:
        if broken not in BROKEN:
            raise ValueError(f"broken={broken!r} is unknown: expected {' or '.join(BROKEN)}")
        self.name, self.split, self.path = "coco", split, files.annotations
        try:
            categories = _by_id(stream(self.path, "categories.item"), "categories")
            pictures = _by_id(stream(self.path, "images.item"), "images")
            self.category_ids, self.image_ids = tuple(categories), tuple(pictures)
            names = [
                split_names(",".join([entry["name"], *entry.get("synonyms", ())]))
                for entry in categories.values()
            ]
            self._pictures = [
                Picture(entry["file_name"], (int(entry["height"]), int(entry["width"])))
                for entry in pictures.values()
            ]
            names_of_files = [picture.name for picture in self._pictures]
            files_by_id = dict(zip(self.image_ids, names_of_files, strict=True))
            boxes = _read_boxes(self.path, self.category_ids, files_by_id, report)
        except (KeyError, TypeError, AttributeError, OverflowError, ValueError) as error:
            known = f"{error}" if type(error) is ValueError else f"an entry is odd: {error!r}"
            raise ValueError(f"{self.path} is not like COCO's files: {known}") from error
        self.classes = class_names(names, self.path)
        self._boxes = self._fitting(boxes, broken, report)
        self._starts = np.searchsorted(self._boxes.pictures, np.arange(len(self) + 1))
        self._folder = _folder_of([picture.name for picture in self._pictures], files.places)

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self._pictures)

    def __getitem__(self, index: int) -> BoxedPicture:
        """Return a picture; its file is not read."""
        picture, boxes = self._pictures[index], self._boxes.of(self._slice(index))
        return BoxedPicture(
            image_path=self._folder / picture.name,
            key=str(self.image_ids[index]),
            source=self.name,
            boxes=boxes.corners.astype(np.float32),
            labels=boxes.labels,
            crowd=boxes.crowd,
            areas=boxes.areas,
            size=picture.size,
        )

    def annotation_ids(self, index: int) -> tuple[int, ...]:
        """Return COCO's id of every box of a picture."""
        return tuple(self._boxes.ids[self._slice(index)].tolist())

    def _slice(self, index: int) -> slice:
        index = range(len(self))[index]
        return slice(int(self._starts[index]), int(self._starts[index + 1]))

    def _fitting(self, boxes: Boxes, broken: str, report: Complain | None) -> Boxes:
        """Cut boxes at their pictures' edges; raise for those that are broken, or drop them."""
        height, width = np.array([picture.size for picture in self._pictures]).T[:, boxes.pictures]
        edges = np.stack([width, height, width, height], axis=1)
        inside = (boxes.corners >= -ROUNDING) & (boxes.corners <= edges + ROUNDING)
        cut = boxes.corners.clip(0, edges)
        good = np.asarray(inside.all(axis=1) & (cut[:, :2] < cut[:, 2:]).all(axis=1))
        if good.all():
            return boxes._replace(corners=cut)
        bad: list[int] = np.flatnonzero(~good).tolist()
        most = 2 * len(bad) > len(good)
        corners = most and _look_like_corners(boxes, edges)
        if report is not None:
            for index in bad:
                what, where = self._describe(boxes, index)
                report(CORNERS if corners else what, where)
        else:
            count = f"{len(bad)} of the {len(good)} boxes in {self.path} are broken"
            if broken == "raise" or most:
                mend = "Mend them (`bridger data check` says which)"
                if corners:
                    mend = "They look like x0 y0 x1 y1; COCO's are x y width height"
                elif not most:  # more than a few are an error with broken="drop", too
                    mend += ", or leave out a few with open_boxed(..., broken='drop')"
                raise ValueError(f"{count}: {self._describe(boxes, bad[0])[1]}. {mend}")
            warnings.warn(f"{count}; they are left out", UserWarning, stacklevel=4)
        return boxes._replace(corners=cut).of(good)

    def _describe(self, boxes: Boxes, index: int) -> tuple[str, str]:
        """Return the kind of what is wrong with a box, and the box itself in words."""
        number = int(boxes.pictures[index])
        name, (height, width) = self._pictures[number]
        x0, y0, x1, y1 = boxes.corners[index].tolist()
        flat = not (x0 < x1 and y0 < y1)
        return FLAT if flat else OUTSIDE, (
            f"annotation {boxes.ids[index]} of image {self.image_ids[number]} ({name}, {width} x "
            f"{height} pixels) has the box [x, y, width, height] = "
            f"[{x0:g}, {y0:g}, {x1 - x0:g}, {y1 - y0:g}], which "
            + ("has no area" if flat else "reaches out of the picture")
        )


def _look_like_corners(boxes: Boxes, edges: npt.NDArray[Any]) -> bool:
    """Whether what was read as x y width height would do as x0 y0 x1 y1, but for a few."""
    low, high = boxes.corners[:, :2], boxes.corners[:, 2:] - boxes.corners[:, :2]
    fitting = (low >= -ROUNDING) & (low < high) & (high <= edges[:, 2:] + ROUNDING)
    return bool(fitting.all(axis=1).mean() >= MOSTLY)


def _by_id(entries: Iterable[Any], what: str) -> dict[int, dict[str, Any]]:
    """Sort entries by their ids, in the file's order; of pictures only what is needed."""
    kept = ("name", "synonyms", "file_name", "height", "width")
    found: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if entry["id"] in found:
            raise ValueError(f"the id {entry['id']} stands twice in its {what}")
        found[entry["id"]] = {key: entry[key] for key in kept if key in entry}
    if not found:
        raise ValueError(f'it has no "{what}"')
    return found


def _read_boxes(
    path: Path, category_ids: Sequence[int], files: Mapping[int, str], report: Complain | None
) -> Boxes:
    """Read all annotations of pictures, whose files are given by id; segmentations pass by."""
    categories = {id: label for label, id in enumerate(category_ids)}
    pictures = {id: number for number, id in enumerate(files)}
    numbers, corners, areas = array("q"), array("d"), array("d")
    entry: Any = None
    for entry in stream(path, "annotations.item"):
        what = ODD
        try:
            x, y, width, height, area = _read_numbers(entry, files)
            what = UNKNOWN_IDS
            picture = _known(pictures, entry, "image_id", "images")
            label = _known(categories, entry, "category_id", "categories")
        except ValueError as error:
            refuse(what, error, report)
            continue
        numbers.extend((entry["id"], picture, label, bool(entry.get("iscrowd"))))
        corners.extend((x, y, x + width, y + height))
        areas.append(area)
    if entry is None:
        raise ValueError('it has no "annotations", so no box in any picture')
    ids, of_pictures, labels, crowd = np.array(numbers).reshape(-1, 4).T
    if len(np.unique(ids)) < len(ids):
        twice = ids[np.flatnonzero(np.bincount(np.unique(ids, return_inverse=True)[1]) > 1)]
        raise ValueError(f"the id {twice[0]} stands twice in its annotations")
    boxes = Boxes(
        ids,
        of_pictures,
        np.array(corners).reshape(-1, 4),
        labels,
        crowd.astype(bool),
        np.array(areas, dtype=np.float32),
    )
    return boxes.of(np.argsort(of_pictures, kind="stable"))


def _read_numbers(entry: Any, files: Mapping[int, str]) -> tuple[float, ...]:
    """Return x, y, width, height and area of an annotation, given the pictures' files by id.

    Raises:
        ValueError: it is odd.
    """
    id = entry.get("id") if isinstance(entry, dict) else None
    if not isinstance(id, int) or abs(id) > sys.maxsize:
        odd = reprlib.repr(entry)
        raise ValueError(f"expected annotations with an id, a whole number, found {odd}")
    box, area = entry.get("bbox"), entry.get("area")
    image = entry.get("image_id")
    file = files.get(image) if isinstance(image, int) else None
    place = f"annotation {id} of image {image!r}" + (f" ({file})" if file is not None else "")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise ValueError(
            f"{place} has the bbox {reprlib.repr(box)}: expected [x, y, width, height], four "
            f"numbers of pixels"
        )
    if area is None:
        area = box[2] * box[3]
    elif not _is_number(area):
        raise ValueError(f"{place} has the area {area!r}: expected a number of pixels, or none")
    return (*box, area)


def _is_number(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and abs(value) <= sys.float_info.max


def _known(numbers: Mapping[int, int], entry: Mapping[str, Any], key: str, what: str) -> int:
    id: Any = entry.get(key)
    if isinstance(id, (list, dict)) or id not in numbers:
        raise ValueError(
            f"annotation {entry['id']} has the {key} {id}, which is none of its "
            f"{len(numbers)} {what}"
        )
    return numbers[id]


def _folder_of(names: Sequence[str], places: Sequence[Path]) -> Path:
    """Return the folder that all pictures lie in: where the first that is not missing does."""
    for name in names:
        for place in places:
            if (place / name).is_file():
                return place
    looked = "\n".join(f"  {place / names[0]}" for place in places)
    raise FileNotFoundError(f"the pictures are missing; looked for the first one as:\n{looked}")


def open_boxed(
    root: str | os.PathLike[str], split: str, broken: str = "raise", report: Complain | None = None
) -> COCOBoxes:
    """Open one split of a data set with boxes, from JSON files as COCO has them.

    Files are found as COCO unpacks (`annotations/instances_train2017.json` with `train2017/` or
    `images/train2017/`, any year), as `annotations/train.json` with `images/train/` or `images/`,
    or as `train/_annotations.coco.json` beside the pictures. Ids of categories need not be
    contiguous; classes are in their order in the file. The file is read as a stream.

    A box that reaches out of its picture by up to a pixel, as rounding leaves it, is cut.

    Args:
        root: the folder.
        split: "train", "val" and so on; with its year only where there are several of one.
            "valid", "validation" and so on are found as "val".
        broken: what to do with boxes without area, or that reach further out: "raise", or "drop"
            them with a warning. Where most are broken, that is an error all the same: they are
            then boxes of another format.
        report: called with every annotation that is odd, broken, or of an unknown picture or
            class, which is then left out; by default the first one is raised.

    Raises:
        FileNotFoundError: there is no such folder, no such file in it, or no pictures.
        ValueError: there is no such split; the file is not like COCO's; ids stand twice or are
            unknown; class names are empty or stand twice; a box is broken.
    """
    root = require_folder(root)
    return COCOBoxes(split, pick_split(boxed_files(root), split, root), broken, report)


def boxed_splits(root: str | os.PathLike[str]) -> list[str]:
    """Return the splits of a data set with boxes, train, val and test first.

    Raises:
        FileNotFoundError: there is no such folder, or nothing that `open_boxed` would find in it.
        ValueError: two of its files would be the same split.
    """
    return list(boxed_files(require_folder(root)))

"""Pictures with labels of classes: label maps, boxes, or names; what every such data set offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from bridger.texts import ClassName

Complain = Callable[[str, str], None]
"""Called with a kind of thing that is wrong, in the plural, and with one that is, and where."""


def refuse(what: str, error: Exception, report: Complain | None) -> None:
    """Raise an error; or tell it to whoever wants to hear of all that is wrong.

    Args:
        what: the kind of thing, for the report.
        error: the error.
        report: called in place of raising.
    """
    if report is None:
        raise error
    report(what, str(error))


@dataclass(frozen=True)
class LabelledPicture:
    """A picture; its labels stand in the dataclasses below.

    Attributes:
        image_path: file of the picture.
        key: what tells it from the other pictures of its data set.
        source: name of the data set.
    """

    image_path: Path
    key: str
    source: str

    @property
    def picture(self) -> Path:
        """`image_path`, once it is sure that the file is there.

        Raises:
            FileNotFoundError: it is missing.
        """
        if not self.image_path.is_file():
            raise FileNotFoundError(f"{self.source}: there is no picture {self.image_path}")
        return self.image_path


@dataclass(frozen=True)
class SegmentedPicture(LabelledPicture):
    """A picture with a class for every pixel.

    Attributes:
        read_labels: reads the label map.
    """

    read_labels: Callable[[], npt.NDArray[np.int64]]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(h, w) int64: 0 to K - 1, `bridger.labels.BACKGROUND` or `IGNORE`.

        Raises:
            FileNotFoundError, ValueError: the file is missing, broken, or holds unknown classes.
        """
        return self.read_labels()


@dataclass(frozen=True)
class BoxedPicture(LabelledPicture):
    """A picture with boxes of objects.

    Attributes:
        boxes: (n, 4) float32, x0 y0 x1 y1 in pixels, at pixels' edges.
        labels: (n,) int64, 0 to K - 1.
        crowd: (n,) bool, boxes around many objects: neither objects nor background.
        areas: (n,) float32 pixels, of the objects themselves, by which they are small or large.
        size: (h, w) of the picture.
    """

    boxes: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]
    areas: npt.NDArray[np.float32]
    size: tuple[int, int]

    def require_size(self, size: tuple[int, int]) -> None:
        """Make sure that the picture is as large as the boxes were drawn for.

        Args:
            size: (h, w) of the file, turned as EXIF says.

        Raises:
            ValueError: it is not.
        """
        if size == self.size:
            return
        turned = "; where EXIF turns a picture, size and boxes are those of the turned one"
        raise ValueError(
            f"{self.source}: {self.image_path} is {size[0]} x {size[1]}, but its boxes are for "
            f"{self.size[0]} x {self.size[1]} (height x width)"
            + (turned if size == self.size[::-1] else ": correct its size and boxes in the JSON")
        )


@dataclass(frozen=True)
class ClassifiedPicture(LabelledPicture):
    """A picture with the classes that it shows.

    Attributes:
        labels: 0 to K - 1; several where the data set is multi-label.
    """

    labels: tuple[int, ...]


PictureT = TypeVar("PictureT", bound=LabelledPicture)


class LabelledDataset(Dataset[PictureT], ABC, Generic[PictureT]):
    """The pictures of one split.

    Attributes:
        name: of the data set.
        split: name of the split.
        classes: K class names in the order of the labels, with synonyms where they are known.
    """

    name: str
    split: str
    classes: tuple[ClassName, ...]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of pictures."""

    @abstractmethod
    def __getitem__(self, index: int) -> PictureT:
        """Return a picture; its file is not read."""

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name} {self.split}: {len(self)} pictures, "
            f"{len(self.classes)} classes)"
        )

    def require_pictures(self) -> None:
        """Look whether every picture is there, before an hour is spent on the others.

        Raises:
            FileNotFoundError: some are missing; the first ones are named.
        """
        paths = [self[index].image_path for index in range(len(self))]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            named = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
            raise FileNotFoundError(
                f"{len(missing)} of the {len(paths)} pictures of {self!r} are missing: {named}"
            )

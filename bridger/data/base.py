"""What every data set of referring expressions offers, wherever its annotations come from."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch.utils.data import Dataset

from bridger.data.augment import Transform
from bridger.data.masks import Mask, Outline, picture_size


@dataclass(frozen=True)
class Sample:
    """An object, several or none that are referred to (a "ref"), and everything said about them.

    The picture is not read, and the mask is decoded when it is asked for.

    Attributes:
        image_path: file of the picture.
        sentences: at least one expression.
        outline: what the mask is made of; an empty mask where the sentences mean nothing there.
        ref_id: id of the ref in its data set.
        ann_ids: ids of the objects' annotations.
        sent_ids: ids of the sentences.
        kinds: what sort of expression each sentence is ("place", "colour"), "" where unknown.
        size: (h, w) of the picture where the annotations say it; None: its file does.
        source: name of the data set, such as "refcoco/unc".
        transform: what collators do to picture and mask; the sentences are those for the changed
            picture already. None: nothing.
    """

    image_path: Path
    sentences: tuple[str, ...]
    outline: Outline
    ref_id: int
    ann_ids: tuple[int, ...]
    sent_ids: tuple[int, ...]
    kinds: tuple[str, ...]
    size: tuple[int, int] | None
    source: str
    transform: Transform | None = None

    @property
    def mask(self) -> Mask:
        """(h, w) uint8, 1 on what is meant and 0 elsewhere.

        Raises:
            FileNotFoundError: the mask's file, or the picture that tells its size, is missing.
            ValueError: the annotation is broken, or for a picture of another size.
        """
        try:
            return self.outline.mask(self.size or picture_size(self.image_path))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self._name}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{self._name}: {error}") from error

    @property
    def picture(self) -> Path:
        """`image_path`, once it is sure that the file is there.

        Raises:
            FileNotFoundError: it is missing; the ref and its data set are said.
        """
        if not self.image_path.is_file():
            raise FileNotFoundError(f"{self._name}: there is no picture {self.image_path}")
        return self.image_path

    @property
    def _name(self) -> str:
        return f"ref {self.ref_id} of {self.source}"

    @property
    def key(self) -> tuple[str, str, int, tuple[int, ...]]:
        """What tells this mask from every other one, over several data sets."""
        return self.source, str(self.image_path), self.ref_id, self.ann_ids


class ReferringDataset(Dataset[Sample], ABC):
    """The refs of one split.

    Attributes:
        name: of the data set, such as "refcoco/unc".
        split: name of the split.
    """

    name: str
    split: str

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of refs."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Return a ref."""

    @abstractmethod
    def sentence_counts(self) -> Sequence[int]:
        """Return how many sentences each ref has, without reading any picture or mask."""

    @abstractmethod
    def picture_keys(self) -> Sequence[str]:
        """Return which picture each ref is of.

        Keys are the same for the same picture in different data sets: "coco/<image id>" for
        COCO's, which are known by their names, the resolved path for others.
        """

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name} {self.split}: {len(self)} refs, "
            f"{sum(self.sentence_counts())} expressions)"
        )

    def expressions(self) -> list[tuple[int, int]]:
        """Return (index of the ref, index of its sentence) of every expression, for evaluation."""
        return [(i, j) for i, count in enumerate(self.sentence_counts()) for j in range(count)]

    def pictures(self) -> list[list[int]]:
        """Return the indices of the refs of every picture, in the order of their first ones."""
        groups: dict[str, list[int]] = {}
        for index, key in enumerate(self.picture_keys()):
            groups.setdefault(key, []).append(index)
        return list(groups.values())

    def require_pictures(self) -> None:
        """Look whether every picture is there, before an hour is spent on the others.

        Raises:
            FileNotFoundError: some are missing; the first ones are named.
        """
        paths = [self[refs[0]].image_path for refs in self.pictures()]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            named = ", ".join(map(str, missing[:3])) + (", ..." if len(missing) > 3 else "")
            raise FileNotFoundError(
                f"{len(missing)} of the {len(paths)} pictures of {self!r} are missing: {named}"
            )

    def sentence_of(self, index: int, epoch: int, seed: int = 0) -> str:
        """Return the sentence that a ref is trained with in an epoch.

        The draw depends on (seed, epoch, the ref's id) alone, so that neither workers, order nor
        resuming change it.

        Args:
            index: of the ref.
            epoch: from 0 on.
            seed: of the run.
        """
        sample = self[index]
        return sample.sentences[draw(len(sample.sentences), sample.ref_id, epoch, seed)]


_COCO_NAME = re.compile(r"COCO_\w+_0*(\d+)\.\w+")


def coco_key(name: str) -> str | None:
    """Return the picture key of one of COCO's pictures by its file's name, None of others."""
    numbered = _COCO_NAME.fullmatch(name)
    return f"coco/{numbered[1]}" if numbered else None


def draw(count: int, ref_id: int, epoch: int, seed: int) -> int:
    """Draw one of `count` sentences; see `ReferringDataset.sentence_of`."""
    # A string is hashed whole (SHA-512), unlike a tuple, whose hash may differ between runs.
    return random.Random(f"{seed}/{epoch}/{ref_id}").randrange(count)

"""Looking through one picture of a split with all of its refs; part of `check.py`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from bridger.data.base import ReferringDataset, Sample
from bridger.data.check_report import Remark
from bridger.data.masks import Box, MaskFile, Segments, picture_size
from bridger.pictures import read_picture
from bridger.words import OpenClipWords

MISSING = "missing pictures"
BROKEN = "pictures that cannot be read"
OTHER_SIZE = "pictures of another size than annotated"
UNREADABLE_REFS = "refs that cannot be read"
UNREADABLE_MASKS = "masks that cannot be read"
EMPTY_MASKS = "empty masks though something is meant"
EMPTY_SENTENCES = "empty sentences"
DUPLICATED_IDS = "ids that several refs share"
TINY = "pictures of less than 16 pixels on a side"
OUTSIDE = "boxes that stick out of their picture; a box is [x0, y0, x1, y1], not [x, y, w, h]"
LOSSY = "masks in JPEG files, where pixels near an edge are not 0"
WHOLE = "masks that cover their whole picture"
LONG = "sentences of more than {limit} tokens, which are cut"
DUPLICATED_SENTENCES = "sentences that are there twice for a picture"
LEAST_SIDE = 16


class PictureReader:
    """Reads pictures; a file that several splits have is read once.

    Args:
        decode: read them whole, and not only their heads.

    Attributes:
        sizes: (h, w) of every picture that was read, None of those that cannot be.
    """

    def __init__(self, decode: bool) -> None:
        self.decode = decode
        self.sizes: dict[Path, tuple[int, int] | None] = {}

    def read(self, place: str, path: Path) -> Iterator[Remark]:
        """Read a picture, and yield what is wrong with it.

        Args:
            place: where it belongs, for examples.
            path: its file.
        """
        size: tuple[int, int] | None = None
        if not path.is_file():
            hint = "; write / between folders" if "\\" in str(path) else ""
            yield Remark(MISSING, f"{place}: {path}{hint}")
        else:
            try:
                height, width = read_picture(path).shape[1:] if self.decode else picture_size(path)
            except Exception as error:
                yield Remark(BROKEN, f"{place}: {error}")
            else:
                size = (height, width)
                if min(size) < LEAST_SIDE:
                    yield Remark(TINY, f"{place}: {path} is {height} x {width}", note=True)
        self.sizes[path] = size  # last, as other threads look here


class PictureCheck(PictureReader):
    """Looks through pictures of referring expressions; arguments as of `PictureReader`."""

    def __init__(self, decode: bool) -> None:
        super().__init__(decode)
        self.words = OpenClipWords.load(Path(), {})

    def __call__(
        self, data: ReferringDataset, refs: Sequence[int], *, label: str, limit: int
    ) -> tuple[list[Remark], list[int]]:
        """Look through one picture.

        Args:
            data: the split.
            refs: indices of the refs of the picture.
            label: how the split is called in examples.
            limit: most tokens of a sentence.

        Returns:
            What was found, and the refs' ids.
        """
        remarks: list[Remark] = []
        samples: list[tuple[str, Sample]] = []
        for index in refs:
            try:
                sample = data[index]
            # An annotation may be wrong in any way, and the others are to be looked at too.
            except Exception as error:
                remarks.append(Remark(UNREADABLE_REFS, f"{label} number {index}: {error}"))
                continue
            samples.append((f"{label} ref {sample.ref_id}", sample))
        looked_at: set[Path] = set()
        for place, sample in samples:
            path = sample.image_path
            if path not in self.sizes:
                remarks += self.read(place, path)
            size = self.sizes[path]
            if size is not None and path not in looked_at:
                remarks += _compare_sizes(place, sample, size)
            looked_at.add(path)
            remarks += _check_mask(place, sample, sample.size or size)
            remarks += self._check_sentences(place, sample, limit)
        said = Counter((s.image_path, text) for _, s in samples for text in s.sentences)
        for (path, text), count in said.items():
            if count > 1:
                example = f"{label} {path.name}: {text!r} {count} times"
                remarks.append(Remark(DUPLICATED_SENTENCES, example, note=True))
        return remarks, [sample.ref_id for _, sample in samples]

    def is_sound(self, data: ReferringDataset, index: int) -> bool:
        """Whether nothing has to be mended in a ref, its picture and its mask."""
        remarks, ids = self(data, [index], label=data.split, limit=sys.maxsize)
        # A picture that was looked at before is remarked on no more.
        readable = bool(ids) and self.sizes[data[index].image_path] is not None
        return readable and all(remark.note for remark in remarks)

    def _check_sentences(self, place: str, sample: Sample, limit: int) -> Iterator[Remark]:
        if not sample.sentences:
            yield Remark(EMPTY_SENTENCES, f"{place} has no sentence")
        for text in sample.sentences:
            count = len(self.words.encode([text])[0])
            if count <= 2:  # nothing between start and end
                yield Remark(EMPTY_SENTENCES, f"{place}: {text!r}")
            elif count > limit:
                shown = text if len(text) <= 60 else f"{text[:57]}..."
                what = LONG.format(limit=limit)
                yield Remark(what, f"{place}: {shown!r} has {count}", note=True)


def _compare_sizes(place: str, sample: Sample, size: tuple[int, int]) -> Iterator[Remark]:
    if sample.size is not None and sample.size != size:
        yield Remark(
            OTHER_SIZE,
            f"{place}: {sample.image_path} is {size[0]} x {size[1]}, annotated is "
            f"{sample.size[0]} x {sample.size[1]} (height x width)",
        )


def _check_mask(place: str, sample: Sample, size: tuple[int, int] | None) -> Iterator[Remark]:
    """Decode a mask; where the picture cannot be read and nothing says its size, there is none."""
    outline = sample.outline
    if size is None:
        return
    try:
        mask = outline.mask(size)
    except Exception as error:
        yield Remark(UNREADABLE_MASKS, f"{place}: {error}")
        return
    meant = not isinstance(outline, Segments) or len(outline.parts) > 0
    if meant and not mask.any():
        yield Remark(EMPTY_MASKS, f"{place}: {sample.sentences[0]!r} of {sample.image_path}")
    if min(size) >= LEAST_SIDE and mask.all():
        yield Remark(WHOLE, f"{place}: {sample.image_path}", note=True)
    if isinstance(outline, Box) and _sticks_out(outline, size):
        yield Remark(OUTSIDE, f"{place}: {list(outline.corners)} of {sample.image_path}", note=True)
    if isinstance(outline, MaskFile) and outline.path.suffix.lower() in (".jpg", ".jpeg"):
        yield Remark(LOSSY, f"{place}: {outline.path}", note=True)


def _sticks_out(box: Box, size: tuple[int, int]) -> bool:
    x0, y0, x1, y1 = box.corners
    return min(x0, y0) < -1 or x1 > size[1] + 1 or y1 > size[0] + 1

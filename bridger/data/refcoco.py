"""RefCOCO, RefCOCO+ and G-Ref, or anything else in their format on disk."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from bridger.data.safe_pickle import load_plain

LAYOUT = """expected this layout:
  {root}/{dataset}/refs({split_by}).p
  {root}/{dataset}/instances.json
  {root}/images/train2014/*.jpg"""
_LEAST_POLYGON = 6  # numbers: three corners


@dataclass(frozen=True)
class Sample:
    """One object that is referred to (a "ref"), and everything said about it.

    Attributes:
        image_path: file of the picture.
        sentences: at least one expression.
        mask: (h, w) uint8, 1 on the object and 0 elsewhere.
        ref_id: id of the ref.
        ann_id: id of the object's annotation.
        image_id: id of the picture.
        sent_ids: ids of the sentences.
    """

    image_path: Path
    sentences: tuple[str, ...]
    mask: npt.NDArray[np.uint8]
    ref_id: int
    ann_id: int
    image_id: int
    sent_ids: tuple[int, ...]


class RefCOCO(Dataset[Sample]):
    """The refs of one split.

    Args:
        root: folder that holds `<dataset>/` and `images/train2014/`.
        split: "train", "val", "testA", "testB" (RefCOCO, RefCOCO+) or "test" (G-Ref by UMD).
        dataset: "refcoco", "refcoco+" or "refcocog": the name of the annotations' folder.
        split_by: who made the splits: "unc" for RefCOCO and RefCOCO+, "umd" or "google" for G-Ref.

    Raises:
        FileNotFoundError: a file or folder is missing; the expected layout is said.
        ValueError: there is no such split, or the two annotation files do not fit together.
        pickle.UnpicklingError: the refs hold more than plain data.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        split: str,
        dataset: str = "refcoco",
        split_by: str = "unc",
    ) -> None:
        self.root, self.split = Path(root), split
        self.dataset, self.split_by = dataset, split_by
        self.images_folder = self.root / "images" / "train2014"
        folder = self.root / dataset
        refs_file, instances_file = folder / f"refs({split_by}).p", folder / "instances.json"
        for path in (refs_file, instances_file, self.images_folder):
            if not path.exists():
                layout = LAYOUT.format(root=self.root, dataset=dataset, split_by=split_by)
                raise FileNotFoundError(f"{path} is missing; {layout}")
        everything = load_plain(refs_file)
        self._refs = [ref for ref in everything if ref["split"] == split]
        if not self._refs:
            found = sorted({ref["split"] for ref in everything})
            raise ValueError(f"{refs_file} has no split {split!r}; it has {', '.join(found)}")
        self._read_instances(instances_file)

    def _read_instances(self, path: Path) -> None:
        """Keep only what the split needs: the whole file is large."""
        instances = json.loads(path.read_text())
        ann_ids = {ref["ann_id"] for ref in self._refs}
        image_ids = {ref["image_id"] for ref in self._refs}
        self._annotations = {a["id"]: a for a in instances["annotations"] if a["id"] in ann_ids}
        self._images = {i["id"]: i for i in instances["images"] if i["id"] in image_ids}
        for ref in self._refs:
            if ref["ann_id"] not in self._annotations or ref["image_id"] not in self._images:
                raise ValueError(
                    f"ref {ref['ref_id']} needs annotation {ref['ann_id']} and image "
                    f"{ref['image_id']}, but {path} lacks one of them; are both files of the same "
                    f"release?"
                )

    def __repr__(self) -> str:
        return (
            f"RefCOCO({self.dataset} {self.split} by {self.split_by}: {len(self)} refs, "
            f"{len(self.expressions())} expressions)"
        )

    def __len__(self) -> int:
        """Return the number of refs."""
        return len(self._refs)

    def __getitem__(self, index: int) -> Sample:
        """Return a ref with its mask decoded; the picture itself is not read."""
        ref = self._refs[index]
        # The refs' own file names carry the annotation's id as a suffix; the images' do not.
        image = self._images[ref["image_id"]]
        segmentation = self._annotations[ref["ann_id"]]["segmentation"]
        return Sample(
            image_path=self.images_folder / image["file_name"],
            sentences=tuple(sentence["sent"] for sentence in ref["sentences"]),
            mask=decode_mask(segmentation, image["height"], image["width"]),
            ref_id=ref["ref_id"],
            ann_id=ref["ann_id"],
            image_id=ref["image_id"],
            sent_ids=tuple(sentence["sent_id"] for sentence in ref["sentences"]),
        )

    def sentence_of(self, index: int, epoch: int, seed: int = 0) -> str:
        """Return the sentence that a ref is trained with in an epoch.

        The draw depends on (seed, epoch, the ref's id) alone, so that neither workers, order nor
        resuming change it.
        """
        ref = self._refs[index]
        sentences = ref["sentences"]
        sentence: str = sentences[draw(len(sentences), ref["ref_id"], epoch, seed)]["sent"]
        return sentence

    def expressions(self) -> list[tuple[int, int]]:
        """Return (index of the ref, index of its sentence) of every expression, for evaluation."""
        return [(i, j) for i, ref in enumerate(self._refs) for j in range(len(ref["sentences"]))]

    def pictures(self) -> list[list[int]]:
        """Return the indices of the refs of every picture, in the order of their first ones."""
        groups: dict[int, list[int]] = {}
        for index, ref in enumerate(self._refs):
            groups.setdefault(ref["image_id"], []).append(index)
        return list(groups.values())


def draw(count: int, ref_id: int, epoch: int, seed: int) -> int:
    """Draw one of `count` sentences; see `RefCOCO.sentence_of`."""
    # A string is hashed whole (SHA-512), unlike a tuple, whose hash may differ between runs.
    return random.Random(f"{seed}/{epoch}/{ref_id}").randrange(count)


def decode_mask(
    segmentation: list[list[float]] | Mapping[str, Any], height: int, width: int
) -> npt.NDArray[np.uint8]:
    """Decode COCO's polygons, or either kind of run-length encoding, to (height, width) of 0, 1.

    Raises:
        ValueError: a run-length encoding of another size.
    """
    from pycocotools import mask as rle

    if isinstance(segmentation, Mapping):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(
                f"a mask is {list(segmentation['size'])} but its picture is {[height, width]} "
                f"(height, width)"
            )
        encoded: Any = dict(segmentation)
        if isinstance(encoded["counts"], list):
            encoded = rle.frPyObjects(encoded, height, width)
    else:
        # Fewer corners cover nothing, and pycocotools would take four numbers for a box.
        polygons = [p for p in segmentation if len(p) >= _LEAST_POLYGON]
        if not polygons:
            return np.zeros((height, width), dtype=np.uint8)
        encoded = rle.merge(rle.frPyObjects(polygons, height, width))
    return np.ascontiguousarray(rle.decode(encoded), dtype=np.uint8)

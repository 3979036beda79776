"""RefCOCO, RefCOCO+ and G-Ref, or anything else in their format on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

from bridger.data.base import ReferringDataset, Sample
from bridger.data.masks import Segments
from bridger.data.safe_pickle import load_plain

LAYOUT = """expected this layout:
  {root}/{dataset}/refs({split_by}).p
  {root}/{dataset}/instances.json
  {root}/images/train2014/*.jpg"""


class RefCOCO(ReferringDataset):
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
        self.name = f"{dataset}/{split_by}"
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

    def __len__(self) -> int:
        """Return the number of refs."""
        return len(self._refs)

    def __getitem__(self, index: int) -> Sample:
        """Return a ref."""
        ref = self._refs[index]
        # The refs' own file names carry the annotation's id as a suffix; the images' do not.
        image = self._images[ref["image_id"]]
        return Sample(
            image_path=self.images_folder / image["file_name"],
            sentences=tuple(sentence["sent"] for sentence in ref["sentences"]),
            outline=Segments((self._annotations[ref["ann_id"]]["segmentation"],)),
            ref_id=ref["ref_id"],
            ann_ids=(ref["ann_id"],),
            sent_ids=tuple(sentence["sent_id"] for sentence in ref["sentences"]),
            kinds=tuple(sentence.get("kind", "") for sentence in ref["sentences"]),
            size=(image["height"], image["width"]),
            source=self.name,
        )

    def sentence_counts(self) -> list[int]:
        """Return how many sentences each ref has."""
        return [len(ref["sentences"]) for ref in self._refs]

    def picture_keys(self) -> list[str]:
        """Return which picture each ref is of."""
        return [f"coco/{ref['image_id']}" for ref in self._refs]

"""RefCOCO, RefCOCO+ and G-Ref, or anything else in their format on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bridger.data.base import ReferringDataset, Sample, coco_key
from bridger.data.instances import Instances, Object, read_instances
from bridger.data.layouts import Original, Prepared, locate
from bridger.data.masks import MaskFile, Segments
from bridger.data.refs import Ref, read_refs


class Entry(NamedTuple):
    """A ref, and the key of its picture (see `ReferringDataset.picture_keys`)."""

    sample: Sample
    picture_key: str


class LoadedRefs(ReferringDataset):
    """The refs of one split, all of them read already.

    Args:
        name: of the data set, such as "refcoco/unc".
        split: name of the split.
        entries: the refs.
    """

    def __init__(self, name: str, split: str, entries: Sequence[Entry]) -> None:
        self.name, self.split = name, split
        self._samples = [entry.sample for entry in entries]
        self._keys = [entry.picture_key for entry in entries]

    def __len__(self) -> int:
        """Return the number of refs."""
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        """Return a ref."""
        return self._samples[index]

    def sentence_counts(self) -> list[int]:
        """Return how many sentences each ref has."""
        return [len(sample.sentences) for sample in self._samples]

    def picture_keys(self) -> list[str]:
        """Return which picture each ref is of."""
        return list(self._keys)


class RefCOCO(LoadedRefs):
    """The refs of one split.

    Args:
        root: folder that holds the data set, in any of the layouts of `bridger.data.layouts`.
        split: "train", "val", "testA", "testB" (RefCOCO, RefCOCO+) or "test" (G-Ref by UMD).
        dataset: "refcoco", "refcoco+" or "refcocog": the name of the annotations' folder.
        split_by: who made the splits: "unc" for RefCOCO and RefCOCO+, "umd" or "google" for G-Ref.

    Raises:
        FileNotFoundError: a file or folder is missing; the places looked at are said.
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
        entries = read_splits(root, [split], dataset, split_by)[split]
        super().__init__(f"{dataset}/{split_by}", split, entries)


def read_splits(
    root: str | os.PathLike[str], splits: Sequence[str] | None, dataset: str, split_by: str
) -> dict[str, list[Entry]]:
    """Read the refs of several splits, each file once; arguments and errors as of `RefCOCO`.

    Args:
        splits: names of the splits; None: all that there are.
    """
    files, source = locate(Path(root), dataset, split_by), f"{dataset}/{split_by}"
    if isinstance(files, Original):
        return _read_original(files, splits, source, crowds=dataset != "grefcoco")
    return {split: _read_prepared(files, split, source) for split in splits or files.splits}


def pictures_of_splits(
    root: str | os.PathLike[str], dataset: str, split_by: str
) -> dict[str, set[str]]:
    """Return the keys of the pictures of every split; of the annotations only the refs are read.

    Arguments and errors as of `RefCOCO`.
    """
    files = locate(Path(root), dataset, split_by)
    if isinstance(files, Original):
        refs = read_refs(files.refs)
        return {split: {f"coco/{ref.image_id}" for ref in refs[split]} for split in refs}
    entries = read_splits(root, None, dataset, split_by)
    return {split: {entry.picture_key for entry in entries[split]} for split in entries}


def _read_original(
    files: Original, splits: Sequence[str] | None, source: str, *, crowds: bool
) -> dict[str, list[Entry]]:
    refs = read_refs(files.refs, splits)
    wanted = [ref for some in refs.values() for ref in some]
    instances = read_instances(
        files.instances,
        {ann_id for ref in wanted for ann_id in ref.ann_ids},
        {ref.image_id for ref in wanted},
    )
    # The refs' own file names carry the annotation's id as a suffix; the pictures' do not.
    paths = {i: files.pictures / picture.name for i, picture in instances.pictures.items()}

    def entry(ref: Ref) -> Entry:
        _check(ref, instances, files.instances)
        sample = Sample(
            image_path=paths[ref.image_id],
            sentences=ref.sentences,
            outline=_outline([instances.objects[i] for i in ref.ann_ids], crowds),
            ref_id=ref.ref_id,
            ann_ids=ref.ann_ids,
            sent_ids=ref.sent_ids,
            kinds=ref.kinds,
            size=instances.pictures[ref.image_id].size,
            source=source,
        )
        return Entry(sample, f"coco/{ref.image_id}")

    return {split: [entry(ref) for ref in some] for split, some in refs.items()}


def _check(ref: Ref, instances: Instances, path: Path) -> None:
    """Make sure that a ref's picture and objects are there and belong together."""
    objects = [instances.objects.get(ann_id) for ann_id in ref.ann_ids]
    fit = all(thing is not None and thing.image_id == ref.image_id for thing in objects)
    if not fit or ref.image_id not in instances.pictures:
        raise ValueError(
            f"ref {ref.ref_id} needs image {ref.image_id} with annotations {list(ref.ann_ids)}, "
            f"but {path} does not have them so; are both files of the same release?"
        )


def _outline(objects: Sequence[Object], crowds: bool) -> Segments:
    """Unite objects; without crowds unless there is nothing else."""
    kept = objects if crowds else [thing for thing in objects if not thing.crowd] or objects
    return Segments(tuple(thing.segmentation for thing in kept))


def _read_prepared(files: Prepared, split: str, source: str) -> list[Entry]:
    path = files.refs / f"{split}.json"
    if not path.is_file():
        raise ValueError(f"{files.refs} has no split {split!r}; it has {', '.join(files.splits)}")
    try:
        refs = json.loads(path.read_text(encoding="utf-8"))
        return [_prepared_entry(ref, files, source) for ref in refs]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what ETRIS' preparation writes ({error!r})") from error


def _prepared_entry(ref: dict[str, Any], files: Prepared, source: str) -> Entry:
    path = files.pictures / ref["img_name"]
    said = ref["sentences"]
    sample = Sample(
        image_path=path,
        sentences=tuple(sentence["sent"] for sentence in said),
        outline=MaskFile(files.masks / f"{ref['segment_id']}.png"),
        ref_id=ref["segment_id"],
        ann_ids=(ref["segment_id"],),  # the objects' own are not told
        sent_ids=tuple(sentence["sent_id"] for sentence in said),
        kinds=tuple(sentence.get("kind", "") for sentence in said),
        size=None,
        source=source,
    )
    return Entry(sample, coco_key(path.name) or str(path.resolve()))

"""Lists of refs as refer and its successors write them: who said what of which objects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bridger.data.instances import stream
from bridger.data.safe_pickle import load_plain

_SPLIT = re.compile(r"[\w+-]+")
NO_TARGET = -1  # stands in gRefCOCO where an expression means no object


class Ref(NamedTuple):
    """What is kept of an entry; see `bridger.data.base.Sample` for the fields."""

    ref_id: int
    ann_ids: tuple[int, ...]
    image_id: int
    sentences: tuple[str, ...]
    sent_ids: tuple[int, ...]
    kinds: tuple[str, ...]


def read_refs(path: Path, splits: Sequence[str] | None = None) -> dict[str, list[Ref]]:
    """Read the refs of some splits, in the order of the file.

    Args:
        path: a pickle (`.p`), or a list in JSON; the latter is never held whole.
        splits: names of the wanted splits; None: all that there are.

    Raises:
        ValueError: the file has no such split, or is not what it should be.
        pickle.UnpicklingError: the pickle holds more than plain data.
    """
    found: dict[str, list[Ref]] = {}
    for number, entry in enumerate(_entries(path)):
        try:
            refs = found.setdefault(_split(entry), [])
            if splits is None or entry["split"] in splits:
                refs.append(_ref(entry))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path}, entry {number}: not a ref ({error!r})") from error
    if splits is None:
        return found
    if missing := [split for split in splits if split not in found]:
        there = ", ".join(sorted(found)) or "none"
        raise ValueError(f"{path} has no split {missing[0]!r}; it has {there}")
    return {split: found[split] for split in splits}


def _entries(path: Path) -> Iterable[Any]:
    if path.suffix != ".p":
        return stream(path, "item")
    entries = load_plain(path)
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds a {type(entries).__name__}, expected a list of refs")
    return entries


def _split(entry: Mapping[str, Any]) -> str:
    """Return the name of an entry's split, which a conversion makes a file's name of."""
    name: str = entry["split"]
    if not _SPLIT.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a split")
    return name


def _ref(entry: Mapping[str, Any]) -> Ref:
    ids = entry["ann_id"]
    ids = () if entry.get("no_target") else ids if isinstance(ids, list | tuple) else (ids,)
    said = entry["sentences"]
    if not said:
        raise ValueError("no sentence")
    return Ref(
        ref_id=entry["ref_id"],
        ann_ids=tuple(i for i in ids if i != NO_TARGET),
        image_id=entry["image_id"],
        sentences=tuple(sentence["sent"] for sentence in said),
        sent_ids=tuple(sentence["sent_id"] for sentence in said),
        kinds=tuple(sentence.get("kind", "") for sentence in said),
    )

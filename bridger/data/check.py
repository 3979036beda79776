"""Looking a data set of referring expressions through before anything is trained on it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from bridger.data.base import ReferringDataset
from bridger.data.catalog import PUBLISHED, data_sets, open_splits, published, the_only
from bridger.data.check_pictures import DUPLICATED_IDS, PictureCheck
from bridger.data.check_report import (
    LEAKS,
    DataReport,
    Findings,
    Report,
    SplitCounts,
    in_threads,
)
from bridger.data.folder import OWN, ReferringFolder, folder_splits
from bridger.data.mixed import leaks

Splits = Mapping[str, ReferringDataset]

UNREADABLE_SETS = "data sets that cannot be opened"
WRONG_LINES = "wrong lines"
EMPTY_SPLITS = "splits without a ref"
GOOGLE_LEAKS = "pictures of train in other splits, which is how Google split G-Ref"
SHARED = "trains with pictures of another data set's splits, which mixed training leaves out"
OTHER_COUNTS = "splits with other counts than published"
NOTES = {GOOGLE_LEAKS, SHARED, OTHER_COUNTS}
CONTEXT = 77  # tokens, of CLIP's text towers


@dataclass(frozen=True)
class ReferringCounts(SplitCounts):
    """How large a split of referring expressions is.

    Attributes:
        refs: number of refs.
        sentences: number of sentences.
        published: the published number of refs and of sentences; None where unknown.
    """

    refs: int
    sentences: int
    published: tuple[int | None, int | None] = (None, None)

    def columns(self) -> dict[str, str]:
        """Return what a table shows of it."""
        refs, sentences = ("" if count is None else str(count) for count in self.published)
        return {
            "data set": self.dataset,
            "split": self.split,
            "refs": str(self.refs),
            "sentences": str(self.sentences),
            "pictures": str(self.pictures),
            "published refs": refs,
            "published sentences": sentences,
        }


def check_data(
    root: str | os.PathLike[str],
    datasets: Sequence[str] | None = None,
    *,
    max_length: int | None = None,
    decode: bool = True,
    report: Report | None = None,
) -> DataReport:
    """Open every split, picture and mask of a folder, and say what is there and what is wrong.

    Problems are: pictures that are missing, broken or of another size than annotated; masks that
    cannot be read, are of another size than their picture, or empty though something is meant;
    empty sentences; ids that two refs of a split share; pictures of train in another split; wrong
    lines in a folder of one's own. Notes are: sentences over the limit of tokens, counts that
    differ from the published ones, and others.

    Args:
        root: the folder.
        datasets: names as for `open_splits`; None: all that are there.
        max_length: most tokens of a sentence, ends included; None: what the released ETRIS code
            takes for the data set, else 77.
        decode: read pictures whole, which alone finds truncated ones, and not only their heads.
        report: called with how many pictures are done, of how many.

    Raises:
        FileNotFoundError: there is no such folder, or no data set in it.
        ValueError: there is no data set of a name.
    """
    for name in datasets or ():
        if name != OWN:
            published(name)
    names = datasets or data_sets(root) or [the_only(root)]
    findings = Findings(set(NOTES))
    groups = {name: _open(Path(root), name, findings) for name in names}
    opened = [
        _Opened(name, split, split if len(groups) == 1 else f"{name} {split}", data)
        for name, splits in groups.items()
        for split, data in splits.items()
    ]
    for name, splits in groups.items():
        if splits:
            _find_missing_splits(name, splits, findings)
    for one in opened:
        _compare_counts(one, findings)
        _find_leaks(one, groups[one.dataset].get("train"), findings)
        if one.split == "train":
            _find_shared(one, opened, findings)
    _check_pictures(opened, max_length, decode, findings, report)
    return DataReport(
        Path(root),
        tuple(one.counts for one in opened),
        findings.of(notes=False),
        findings.of(notes=True),
        tuple(one.data for one in opened),
    )


@dataclass(frozen=True)
class _Opened:
    """A split of a data set, and how it is called in examples."""

    dataset: str
    split: str
    label: str
    data: ReferringDataset

    @cached_property
    def counts(self) -> ReferringCounts:
        known = PUBLISHED[self.dataset].splits if self.dataset in PUBLISHED else {}
        return ReferringCounts(
            self.dataset,
            self.split,
            len(set(self.data.picture_keys())),
            len(self.data),
            sum(self.data.sentence_counts()),
            known.get(self.split, (None, None)),
        )


def _open(root: Path, name: str, findings: Findings) -> dict[str, ReferringDataset]:
    """Open what can be opened."""
    if name == OWN:
        own: dict[str, ReferringDataset] = {}
        for split in folder_splits(root):
            try:
                own[split] = ReferringFolder(
                    root, split, report=lambda error: findings.add(WRONG_LINES, str(error))
                )
            except ValueError as error:  # the file as a whole
                findings.add(WRONG_LINES, str(error))
        return own
    try:
        return dict(open_splits(root, None, name))
    # Whatever a file of another format may cause is what the caller wants to hear of.
    except Exception as error:
        findings.add(UNREADABLE_SETS, f"{name}: {error}")
        return {}


def _find_missing_splits(name: str, splits: Splits, findings: Findings) -> None:
    for split in PUBLISHED[name].splits if name in PUBLISHED else ("train", "val"):
        if split not in splits:
            findings.add_missing(split, f"{name} {split}")


def _compare_counts(one: _Opened, findings: Findings) -> None:
    """Compare the size of a split with the published one."""
    found = (one.counts.refs, one.counts.sentences)
    if not found[0]:
        findings.add(EMPTY_SPLITS, one.label)
    known = one.counts.published
    if any(k is not None and k != f for k, f in zip(known, found, strict=True)):
        findings.add(
            OTHER_COUNTS,
            f"{one.label}: {found[0]} refs and {found[1]} sentences, "
            f"published are {known[0]} and {known[1]}",
        )


def _find_leaks(one: _Opened, train: ReferringDataset | None, findings: Findings) -> None:
    """Find pictures of a split that the same data set's training has too."""
    if train is None or train is one.data:
        return
    what = GOOGLE_LEAKS if one.dataset == "refcocog/google" else LEAKS
    for key in sorted(set(train.picture_keys()) & set(one.data.picture_keys())):
        findings.add(what, f"{one.label}: {key}")


def _find_shared(train: _Opened, opened: Sequence[_Opened], findings: Findings) -> None:
    """Find pictures of a training split that other data sets have in another split."""
    others = [o.data for o in opened if o.dataset != train.dataset and o.split != "train"]
    for name, count in leaks(train.data, others).items():
        findings.add(SHARED, f"{train.label}: {count} refs are of pictures of {name}")


def _check_pictures(
    opened: Sequence[_Opened],
    max_length: int | None,
    decode: bool,
    findings: Findings,
    report: Report | None,
) -> None:
    check = PictureCheck(decode)
    total, done = sum(one.counts.pictures for one in opened), 0
    for one in opened:
        known = PUBLISHED[one.dataset].word_length if one.dataset in PUBLISHED else None
        look = partial(check, one.data, label=one.label, limit=max_length or known or CONTEXT)
        ids = Counter[int]()
        for remarks, ref_ids in in_threads(look, one.data.pictures()):
            for remark in remarks:
                findings.remark(remark)
            ids.update(ref_ids)
            done += 1
            if report is not None:
                report(done, total)
        for ref_id, count in ids.items():
            if count > 1:
                findings.add(DUPLICATED_IDS, f"{one.label} ref {ref_id}: {count} times")

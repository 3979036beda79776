"""gRefCOCO: expressions that mean one object, several or none."""

from __future__ import annotations

import os

from bridger.data.refcoco import LoadedRefs, read_splits


class GRefCOCO(LoadedRefs):
    """The refs of one split of gRefCOCO (Liu et al., CVPR 2023, arXiv 2306.00968).

    A sample's mask is the union of its objects, and empty where its sentences mean nothing in the
    picture (`ann_ids` is empty then). As in the authors' code, crowds among the objects of an
    expression are left out.

    Args:
        root: folder that holds the data set, in any of the layouts of `bridger.data.layouts`.
        split: "train", "val", "testA" or "testB".

    Raises:
        FileNotFoundError, ValueError, pickle.UnpicklingError: as `RefCOCO`.
    """

    def __init__(self, root: str | os.PathLike[str], split: str) -> None:
        entries = read_splits(root, [split], "grefcoco", "unc")[split]
        super().__init__("grefcoco/unc", split, entries)

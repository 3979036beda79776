"""Data sets: referring expressions (RefCOCO's family), label maps, boxes, classes of pictures."""

from bridger.data.base import ReferringDataset, Sample
from bridger.data.boxed import open_boxed
from bridger.data.catalog import PUBLISHED, open_split, open_splits
from bridger.data.classified import open_classified
from bridger.data.collate import RaggedRefCollator, RefCollator
from bridger.data.grefcoco import GRefCOCO
from bridger.data.labelled import LabelledDataset
from bridger.data.mixed import Mixed, leaks, open_mixed
from bridger.data.refcoco import RefCOCO
from bridger.data.segmented import open_segmented

__all__ = [
    "GRefCOCO",
    "LabelledDataset",
    "PUBLISHED",
    "Mixed",
    "RaggedRefCollator",
    "RefCOCO",
    "RefCollator",
    "ReferringDataset",
    "Sample",
    "leaks",
    "open_boxed",
    "open_classified",
    "open_mixed",
    "open_segmented",
    "open_split",
    "open_splits",
]

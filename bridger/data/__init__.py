"""Data sets of referring expressions: RefCOCO's family, and scenes in the same format."""

from bridger.data.base import ReferringDataset, Sample
from bridger.data.catalog import PUBLISHED, open_split, open_splits
from bridger.data.collate import RaggedRefCollator, RefCollator
from bridger.data.grefcoco import GRefCOCO
from bridger.data.mixed import Mixed, leaks, open_mixed
from bridger.data.refcoco import RefCOCO

__all__ = [
    "GRefCOCO",
    "PUBLISHED",
    "Mixed",
    "RaggedRefCollator",
    "RefCOCO",
    "RefCollator",
    "ReferringDataset",
    "Sample",
    "leaks",
    "open_mixed",
    "open_split",
    "open_splits",
]

"""Data sets of referring expressions: RefCOCO's family, and scenes in the same format."""

from bridger.data.collate import RaggedRefCollator, RefCollator
from bridger.data.refcoco import RefCOCO, Sample

__all__ = ["RaggedRefCollator", "RefCOCO", "RefCollator", "Sample"]

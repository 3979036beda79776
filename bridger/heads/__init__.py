"""Heads: trainable task decoders on bridged features. `base.py` says what a head is."""

from bridger.heads.base import Head, HeadOutput
from bridger.heads.boxes import BoxConfig, BoxHead, BoxOutput
from bridger.heads.class_names import ClassNamesConfig, ClassNamesHead
from bridger.heads.classification import (
    ClassificationConfig,
    ClassificationHead,
    ClassificationOutput,
)
from bridger.heads.comprehension import ComprehensionConfig, ComprehensionHead
from bridger.heads.dense import DenseHead
from bridger.heads.detection import DetectionConfig, DetectionHead
from bridger.heads.referring import ReferringConfig, ReferringSegmentationHead
from bridger.heads.registry import get_head, list_heads, register_head
from bridger.heads.semantic import SemanticConfig, SemanticSegmentationHead

__all__ = [
    "BoxConfig",
    "BoxHead",
    "BoxOutput",
    "ClassNamesConfig",
    "ClassNamesHead",
    "ClassificationConfig",
    "ClassificationHead",
    "ClassificationOutput",
    "ComprehensionConfig",
    "ComprehensionHead",
    "DenseHead",
    "DetectionConfig",
    "DetectionHead",
    "Head",
    "HeadOutput",
    "ReferringConfig",
    "ReferringSegmentationHead",
    "SemanticConfig",
    "SemanticSegmentationHead",
    "get_head",
    "list_heads",
    "register_head",
]

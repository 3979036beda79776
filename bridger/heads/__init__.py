"""Heads: trainable task decoders on bridged features. `base.py` says what a head is."""

from bridger.heads.base import Head, HeadOutput
from bridger.heads.referring import ReferringConfig, ReferringSegmentationHead
from bridger.heads.registry import get_head, list_heads, register_head

__all__ = [
    "Head",
    "HeadOutput",
    "ReferringConfig",
    "ReferringSegmentationHead",
    "get_head",
    "list_heads",
    "register_head",
]

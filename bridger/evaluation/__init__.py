"""Judging models: metrics, and the runs that compute them."""

from bridger.evaluation.metrics import SegmentationMetrics

__all__ = ["SegmentationMetrics"]

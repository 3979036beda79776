"""Judging models: metrics, and the runs that compute them."""

from bridger.evaluation.evaluate import evaluate
from bridger.evaluation.metrics import SegmentationMetrics
from bridger.evaluation.result import Case, Evaluation

__all__ = ["Case", "Evaluation", "SegmentationMetrics", "evaluate"]

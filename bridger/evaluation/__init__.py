"""Judging models: metrics, and the runs that compute them."""

from bridger.evaluation.classification import ClassificationEvaluation, evaluate_classification
from bridger.evaluation.comprehension import ComprehensionEvaluation, evaluate_comprehension
from bridger.evaluation.detection import DetectionEvaluation, evaluate_detection
from bridger.evaluation.evaluate import evaluate
from bridger.evaluation.metrics import SegmentationMetrics
from bridger.evaluation.result import Case, Evaluation
from bridger.evaluation.semantic import SemanticEvaluation, evaluate_semantic

__all__ = [
    "Case",
    "ClassificationEvaluation",
    "ComprehensionEvaluation",
    "DetectionEvaluation",
    "Evaluation",
    "SegmentationMetrics",
    "SemanticEvaluation",
    "evaluate",
    "evaluate_classification",
    "evaluate_comprehension",
    "evaluate_detection",
    "evaluate_semantic",
]

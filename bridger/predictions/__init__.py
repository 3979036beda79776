"""What heads say about a picture, at the picture's own size, and how it looks."""

from bridger.predictions.boxes import DetectionPrediction
from bridger.predictions.classes import ClassificationPrediction
from bridger.predictions.masks import COLOURS, NO_TARGET_THRESHOLD, Prediction, box_of
from bridger.predictions.semantic import SemanticPrediction

__all__ = [
    "COLOURS",
    "ClassificationPrediction",
    "DetectionPrediction",
    "NO_TARGET_THRESHOLD",
    "Prediction",
    "SemanticPrediction",
    "box_of",
]

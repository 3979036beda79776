"""What heads say about a picture, at the picture's own size, and how it looks."""

from bridger.predictions.attention import Attention, StageAttention, WithAttention
from bridger.predictions.boxes import DetectionPrediction
from bridger.predictions.classes import ClassificationPrediction
from bridger.predictions.masks import COLOURS, NO_TARGET_THRESHOLD, Prediction, box_of
from bridger.predictions.semantic import SemanticPrediction

__all__ = [
    "Attention",
    "COLOURS",
    "ClassificationPrediction",
    "DetectionPrediction",
    "NO_TARGET_THRESHOLD",
    "Prediction",
    "SemanticPrediction",
    "StageAttention",
    "WithAttention",
    "box_of",
]

"""What heads say about a picture, at the picture's own size, and how it looks."""

from bridger.predictions.classes import ClassificationPrediction
from bridger.predictions.masks import COLOURS, NO_TARGET_THRESHOLD, Prediction, box_of

__all__ = ["COLOURS", "ClassificationPrediction", "NO_TARGET_THRESHOLD", "Prediction", "box_of"]

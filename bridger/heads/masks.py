"""What heads share that answer every expression with a mask."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from bridger.heads.base import HeadOutput
from bridger.heads.dense import DenseHead
from bridger.predictions import Prediction
from bridger.predictions.maps import PictureMaps
from bridger.texts import Texts

THRESHOLD = 0.35  # the paper's


class MaskHead(DenseHead):
    """A head whose logits (B, N, h, w) say where what each expression means lies."""

    pipeline_tag = "image-segmentation"

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the probability of each cell to lie in the object, (B, N, h, w)."""
        return logits.sigmoid()

    def result(
        self,
        maps: PictureMaps,
        texts: Texts,
        output: HeadOutput,
        index: int,
        threshold: float = THRESHOLD,
    ) -> Prediction:
        """Cut a picture's probabilities (N, h, w) at the threshold, 0 to 1."""
        scores = output.no_target
        none = None if scores is None else scores[index].sigmoid().cpu().numpy()
        return Prediction.from_probabilities(np.asarray(maps), threshold, none, texts.names)

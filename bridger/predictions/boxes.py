"""What a head that finds boxes says about a picture, and how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from bridger.predictions.attention import WithAttention

if TYPE_CHECKING:
    from PIL import Image

    from bridger.pictures import ImageLike


@dataclass(frozen=True)
class DetectionPrediction(WithAttention):
    """n boxes in the pixels of a picture.

    From detection they are in the order of their scores, the best first; from referring
    comprehension one for each expression, in the order of the expressions.

    Attributes:
        boxes: (n, 4) float32, x0 y0 x1 y1 at pixels' edges, within the picture.
        scores: (n,) float32, 0 to 1.
        labels: (n,) int64, which of the names each box belongs to.
        names: of the K classes, or the N expressions.
        size: (h, w) of the picture.
    """

    boxes: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    names: tuple[str, ...]
    size: tuple[int, int]

    @classmethod
    def from_tensors(
        cls,
        boxes: Tensor,
        scores: Tensor,
        labels: Tensor,
        names: tuple[str, ...],
        size: tuple[int, int],
    ) -> DetectionPrediction:
        """Build it from tensors on any device.

        Args:
            boxes: (n, 4).
            scores: (n,).
            labels: (n,), numbers of `names`.
            names: (K) what was asked.
            size: (h, w) of the picture.
        """
        return cls(
            boxes.detach().float().cpu().numpy(),
            scores.detach().float().cpu().numpy(),
            labels.cpu().numpy(),
            names,
            size,
        )

    def __len__(self) -> int:
        """Return n, the number of boxes."""
        return len(self.boxes)

    def found(self) -> list[dict[str, Any]]:
        """Return "words", "score" and "box" of each, as plain numbers."""
        return [
            {"words": self.names[label], "score": score, "box": box}
            for label, score, box in zip(
                self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
            )
        ]

    def overlay(
        self, image: ImageLike, *, least_side: int = 512, scores: bool = True
    ) -> Image.Image:
        """Draw the boxes with their names and scores on the picture, in a colour for each name.

        Args:
            image: the picture that they were predicted for.
            least_side: pictures whose longer side is smaller are enlarged to it, as names need
                room.
            scores: whether they are written behind the names; of what is true there are none.

        Raises:
            ValueError: the picture has another size.
        """
        from bridger.predictions.box_overlay import draw_boxes

        return draw_boxes(self, image, least_side, scores)

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return the results in COCO's format, boxes as x y width height.

        Args:
            image_id: the picture's number in the data set.
            category_ids: (K,) number there of each of the names.

        Raises:
            ValueError: there are not as many numbers as names.
        """
        if len(category_ids) != len(self.names):
            raise ValueError(
                f"{len(self.names)} names need as many category_ids, got {len(category_ids)}"
            )
        return [
            {
                "image_id": image_id,
                "category_id": category_ids[label],
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": score,
            }
            for label, score, (x0, y0, x1, y1) in zip(
                self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True
            )
        ]

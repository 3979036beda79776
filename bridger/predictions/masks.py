"""What a segmentation head says about a picture, and how it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bridger.predictions.attention import WithAttention

if TYPE_CHECKING:
    from PIL import Image

    from bridger.pictures import ImageLike

COLOURS = (
    (255, 92, 57),
    (41, 182, 246),
    (139, 195, 74),
    (255, 202, 40),
    (186, 104, 200),
    (38, 166, 154),
    (240, 98, 146),
    (63, 81, 181),
    (205, 220, 57),
    (141, 110, 99),
    (0, 230, 205),
    (233, 30, 99),
    (46, 125, 50),
    (176, 190, 197),
)
"""One after the other for the expressions of a picture."""

NO_TARGET_THRESHOLD = 0.5
"""An expression with a higher probability of meaning nothing in the picture has no mask."""


@dataclass(frozen=True)
class Prediction(WithAttention):
    """Masks for N expressions at the picture's own size (H, W).

    Attributes:
        masks: (N, H, W), bool.
        scores: (N,), the mean probability inside the mask, 0 for an empty one.
        boxes: (N, 4), x0 y0 x1 y1 around the mask in pixels, x1 and y1 exclusive; zeros for an
            empty mask.
        probabilities: (N, H, W), float32, as they were before masks were emptied.
        no_target: (N,), the probability that an expression means nothing in the picture; above
            `NO_TARGET_THRESHOLD` its mask is empty. None from heads that do not score this.
        names: the N expressions, where they are known.
    """

    masks: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]
    boxes: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    no_target: npt.NDArray[np.float32] | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def from_probabilities(
        cls,
        probabilities: npt.NDArray[np.floating[Any]],
        threshold: float = 0.35,
        no_target: npt.NDArray[np.floating[Any]] | None = None,
        names: Sequence[str] = (),
    ) -> Prediction:
        """Cut probabilities (N, H, W) at a threshold; a pixel must be above it.

        Args:
            probabilities: of each pixel to lie in the mask.
            threshold: 0 to 1.
            no_target: (N,) probabilities of meaning nothing, where there are any.
            names: the expressions, where they are known.
        """
        probabilities = np.asarray(probabilities, dtype=np.float32)
        masks = probabilities > threshold
        if no_target is not None:
            no_target = np.asarray(no_target, dtype=np.float32)
            masks &= (no_target <= NO_TARGET_THRESHOLD)[:, None, None]
        scores = [
            float(values[mask].mean()) if mask.any() else 0.0
            for values, mask in zip(probabilities, masks, strict=True)
        ]
        boxes = [box_of(mask) for mask in masks]
        return cls(
            masks,
            np.array(scores, dtype=np.float32),
            np.array(boxes, dtype=np.float32).reshape(-1, 4),
            probabilities,
            no_target,
            tuple(names),
        )

    def __len__(self) -> int:
        """Return N, the number of expressions."""
        return len(self.masks)

    def found(self) -> list[dict[str, Any]]:
        """Return "score", "box" and "share" of each mask, and its "words" where they are known.

        "share" is that of the picture; where it is 0 nothing was found.
        """
        parts = zip(self.masks, self.scores, self.boxes, strict=True)
        found = [
            {"score": float(score), "box": [int(edge) for edge in box], "share": float(mask.mean())}
            for mask, score, box in parts
        ]
        if not self.names:
            return found
        return [{"words": name, **part} for name, part in zip(self.names, found, strict=True)]

    def overlay(
        self,
        image: ImageLike,
        words: str | Sequence[str] | None = None,
        *,
        least_side: int = 512,
        scores: bool = True,
    ) -> Image.Image:
        """Draw the masks on the picture that they were predicted for.

        What is outside of every mask turns darker and paler; each mask gets a tint and an
        outline of its own colour, and its words in a line below the picture.

        Args:
            image: the picture.
            words: the expressions, for the captions.
            least_side: pictures whose longer side is smaller are enlarged to it, as an outline
                needs room.
            scores: whether they are written behind the words; of what is true there are none.

        Raises:
            ValueError: the picture has another size than the masks, or words are missing.
        """
        from bridger.predictions.overlay import draw

        words = [words] if isinstance(words, str) else words
        if words is not None and len(words) != len(self):
            raise ValueError(f"{len(self)} masks need as many captions, found {len(words)}")
        return draw(self, image, words, least_side, scores)


def picture_of(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """Return a mask (H, W) as a picture that can be looked at: 0, and 255 inside of it."""
    return 255 * mask.astype(np.uint8)


def box_of(mask: npt.NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return x0, y0, x1, y1 around the true pixels of a mask, ends exclusive.

    Args:
        mask: (H, W); one without a true pixel has the box (0, 0, 0, 0).
    """
    if not mask.any():
        return 0, 0, 0, 0
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

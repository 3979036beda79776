"""What a classification head says about a picture, and how it looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bridger.predictions.attention import WithAttention

if TYPE_CHECKING:
    from PIL import Image

    from bridger.pictures import ImageLike


@dataclass(frozen=True)
class ClassificationPrediction(WithAttention):
    """Probabilities of K classes.

    Attributes:
        names: of the K classes.
        probabilities: (K,), float32; they sum to 1, or each stands for itself where a picture may
            show several of the classes.
        threshold: from which on a class counts as found; None: the best one alone does.
    """

    names: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    threshold: float | None = None

    def __len__(self) -> int:
        """Return K, the number of classes."""
        return len(self.names)

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.names[int(self.probabilities.argmax())]

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """Return the k most probable classes, or all where there are fewer: (name, probability).

        Args:
            k: how many.

        Raises:
            ValueError: k is not positive.
        """
        if k < 1:
            raise ValueError(f"k must be positive, got {k}")
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.names[index], float(self.probabilities[index])) for index in order]

    def found(self) -> list[dict[str, Any]]:
        """Return what the picture shows, the most probable first: "words" and "score" of each."""
        if self.threshold is None:
            best = self.top(1)
        else:
            best = [pair for pair in self.top(len(self)) if pair[1] >= self.threshold]
        return [{"words": name, "score": score} for name, score in best]

    def overlay(self, image: ImageLike, *, top: int = 5, least_side: int = 512) -> Image.Image:
        """Draw the picture and, below it, a bar for each of the most probable classes.

        Found classes have bars in colour, others in grey.

        Args:
            image: the picture.
            top: how many classes.
            least_side: pictures whose longer side is smaller are enlarged to it.

        Raises:
            ValueError: `top` is not positive.
        """
        from bridger.predictions.bars import draw_bars

        found = {entry["words"] for entry in self.found()}
        return draw_bars(image, [(*pair, pair[0] in found) for pair in self.top(top)], least_side)

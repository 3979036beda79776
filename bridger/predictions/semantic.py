"""What a semantic segmentation head says about a picture, and how it looks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bridger.labels import BACKGROUND
from bridger.predictions.attention import WithAttention
from bridger.predictions.maps import Maps, PictureMaps
from bridger.predictions.masks import COLOURS, Prediction

if TYPE_CHECKING:
    from PIL import Image

    from bridger.pictures import ImageLike


@dataclass(frozen=True)
class SemanticPrediction(WithAttention):
    """Which of K classes each pixel of a picture (h, w) belongs to.

    Attributes:
        names: of the K classes.
        labels: (h, w) int64, 0 to K - 1 or `bridger.labels.BACKGROUND`; where a pixel may belong to
            several classes, the most probable one of them.
        scores: (K,) float32, the mean probability of a class inside its region, 0 without one.
        shares: (K,) float32, the share of the picture that is a class's region.
        maps: the probabilities, not yet at the picture's size.
        threshold: where pixels may belong to several classes, above which probability one does;
            None where each belongs to one at most.
    """

    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    shares: npt.NDArray[np.float32]
    maps: PictureMaps
    threshold: float | None = None

    @classmethod
    def single_label(
        cls, maps: PictureMaps, names: Sequence[str], background: bool, threshold: float = 0.0
    ) -> SemanticPrediction:
        """Give each pixel its most probable class.

        Args:
            maps: probabilities of K classes.
            names: of the classes.
            background: whether what the K probabilities of a pixel lack to 1 is the background's.
            threshold: what is not more probable than this is BACKGROUND.
        """
        labels, best, rest = _most_probable(maps.size, maps.chunks())
        if background:
            labels[rest > best] = BACKGROUND
        if threshold:
            labels[best <= threshold] = BACKGROUND
        inside = labels != BACKGROUND
        found, values = labels[inside], best[inside]
        pixels = np.bincount(found, minlength=len(names))
        sums = np.bincount(found, values, minlength=len(names))
        scores = (sums / np.maximum(pixels, 1)).astype(np.float32)
        shares = (pixels / labels.size).astype(np.float32)
        return cls(tuple(names), labels, scores, shares, maps)

    @classmethod
    def multi_label(
        cls, maps: PictureMaps, names: Sequence[str], threshold: float
    ) -> SemanticPrediction:
        """Give each pixel all classes that are more probable than the threshold.

        Args:
            maps: probabilities of K classes, each for itself.
            names: of the classes.
            threshold: 0 to 1.
        """
        scores = np.zeros(len(names), dtype=np.float32)
        shares = np.zeros(len(names), dtype=np.float32)

        def cut() -> Iterable[tuple[int, Maps]]:
            for first, chunk in maps.chunks():
                for index, values in enumerate(chunk, first):
                    mask = values > threshold
                    scores[index] = values[mask].mean() if mask.any() else 0
                    shares[index] = mask.mean(dtype=np.float32)
                yield first, chunk

        labels, best, _ = _most_probable(maps.size, cut())
        labels[best <= threshold] = BACKGROUND
        return cls(tuple(names), labels, scores, shares, maps, threshold)

    def __len__(self) -> int:
        """Return K, the number of classes."""
        return len(self.names)

    @property
    def probabilities(self) -> Maps:
        """(K, h, w) float32, made anew each time: K times the picture may be gigabytes."""
        return np.asarray(self.maps)

    @property
    def masks(self) -> npt.NDArray[np.bool_]:
        """(K, h, w) bool, the classes' regions, made anew each time as `probabilities` are."""
        masks = np.empty((len(self), *self.labels.shape), dtype=np.bool_)
        for index in range(len(self)):
            masks[index] = self.mask(index)
        return masks

    def mask(self, index: int) -> npt.NDArray[np.bool_]:
        """Return the region (h, w) of a class by its number, 0 to K - 1."""
        region: npt.NDArray[np.bool_]
        if self.threshold is None:
            region = self.labels == index
        else:
            region = self.maps[index : index + 1][0] > self.threshold
        return region

    def numbers(self) -> tuple[npt.NDArray[np.integer[Any]], int]:
        """Return the labels in 8 or 16 bits, as a picture's file holds them, (h, w).

        Returns:
            The classes' numbers, and the number that stands for BACKGROUND, the largest of all.
        """
        kind = np.uint8 if len(self) <= np.iinfo(np.uint8).max else np.uint16
        background = int(np.iinfo(kind).max)
        return np.where(self.labels == BACKGROUND, background, self.labels).astype(kind), background

    def found(self) -> list[dict[str, Any]]:
        """Return the classes that occur, the largest first: "words", "score" and "share" of each.

        "share" is that of the picture.
        """
        return [
            {
                "words": self.names[index],
                "score": float(self.scores[index]),
                "share": float(self.shares[index]),
            }
            for index in self._occurring()
        ]

    def overlay(
        self, image: ImageLike, *, least_side: int = 512, scores: bool = True
    ) -> Image.Image:
        """Draw the regions on the picture that they were predicted for, and name them below it.

        Where there are more classes than colours, the largest regions are drawn. A class has the
        same colour in all pictures, as far as another class of the picture leaves it free.

        Args:
            image: the picture.
            least_side: pictures whose longer side is smaller are enlarged to it.
            scores: whether they are written behind the names; of what is true there are none.

        Raises:
            ValueError: the picture has another size than the labels.
        """
        from bridger.predictions.overlay import colours_of, draw

        drawn = self._occurring()[: len(COLOURS)]
        masks = np.array([self.mask(index) for index in drawn]).reshape(-1, *self.labels.shape)
        regions = replace(Prediction.from_probabilities(masks, 0.5), scores=self.scores[drawn])
        words = [self.names[index] for index in drawn]
        colours = colours_of(words) or COLOURS
        return draw(regions, image, words or None, least_side, scores, colours)

    def _occurring(self) -> list[int]:
        order: list[int] = np.argsort(-self.shares, kind="stable").tolist()
        return [index for index in order if self.shares[index] > 0]


def _most_probable(
    size: tuple[int, int], chunks: Iterable[tuple[int, Maps]]
) -> tuple[npt.NDArray[np.int64], Maps, Maps]:
    """Return each pixel's most probable class, its probability, and what all lack to 1."""
    labels = np.full(size, BACKGROUND, dtype=np.int64)
    best = np.full(size, -1, dtype=np.float32)
    rest = np.ones(size, dtype=np.float32)
    for first, chunk in chunks:
        top = chunk.max(axis=0)
        better = top > best
        labels[better] = chunk.argmax(axis=0)[better] + first
        np.maximum(best, top, out=best)
        rest -= chunk.sum(axis=0)
    return labels, best, rest

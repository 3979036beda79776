"""How sure a figure is: bootstrap intervals over pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bridger.evaluation.metrics import Floats, Ratio

_AT_ONCE = 1 << 22  # draws held in memory


def percentile_intervals(
    ratios: Mapping[str, Ratio],
    groups: npt.NDArray[Any],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Return the percentile bootstrap interval (low, high) of every figure that is defined.

    Whole groups are drawn with replacement, as many as there are: expressions of one picture
    share its difficulties, and drawing them one by one would make intervals too narrow. (Efron
    and Tibshirani, "An Introduction to the Bootstrap", 1993, chapters 8 and 13.) It says how
    figures would vary over other pictures of the same sort, not over other trainings.

    Args:
        ratios: the figures of E expressions by name.
        groups: (E,), which group, or picture, every expression belongs to.
        level: share of resamples between the ends.
        resamples: how many.
        seed: of the draws; the same seed draws the same groups for all figures.

    Raises:
        ValueError: a level or a number of resamples that cannot be.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is a share between 0 and 1, such as 0.95, got {level}")
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    known = {name: ratio for name, ratio in ratios.items() if ratio.defined}
    if not known:
        return {}
    drawn = resample(list(known.values()), groups, resamples, seed)
    return dict(zip(known, ends(drawn, level), strict=True))


def resample(
    ratios: Sequence[Ratio], groups: npt.NDArray[Any], resamples: int = 2000, seed: int = 0
) -> Floats:
    """Return R figures in as many resamples of whole groups: (resamples, R).

    Arguments as of `percentile_intervals`. A figure is nan in a resample in which nothing counts.
    """
    above = _sums(groups, [ratio.above for ratio in ratios])
    below = _sums(groups, [ratio.below for ratio in ratios])
    epsilons = np.array([ratio.epsilon for ratio in ratios])
    count, random = len(above), np.random.default_rng(seed)
    drawn = []
    for start in range(0, resamples, max(1, _AT_ONCE // count)):
        rows = min(resamples - start, max(1, _AT_ONCE // count))
        times = _draw(random, rows, count)
        totals = times @ below + epsilons
        drawn.append(np.where(totals > 0, times @ above, np.nan) / np.where(totals > 0, totals, 1))
    return np.concatenate(drawn)


def ends(drawn: Floats, level: float = 0.95) -> list[tuple[float, float]]:
    """Return between which ends (low, high) the share `level` of each column (resamples, R) is."""
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _sums(groups: npt.NDArray[Any], columns: list[Floats]) -> Floats:
    """Add up each column (E,) within the groups: (groups, columns)."""
    _, members = np.unique(groups, return_inverse=True)
    return np.stack([np.bincount(members.ravel(), weights=c) for c in columns], axis=1)


def _draw(random: np.random.Generator, rows: int, count: int) -> Floats:
    """Draw `count` of `count` groups, `rows` times: how often each came (rows, count)."""
    drawn = random.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
    times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
    return times.astype(np.float64)

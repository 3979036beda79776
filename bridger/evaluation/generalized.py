"""The figures of gRefCOCO, whose expressions mean nothing, one object or several.

Liu, Ding and Jiang, "GRES: Generalized Referring Expression Segmentation" (CVPR 2023), as the
evaluation of their ReLA computes them (github.com/henghuiding/ReLA,
gres_model/evaluation/refer_evaluation.py).
"""

from __future__ import annotations

import numpy as np

from bridger.evaluation.metrics import Counts, Floats, Ratio

PRECISIONS = (0.7, 0.8, 0.9)


def generalized_ious(intersections: Counts, predicted: Counts, areas: Counts) -> Floats:
    """Return the IoU (E,) of every expression; where nothing is meant, 1 or 0.

    An expression that means nothing is right, 1, when its predicted mask is empty. For others it
    is I / U, without the small number that mIoU has below.

    Args:
        intersections: (E,), pixels of every expression's predicted and true mask.
        predicted: (E,), pixels of the predicted mask.
        areas: (E,), pixels of the true mask, 0 where nothing is meant.
    """
    unions = (predicted + areas - intersections).astype(np.float64)
    ious = intersections / np.where(unions > 0, unions, 1.0)
    return np.where(areas == 0, (predicted == 0).astype(np.float64), ious)


def generalized_ratios(intersections: Counts, predicted: Counts, areas: Counts) -> dict[str, Ratio]:
    """Return gRefCOCO's figures by their names.

    gIoU: the mean of `generalized_ious`. cIoU: sum of I over sum of U, in which a mask predicted
    where nothing is meant adds to U. N-acc: the share found to be empty of those that mean
    nothing; T-acc: the share not found empty of the others. Pr@X: of those that mean something,
    the share whose IoU is X or more (P@X, RefCOCO's, counts above X).

    Here a mask is what `predict` returns, and an expression is found to mean nothing where that is
    empty. In ReLA the no-target score alone decides: a mask that is empty by itself does not count
    as found there, and one that the score overrules still adds to the union of cIoU. Where no mask
    is empty by itself and none is overruled, the figures are the same.

    Args:
        intersections, predicted, areas: as in `generalized_ious`.
    """
    ious = generalized_ious(intersections, predicted, areas)
    each = np.ones_like(ious)
    empty, said_empty = areas == 0, predicted == 0
    meant = _numbers(~empty)
    return {
        "gIoU": Ratio(ious, each),
        "cIoU": Ratio(_numbers(intersections), _numbers(predicted + areas - intersections)),
        "N-acc": Ratio(_numbers(empty & said_empty), _numbers(empty)),
        "T-acc": Ratio(_numbers(~empty & ~said_empty), meant),
        **{f"Pr@{x}": Ratio(_numbers(~empty & (ious >= x)), meant) for x in PRECISIONS},
    }


def _numbers(values: object) -> Floats:
    return np.asarray(values, dtype=np.float64)

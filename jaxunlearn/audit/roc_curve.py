"""Whole ROC curves in NumPy, for pictures and for very low false-positive rates."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxunlearn import _validate


class ROC(NamedTuple):
    """A receiver operating characteristic.

    Attributes:
      fpr: ``float64[k]``, false-positive rates, ascending from 0 to 1.
      tpr: ``float64[k]``, the true-positive rate at each.
    """

    fpr: np.ndarray
    tpr: np.ndarray


def roc_curve(positive, negative, *, points: int = 200) -> ROC:
    """The ROC of "positive if the score is above a threshold", at all thresholds or some of them.

    Args:
      positive: ``float[m]`` scores that should be higher.
      negative: ``float[n]`` the others.
      points: at most so many of the corners are returned, evenly spaced in log FPR; at least 3.

    Raises:
      ValueError: an empty group or a NaN, fewer than 3 points.

    Example:
      >>> roc_curve([2.0, 0.5], [1.0, 0.0]).tpr.tolist()
      [0.0, 0.5, 0.5, 1.0, 1.0]
    """
    _validate.whole(3, points=points)
    positive, negative = _groups(positive, negative)
    values = np.concatenate([positive, negative])
    order = np.argsort(-values, kind="stable")
    ours = order < len(positive)
    ends = np.concatenate([np.diff(values[order]) != 0, [True]])  # tied scores fall together
    tpr = np.concatenate([[0], np.cumsum(ours)[ends] / len(positive)])
    fpr = np.concatenate([[0], np.cumsum(~ours)[ends] / len(negative)])
    if len(fpr) > points:
        grid = np.geomspace(1 / len(negative), 1, points - 2)
        keep = np.unique(
            np.concatenate([[0], np.searchsorted(fpr, grid, "right") - 1, [len(fpr) - 1]])
        )
        fpr, tpr = fpr[keep], tpr[keep]
    return ROC(fpr, tpr)


def rank_auc(positive, negative) -> float:
    """Area under the ROC: P(positive > negative) + P(tie) / 2, by ranks, O(n log n).

    Example:
      >>> rank_auc([0.9, 0.5], [0.5, 0.1])
      0.875
    """
    positive, negative = _groups(positive, negative)
    ranks = stats.rankdata(np.concatenate([positive, negative]))[: len(positive)]
    excess = ranks.sum() - len(positive) * (len(positive) + 1) / 2
    return float(excess / (len(positive) * len(negative)))


def tpr_at(positive, negative, fpr: float) -> float:
    """Largest true-positive rate at a false-positive rate of at most ``fpr``; no interpolation.

    Example:
      >>> tpr_at([98.5, 98.0, 200.0, 3.0], np.arange(100.0), 0.01)
      0.5
    """
    positive, negative = _groups(positive, negative)
    allowed = int(np.floor(fpr * len(negative) * (1 + 1e-9)))
    threshold = -np.sort(-negative)[allowed] if allowed < len(negative) else -np.inf
    return float((positive > threshold).mean())


def _groups(positive, negative) -> tuple[np.ndarray, np.ndarray]:
    out = []
    for name, value in (("positive", positive), ("negative", negative)):
        value = np.asarray(value, np.float64)
        if value.ndim != 1 or value.size == 0 or np.isnan(value).any():
            raise ValueError(
                f"{name} has shape {value.shape}, but must be [n] with n >= 1 scores, none NaN."
            )
        out.append(value)
    return out[0], out[1]

"""The null band: where one more retrained model would lie. Host code, float64."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxunlearn.audit.intervals import vector


class Band(NamedTuple):
    """Where a new value of the null would lie.

    Attributes:
      low: lower end.
      high: upper end.
    """

    low: float
    high: float


def null_band(values, *, level: float = 0.95, shared_pairs: bool = False) -> Band:
    """Where one more retrained model would fall, from the values of K retrained ones.

    ``mean +- t_{K-1} s sqrt(1 + 1/K)``, the prediction interval of the normal law. A method
    inside it cannot be told from retraining *by this number*; that is not evidence that it
    forgot. The quantiles of the values themselves would be no 95% band: between the
    smallest and largest of K lies one more with probability (K - 1) / (K + 1), .67 for K = 5,
    and a simulated FRM null covered .81 so but .93 with this band.

    Args:
      values: ``float[K]``, K >= 2: any metric of retrained models, or the result of
        :func:`~jaxunlearn.audit.frm_null` or :func:`~jaxunlearn.audit.jsd_null`. A NaN makes
        both bounds nan.
      level: strictly between 0 and 1.
      shared_pairs: the values are those of :func:`~jaxunlearn.audit.jsd_null`, which tells
        why the band is then (K - 1) / (K - 2) times as wide; K >= 3.

    Returns:
      :class:`Band`. Not cut to [0, 1], so that its width shows how little K models tell.

    Raises:
      ValueError: K < 2 (3 with ``shared_pairs``), or not a vector.

    Example:
      >>> values = [0.92, 0.95, 0.90, 0.97, 0.94]
      >>> [round(v, 2) for v in null_band(values)]
      [0.85, 1.02]
      >>> [round(v, 2) for v in null_band(values, shared_pairs=True)]
      [0.83, 1.05]
    """
    values = vector(level, values=values)
    mean = float(values.mean())
    low, high = gap_band([values], level=level, shared_pairs=shared_pairs)
    return Band(mean + low, mean + high)


def gap_band(
    groups: Sequence[np.ndarray], *, level: float = 0.95, shared_pairs: bool = False
) -> Band:
    """:func:`null_band` from several seeds: where one more model's gap to its seed's K would lie.

    The spread is that *within* the seeds, pooled: ``+- t_{S(K-1)} s sqrt(1 + 1/K)``. A level that
    moves from seed to seed moves a model and its references alike, and no gap.

    Args:
      groups: ``float[K]`` for each of S seeds, K >= 2; the smallest K counts where they differ.
      level: strictly between 0 and 1.
      shared_pairs: as for :func:`null_band`.

    Raises:
      ValueError: K < 2 (3 with ``shared_pairs``).

    Example:
      >>> [round(v, 3) for v in gap_band([np.array([0.90, 0.94]), np.array([0.80, 0.84])])]
      [-0.149, 0.149]
    """
    k, least = min(len(group) for group in groups), 3 if shared_pairs else 2
    if k < least:
        raise ValueError(f"values has {k} entries, but this null needs those of >= {least} models.")
    freedom = sum(len(group) - 1 for group in groups)
    spread = math.sqrt(sum(((group - group.mean()) ** 2).sum() for group in groups) / freedom)
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * spread * math.sqrt(1 + 1 / k)
    if shared_pairs:
        half *= (k - 1) / (k - 2)
    return Band(-half, half)

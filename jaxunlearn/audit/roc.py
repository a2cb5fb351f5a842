"""How well one score tells two groups of rows apart: AUC, and TPR at a small FPR.

Higher scores must mean *positive*. Which two groups to give:

- **forget (positive) against test (negative), on the unlearned model.** Retraining has
  seen neither, so it gives AUC 1/2 and TPR = FPR, up to sampling noise, provided that
  the forgotten rows are a random draw from the same population as the test rows. For
  a forgotten class give only the test rows of that class. A value *below* 1/2 is no
  success: the rows stand out as unlearned.
- **retain (positive) against test (negative).** How much the model leaks about rows
  that it kept: the strength that the attack has at all, on this model.

Groups are vectors of scores; ``positive_weights`` and ``negative_weights`` (bool or
float) select rows with static shapes. All functions sort, O((n + m) log n), and are
pure JAX. They give nan if a group has no weight or if a used score is NaN.
"""

from functools import partial

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.audit import _inputs
from jaxunlearn.types import Array


@partial(jax.jit, static_argnames="strictly")
def shares_above(scores: Array, weights: Array, at: Array, *, strictly: bool) -> Array:
    """Weighted share of ``scores[n]`` that are > (or >=) each of ``at[k]``; nan for NaN."""
    order = jnp.argsort(scores)
    total = jnp.cumsum(weights[order])
    below = jnp.concatenate([jnp.zeros_like(total[:1]), total])
    index = jnp.searchsorted(scores[order], at, side="right" if strictly else "left")
    undefined = jnp.isnan(at) | (jnp.isnan(scores) & (weights > 0)).any()
    return jnp.where(undefined, jnp.nan, (total[-1] - below[index]) / total[-1])


def share(answers: Array, scores: Array, threshold: Array, weights: Array) -> Array:
    """Weighted share of True in ``answers[n]``, how ``scores`` compare with ``threshold``.

    Every comparison with NaN is False; here it gives nan.
    """
    undefined = jnp.isnan(scores) | jnp.isnan(threshold)
    return _inputs.weighted_mean(jnp.where(undefined, jnp.nan, answers), weights)


def auc(
    positive: Array,
    negative: Array,
    *,
    positive_weights: Array | None = None,
    negative_weights: Array | None = None,
) -> Array:
    """Area under the ROC curve: P(positive > negative) + P(tie) / 2 (Mann-Whitney).

    Args:
      positive: ``float[m]`` scores of the rows that should score higher.
      negative: ``float[n]`` scores of the others.
      positive_weights: ``bool[m]`` or ``float[m]``.
      negative_weights: ``bool[n]`` or ``float[n]``.

    Returns:
      float scalar in [0, 1], float32 or wider.

    Raises:
      ValueError: an empty group, a score array that is no vector, bad weights.

    Example:
      >>> float(auc(jnp.array([0.9, 0.5]), jnp.array([0.5, 0.1])))
      0.875
    """
    positive = _inputs.scores(positive, name="positive")
    negative = _inputs.scores(negative, name="negative")
    wp = _inputs.weights(positive_weights, positive, name="positive_weights")
    wn = _inputs.weights(negative_weights, negative, name="negative_weights")
    over = shares_above(negative, wn, positive, strictly=True)
    at_least = shares_above(negative, wn, positive, strictly=False)
    return _inputs.weighted_mean(1 - (over + at_least) / 2, wp)


def tpr_at_fpr(
    positive: Array,
    negative: Array,
    *,
    fpr: float = 0.01,
    positive_weights: Array | None = None,
    negative_weights: Array | None = None,
) -> Array:
    """Largest true-positive rate over thresholds whose false-positive rate is <= ``fpr``.

    Conservative: no interpolation between thresholds, and tied scores fall on the same
    side. With fewer than 1 / ``fpr`` negatives no false positive is allowed at all, so the
    result is the share of positives above every negative. This is the number that
    shows whether *some* rows are exposed, where AUC averages them away.

    Args:
      positive: ``float[m]`` scores of the rows that should score higher.
      negative: ``float[n]`` scores of the others.
      fpr: strictly between 0 and 1.
      positive_weights: ``bool[m]`` or ``float[m]``.
      negative_weights: ``bool[n]`` or ``float[n]``. Masks are counted exactly.

    Returns:
      float scalar in [0, 1], float32 or wider.

    Raises:
      ValueError: an empty group, a score array that is no vector, bad weights or fpr.

    Example:
      >>> negative = jnp.arange(100.0)
      >>> float(tpr_at_fpr(jnp.array([98.5, 98.0, 200.0, 3.0]), negative, fpr=0.01))
      0.5
    """
    _validate.fraction(fpr=fpr)
    positive = _inputs.scores(positive, name="positive")
    negative = _inputs.scores(negative, name="negative")
    wp = _inputs.weights(positive_weights, positive, name="positive_weights")
    wn = _inputs.weights(negative_weights, negative, name="negative_weights")
    # "Positive if above c" changes its FPR only at the negatives, so they are all the
    # thresholds there are, and the lowest allowed one has the largest TPR. The slack
    # lets k / n pass for fpr = k / n, and no further row unless n > 1e6 / fpr.
    false_positives = shares_above(negative, wn, negative, strictly=True)
    allowed = (false_positives <= fpr * (1 + 1e-6)) & (wn > 0)
    threshold = jnp.where(allowed, negative, jnp.inf).min()
    # The largest negative is always allowed, unless no weight or a NaN left no shares.
    threshold = jnp.where(allowed.any(), threshold, jnp.nan)
    return share(positive > threshold, positive, threshold, wp)

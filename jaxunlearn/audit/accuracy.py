"""Accuracy on groups of rows: the whole, the retained, the forgotten."""

from typing import NamedTuple

import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.audit import _inputs
from jaxunlearn.types import Array


class GroupAccuracies(NamedTuple):
    """Accuracy of the rows to keep and of the rows to forget, float scalars in [0, 1].

    Attributes:
      acc_retain: of the rows to keep.
      acc_forget: of the rows to forget.
    """

    acc_retain: Array
    acc_forget: Array


def correct(logits: Array, y: Array) -> Array:
    """Which rows are classified rightly, ``bool[n]``.

    A row that has a NaN logit counts as wrong. Without this rule ``argmax`` would
    answer with the position of the NaN, and a broken model would look like one
    that always says 0. In a tie the lowest class is the answer.
    """
    return (logits.argmax(-1) == y) & ~jnp.isnan(logits).any(-1)


def accuracy(logits: Array, y: Array, *, weights: Array | None = None) -> Array:
    """Weighted share of rows whose largest logit is that of their label.

    Args:
      logits: ``float[n, C]``.
      y: ``int[n]`` labels.
      weights: ``bool[n]`` or ``float[n]``, for example a forget mask: a mask keeps
        shapes static under ``jit``, where indexing would not.

    Returns:
      float scalar in [0, 1]; nan if no row has weight.

    Raises:
      ValueError: shapes that do not match, labels outside the classes, negative weights.

    Example:
      >>> logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 0.0]])
      >>> y = jnp.array([0, 1, 1])
      >>> round(float(accuracy(logits, y)), 3)
      0.667
      >>> float(accuracy(logits, y, weights=jnp.array([True, True, False])))
      1.0
    """
    logits = _inputs.logits(logits)
    hits = _inputs.widen(correct(logits, _inputs.labels(y, logits.shape)))
    return _inputs.weighted_mean(hits, _inputs.weights(weights, hits))


def error(logits: Array, y: Array, *, weights: Array | None = None) -> Array:
    """``1 - accuracy``: the Error_t, Error_r and Error_f of PCMU and FFMU, as a fraction.

    Arguments, result and errors are those of :func:`accuracy`.

    Example:
      >>> float(error(jnp.array([[2.0, 1.0], [0.0, 3.0]]), jnp.array([0, 0])))
      0.5
    """
    return 1 - accuracy(logits, y, weights=weights)


def group_accuracies(logits: Array, y: Array, forget: Array) -> GroupAccuracies:
    """Accuracy on retained and on forgotten training rows (RA and FA of ConMU).

    The value to reach is that of the retrained model, not an extreme: retraining
    still classifies most forgotten rows rightly, because it generalises.

    Args:
      logits: ``float[n, C]`` of the training rows.
      y: ``int[n]`` labels.
      forget: ``bool[n]``, True for the rows to forget.

    Returns:
      :class:`GroupAccuracies`; ``acc_forget`` is nan for an empty request.

    Raises:
      ValueError: as :func:`accuracy`; ``forget`` not ``bool[n]``, or all True.

    Example:
      >>> logits = jnp.array([[2.0, 1.0], [0.0, 3.0], [5.0, 0.0]])
      >>> groups = group_accuracies(logits, jnp.array([0, 1, 1]), jnp.array([False, False, True]))
      >>> float(groups.acc_retain), float(groups.acc_forget)
      (1.0, 0.0)
    """
    _validate.forget_mask(forget, jnp.shape(logits)[0])
    forget = jnp.asarray(forget)
    return GroupAccuracies(
        accuracy(logits, y, weights=~forget), accuracy(logits, y, weights=forget)
    )

"""Worst-case requests: the rows that a membership attack finds most exposed, or most protected.

The average over random rows hides the rows that matter. These requests are chosen by one pass of
LiRA: models trained on random halves, cached on disk, and for each row the distance between its
laws with it and without it (:func:`jaxunlearn.audit.vulnerability`).
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.audit.lira import vulnerability
from jaxunlearn.audit.references import shadows as train_shadows
from jaxunlearn.audit.scores import logit_confidence
from jaxunlearn.data.requests import forget_indices
from jaxunlearn.training import TrainConfig
from jaxunlearn.types import Array, Dataset, Model


def row_vulnerability(
    key: Array,
    data: Dataset,
    model: Model,
    *,
    config: TrainConfig = TrainConfig(),
    shadows: int = 64,
    cache: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """How exposed each row is: the distance of LiRA's two laws, in standard deviations.

    Args:
      key: ``jax.random.key`` of the shadow models.
      data: all training rows.
      model: see :class:`jaxunlearn.Model`.
      config: how the models are trained; the same as what is to be audited.
      shadows: models, even, at least 8.
      cache: a folder for them; the same key, data and settings are read from it.

    Returns:
      ``float64[n]``, larger for rows that leave a stronger trace.

    Cost: ``shadows`` trainings on half of the rows, once.

    Raises:
      ValueError: as :func:`jaxunlearn.audit.shadows`.

    Example:
      >>> from jaxunlearn import data, models
      >>> train = data.load("digits").train
      >>> rows = Dataset(train.x[:64], train.y[:64])
      >>> found = row_vulnerability(jax.random.key(0), rows, models.logistic(10), shadows=8,
      ...                           config=TrainConfig(epochs=2))
      >>> found.shape
      (64,)
    """
    found = train_shadows(key, model, data, count=shadows, config=config, cache=cache)

    @jax.jit
    def scores(params):
        one = lambda p: logit_confidence(model.apply(p, data.x), data.y)
        return jax.lax.map(one, params, batch_size=min(16, shadows))

    return vulnerability(scores(found.params), np.asarray(found.member))


def forget_vulnerable(
    key: Array, data: Dataset, model: Model, fraction: float, **options: Any
) -> Array:
    """Forgets the most exposed ``round(fraction * n)`` rows: the worst case of a random request.

    Args:
      key, data, model: as for :func:`row_vulnerability`.
      fraction: of all rows, strictly between 0 and 1.
      options: ``config``, ``shadows`` and ``cache``, as there.

    Returns:
      ``bool[n]``, True for the rows to forget.

    Cost: one pass of LiRA, shared with the other requests by its cache.

    Raises:
      ValueError: ``fraction`` out of range or of no row; as :func:`row_vulnerability`.

    Example:
      >>> from jaxunlearn import data, models
      >>> train = data.load("digits").train
      >>> rows = Dataset(train.x[:64], train.y[:64])
      >>> forget = forget_vulnerable(jax.random.key(0), rows, models.logistic(10), 0.25, shadows=8,
      ...                            config=TrainConfig(epochs=2))
      >>> int(forget.sum())
      16
    """
    return _extremes(1.0, key, data, model, fraction, options)


def forget_protected(
    key: Array, data: Dataset, model: Model, fraction: float, **options: Any
) -> Array:
    """Forgets the least exposed rows; arguments, cost and errors as :func:`forget_vulnerable`.

    Example:
      >>> from jaxunlearn import data, models
      >>> train = data.load("digits").train
      >>> rows = Dataset(train.x[:64], train.y[:64])
      >>> forget = forget_protected(jax.random.key(0), rows, models.logistic(10), 0.25, shadows=8,
      ...                           config=TrainConfig(epochs=2))
      >>> int(forget.sum())
      16
    """
    return _extremes(0.0, key, data, model, fraction, options)


def forget_mixed(key: Array, data: Dataset, model: Model, fraction: float, **options: Any) -> Array:
    """Forgets the most exposed and the least exposed rows, half and half, as RULI does.

    Arguments, cost and errors as :func:`forget_vulnerable`.

    Example:
      >>> from jaxunlearn import data, models
      >>> train = data.load("digits").train
      >>> rows = Dataset(train.x[:64], train.y[:64])
      >>> forget = forget_mixed(jax.random.key(0), rows, models.logistic(10), 0.25, shadows=8,
      ...                       config=TrainConfig(epochs=2))
      >>> int(forget.sum())
      16
    """
    return _extremes(0.5, key, data, model, fraction, options)


def _extremes(share: float, key, data, model, fraction, options) -> Array:
    """``share`` of the request from the top of the order, the rest from its bottom."""
    _validate.fraction(fraction=fraction)
    n = data.y.shape[0]
    count = round(fraction * n)
    if not 0 < count < n:
        raise ValueError(f"fraction={fraction!r} of {n} rows is {count}. Use another one.")
    found = row_vulnerability(key, data, model, **options)
    order = np.argsort(-found, kind="stable")
    top = round(share * count)
    return jnp.asarray(forget_indices(np.concatenate([order[:top], order[n - count + top :]]), n))

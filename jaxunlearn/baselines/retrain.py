"""Training again from scratch without the removed rows: exact, and the yardstick."""

import dataclasses

import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.posthoc import Update, posthoc
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import fit
from jaxunlearn.training.pruned import PruningConfig
from jaxunlearn.types import Array, Dataset, Model, Params, PyTree, Unlearner


@dataclasses.dataclass(frozen=True)
class RetrainConfig:
    """Nothing to configure: a retraining that differs from the training is no yardstick."""


def retrain(
    key: Array,
    model: Model,
    data: Dataset,
    forget: Array,
    *,
    config: TrainConfig = TrainConfig(),
    mask: PyTree | None = None,
) -> Params:
    """Trains ``model`` on the rows that are not forgotten.

    Guarantee: exact. The result does not depend on the forgotten rows: change
    their values and it stays the same, bit for bit.

    Args:
      key: ``jax.random.key``. With the key of the original training it starts from
        the same initial parameters, and the remaining rows keep their relative order,
        with other borders between batches. Another key gives another draw from the
        distribution of retrained models; distances between parameters mean little then.
      model: what to train.
      data: all rows, the forgotten ones included.
      forget: ``bool[n]``, True for the rows to leave out.
      config: the configuration of the original training.
      mask: pruning mask to stay within.

    Returns:
      The parameters.

    Cost: ``config.epochs`` times the remaining rows, in sample gradients; the same
    compiled program serves every request.

    Raises:
      ValueError: a mask of another length or dtype, or one that leaves no rows.

    Example:
      >>> import jax
      >>> from jaxunlearn import models
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [9.0]]), jnp.array([0, 1, 0]))
      >>> forget = jnp.array([False, False, True])
      >>> params = retrain(jax.random.key(0), models.logistic(2), data, forget)
      >>> models.logistic(2).apply(params, data.x[:2]).argmax(-1).tolist()
      [0, 1]
    """
    _validate.forget_mask(forget, data.y.shape[0])
    return fit(key, model, data, weights=~jnp.asarray(forget), config=config, mask=mask)


def unlearner(
    model: Model,
    train: TrainConfig,
    config: RetrainConfig = RetrainConfig(),
    *,
    prune: PruningConfig | None = None,
) -> Unlearner:
    """:func:`retrain` as an unlearner."""

    def update(key, params, data, request, mask):
        params = retrain(key, model, data, ~request.retain, config=train, mask=mask)
        return Update(params, grads=train.epochs * jnp.sum(request.retain))

    return posthoc(model, train, update, prune=prune)

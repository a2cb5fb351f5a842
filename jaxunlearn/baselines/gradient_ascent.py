"""Gradient ascent on the rows to forget (GA): undo descent by climbing."""

import dataclasses
import functools

import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.posthoc import Update, posthoc
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import minimize
from jaxunlearn.training.pruned import PruningConfig
from jaxunlearn.types import Array, Dataset, LossFn, Model, Params, PyTree, Unlearner


@dataclasses.dataclass(frozen=True)
class GradientAscentConfig:
    """Defaults of the official code of Liu et al. 2023 (SGD, constant rate).

    Momentum and weight decay act as in training, though the loss is negated: that is
    what the code does. Ten times the default rate diverges on most models.

    Attributes:
      learning_rate, epochs, batch_size, momentum, weight_decay: of the ascent.
      clip: largest norm of a batch gradient, or None as published.
    """

    learning_rate: float = 1e-4
    epochs: int = 5
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float | None = None

    def __post_init__(self):
        self.train_config()  # checks the values

    def train_config(self) -> TrainConfig:
        return TrainConfig(**dataclasses.asdict(self), schedule="constant")


def gradient_ascent(
    key: Array,
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    forget: Array,
    *,
    config: GradientAscentConfig = GradientAscentConfig(),
    mask: PyTree | None = None,
) -> Params:
    """Ascends the mean loss of the rows to forget.

    Guarantee: none. There is no optimum to arrive at: with a small rate nothing
    happens, with a large one the model is destroyed, the remaining rows included.

    Args:
      key: ``jax.random.key`` for the order of the rows.
      loss_fn: ``loss_fn(params, example) -> scalar`` for one unbatched row; it is negated
        here.
      params: the trained parameters; not modified.
      data: all rows; those not in ``forget`` are not looked at.
      forget: ``bool[n]``, True for the rows to forget, at least one.
      config: hyper-parameters.
      mask: pruning mask to stay within.

    Returns:
      The new parameters.

    Cost: ``epochs`` times the rows to forget, in sample gradients.

    Raises:
      ValueError: a mask of another length or dtype, or one that forgets all rows or none.

    Example:
      >>> import jax
      >>> data = Dataset(jnp.array([[1.0], [3.0]]), jnp.array([0, 0]))
      >>> loss_fn = lambda params, row: jnp.sum((params - row.x) ** 2)
      >>> forget = jnp.array([True, False])
      >>> params = gradient_ascent(jax.random.key(0), loss_fn, jnp.array([2.0]), data, forget)
      >>> bool(params[0] > 2.0)
      True
    """
    _validate.forget_mask(forget, data.y.shape[0], some=True)
    how = config.train_config()
    return minimize(key, negated(loss_fn), params, data, weights=forget, config=how, mask=mask)


@functools.lru_cache
def negated(loss_fn: LossFn) -> LossFn:
    """``-loss_fn``; the same object each time, so that nothing compiles twice."""
    return lambda params, example: -loss_fn(params, example)


def unlearner(
    model: Model,
    train: TrainConfig,
    config: GradientAscentConfig = GradientAscentConfig(),
    *,
    prune: PruningConfig | None = None,
) -> Unlearner:
    """:func:`gradient_ascent` as an unlearner: a later request ascends its own rows only."""
    loss_fn = cross_entropy(model.apply)

    def update(key, params, data, request, mask):
        params = gradient_ascent(
            key, loss_fn, params, data, request.forget, config=config, mask=mask
        )
        return Update(params, grads=config.epochs * jnp.sum(request.forget))

    return posthoc(model, train, update, prune=prune)

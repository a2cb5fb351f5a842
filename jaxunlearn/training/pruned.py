"""One-shot magnitude pruning with rewinding: the "+ pruning" of the comparison methods.

Train, keep the parameters of an early epoch, drop the smallest weights of the
trained network, rewind the others to that epoch, and train again under the mask.
The mask then lasts: whatever unlearns afterwards moves the remaining weights only.
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.primitives.sparsity import magnitude_mask
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import fit, minimize
from jaxunlearn.types import Array, Dataset, Model, Params, PyTree


@dataclasses.dataclass(frozen=True)
class PruningConfig:
    """How much to prune, and how far to rewind.

    Attributes:
      rate: fraction of the kernel entries to drop. 0.8 suits small networks; the
        official code of Liu et al. 2023 drops 0.95 of a ResNet's convolutions.
      rewind: fraction of the epochs after which the weights to rewind to are kept
        (epoch 8 of 182 in that code).
    """

    rate: float = 0.8
    rewind: float = 0.05

    def __post_init__(self):
        _validate.fraction(rate=self.rate, rewind=self.rewind)


def fit_pruned(
    key: Array,
    model: Model,
    data: Dataset,
    *,
    train: TrainConfig = TrainConfig(),
    config: PruningConfig = PruningConfig(),
) -> tuple[Params, PyTree, int]:
    """Trains a pruned network (baseline A5, "dense to sparse with weight rewinding").

    Args:
      key: ``jax.random.key``.
      model: what to train.
      data: rows.
      train: configuration of each of the trainings.
      config: how much to prune and how far to rewind.

    Returns:
      ``(params, mask, epochs)``: parameters that are zero where the mask is, the 0/1
      mask, and the passes over the data that it took.

    Guarantee: none about forgetting. Deviation: the code rewinds to epoch 8 of the same
    training; here the early epochs run once more at the constant initial rate, which is
    the same training as long as its schedule is flat there.
    Cost: two trainings and the rewound epochs.

    Raises:
      ValueError: a rate outside (0, 1), a model without kernels, bad data.

    Example:
      >>> from jaxunlearn import models
      >>> data = Dataset(jnp.array([[-1.0, 0.0], [1.0, 0.0]]), jnp.array([0, 1]))
      >>> params, mask, _ = fit_pruned(jax.random.key(0), models.mlp(2), data,
      ...                              train=TrainConfig(epochs=3))
      >>> zero = jax.tree.map(lambda p, m: bool((p * (1 - m) == 0).all()), params, mask)
      >>> jax.tree.all(zero)
      True
    """
    dense_key, order_key = jax.random.split(key)
    early = max(1, round(config.rewind * train.epochs))
    # The first epochs of a training are those of a training that stops there, but for
    # the learning rate, which a constant schedule keeps at its early value.
    warm_up = dataclasses.replace(train, epochs=early, schedule="constant")
    rewound = fit(dense_key, model, data, config=warm_up)
    mask = magnitude_mask(fit(dense_key, model, data, config=train), config.rate)
    params = minimize(
        order_key,
        cross_entropy(model.apply),
        jax.tree.map(jnp.multiply, rewound, mask),
        data,
        config=train,
        mask=mask,
    )
    return params, mask, 2 * train.epochs + early

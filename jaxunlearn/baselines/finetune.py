"""Fine-tuning on the remaining rows (FT): let the network forget what it no longer sees."""

import dataclasses

import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.posthoc import Update, posthoc
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import minimize
from jaxunlearn.training.pruned import PruningConfig
from jaxunlearn.types import Array, Dataset, LossFn, Model, Params, PyTree, Unlearner


@dataclasses.dataclass(frozen=True)
class FineTuneConfig:
    """Defaults of the official code of Liu et al. 2023 (SGD, constant rate).

    Attributes:
      learning_rate, epochs, batch_size, momentum, weight_decay: of the fine-tuning.
      schedule: as in :class:`TrainConfig`.
    """

    learning_rate: float = 0.01
    epochs: int = 10
    batch_size: int = 256
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "constant"

    def __post_init__(self):
        self.train_config()  # checks the values

    def train_config(self) -> TrainConfig:
        return TrainConfig(**dataclasses.asdict(self))


def finetune(
    key: Array,
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    forget: Array,
    *,
    retain: Array | None = None,
    config: FineTuneConfig = FineTuneConfig(),
    mask: PyTree | None = None,
) -> Params:
    """Continues the training on the remaining rows only.

    Guarantee: none. It works as far as the network forgets by itself, which a large
    learning rate helps and a small one (the published default) hardly does.

    Args:
      key: ``jax.random.key`` for the order of the rows.
      loss_fn: ``loss_fn(params, example) -> scalar`` for one unbatched row.
      params: the trained parameters; not modified.
      data: all rows.
      forget: ``bool[n]``, True for the rows to forget.
      retain: ``bool[n]``, rows to train on; ``~forget`` by default. Give it when
        other rows were removed before.
      config: hyper-parameters.
      mask: pruning mask to stay within.

    Returns:
      The new parameters.

    Cost: ``epochs`` times the remaining rows, in sample gradients.

    Raises:
      ValueError: a mask of another length or dtype, or one that leaves no rows.

    Example:
      >>> import jax
      >>> data = Dataset(jnp.array([[1.0], [3.0]]), jnp.array([0, 0]))
      >>> loss_fn = lambda params, row: jnp.sum((params - row.x) ** 2)
      >>> forget = jnp.array([True, False])
      >>> params = finetune(jax.random.key(0), loss_fn, jnp.array([2.0]), data, forget)
      >>> bool(params[0] > 2.0)
      True
    """
    _validate.forget_mask(forget, data.y.shape[0])
    if retain is None:
        retain = ~jnp.asarray(forget)
    _validate.keep_mask(retain, data.y.shape[0])
    return minimize(
        key, loss_fn, params, data, weights=retain, config=config.train_config(), mask=mask
    )


def unlearner(
    model: Model,
    train: TrainConfig,
    config: FineTuneConfig = FineTuneConfig(),
    *,
    prune: PruningConfig | None = None,
) -> Unlearner:
    """:func:`finetune` as an unlearner."""
    loss_fn = cross_entropy(model.apply)
    how = dataclasses.replace(config.train_config(), progress=train.progress)

    def update(key, params, data, request, mask):
        params = minimize(key, loss_fn, params, data, weights=request.retain, config=how, mask=mask)
        return Update(params, grads=config.epochs * jnp.sum(request.retain))

    return posthoc(model, train, update, prune=prune)

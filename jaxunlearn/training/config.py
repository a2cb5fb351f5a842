"""How to train: a hashable description, static under ``jax.jit``."""

import dataclasses
import math

import jax.numpy as jnp
import optax

from jaxunlearn import _validate
from jaxunlearn.types import Array

SCHEDULES = ("constant", "cosine", "step")
OPTIMIZERS = ("sgd", "adam")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Hyper-parameters of one training.

    Attributes:
      epochs: passes over the rows with non-zero weight.
      batch_size: rows a step; the last batch of an epoch may be smaller.
      learning_rate: peak learning rate.
      schedule: ``constant``, ``cosine`` (to zero), or ``step`` (divided by 10 at
        one half and at three quarters of the training).
      optimizer: ``sgd`` or ``adam``.
      momentum: of SGD; 0 for none.
      weight_decay: added to the gradient times the parameter, before momentum
        (the L2 form, as in the papers' PyTorch code).
      clip: largest global norm of the batch gradient, or None.
      microbatch: rows of a batch that are computed at once, their gradients added up; all
        by default. The step is the same to rounding, in less memory; on a CPU 32 is
        also faster for convolutional networks, whose activations then stay in its caches.
      progress: show progress bars on standard error; the numbers are the same.

    Raises:
      ValueError: a value outside its range, by name.

    Example:
      >>> TrainConfig(epochs=5, schedule="constant").learning_rate
      0.05
    """

    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 0.05
    schedule: str = "cosine"
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float | None = None
    microbatch: int | None = None
    progress: bool = False

    def __post_init__(self):
        _validate.whole(epochs=self.epochs, batch_size=self.batch_size)
        _validate.positive(learning_rate=self.learning_rate)
        _validate.one_of(SCHEDULES, schedule=self.schedule)
        _validate.one_of(OPTIMIZERS, optimizer=self.optimizer)
        _validate.not_negative(momentum=self.momentum, weight_decay=self.weight_decay)
        if self.momentum >= 1:
            raise ValueError(f"momentum={self.momentum!r} must be below 1.")
        if self.microbatch is not None:
            _validate.whole(microbatch=self.microbatch)
        if self.clip is not None:
            _validate.positive(clip=self.clip)


def described_direction(config: TrainConfig) -> optax.GradientTransformation:
    """The optimizer without its learning rate: gradients in, descent direction out."""
    parts = []
    if config.clip is not None:
        parts.append(optax.clip_by_global_norm(config.clip))
    if config.weight_decay:
        parts.append(optax.add_decayed_weights(config.weight_decay))
    if config.optimizer == "adam":
        parts.append(optax.scale_by_adam())
    elif config.momentum:
        parts.append(optax.trace(config.momentum))
    return optax.chain(*parts) if parts else optax.identity()


def learning_rate(config: TrainConfig, progress: Array) -> Array:
    """The learning rate after the fraction ``progress`` of the training.

    A function of the fraction done and not of the step count, so that a
    retraining with fewer rows, hence fewer steps, finishes its schedule too.
    """
    progress = jnp.asarray(progress, float)
    if config.schedule == "cosine":
        factor = 0.5 * (1 + jnp.cos(math.pi * progress))
    elif config.schedule == "step":
        factor = jnp.where(progress < 0.5, 1.0, jnp.where(progress < 0.75, 0.1, 0.01))
    else:
        factor = jnp.ones_like(progress)
    return config.learning_rate * factor

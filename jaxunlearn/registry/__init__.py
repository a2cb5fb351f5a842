"""Every method by name, with what it promises: what the conformance tests and the CLI run over."""

import functools
from typing import Any

from jaxunlearn import _validate
from jaxunlearn.registry.method import Method, PrunedConfig, Sharing, checked
from jaxunlearn.registry.rows import METHODS
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.types import Model, Unlearner

__all__ = ["METHODS", "Method", "PrunedConfig", "Sharing", "get", "make"]


def get(name: str) -> Method:
    """The method of that name.

    Args:
      name: a name in ``METHODS``.

    Raises:
      ValueError: an unknown name, with the nearest known ones.

    Example:
      >>> get("retrain").guarantee
      'exact'
    """
    _validate.one_of(METHODS, method=name)
    return METHODS[name]


def make(
    name: str, model: Model, *, train: TrainConfig = TrainConfig(), config: Any = None
) -> Unlearner:
    """The unlearner of that name for a model.

    Args:
      name: a name in ``METHODS``.
      model: what to train.
      train: how to train it.
      config: the method's configuration; its defaults if None.

    Returns:
      An :class:`Unlearner`; the same object for the same arguments.

    Raises:
      ValueError: an unknown name; a configuration of another method; a model that
        cannot be hashed.

    Cost: nothing; the work begins with ``fit``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxunlearn import Dataset, models
      >>> data = Dataset(jnp.array([[-1.0], [1.0]]), jnp.array([0, 1]))
      >>> unlearner = make("retrain", models.logistic(2))
      >>> state = unlearner.fit(jax.random.key(0), data)
      >>> unlearner.predict(state, data.x).shape
      (2, 2)
    """
    config = checked(get(name), config)
    try:
        hash(model)
    except TypeError as error:
        raise ValueError(
            f"model has an init or apply that cannot be hashed ({error}), an equinox module for "
            "instance: wrap it in a function, and keep the model to reuse what was compiled for it."
        ) from None
    return _make(name, model, train, config)


# The same object for the same arguments, so that what was compiled for it is found again.
@functools.lru_cache
def _make(name: str, model: Model, train: TrainConfig, config: Any) -> Unlearner:
    return METHODS[name].make(model, train, config)

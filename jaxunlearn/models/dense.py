"""Networks of dense layers, for inputs of any shape."""

from collections.abc import Sequence

import flax.linen as nn

from jaxunlearn import _validate
from jaxunlearn.models._linen import flatten, linen_model
from jaxunlearn.types import Model


def logistic(num_classes: int) -> Model:
    """Multinomial logistic regression, ``logits = x W + b`` on the flattened input.

    ``W`` and ``b`` start at zero: training is convex, so the start decides nothing
    about where it ends, and every class begins with the same probability. ``init``
    therefore does not depend on its key.

    Args:
      num_classes: C, at least 2.

    Returns:
      A :class:`~jaxunlearn.Model` with ``params = {"Dense_0": {"kernel", "bias"}}``
      and ``d C + C`` parameters for ``d`` input features.

    Cost: ``d C`` multiplications for the logits of a row.

    Raises:
      ValueError: ``num_classes`` below 2; inputs that are no floats or no batch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = logistic(10)
      >>> x = jnp.ones((5, 8, 8, 1))
      >>> model.apply(model.init(jax.random.key(0), x), x).shape
      (5, 10)
    """
    _validate.whole(2, num_classes=num_classes)
    return linen_model("logistic", _Logistic, num_classes)


def mlp(num_classes: int, *, hidden: Sequence[int] = (64,)) -> Model:
    """Multilayer perceptron: dense layers with ReLU between, on the flattened input.

    Args:
      num_classes: C, at least 2.
      hidden: widths of the hidden layers.

    Returns:
      A :class:`~jaxunlearn.Model` with ``params = {"Dense_0": ..., "Dense_1": ...}``,
      LeCun-normal kernels and zero biases.

    Cost: one multiplication a weight for the logits of a row.

    Raises:
      ValueError: ``num_classes`` below 2, a width below 1; inputs that are no floats
        or no batch.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = mlp(3, hidden=(16, 8))
      >>> params = model.init(jax.random.key(0), jnp.ones((1, 4)))
      >>> jax.tree.map(jnp.shape, params)["Dense_1"]
      {'bias': (8,), 'kernel': (16, 8)}
    """
    _validate.whole(2, num_classes=num_classes)
    for width in hidden:
        _validate.whole(hidden=width)
    return linen_model("mlp", _MLP, num_classes, tuple(hidden))


class _Logistic(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros)(flatten(x))


class _MLP(nn.Module):
    num_classes: int
    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        x = flatten(x)
        for width in self.hidden:
            x = nn.relu(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)

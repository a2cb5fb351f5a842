"""Where the dense ReLU layers of a model begin: ``M = M_p + M_c``."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.primitives.regions import dense_layers, preactivations
from jaxunlearn.types import ApplyFn, Array, Model, Params


class Split(NamedTuple):
    """A model as feature extractor and dense ReLU stack, ``M = M_p + M_c``.

    Attributes:
      features: ``features(params, x[B, ...]) -> [B, d]``, M_p.
      head: ``head(params) -> layers``, M_c as :func:`dense_layers` takes it.
    """

    features: Callable[[Params, Array], Array]
    head: Callable[[Params], Params]


@functools.lru_cache  # one for a model: what is compiled for it is kept with it
def split(model: Model) -> Split:
    """Where the dense ReLU layers of a flax.linen model begin.

    Features are what goes into ``Dense_0``; for a multilayer perceptron that is its
    flattened input. Give a :class:`Split` of your own for any other model.

    Args:
      model: a flax.linen model whose last layers are named ``Dense_0``, ``Dense_1``, ...

    Returns:
      A :class:`Split`; :func:`check_split` finds out whether it is one.

    Example:
      >>> from jaxunlearn import models
      >>> model = models.cnn(3)
      >>> params = model.init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
      >>> split(model).features(params, jnp.ones((2, 8, 8, 1))).shape
      (2, 64)
    """
    return Split(_features_of(model.apply), dense_layers)


def _features_of(apply: ApplyFn) -> Callable[[Params, Array], Array]:
    def features(params: Params, x: Array) -> Array:
        found = []

        def note(call, args, kwargs, context):
            if context.method_name == "__call__" and context.module.path == ("Dense_0",):
                found.append(args[0])
            return call(*args, **kwargs)

        with nn.intercept_methods(note):
            apply(params, x)
        if len(found) != 1:
            raise ValueError(
                "model has no layer Dense_0 that is called once: only a flax.linen model has its "
                "dense layers found. Give split=Split(features, head) for this one."
            )
        return found[0]

    return features


def check_split(parts: Split, model: Model, x: Array | jax.ShapeDtypeStruct) -> None:
    """Raises unless the dense ReLU stack on the features is the model.

    Tried on random parameters and random inputs, so that another activation, a
    normalisation between, or a layer too many is noticed before anything is patched.

    Args:
      parts: features and head.
      model: the whole.
      x: inputs of the right shape and dtype; their values are not used.

    Raises:
      ValueError: they differ, or there is no hidden ReLU layer.

    Example:
      >>> from jaxunlearn import models
      >>> check_split(split(models.mlp(3)), models.mlp(3), jnp.ones((1, 4)))
    """
    rng = np.random.default_rng(0)

    def random(leaf):
        fan_in = np.prod(leaf.shape[:-1], dtype=int) if len(leaf.shape) > 1 else 10
        return np.asarray(1.5 * rng.normal(size=leaf.shape) / fan_in**0.5, leaf.dtype)

    @jax.jit
    def both(params, inputs):
        layers = dense_layers(parts.head(params))
        _, ours = preactivations(layers, parts.features(params, inputs))
        return model.apply(params, inputs), ours

    rows = jax.ShapeDtypeStruct((4, *x.shape[1:]), jnp.promote_types(x.dtype, jnp.float32))
    # Drawn by NumPy: an initialisation takes as long to compile as the model.
    params = jax.tree.map(random, jax.eval_shape(model.init, jax.random.key(0), rows))
    with jax.ensure_compile_time_eval():
        want, got = both(params, random(rows))
        if got.shape != want.shape or not np.allclose(got, want, rtol=1e-3, atol=1e-3):
            raise ValueError(
                "model is not its features followed by dense layers with ReLU between: its "
                "logits differ. Give split=Split(features, head) whose head ends the model."
            )

"""FFMU's output: the model of a round, averaged over the noise on its gradient."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _validate, tree
from jaxunlearn.primitives import _noise
from jaxunlearn.primitives.smoothing import sample_quantize
from jaxunlearn.types import ApplyFn, Array, Params, PyTree


class Smoothed(NamedTuple):
    """What ``O(q)`` of a round is made of.

    Attributes:
      params: the global model before the round (moved on by the server's momentum, if it has
        any: what matters is that it does not depend on G).
      gradient: the aggregated gradient G.
      rate: of the server's step.
    """

    params: Params
    gradient: PyTree
    rate: Array


def predict_smoothed(
    key: Array,
    apply_fn: ApplyFn,
    smoothed: Smoothed,
    x: Array,
    *,
    sigma: float,
    lam: float | None = None,
    samples: int = 100,
) -> Array:
    """``O(q)(x) = E f(x; W - rate Q(G + e))``, ``e ~ N(0, sigma^2 I)`` (Eq. 13 and 15).

    f is the softmax of the model, so that outputs lie in [0, 1].

    Args:
      key: ``jax.random.key``; the same draws for all rows.
      apply_fn: ``apply_fn(params, x[B, ...]) -> logits[B, C]``.
      smoothed: parameters, gradient and rate.
      x: ``float[B, ...]``.
      sigma: standard deviation of the noise, > 0.
      lam: width of the zone quantized to 0; ``sigma^2`` if None.
      samples: draws.

    Returns:
      ``float[B, C]`` mean probabilities.

    Guarantee: :func:`jaxunlearn.certify.federated.function_gap_bound` bounds the change of the
    expectation by a change of G. A mean of m draws is off by ``1 / (2 sqrt m)`` at most, in
    standard deviations.

    Cost: ``samples`` predictions and draws of a parameter vector, one after the other.

    Raises:
      ValueError: sigma, lam or samples outside their range.

    Example:
      >>> apply_fn = lambda params, x: x @ params
      >>> smoothed = Smoothed(jnp.zeros((1, 2)), jnp.array([[0.2, -0.2]]), jnp.float32(0.5))
      >>> out = predict_smoothed(
      ...     jax.random.key(0), apply_fn, smoothed, jnp.ones((1, 1)), sigma=0.1, samples=50
      ... )
      >>> out.shape, bool(out[0, 1] > 0.6)
      ((1, 2), True)
    """
    lam = _noise.checked(sigma, lam, "gaussian")
    _validate.whole(samples=samples)
    return _predict(
        key, smoothed, x, apply_fn=apply_fn, sigma=float(sigma), lam=lam, samples=samples
    )


@functools.partial(jax.jit, static_argnames=("apply_fn", "sigma", "lam", "samples"))
def _predict(key, smoothed, x, *, apply_fn, sigma, lam, samples):
    def add(total, number):
        q = sample_quantize(jax.random.fold_in(key, number), smoothed.gradient, sigma, lam)
        q = jax.tree.map(lambda q, p: q.astype(p.dtype), q, smoothed.params)
        logits = apply_fn(tree.add_scaled(smoothed.params, -smoothed.rate, q), x)
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return total + jax.nn.softmax(wide), None

    like = jax.eval_shape(apply_fn, smoothed.params, x)
    zeros = jnp.zeros(like.shape, jnp.promote_types(like.dtype, jnp.float32))
    total, _ = jax.lax.scan(add, zeros, jnp.arange(samples))
    return total / samples

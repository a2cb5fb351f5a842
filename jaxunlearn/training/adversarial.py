"""Adversarial training to the optimum, by Newton's method with the total Hessian."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _validate, tree
from jaxunlearn.primitives.adversarial import refine
from jaxunlearn.primitives.balls import Ball
from jaxunlearn.primitives.curvature import total_matrix, total_product
from jaxunlearn.primitives.gradients import gradient_sum
from jaxunlearn.primitives.inner import Inner, inner_curvature, perturbed
from jaxunlearn.primitives.solve import CG, solve
from jaxunlearn.types import Array, Dataset, LossFn, Params

# Rows whose activations are held at once.
CHUNK = 64


class Trained(NamedTuple):
    """Where :func:`adversarial_newton` ended.

    Attributes:
      params: the optimum.
      inner: the inner maxima there.
      gradient: largest entry of the mean gradient.
      steps: Newton steps taken.
      converged: whether ``gradient`` is within the tolerance.
    """

    params: Params
    inner: Inner
    gradient: Array
    steps: Array
    converged: Array


def adversarial_newton(
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    delta: Array,
    *,
    ball: Ball,
    weights: Array | None = None,
    tolerance: float = 1e-8,
    steps: int = 30,
    attack_steps: int = 5,
    dense: bool = True,
) -> Trained:
    """Adversarial training to the optimum, by Newton's method with the KKT Hessian.

    Each step finds the inner maxima anew from the last ones, so it tracks their local maxima;
    it is halved until the mean loss falls, or its gradient at about the same loss. For losses
    convex in the parameters, as those of a last layer on frozen features.

    Args:
      loss_fn: loss of one row, regularisation included.
      params: where to start.
      data: rows.
      delta: ``float[n, ...]``, perturbations to start from.
      ball: where they lie.
      weights: ``bool`` or ``float[n]``.
      tolerance: of the mean gradient, not below 100 eps of the dtype.
      steps: Newton steps at most.
      attack_steps: Newton steps for the inner maxima in each.
      dense: make the matrix in each step; otherwise conjugate gradients on its products.

    Cost: a step is one dense matrix and one to eight refinements of all rows.

    Example:
      >>> data = Dataset(jnp.array([[1.0], [3.0]]), jnp.array([0, 0]))
      >>> loss_fn = lambda w, row: 0.5 * jnp.sum((w - row.x) ** 2)
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> delta = jnp.array([[-0.5], [0.5]])
      >>> out = adversarial_newton(loss_fn, jnp.array([2.5]), data, delta, ball=L2Ball(0.5))
      >>> out.params.round(4).tolist(), bool(out.converged)
      ([2.0], True)
    """
    _validate.rows(data)
    n = data.y.shape[0]
    weights = jnp.ones(n) if weights is None else _validate.as_weights(weights)
    limit = floor(tolerance, delta)
    static = {"loss_fn": loss_fn, "ball": ball, "attack_steps": attack_steps, "dense": dense}
    begin = _measured(
        params, delta, data, weights, **{k: static[k] for k in static if k != "dense"}
    )
    carry = (params, begin, jnp.int32(0), jnp.array(True))

    def going(carry):
        _, (_, _, _, size), count, moved = carry
        return (size > limit) & (count < steps) & moved

    def step(carry):
        return _newton_step(carry, data, weights, **static)

    carry = _loop(going, step, carry)
    params, (inner, _, _, size), count, _ = carry
    return Trained(params, inner, size, count, size <= limit)


def _measured(params, delta, data, weights, *, loss_fn, ball, attack_steps):
    """Inner maxima at ``params``, the mean loss there, its gradient, and the size of that."""
    inner = refine(loss_fn, params, data, delta, ball=ball, steps=attack_steps)
    return inner, *_loss_at(params, inner.delta, data, weights, loss_fn=loss_fn)


@functools.partial(jax.jit, static_argnames="loss_fn")
def _loss_at(params, delta, data, weights, *, loss_fn):
    at, total = perturbed(data, delta), weights.sum()
    value = weights @ jax.lax.map(lambda r: loss_fn(params, r), at, batch_size=256) / total
    g = gradient_sum(loss_fn, params, at, weights=weights / total, chunk=min(CHUNK, data.y.size))
    size = jnp.stack([jnp.abs(leaf).max() for leaf in jax.tree.leaves(g)]).max()
    return value, g, size


def _newton_step(carry, data, weights, *, loss_fn, ball, attack_steps, dense):
    params, (inner, value, g, size), count, _ = carry
    move = _direction(
        params, inner.delta, g, data, weights, loss_fn=loss_fn, ball=ball, dense=dense
    )
    at = lambda t: tree.add_scaled(params, -t, move)
    measure = functools.partial(_measured, loss_fn=loss_fn, ball=ball, attack_steps=attack_steps)
    rounding = 10 * jnp.finfo(value.dtype).eps * (1 + jnp.abs(value))

    def better(there):
        _, now, _, now_size = there
        # Near the optimum the gradient tells more; a loss that jumps has lost its maxima.
        return (now < value - rounding) | (now_size < size) & (now < value + 1e-3 * jnp.abs(value))

    def worse(found):
        return ~better(found[1]) & (found[0] > 1e-3)

    def shorter(found):
        return found[0] / 2, measure(at(found[0] / 2), inner.delta, data, weights)

    one = jnp.ones((), value.dtype)
    start = one, measure(at(one), inner.delta, data, weights)
    t, there = _loop(worse, shorter, start)
    gained = better(there)
    pick = lambda a, b: jnp.where(gained, a, b)
    there = jax.tree.map(pick, there, (inner, value, g, size))
    return jax.tree.map(pick, at(t), params), there, count + 1, gained


@functools.partial(jax.jit, static_argnames=("loss_fn", "ball", "dense"))
def _direction(params, delta, g, data, weights, *, loss_fn, ball, dense):
    given = {"ball": ball, "weights": weights / weights.sum()}
    if dense:
        system = total_matrix(loss_fn, params, data, delta, **given)
    else:  # the dense matrix looks for itself which maxima are strict
        given["trusted"] = inner_curvature(loss_fn, params, data, delta, ball=ball, chunk=CHUNK) > 0
        system = lambda v: total_product(loss_fn, params, data, delta, v, chunk=CHUNK, **given)
    # CG leaves a direction of descent even where the matrix is indefinite.
    move = solve(system, g, solver=CG(tol=1e-10, maxiter=500)).x
    slope = sum(map(jnp.vdot, jax.tree.leaves(g), jax.tree.leaves(move)))
    return jax.tree.map(lambda m, leaf: jnp.where(slope > 0, m, leaf), move, g)


def _loop(going, step, carry):
    """A loop in the open if its values are known, and a compiled one if not.

    In the open its parts compile once each, and no LAPACK runs inside a compiled loop, where
    several batched calls can hang on a CPU.
    """
    if not all(map(_validate.known, jax.tree.leaves(carry))):
        return jax.lax.while_loop(going, step, carry)
    while going(carry):
        carry = step(carry)
    return carry


def floor(tolerance: float, like: Array) -> float:
    """The tolerance, or what the dtype can resolve.

    Example:
      >>> floor(1e-3, jnp.zeros(1))
      0.001
    """
    return max(tolerance, 100 * float(jnp.finfo(like.dtype).eps))

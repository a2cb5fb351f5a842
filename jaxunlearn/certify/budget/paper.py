"""The budget of removals as PCMU states it (Theorems 3 to 5): kept as a heuristic.

What is not proved in it:

- Theorem 5 sets the size of the change of the gradient to ``sqrt(T) R'``: every one of the T
  coordinates would have to move by its radius. What follows from a Lipschitz constant is
  ``R >= R'_t / L_t``, one coordinate at a time.
- Theorem 4 takes the standard deviation of the smoothing noise for that of the data.
- It takes a removal for one common shift of all inputs, and the removed rows for random ones.
- It has no factor for drawing without replacement: removing nobody still moves its mean.
- Nothing covers the steps before, which saw the rows.

There are T radii, and the paper does not say how they and the Lipschitz constants become one
number.
"""

import functools

import jax
import jax.numpy as jnp

from jaxunlearn import _sharding, _validate
from jaxunlearn.primitives.smoothing import radius_of_probabilities
from jaxunlearn.types import Array, Dataset, LossFn, Params

REDUCE = ("mean", "max")


def input_radius(radius: Array, *, parameters: int, lipschitz: float | Array) -> Array:
    """``R >= sqrt(T) / L R'`` (PCMU Theorem 5, Eq. 67), as stated.

    Args:
      radius: ``R'`` of the gradient, :func:`~jaxunlearn.primitives.smoothing.smooth_quantize`.
      parameters: T.
      lipschitz: L, of the gradient as a function of the input.

    Guarantee: none; see the module for the gap.

    Example:
      >>> float(input_radius(jnp.float32(0.01), parameters=10_000, lipschitz=2.0))
      0.5
    """
    _validate.whole(parameters=parameters)
    return jnp.sqrt(float(parameters)) / lipschitz * radius


def data_budget(n: int, *, dimension: int, p_a: Array, p_b: Array) -> Array:
    """``B <= N - 36 d / (Phi^-1(p_a) - Phi^-1(p_b))^2`` (PCMU Theorem 4, Eq. 66), as stated.

    Args:
      n: rows, the paper's N.
      dimension: of the input, d.
      p_a, p_b: the two largest class probabilities.

    Returns:
      The budget; at most 0 is vacuous, and so is minus infinity.

    Guarantee: none; see the module.

    Example:
      >>> round(float(data_budget(60_000, dimension=784, p_a=0.99, p_b=0.005)))
      58826
    """
    return _budget(n, 36.0 * dimension, p_a, p_b)


def paper_budget(
    n: int, *, dimension: int, parameters: int, lipschitz: float | Array, p_a: Array, p_b: Array
) -> Array:
    """``B' <= N - 36 d L^2 / (T (Phi^-1(p_a) - Phi^-1(p_b))^2)`` (PCMU Eqs. 26 and 68), as stated.

    Args:
      n: rows, the paper's N.
      dimension: of the input, d.
      parameters: T.
      lipschitz: L, :func:`input_gradient_lipschitz`.
      p_a, p_b: the two largest class probabilities of the smoothed gradient, one budget for each
        coordinate. The paper does not say which of the T budgets is meant.

    Returns:
      The budgets; at most 0 is vacuous, and so is minus infinity.

    Guarantee: none; see the module for the five gaps. The provable counterparts are in
    :func:`removal_certificate` and :func:`gaussian_unlearning_epsilon`.

    Raises:
      ValueError: counts below 1.

    Example:
      >>> how = {"dimension": 784, "parameters": 50_890, "lipschitz": 2.6}
      >>> round(float(paper_budget(60_000, p_a=0.53, p_b=0.45, **how)))
      59907
    """
    _validate.whole(parameters=parameters)
    return _budget(n, 36.0 * dimension * lipschitz**2 / parameters, p_a, p_b)


def _budget(n, scale, p_a, p_b):
    _validate.whole(n=n)
    # R / sigma = (Phi^-1(p_a) - Phi^-1(p_b)) / 2.
    width = 2 * radius_of_probabilities(jnp.asarray(p_a, float), jnp.asarray(p_b, float), 1.0)
    return n - scale / jnp.square(width)


def input_gradient_lipschitz(
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    *,
    key: Array,
    iters: int = 20,
    reduce: str = "mean",
) -> Array:
    """How fast the parameter gradient moves with the input: the L that Theorem 5 asks for.

    The spectral norm of ``d grad_w loss(w; x) / dx`` at the given rows, by power iteration.

    Args:
      loss_fn: loss of one row.
      params: where to take it.
      data: rows.
      key: ``jax.random.key`` of the first vector.
      iters: of the power iteration, >= 1.
      reduce: ``mean``, of the mean gradient under a common shift of all inputs; ``max``, the
        largest of the single rows.

    Returns:
      A scalar from below: a local value at these rows, no bound for all inputs.

    Cost: ``2 iters`` second-order sample gradients a row.

    Raises:
      ValueError: iters below 1, an unknown reduction, rows that do not match.

    Example:
      >>> data = Dataset(jnp.array([[1.0, 2.0]]), jnp.array([0]))
      >>> loss_fn = lambda params, row: 3.0 * params @ row.x
      >>> found = input_gradient_lipschitz(loss_fn, jnp.ones(2), data, key=jax.random.key(0))
      >>> round(float(found), 5)
      3.0
    """
    _validate.whole(iters=iters)
    _validate.one_of(REDUCE, reduce=reduce)
    _validate.rows(data)
    data = _sharding.automatic(data)
    return _lipschitz(params, data, key, loss_fn=loss_fn, iters=iters, reduce=reduce)


@functools.partial(jax.jit, static_argnames=("loss_fn", "iters", "reduce"))
def _lipschitz(params, data, key, *, loss_fn, iters, reduce):
    first = jax.random.normal(key, data.x.shape[1:], data.x.dtype)
    unit = lambda v: v / jnp.maximum(jnp.linalg.norm(v.reshape(-1)), jnp.finfo(v.dtype).tiny)

    def norm(rows: Dataset):
        """Of the mean over ``rows`` of the gradient, as all inputs shift together."""

        def shifted(v):
            loss = lambda p: jnp.mean(
                jax.vmap(lambda x, y: loss_fn(p, Dataset(x, y)))(rows.x + v[None], rows.y)
            )
            return jax.grad(loss)(params)

        zero = jnp.zeros_like(first)
        out, forward = jax.linearize(shifted, zero)
        transposed = jax.linear_transpose(forward, zero)

        def step(v, _):
            return unit(transposed(forward(unit(v)))[0]), None

        v, _ = jax.lax.scan(step, unit(first), length=iters)
        moved = jax.tree.leaves(forward(v))
        return jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in moved))

    if reduce == "mean":
        return norm(data)
    one = lambda row: norm(jax.tree.map(lambda leaf: leaf[None], row))
    return jax.lax.map(one, data).max()

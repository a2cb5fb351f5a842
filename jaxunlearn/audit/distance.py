"""How far two models' parameters are apart."""

from functools import reduce

import jax
import jax.numpy as jnp

from jaxunlearn.audit import _inputs
from jaxunlearn.types import Array, Params


def parameter_distance(params_a: Params, params_b: Params) -> Array:
    """Euclidean distance ``||a - b||_2`` over all leaves (MUter's metric).

    Evidence only if both models are converged on a strictly convex loss, or at least
    share their initialisation and batch order. Otherwise there is a floor that no unlearning
    can go below: in ``make demo`` retrainings from different initialisations are 24 apart,
    while *doing nothing* is 2.7 from a retraining with the same one. Always report
    the distance of the no-op and of retraining with another key beside it.

    Args:
      params_a: any pytree of arrays.
      params_b: a pytree of the same structure and shapes.

    Returns:
      float32 scalar (or the widest dtype of the leaves, if wider). Leaves are
      widened before they are subtracted, and differences are scaled by the largest before
      they are squared: no overflow, no underflow, and bfloat16 loses nothing.

    Raises:
      ValueError: no leaves, or structures or shapes that differ.

    Example:
      >>> a, b = {"w": jnp.zeros(2), "b": jnp.ones(1)}, {"w": jnp.full(2, 2.0), "b": jnp.zeros(1)}
      >>> float(parameter_distance(a, b))
      3.0
    """
    _same_shapes(params_a, params_b)
    return _norm(jax.tree.map(lambda a, b: _inputs.widen(a) - _inputs.widen(b), params_a, params_b))


def relative_parameter_distance(params: Params, reference: Params) -> Array:
    """``||params - reference||_2 / ||reference||_2``, comparable across models.

    nan for ``0 / 0``, infinite if only the reference is all zeros. The caveats and errors
    are those of :func:`parameter_distance`.

    Example:
      >>> float(relative_parameter_distance(jnp.array([3.0, 6.5]), jnp.array([3.0, 4.0])))
      0.5
    """
    return parameter_distance(params, reference) / _norm(jax.tree.map(_inputs.widen, reference))


def _norm(tree: Params) -> Array:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.size]
    largest = reduce(jnp.maximum, [jnp.abs(leaf).max() for leaf in leaves])
    scale = jnp.where((largest == 0) | jnp.isinf(largest), 1, largest)
    squares = [jnp.square(leaf / scale).sum() for leaf in leaves]
    return scale * jnp.sqrt(sum(squares[1:], squares[0]))


def _same_shapes(params_a: Params, params_b: Params) -> None:
    a, b = jax.tree.structure(params_a), jax.tree.structure(params_b)
    if a != b:
        raise ValueError(f"params_a has structure {a} and params_b has {b}; they must be equal.")
    shapes = [[jnp.shape(x) for x in jax.tree.leaves(tree)] for tree in (params_a, params_b)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"params_a has leaves of shapes {shapes[0]} and params_b of {shapes[1]}; "
            "they must be equal: the same model."
        )
    if not any(jnp.size(leaf) for leaf in jax.tree.leaves(params_a)):
        raise ValueError("params_a has no parameters: there is no distance to measure.")

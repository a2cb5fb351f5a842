"""The leave-one-out adversarial influence function."""

import warnings

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.methods.muter.stages import Memory
from jaxunlearn.primitives.inner import perturbed
from jaxunlearn.primitives.solve import Cholesky, solve
from jaxunlearn.types import Array, Dataset, LossFn, Params, Status


def influence(
    loss_fn: LossFn, memory: Memory, data: Dataset, rows: Array, *, damping: float = 0.0
) -> Params:
    """The leave-one-out adversarial influence function, Definition 2 of the paper, for some rows.

    ``I_i = -[(1/n) sum_j D_j]^-1 grad loss_i``: the change of the parameters per weight added to
    row i. Removing it moves them by ``-I_i / n``, the paper's sign being that of adding.

    Args:
      loss_fn: as before.
      memory: from :func:`prepare` with a matrix; n counts its rows not removed.
      data: all rows.
      rows: ``int[k]``, row numbers.
      damping: added to the matrix of the mean.

    Returns:
      A pytree like the parameters, leaves ``[k, ...]``.

    Cost: one factorisation, and two triangular solves a row.

    Raises:
      ValueError: a memory without a matrix; row numbers that are none.

    Example:
      >>> from jaxunlearn.methods.muter import prepare
      >>> data = Dataset(jnp.array([[1.0], [3.0]]), jnp.array([0, 0]))
      >>> loss_fn = lambda w, row: 0.5 * jnp.sum((w - row.x) ** 2)
      >>> from jaxunlearn.primitives.balls import L2Ball
      >>> delta = jnp.array([[-0.5], [0.5]])
      >>> memory = prepare(loss_fn, jnp.array([2.0]), data, delta, ball=L2Ball(0.5))
      >>> influence(loss_fn, memory, data, jnp.array([1])).tolist()  # weight on 3 pulls up
      [[1.5]]
    """
    if isinstance(memory.matrix, tuple):
        raise ValueError("influence needs the matrix: prepare the memory with dense=True.")
    n, rows = data.y.shape[0], jnp.asarray(rows)
    if rows.ndim != 1 or not jnp.issubdtype(rows.dtype, jnp.integer):
        raise ValueError(
            f"rows is {rows.dtype}{list(rows.shape)}, but must be row numbers, int[k]."
        )
    if _validate.known(rows) and ((rows < -n) | (rows >= n)).any():
        raise ValueError(f"rows has numbers from {rows.min()} to {rows.max()}, but data {n} rows.")
    kept = jnp.maximum(jnp.sum(1 - _validate.as_weights(memory.removed)), 1)
    at = jax.tree.map(lambda leaf: leaf[rows], perturbed(data, memory.delta))
    grads = jax.vmap(jax.grad(loss_fn), in_axes=(None, 0))(memory.params, at)
    found = jax.vmap(lambda g: solve(memory.matrix / kept, g, solver=Cholesky(damping)))(grads)
    worst = found.status.max()
    if _validate.known(worst) and worst != Status.OK:
        warnings.warn(
            f"influence: the system is {Status(int(worst)).name}, so what comes back may point "
            "anywhere. Give damping, or a memory at an optimum.",
            stacklevel=2,
        )
    return jax.tree.map(jnp.negative, found.x)

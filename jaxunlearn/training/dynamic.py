"""Trainings whose length, rate and rows are arguments, not shapes.

:func:`minimize` fixes the number of epochs when it is compiled. Where many short trainings differ
in just that, as on a grid of settings, one program with dynamic trip counts serves all of them,
alone or under ``jax.vmap``. The price: no reverse-mode derivative through it.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxunlearn import tree
from jaxunlearn.training.config import TrainConfig, described_direction, learning_rate
from jaxunlearn.training.fit import _columns_first, _in_parts, shuffled
from jaxunlearn.types import Array, Params, PyTree

# losses_fn(params, rows: int[B]) -> float[B], of rows by number.
RowLossesFn = Callable[[Params, Array], Array]


def descend(
    key: Array,
    losses_fn: RowLossesFn,
    params: Params,
    chosen: Array,
    *,
    epochs: Array | int,
    rate: Array | float,
    config: TrainConfig = TrainConfig(),
    mask: PyTree | None = None,
) -> Params:
    """Minimises the mean loss of the chosen rows by mini-batches; all of it may be traced.

    The steps are those of :func:`~jaxunlearn.training.minimize` with ``weights=chosen``: same
    key, same orders, same batches. It differs in that ``epochs``, ``rate`` and the number of
    chosen rows are arguments of the compiled program. Call it under ``jax.jit``.

    Args:
      key: ``jax.random.key`` for the order of the rows.
      losses_fn: ``losses_fn(params, rows: int[B]) -> float[B]``; it looks the rows up itself.
      params: where to start; dtypes are kept.
      chosen: ``bool[n]``, the rows to train on. If there are none, nothing happens.
      epochs: passes over the chosen rows, >= 0.
      rate: peak learning rate.
      config: everything else; its epochs, learning rate and progress bar are ignored.
      mask: 0/1 pytree; entries at 0 do not move.

    Returns:
      The parameters.

    Cost: ``epochs`` times the chosen rows, in sample gradients. Under ``jax.vmap`` all members
    take as many steps as the longest, so put those of equal length together.

    Example:
      >>> x = jnp.array([[1.0], [3.0], [50.0]])
      >>> losses = lambda params, rows: jnp.sum((params[None] - x[rows]) ** 2, axis=-1)
      >>> chosen = jnp.array([True, True, False])
      >>> out = descend(jax.random.key(0), losses, jnp.zeros(1), chosen, epochs=200, rate=0.05)
      >>> bool(jnp.allclose(out, 2.0, atol=0.01))
      True
    """
    n = chosen.shape[0]
    batch = min(config.batch_size, n)
    count = chosen.sum()
    steps = -(-count // batch)
    transform = described_direction(config)
    plan = dataclasses.replace(config, learning_rate=1.0)

    def masked(update):
        return update if mask is None else jax.tree.map(jnp.multiply, update, mask)

    def loss(params, rows, w):
        return jnp.vdot(w, losses_fn(jax.tree.map(_columns_first, params), rows))

    def epoch(number, carry):
        order = shuffled(jax.random.fold_in(key, number), n, last=~chosen)
        order = jnp.pad(order, (0, -n % batch))

        def step(index, carry):
            params, opt_state = carry
            rows = jax.lax.dynamic_slice(order, (index * batch,), (batch,))
            present = index * batch + jnp.arange(batch) < count
            w = present / jnp.maximum(present.sum(), 1).astype(jnp.float32)
            rows = jnp.where(present, rows, order[0])
            grads = masked(_in_parts(jax.grad(loss), params, rows, w, config.microbatch))
            updates, opt_state = transform.update(grads, opt_state, params)
            progress = (number + index / jnp.maximum(steps, 1)) / jnp.maximum(epochs, 1)
            scale = -rate * learning_rate(plan, progress)
            return tree.add_scaled(params, scale, masked(updates)), opt_state

        return jax.lax.fori_loop(0, steps, step, carry)

    start = params, transform.init(params)
    return jax.lax.fori_loop(0, epochs, epoch, start)[0]

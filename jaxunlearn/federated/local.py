"""What one client does in a round: a pure function of a key, the global parameters and its rows."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import tree
from jaxunlearn.training.config import TrainConfig, described_direction
from jaxunlearn.training.fit import _columns_first, _in_parts, shuffled
from jaxunlearn.types import Array, Dataset, LossFn, Params, PyTree


class Local(NamedTuple):
    """What a client has after its part of a round.

    Attributes:
      params: its model.
      gradient: the mean of its batch gradients, each where it was taken.
      steps: ``int32``, that it took; 0 if none of its rows counts.
    """

    params: Params
    gradient: PyTree
    steps: Array


def client_key(key: Array, round: Array | int, number: Array | int) -> Array:
    """The key of client ``number`` in round ``round``: of any engine, in any order.

    Example:
      >>> client_key(jax.random.key(0), 3, 7).shape
      ()
    """
    return jax.random.fold_in(jax.random.fold_in(key, round), number)


def train_locally(
    key: Array,
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    weights: Array,
    *,
    config: TrainConfig,
    direction: optax.GradientTransformation | None = None,
    scale: Array | float = 1.0,
) -> Local:
    """One client's part of a round: ``config.epochs`` passes over its rows of non-zero weight.

    Args:
      key: ``jax.random.key`` for the order of its rows.
      loss_fn: of one unbatched row.
      params: the global model, where it starts.
      data: its rows, ``[M, ...]``.
      weights: ``float[M]``; rows of weight 0 are not read.
      config: its rate is used as it is, times ``scale``; its schedule is not.
      direction: instead of the optimizer of ``config``.
      scale: of the rate.

    Returns:
      A :class:`Local`. A client without rows returns ``params`` and a gradient of 0.

    Cost: ``config.epochs`` times M sample gradients. For use under ``jit`` and ``vmap``.

    Example:
      >>> data = Dataset(jnp.array([[1.0], [3.0], [9.0]]), jnp.zeros(3, int))
      >>> distance = lambda params, row: jnp.sum((params - row.x) ** 2)
      >>> config = TrainConfig(epochs=1, batch_size=2, learning_rate=0.1, momentum=0.0)
      >>> weights = jnp.array([1.0, 1.0, 0.0])
      >>> out = train_locally(
      ...     jax.random.key(0), distance, jnp.zeros(1), data, weights, config=config
      ... )
      >>> float(out.params[0]), float(out.gradient[0]), int(out.steps)
      (0.4000000059604645, -4.0, 1)
    """
    m = data.y.shape[0]
    batch = min(config.batch_size, m)
    steps = -(-m // batch)
    used = -(-jnp.sum(weights > 0) // batch)
    removed, kept = weights == 0, jnp.argmax(weights)
    transform = described_direction(config) if direction is None else direction

    def loss(params, rows, w):
        examples = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), data)
        params = jax.tree.map(_columns_first, params)
        return jnp.vdot(w, jax.vmap(loss_fn, in_axes=(None, 0))(params, examples))

    def step(carry, inputs):
        params, memory, total = carry
        index, rows, present = inputs
        w = jnp.take(weights, rows, mode="clip") * present
        rows = jnp.where(w > 0, rows, kept)
        w = w / jnp.maximum(jnp.sum(w), jnp.finfo(w.dtype).tiny)
        gradient = _in_parts(jax.grad(loss), params, rows, w, config.microbatch)
        updates, after = transform.update(gradient, memory, params)
        moved = tree.add_scaled(params, -config.learning_rate * scale, updates)
        total_after = tree.add_scaled(total, 1.0, gradient)
        new, old = (moved, after, total_after), (params, memory, total)
        # A step without rows leaves everything as it was, whatever it computed.
        return jax.tree.map(lambda a, b: jnp.where(index < used, a, b), new, old), None

    def epoch(carry, number):
        order = shuffled(jax.random.fold_in(key, number), m, last=removed)
        order = jnp.pad(order, (0, steps * batch - m)).reshape(steps, batch)
        present = (jnp.arange(steps * batch) < m).reshape(steps, batch)
        return jax.lax.scan(step, carry, (jnp.arange(steps), order, present))

    wide = lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32))
    carry = params, transform.init(params), jax.tree.map(wide, params)
    (after, _, total), _ = jax.lax.scan(epoch, carry, jnp.arange(config.epochs))
    taken = config.epochs * used
    mean = lambda t, p: (t / jnp.maximum(taken, 1).astype(t.dtype)).astype(p.dtype)
    return Local(after, jax.tree.map(mean, total, params), taken.astype(jnp.int32))

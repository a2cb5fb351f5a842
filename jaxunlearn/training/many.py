"""Many trainings at once: the distribution of retrained models."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import _progress, _sharding, _threads, _validate, tree
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import _minimize, check_model, steps_per_epoch
from jaxunlearn.types import Array, Dataset, Model, Params

# Bytes that the parameters, gradients and momenta of one chunk may take by default.
CHUNK_BYTES = 2**28


def train_many(
    keys: Array,
    weights: Array,
    model: Model,
    data: Dataset,
    *,
    config: TrainConfig = TrainConfig(),
    direction: optax.GradientTransformation | None = None,
    chunk: int | None = None,
    shared_order: bool = False,
) -> Params:
    """Trains M models by vmap; row m of the result is ``fit(keys[m], weights=weights[m])``.

    What an unlearned model must be compared with is not one retrained model but
    their distribution; this draws M of it at the price of one compilation.

    Args:
      keys: ``key[M]``, from ``jax.random.split``.
      weights: ``bool`` or ``float[M, n]``: which rows each model is trained on.
      model: see :class:`jaxunlearn.Model`.
      data: the rows that all of them draw from.
      config: hyper-parameters, the same for all; its progress bar counts chunks.
      direction: as in :func:`jaxunlearn.training.fit`.
      chunk: models trained at once, on a CPU divided among its cores. Default: as many as keep
        parameters, gradients and momenta within 256 MiB, 64 at most; their activations come on
        top, so give a smaller number for large batches of large images.
      shared_order: all models see the rows in one common order (drawn from
        ``keys[0]``), each with its own weights, removed rows keeping their places:
        about twice as fast for tiny models, since a batch is gathered once. Steps
        are then those of the full set, and models differ by their initialisation
        and their rows only: right for subset studies, not for the spread of retraining.
        Rows of weight 0 are read here, so their values must be finite.

    Returns:
      Parameters with a leading axis M.

    Cost: M trainings. Memory: ``chunk`` times that of one training, and the result,
    M times the parameters, twice while its chunks are joined.

    Raises:
      ValueError: shapes that do not match; a model without rows.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxunlearn import Dataset, TrainConfig, models
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [2.0]]), jnp.array([0, 1, 1]))
      >>> keep = jnp.array([[True, True, False], [True, False, True]])
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> many = train_many(keys, keep, models.logistic(2), data, config=TrainConfig(epochs=2))
      >>> {leaf.shape[0] for leaf in jax.tree.leaves(many)}
      {2}
    """
    n, count = data.y.shape[0], keys.shape[0]
    if np.shape(weights) != (count, n):
        raise ValueError(
            f"weights has shape {np.shape(weights)}, but must be {(count, n)}: one row for each of "
            f"the {count} keys, one column for each of the {n} rows of data."
        )
    _validate.row_weights(weights, n)
    keys, weights, data = _sharding.automatic((keys, weights, data))
    check_model(keys[0], model, data)
    if chunk is None:
        params = jax.eval_shape(model.init, keys[0], data.x[:1])
        chunk = max(1, min(64, CHUNK_BYTES // (12 * max(1, tree.size(params)))))
    _validate.whole(chunk=chunk)
    chunk = min(chunk, count)

    weights = _validate.as_weights(weights)
    used_steps = steps_per_epoch(weights, config.batch_size)
    # Equal subset sizes: one common number of steps, so vmap keeps the branch that skips
    # the others a branch instead of computing both sides.
    if _validate.known(used_steps) and bool((used_steps == used_steps[0]).all()):
        used_steps = used_steps[0]
    train = functools.partial(
        _chunk,
        model=model,
        config=dataclasses.replace(config, progress=False),
        direction=direction,
        shared_order=shared_order,
        sharding=_sharding.of_rows(data),
    )
    order_key = jax.random.split(keys[0])[1]

    if not _validate.known(keys):
        one = lambda args: jax.tree.map(
            lambda leaf: leaf[0], train(order_key, args[0][None], args[1][None], args[2], data)
        )
        steps = jnp.broadcast_to(used_steps, (count,))
        return jax.lax.map(one, (keys, weights, steps), batch_size=chunk)

    together = min(chunk, _threads.workers(keys))
    size = chunk // together

    def given(start):
        # The last chunk is filled up with the last model, for one shape and one compilation.
        index = jnp.minimum(jnp.arange(start, start + size), count - 1)
        steps = used_steps if used_steps.ndim == 0 else used_steps[index]
        return order_key, keys[index], weights[index], steps, data

    starts = range(0, count, size)
    program = train.func.lower(*given(0), **train.keywords).compile()
    run = lambda arguments: jax.block_until_ready(program(*arguments))
    done = _threads.side_by_side(run, map(given, starts), together)
    parts = []
    for start in _progress.track(starts, "training models", enabled=config.progress):
        parts.append(jax.tree.map(lambda leaf, keep=count - start: leaf[:keep], next(done)))
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *p: jnp.concatenate(p), *parts)


@functools.partial(
    jax.jit, static_argnames=("model", "config", "direction", "shared_order", "sharding")
)
def _chunk(
    order_key, keys, weights, used_steps, data, *, model, config, direction, shared_order, sharding
):
    def one(key, weights, used_steps):
        init_key, own_key = jax.random.split(key)
        return _minimize(
            order_key if shared_order else own_key,
            model.init(init_key, data.x[:1]),
            data,
            weights,
            used_steps,
            None,
            loss_fn=cross_entropy(model.apply),
            config=config,
            direction=direction,
            sharding=sharding,
            compact=not shared_order,
        )

    return jax.vmap(one, in_axes=(0, 0, None if used_steps.ndim == 0 else 0))(
        keys, weights, used_steps
    )

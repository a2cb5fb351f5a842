"""One whole training in one jit: a scan over epochs of a scan over batches.

Rows are dropped by weight, not by slicing, so a retraining without some rows has
the shapes of the first training and needs no second compilation. Rows of weight
zero are sorted behind the others in every epoch and the steps that would hold
only such rows are skipped: a retraining costs what its remaining rows cost, and
takes the steps that a training on the smaller set would take.
"""

import functools

import jax
import jax.numpy as jnp
import optax
from jax.experimental.layout import Layout, with_layout_constraint

from jaxunlearn import _progress, _sharding, _validate, tree
from jaxunlearn._platform import platform
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.training.config import TrainConfig, described_direction, learning_rate
from jaxunlearn.types import Array, Dataset, LossFn, Model, Params, PyTree


def fit(
    key: Array,
    model: Model,
    data: Dataset,
    *,
    weights: Array | None = None,
    config: TrainConfig = TrainConfig(),
    direction: optax.GradientTransformation | None = None,
    optimizer: optax.GradientTransformation | None = None,
    mask: PyTree | None = None,
) -> Params:
    """Trains ``model`` from its own initialisation by cross-entropy.

    :func:`minimize` from ``model.init``; the first half of ``key`` draws the
    initial parameters, the second the order of the rows.

    Args:
      key: ``jax.random.key``. The same key and weights give the same parameters.
      model: see :class:`jaxunlearn.Model`.
      data: ``x: float[n, ...]``, ``y: int[n]``.
      weights: ``bool`` or ``float[n]``; rows of weight 0 have no influence at all.
      config: hyper-parameters.
      direction: an optax transformation from the batch gradient to the direction to
        descend along, instead of momentum, weight decay and so on of ``config``; its
        learning rate and schedule still apply. Pass the same object again to reuse
        the compiled training.
      optimizer: the same with its own learning rate included, used as it is.
      mask: 0/1 pytree like the parameters; entries at 0 start at 0 and stay there.

    Returns:
      The parameters after the last step.

    Cost: as :func:`minimize`.

    Raises:
      ValueError: shapes that do not match, labels beyond the model's outputs, NaN
        inputs, all weights zero; both ``direction`` and ``optimizer``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxunlearn import Dataset, TrainConfig, models
      >>> data = Dataset(jnp.array([[-1.0], [1.0]]), jnp.array([0, 1]))
      >>> model = models.logistic(2)
      >>> params = fit(jax.random.key(0), model, data, config=TrainConfig(epochs=20))
      >>> model.apply(params, data.x).argmax(-1).tolist()
      [0, 1]
    """
    data = _sharding.automatic(data)
    check_model(key, model, data)
    return _run(
        _fit,
        key,
        data,
        weights,
        mask,
        model=model,
        config=config,
        direction=direction,
        optimizer=optimizer,
    )


def check_model(key: Array, model: Model, data: Dataset) -> None:
    """Bad rows, or labels beyond the outputs of ``model``, raise ValueError."""
    cross_entropy(model.apply)  # which says so if it cannot be hashed
    one_row = jax.ShapeDtypeStruct((1, *data.x.shape[1:]), data.x.dtype)
    logits = jax.eval_shape(lambda k, x: model.apply(model.init(k, x), x), key, one_row)
    _validate.dataset(data, num_classes=logits.shape[-1])


def minimize(
    key: Array,
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    *,
    weights: Array | None = None,
    config: TrainConfig = TrainConfig(),
    direction: optax.GradientTransformation | None = None,
    optimizer: optax.GradientTransformation | None = None,
    mask: PyTree | None = None,
) -> Params:
    """Minimises the weighted mean of ``loss_fn`` from ``params`` by mini-batches.

    Each step descends along the gradient of ``sum_i w_i loss_i / sum_i w_i`` over its
    batch. Every epoch draws a new order. ``params`` is not modified.

    Args:
      key: ``jax.random.key`` for the order of the rows.
      loss_fn: ``loss_fn(params, example) -> scalar`` for one unbatched row. Pass the
        same function object again to reuse the compiled training.
      params: where to start; dtypes are kept.
      data: rows; a ``Dataset`` sharded over its rows makes every batch so.
      weights: ``bool`` or ``float[n]``; see the module.
      config, direction, optimizer, mask: as in :func:`fit`.

    Cost: ``config.epochs`` times the number of rows of non-zero weight, in sample
    gradients. Memory: parameters, optimizer state and one batch, beside the data.
    Differentiable in ``params``, in the data and, at fixed support, in ``weights``.

    Raises:
      ValueError: as :func:`fit`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxunlearn import Dataset, TrainConfig
      >>> data = Dataset(jnp.array([[1.0], [3.0]]), jnp.array([0, 0]))
      >>> distance = lambda params, row: jnp.sum((params - row.x) ** 2)
      >>> keep_second, config = jnp.array([False, True]), TrainConfig(epochs=200)
      >>> out = minimize(
      ...     jax.random.key(0), distance, jnp.zeros(1), data, weights=keep_second, config=config
      ... )
      >>> bool(jnp.allclose(out, 3.0, atol=0.01))
      True
    """
    data = _sharding.automatic(data)
    _validate.rows(data)
    return _run(
        functools.partial(_minimize, params=params),
        key,
        data,
        weights,
        mask,
        loss_fn=loss_fn,
        config=config,
        direction=direction,
        optimizer=optimizer,
    )


def _run(train, key, data, weights, mask, *, config, direction, optimizer, **static) -> Params:
    """Calls a compiled training with checked weights, and shows its progress."""
    if direction is not None and optimizer is not None:
        raise ValueError(
            "direction and optimizer are both given: optimizer has its own learning rate, "
            "direction takes that of config. Give one of them."
        )
    used_steps = None
    if weights is not None:
        _validate.row_weights(weights, data.y.shape[0])
        weights = _sharding.automatic(_validate.as_weights(weights))
        used_steps = steps_per_epoch(weights, config.batch_size)
    with _progress.showing(config.progress):
        params = train(
            key=key,
            data=data,
            weights=weights,
            used_steps=used_steps,
            mask=mask,
            config=config,
            direction=direction,
            optimizer=optimizer,
            sharding=_sharding.of_rows(data),
            **static,
        )
        if config.progress and all(map(_validate.known, jax.tree.leaves(params))):
            jax.block_until_ready(params)  # keep the bar until the work is done
    return params


def steps_per_epoch(weights: Array, batch_size: int) -> Array:
    """Steps that the rows of non-zero weight fill; ``weights[..., n] -> int[...]``."""
    return -(-jnp.sum(weights > 0, axis=-1) // min(batch_size, weights.shape[-1]))


@functools.partial(
    jax.jit, static_argnames=("model", "config", "direction", "optimizer", "sharding")
)
def _fit(key, data, weights, used_steps, mask, *, model, config, direction, optimizer, sharding):
    # The initial parameters are made in here, so that nothing outside holds their memory.
    init_key, order_key = jax.random.split(key)
    params = model.init(init_key, data.x[:1])
    if mask is not None:
        params = jax.tree.map(jnp.multiply, params, mask)
    return _minimize(
        order_key,
        params,
        data,
        weights,
        used_steps,
        mask,
        loss_fn=cross_entropy(model.apply),
        config=config,
        direction=direction,
        optimizer=optimizer,
        sharding=sharding,
    )


@functools.partial(
    jax.jit,
    static_argnames=("loss_fn", "config", "direction", "optimizer", "sharding", "compact"),
)
def _minimize(
    key,
    params,
    data,
    weights,  # float[n], or None for all rows alike
    used_steps,  # steps that hold any row of non-zero weight
    mask,
    *,
    loss_fn,
    config,
    direction=None,
    optimizer=None,
    sharding=None,
    compact=True,  # False: removed rows keep their places and only count zero
):
    n = data.y.shape[0]
    batch = min(config.batch_size, n)
    steps = -(-n // batch)
    if weights is None:
        weights, compact = jnp.ones(n, jnp.float32), False
    if not compact:
        used_steps = steps
    transform = optimizer or direction or described_direction(config)
    removed = (weights == 0) if compact else None
    kept = jnp.argmax(weights)  # any row that counts

    def masked(update):
        return update if mask is None else jax.tree.map(jnp.multiply, update, mask)

    def weighted_loss(params, rows, w):
        examples = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), data)
        if sharding is not None:
            examples = jax.lax.with_sharding_constraint(examples, sharding)
        params = jax.tree.map(_columns_first, params)
        return jnp.vdot(w, jax.vmap(loss_fn, in_axes=(None, 0))(params, examples))

    def step(carry, rows, present, progress):
        params, opt_state = carry
        w = jnp.take(weights, rows, mode="clip") * present
        if compact:  # rows that count zero are not even read: zero times infinity is NaN
            rows = jnp.where(w > 0, rows, kept)
        w = w / jnp.maximum(jnp.sum(w), jnp.finfo(w.dtype).tiny)
        grads = masked(_in_parts(jax.grad(weighted_loss), params, rows, w, config.microbatch))
        updates, opt_state = transform.update(grads, opt_state, params)
        scale = -learning_rate(config, progress) if optimizer is None else 1.0
        return tree.add_scaled(params, scale, masked(updates)), opt_state

    def epoch(carry, number):
        order = shuffled(jax.random.fold_in(key, number), n, last=removed)
        order = jnp.pad(order, (0, steps * batch - n)).reshape(steps, batch)
        present = (jnp.arange(steps * batch) < n).reshape(steps, batch)

        def body(carry, inputs):
            index, rows, here = inputs
            progress = (number + index / used_steps) / config.epochs
            advance = lambda carry: step(carry, rows, here, progress)
            if not compact:
                return advance(carry), None
            return jax.lax.cond(index < used_steps, advance, lambda carry: carry, carry), None

        carry, _ = jax.lax.scan(body, carry, (jnp.arange(steps), order, present))
        if config.progress:
            jax.debug.callback(_progress.epoch_done, number, config.epochs)
        return carry, None

    carry = (params, transform.init(params))
    (params, _), _ = jax.lax.scan(epoch, carry, jnp.arange(config.epochs))
    return params


def _in_parts(gradient, params, rows, w, part: int | None):
    """The sum of ``gradient(params, rows, w)`` over parts of a batch."""
    batch = rows.shape[0]
    if part is None or part >= batch:
        return gradient(params, rows, w)
    count = -(-batch // part)
    padding = (0, count * part - batch)
    rows, w = jnp.pad(rows, padding, mode="edge"), jnp.pad(w, padding)  # with weight zero

    def add(total, inputs):
        some = gradient(params, *inputs)
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, some), None

    wide = lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32))
    inputs = rows.reshape(count, part), w.reshape(count, part)
    total, _ = jax.lax.scan(add, jax.tree.map(wide, params), inputs)
    return jax.tree.map(lambda t, p: t.astype(p.dtype), total, params)


def _columns_first(kernel: Array) -> Array:
    """The same kernel, its columns one after the other in memory; on a CPU only.

    The products that give its gradient then come out in the order that XLA-CPU has fast
    routines for: a tenth off a training step of the `cnn` (jax 0.10 and 0.12, one core).
    """
    if kernel.ndim < 2 or platform() != "cpu":
        return kernel
    columns = kernel.reshape(-1, kernel.shape[-1]).T
    columns = with_layout_constraint(columns, Layout(major_to_minor=(0, 1)))
    return columns.T.reshape(kernel.shape)


def shuffled(key: Array, n: int, *, last: Array | None = None) -> Array:
    """The numbers 0 to n - 1 in random order, those where ``last: bool[n]`` holds at the end."""
    draw = jax.random.bits(key, (n,), jnp.uint32) >> 1
    if last is not None:
        draw = jnp.where(last, draw | jnp.uint32(2**31), draw)
    if n > 4096:
        return jnp.argsort(draw)
    # XLA-CPU sorts one array much faster than it sorts indices by keys. With few rows
    # the row's number fits into the low bits, which the order hardly depends on.
    low = jnp.uint32(2 ** (n - 1).bit_length() - 1)
    packed = jnp.sort((draw & ~low) | jnp.arange(n, dtype=jnp.uint32))
    return (packed & low).astype(jnp.int32)

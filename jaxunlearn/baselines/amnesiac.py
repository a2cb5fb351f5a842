"""Amnesiac machine learning (Graves et al. 2021): take back the steps that a row had part in."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _validate, tree
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.posthoc import Request, answering
from jaxunlearn.training.config import TrainConfig, described_direction, learning_rate
from jaxunlearn.training.fit import check_model, minimize, shuffled
from jaxunlearn.types import Array, Dataset, Model, Params, State, Status, Unlearner


@dataclasses.dataclass(frozen=True)
class AmnesiacConfig:
    """What is recorded, and how the model recovers.

    Attributes:
      record: keep the change of every step, ``steps`` models in all. Without, a request runs
        the training again and adds the changes up as they come: the same result for the
        memory of one model, at the cost of a training.
      repair_epochs: epochs of training on the remaining rows afterwards.
      learning_rate: of these; that of the training if None.
    """

    record: bool = True
    repair_epochs: int = 1
    learning_rate: float | None = None

    def __post_init__(self):
        _validate.whole(repair_epochs=self.repair_epochs)
        if self.learning_rate is not None:
            _validate.positive(learning_rate=self.learning_rate)


class Memory(NamedTuple):
    """What is needed to take steps back.

    Attributes:
      changes: leaves ``[steps, ...]``, the change of every step; ``()`` if not recorded.
      key: data of the key of the training, which gives its batches.
      taken: ``bool[steps]``, the steps that were taken back already.
    """

    changes: Params
    key: Array
    taken: Array


class Trace(NamedTuple):
    """Result of :func:`traced_fit`.

    Attributes:
      params: after the last step.
      total: the sum of the changes of the chosen steps.
      changes: of all steps, leaves ``[steps, ...]``; ``()`` if not recorded.
    """

    params: Params
    total: Params
    changes: Params


def traced_fit(
    key: Array,
    model: Model,
    data: Dataset,
    *,
    config: TrainConfig = TrainConfig(),
    chosen: Array | None = None,
    record: bool = False,
) -> Trace:
    """:func:`jaxunlearn.fit`, with what its steps changed.

    ``total = sum_b (theta_b+1 - theta_b)`` over the chosen batches b; ``params - total`` is
    the amnesiac model (Graves et al. 2021, Eq. 2).

    Args:
      key: as for ``fit``; the same parameters come out.
      model: what to train.
      data: all rows.
      config: of the training.
      chosen: ``bool[steps]``, steps to add up; none by default.
      record: also return every change.

    Returns:
      :class:`Trace`.

    Cost: that of ``fit``. Memory: with ``record``, ``steps`` models.

    Raises:
      ValueError: as ``fit``.

    Example:
      >>> from jaxunlearn import models
      >>> data = Dataset(jnp.array([[-1.0], [1.0]]), jnp.array([0, 1]))
      >>> config = TrainConfig(epochs=3, batch_size=1)
      >>> key, model = jax.random.key(0), models.logistic(2)
      >>> trace = traced_fit(key, model, data, config=config, record=True)
      >>> jax.tree.map(jnp.shape, trace.changes)["Dense_0"]["bias"]
      (6, 2)
    """
    check_model(key, model, data)
    steps = config.epochs * -(-data.y.shape[0] // min(config.batch_size, data.y.shape[0]))
    if chosen is None:
        chosen = jnp.zeros(steps, bool)
    return _traced(key, data, chosen, model=model, config=config, record=record)


def batches_with(key: Array, rows: Array, *, config: TrainConfig) -> Array:
    """The steps of :func:`traced_fit` whose batch has one of the rows: ``bool[n] -> bool[steps]``.

    Example:
      >>> config = TrainConfig(epochs=2, batch_size=1)
      >>> batches_with(jax.random.key(0), jnp.array([True, False]), config=config).sum().item()
      2
    """
    n = rows.shape[0]
    _, order_key = jax.random.split(key)

    def hits(epoch):
        order, here = _batches(order_key, epoch, n, config)
        return (rows[order] & here).any(1)

    return jax.lax.map(hits, jnp.arange(config.epochs)).reshape(-1)


def _batches(order_key, epoch, n: int, config: TrainConfig):
    """The batches of an epoch as :func:`jaxunlearn.fit` draws them, and which places are rows."""
    batch = min(config.batch_size, n)
    steps = -(-n // batch)
    order = shuffled(jax.random.fold_in(order_key, epoch), n)
    order = jnp.pad(order, (0, steps * batch - n)).reshape(steps, batch)
    return order, (jnp.arange(steps * batch) < n).reshape(steps, batch)


@functools.partial(jax.jit, static_argnames=("model", "config", "record"))
def _traced(key, data, chosen, *, model, config, record) -> Trace:
    n = data.y.shape[0]
    init_key, order_key = jax.random.split(key)
    params = model.init(init_key, data.x[:1])
    transform, loss_fn = described_direction(config), cross_entropy(model.apply)

    def mean_loss(params, rows, here):
        losses = jax.vmap(loss_fn, in_axes=(None, 0))(params, Dataset(data.x[rows], data.y[rows]))
        return jnp.vdot(here / here.sum(), losses)

    def step(carry, inputs):
        params, opt_state, total = carry
        rows, here, progress, add = inputs
        grads = jax.grad(mean_loss)(params, rows, here.astype(jnp.float32))
        updates, opt_state = transform.update(grads, opt_state, params)
        after = tree.add_scaled(params, -learning_rate(config, progress), updates)
        change = jax.tree.map(jnp.subtract, after, params)
        total = jax.tree.map(lambda t, c: jnp.where(add, t + c, t), total, change)
        return (after, opt_state, total), (change if record else ())

    def epoch(carry, inputs):
        number, adds = inputs
        rows, here = _batches(order_key, number, n, config)
        steps = rows.shape[0]
        progress = (number + jnp.arange(steps) / steps) / config.epochs
        return jax.lax.scan(step, carry, (rows, here, progress, adds))

    start = params, transform.init(params), jax.tree.map(jnp.zeros_like, params)
    numbers = jnp.arange(config.epochs), chosen.reshape(config.epochs, -1)
    (params, _, total), changes = jax.lax.scan(epoch, start, numbers)
    changes = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), changes)
    return Trace(params, total, changes)


def unlearner(
    model: Model, train: TrainConfig, config: AmnesiacConfig = AmnesiacConfig()
) -> Unlearner:
    """Amnesiac learning as an unlearner: take back the hit steps, then train a little.

    Guarantee: none. The steps that came after were made from where the removed ones had led,
    and stay. With some hundred random rows nearly every batch is hit, and what is left is
    close to the initial parameters: it is the repair that gives the model.

    Cost: of a request, the repair, and a training if nothing was recorded.
    """
    loss_fn = cross_entropy(model.apply)
    rate = train.learning_rate if config.learning_rate is None else config.learning_rate
    repair = dataclasses.replace(train, epochs=config.repair_epochs, learning_rate=rate)

    def fit_state(key: Array, data: Dataset) -> State:
        trace = traced_fit(key, model, data, config=train, record=config.record)
        n = data.y.shape[0]
        steps = train.epochs * -(-n // min(train.batch_size, n))
        return State(
            params=trace.params,
            removed=jnp.zeros(n, bool),
            memory=Memory(trace.changes, jax.random.key_data(key), jnp.zeros(steps, bool)),
            grads=jnp.float32(train.epochs * n),
            status=_status(trace.params),
            certificate=(),
        )

    def answer(key: Array, state: State, data: Dataset, request: Request) -> State:
        changes, key_data, taken = state.memory
        first_key = jax.random.wrap_key_data(key_data)
        hit = batches_with(first_key, request.forget, config=train) & ~taken
        if config.record:
            weigh = lambda leaf: jnp.tensordot(hit.astype(leaf.dtype), leaf, axes=1)
            total = jax.tree.map(weigh, changes)
        else:
            total = traced_fit(first_key, model, data, config=train, chosen=hit).total
        params = tree.add_scaled(state.params, -1.0, total)
        params = minimize(key, loss_fn, params, data, weights=request.retain, config=repair)
        again = 0 if config.record else train.epochs * data.y.shape[0]
        grads = config.repair_epochs * request.retain.sum() + again
        memory = Memory(changes, key_data, taken | hit)
        return state._replace(
            params=params,
            memory=memory,
            grads=grads.astype(jnp.float32),
            status=_status(params),
        )

    def predict(state: State, x: Array) -> Array:
        return model.apply(state.params, x)

    return Unlearner(fit_state, answering(model.apply, answer), predict)


def _status(params) -> Array:
    return jnp.where(tree.all_finite(params), Status.OK, Status.NOT_FINITE).astype(jnp.int32)

"""From an update of trained parameters to an :class:`Unlearner`.

Most methods change a model that was trained in the ordinary way. They all need
the same frame: train, answer only for rows not removed before, remember who was
removed, and change nothing when nobody new is. It is written once, here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _sharding, _validate, tree
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import fit
from jaxunlearn.training.pruned import PruningConfig, fit_pruned
from jaxunlearn.types import (
    ApplyFn,
    Array,
    Dataset,
    Model,
    Params,
    PyTree,
    State,
    Status,
    Unlearner,
)


class Update(NamedTuple):
    """What an update returns: parameters, sample gradients spent, and a :class:`Status`."""

    params: Params
    grads: Array | float
    status: Array | int = Status.OK


class Request(NamedTuple):
    """What an update is asked: the rows to forget now, and the rows that remain after."""

    forget: Array
    retain: Array


AnswerFn = Callable[[Array, State, Dataset, Request], State]
UpdateFn = Callable[[Array, Params, Dataset, Request, PyTree | None], Update]


def posthoc(
    model: Model,
    train: TrainConfig,
    update: UpdateFn,
    *,
    prune: PruningConfig | None = None,
    fit_params: Callable[[Array, Dataset], Params] | None = None,
    passes: float | None = None,
    remember: Callable[[Array, Dataset], PyTree] | None = None,
) -> Unlearner:
    """An unlearner that trains ``model`` in the ordinary way and answers with ``update``.

    Args:
      model: what to train.
      train: how to train it.
      update: ``update(key, params, data, request, mask) -> Update``. ``mask`` is the
        pruning mask to stay within, what ``remember`` gave, or None.
      prune: train a pruned network and keep its mask ("X + pruning").
      fit_params: ``fit_params(key, data) -> params``, to train in another way than the ordinary
        one.
      passes: over the data that ``fit_params`` makes; ``train.epochs`` if None.
      remember: ``remember(key, data) -> memory``, with the key of ``fit``: what ``update`` needs
        beside the parameters. Not together with ``prune``.

    Returns:
      An :class:`Unlearner`. Empty and repeated requests return the state unchanged,
      bit for bit; a result that is not finite has the status ``NOT_FINITE``.

    Example:
      >>> from jaxunlearn import models
      >>> shrink = lambda key, params, data, request, mask: Update(
      ...     jax.tree.map(lambda p: 0.5 * p, params), grads=0.0
      ... )
      >>> unlearner = posthoc(models.logistic(2), TrainConfig(epochs=1), shrink)
      >>> data = Dataset(jnp.array([[-1.0], [1.0]]), jnp.array([0, 1]))
      >>> state = unlearner.fit(jax.random.key(0), data)
      >>> forget = jnp.array([True, False])
      >>> unlearner.unlearn(jax.random.key(1), state, data, forget).removed.tolist()
      [True, False]
    """

    def fit_state(key: Array, data: Dataset) -> State:
        n = data.y.shape[0]
        if fit_params is not None:
            epochs = train.epochs if passes is None else passes
            params, memory = fit_params(key, data), ()
        elif prune is None:
            params, memory, epochs = fit(key, model, data, config=train), (), train.epochs
            memory = memory if remember is None else remember(key, data)
        else:
            params, memory, epochs = fit_pruned(key, model, data, train=train, config=prune)
        return State(
            params=params,
            removed=jnp.zeros(n, bool),
            memory=memory,
            grads=jnp.float32(epochs * n),
            status=_status(params, Status.OK),
            certificate=(),
        )

    def answer(key: Array, state: State, data: Dataset, request: Request) -> State:
        mask = None if prune is None and remember is None else state.memory
        params, grads, status = update(key, state.params, data, request, mask)
        return state._replace(
            params=params, grads=jnp.asarray(grads, jnp.float32), status=_status(params, status)
        )

    def predict(state: State, x: Array) -> Array:
        return model.apply(state.params, x)

    return Unlearner(fit_state, answering(model.apply, answer), predict)


def answering(apply_fn: ApplyFn, answer: AnswerFn) -> Callable[..., State]:
    """The frame of every ``unlearn``: what is checked, and when there is nothing to do.

    Args:
      apply_fn: says how many classes there are, ``apply_fn(state.params, x)``.
      answer: ``answer(key, state, data, request) -> State``; only asked if a row is new, and
        does not have to set ``removed``.

    Returns:
      ``unlearn(key, state, data, forget) -> State``, which leaves the state as it was, bit
      for bit, where nobody new asks to be forgotten.

    Raises:
      ValueError: from ``unlearn``: bad rows or labels, a mask that does not fit or that
        leaves nothing.

    Example:
      >>> from jaxunlearn import models
      >>> unlearn = answering(models.logistic(2).apply, lambda key, state, data, request: state)
    """

    def unlearn(key: Array, state: State, data: Dataset, forget: Array) -> State:
        data = _sharding.automatic(data)
        one_row = jax.ShapeDtypeStruct((1, *data.x.shape[1:]), data.x.dtype)
        logits = jax.eval_shape(apply_fn, state.params, one_row)
        _validate.dataset(data, num_classes=logits.shape[-1])
        _validate.forget_mask(forget, data.y.shape[0], removed=state.removed)
        removed = state.removed | forget
        request = Request(forget=forget & ~state.removed, retain=~removed)

        def answered() -> State:
            return answer(key, state, data, request)._replace(removed=removed)

        asked = request.forget.any()
        if _validate.known(asked):
            return answered() if asked else state
        return jax.lax.cond(asked, answered, lambda: state)

    return unlearn


def _status(params: Params, status) -> Array:
    return jnp.where(tree.all_finite(params), jnp.int32(status), jnp.int32(Status.NOT_FINITE))

"""The few types that everything shares: data, model, method, state, status.

All of them are plain pytrees or pairs of functions, so they go through
``jax.jit``, ``jax.vmap``, ``jax.grad`` and a checkpoint without adapters.
"""

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any
Params = PyTree
# loss_fn(params, example) -> scalar, for ONE unbatched example.
LossFn = Callable[[Params, "Dataset"], Array]
# apply_fn(params, x[B, ...]) -> logits[B, C]
ApplyFn = Callable[[Params, Array], Array]


class Dataset(NamedTuple):
    """Rows of inputs and labels.

    Attributes:
      x: ``float[n, ...]``, one row an example. Images are ``[n, height, width,
        channels]`` in [0, 1].
      y: ``int[n]`` class labels in ``[0, num_classes)``.

    A single unbatched row, as a ``loss_fn`` receives it, is a ``Dataset`` too:
    ``jax.vmap`` over a ``Dataset`` maps over its rows.

    Example:
      >>> import jax.numpy as jnp
      >>> data = Dataset(jnp.zeros((4, 2)), jnp.array([0, 1, 1, 0]))
      >>> data.x.shape, data.y.shape
      ((4, 2), (4,))
    """

    x: Array
    y: Array


class Model(NamedTuple):
    """A classifier as a pair of pure functions, whatever library made it.

    Attributes:
      init: ``init(key, x) -> params``; ``x[B, ...]`` only gives the shape and dtype.
      apply: ``apply(params, x[B, ...]) -> logits[B, C]``, no randomness and no
        batch statistics: the logits of a row depend on that row alone.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> linear = Model(
      ...     init=lambda key, x: jnp.zeros((x.shape[-1], 3)),
      ...     apply=lambda params, x: x @ params,
      ... )
      >>> linear.apply(linear.init(jax.random.key(0), jnp.ones((1, 2))), jnp.ones((5, 2))).shape
      (5, 3)
    """

    init: Callable[[Array, Array], Params]
    apply: ApplyFn


class Status(enum.IntEnum):
    """What a method found out about its own result, as an ``int32`` in the state.

    Example:
      >>> import jax.numpy as jnp
      >>> Status(int(jnp.int32(1))).name
      'NOT_FINITE'
    """

    OK = 0
    # The result holds NaN or infinity.
    NOT_FINITE = 1
    # An iterative solve stopped before its tolerance.
    NOT_CONVERGED = 2
    # The request is larger than what the method certified; the result is what it would be.
    BEYOND_CERTIFICATE = 3
    # A matrix that must be positive definite is not: the step may point anywhere.
    INDEFINITE = 4
    # A rule selected no rows, so nothing was learned from that group.
    EMPTY_SELECTION = 5


class State(NamedTuple):
    """What an unlearner knows: the model, who was removed, and what it remembers.

    Attributes:
      params: the model's parameters, any pytree.
      removed: ``bool[n]``, every row that was asked to be forgotten so far.
      memory: what this method recorded in ``fit`` to answer requests (a mask, a
        gradient sum, checkpoints); ``()`` for methods that need only ``params``.
      grads: ``float32`` scalar, the sample gradients spent by ``fit``, or since then
        by the last request that removed a row (one backward pass over one row is 1,
        one forward pass 1/3): a measure of cost that no machine changes.
      status: ``int32`` scalar, a :class:`Status`.
      certificate: what is guaranteed about the result, as data; ``()`` if nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> state = State(jnp.ones(2), jnp.zeros(3, bool), (), jnp.float32(0), jnp.int32(0), ())
      >>> jax.tree.map(jnp.shape, state).removed
      (3,)
    """

    params: Params
    removed: Array
    memory: PyTree
    grads: Array
    status: Array
    certificate: PyTree


class Unlearner(NamedTuple):
    """An unlearning method as three pure functions.

    Attributes:
      fit: ``fit(key, data) -> state`` trains, and records what ``unlearn`` needs.
      unlearn: ``unlearn(key, state, data, forget) -> state`` with ``forget:
        bool[n]``, True for the rows to remove. ``data`` is always the data given
        to ``fit``, so shapes never change; requests accumulate in
        ``state.removed``, and rows already removed are ignored.
      predict: ``predict(state, x[B, ...]) -> logits[B, C]``.

    All three can be jitted, vmapped over keys and states, and differentiated.

    Example:
      >>> import jax.numpy as jnp
      >>> def fit(key, data):  # a model that is the mean of its rows
      ...     nobody = jnp.zeros(data.y.shape, bool)
      ...     return State(data.x.mean(0), nobody, (), jnp.float32(0), jnp.int32(0), ())
      >>> def unlearn(key, state, data, forget):
      ...     removed = state.removed | forget
      ...     mean = data.x.mean(0, where=~removed[:, None])
      ...     return state._replace(params=mean, removed=removed)
      >>> mean = Unlearner(fit, unlearn, predict=lambda state, x: x - state.params[None])
      >>> data = Dataset(jnp.array([[1.0], [3.0], [8.0]]), jnp.zeros(3, int))
      >>> key, forget = jax.random.key(0), jnp.array([False, False, True])
      >>> mean.unlearn(key, mean.fit(key, data), data, forget).params.tolist()
      [2.0]
    """

    fit: Callable[[Array, Dataset], State]
    unlearn: Callable[[Array, State, Dataset, Array], State]
    predict: Callable[[State, Array], Array]

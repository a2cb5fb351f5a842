"""MUter, and the methods that it is compared with, as unlearners of any model's last layer.

As in the paper's second setting: the layers below are frozen and the last one is trained
adversarially, with the attack on the inputs of the whole network. The frozen layers come from
``model.init``: pass a model whose ``init`` returns pretrained parameters. For a linear model the
last layer is all there is.
"""

import dataclasses
import functools
import re
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxunlearn import _sharding, _validate, tree
from jaxunlearn.methods.muter.remaining import refresh
from jaxunlearn.methods.muter.stages import LOST_CLASS, RULES, Memory, prepare, remove
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.primitives.adversarial import PGDConfig, pgd
from jaxunlearn.primitives.balls import Ball, L2Ball
from jaxunlearn.primitives.last_layer import LastLayer, is_dense
from jaxunlearn.primitives.solve import CG, Cholesky
from jaxunlearn.training.adversarial import Trained, adversarial_newton
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import check_model
from jaxunlearn.types import Array, Dataset, LossFn, Model, Params, State, Status, Unlearner


@dataclasses.dataclass(frozen=True)
class MuterConfig:
    """Adversarial training of a last layer, and the step that unlearns from it.

    Attributes:
      ball: of the perturbations.
      l2: regularisation of a row, ``l2 / 2 |last layer|^2``, > 0: without it separable rows have
        no optimum.
      head: the top-level name of what is trained in the parameters; None for the last of them
        in natural order (``Dense_10`` after ``Dense_9``), or everything if they have no names.
      attack: the search for the inner maxima before training; ``refine`` adds Newton steps.
      newton_steps: of the training, at most.
      tolerance: of its mean gradient.
      solver: of the unlearning step; None for Cholesky up to ``dense_limit`` parameters and CG
        above.
      dense_limit: the largest number of parameters for which the matrix is kept.
      terms: of the Neumann series in the paper's mode.
      refresh: Newton steps on the remaining rows afterwards, which the paper's method has not.
      noise: standard deviation of Gaussian noise added to the last layer.
    """

    ball: Ball = L2Ball(0.3)
    l2: float = 1e-2
    head: str | None = None
    attack: PGDConfig = PGDConfig(steps=10, refine=3)
    newton_steps: int = 30
    tolerance: float = 1e-8
    solver: CG | Cholesky | None = None
    dense_limit: int = 4000
    terms: int = 3
    refresh: int = 0
    noise: float = 0.0

    def __post_init__(self):
        _validate.positive(l2=self.l2, tolerance=self.tolerance)
        _validate.whole(newton_steps=self.newton_steps, terms=self.terms)
        _validate.whole(0, dense_limit=self.dense_limit, refresh=self.refresh)
        _validate.not_negative(noise=self.noise)


def unlearner(
    model: Model,
    train: TrainConfig,
    config: MuterConfig = MuterConfig(),
    *,
    method: str = "muter",
) -> Unlearner:
    """MUter as an unlearner; ``state.memory`` is a :class:`~jaxunlearn.methods.muter.Memory`.

    ``fit`` takes ``model.init``, trains its last layer adversarially by Newton's method to
    ``config.tolerance`` and prepares the memory. ``unlearn`` takes the step of
    :func:`~jaxunlearn.methods.muter.remove` from the original parameters.

    Guarantee: none. The step is of second order accurate where the inner maxima are strict: a
    smooth network and a small L2 radius. For ReLU networks, large radii and boxes see
    ``docs/papers/muter.md``; ``state.memory.diagnostics`` says how many rows fell back to the
    direct Hessian.

    Args:
      model: its ``init`` returns the frozen layers, pretrained on other data.
      train: only its ``epochs`` count, as those of the other methods: ``state.grads``.
      config: settings.
      method: a name in ``RULES``.

    Returns:
      An :class:`~jaxunlearn.Unlearner`. ``status`` is NOT_CONVERGED if the training or the solve
      stopped early, INDEFINITE if the matrix is not positive definite.

    Cost: ``fit`` takes some ``20 newton_steps`` input gradients a row and as many matrices as
    Newton steps; see :func:`~jaxunlearn.methods.muter.remove` for requests.

    Raises:
      ValueError: an unknown method, ``refresh`` for one that has no matrix for it, or ``head``
        that names no part of the parameters.

    Example:
      >>> from jaxunlearn import models
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [0.8]]), jnp.array([0, 1, 1]))
      >>> muters = unlearner(models.logistic(2), TrainConfig(), MuterConfig(tolerance=1e-5))
      >>> state = muters.fit(jax.random.key(0), data)
      >>> forget = jnp.array([False, False, True])
      >>> after = muters.unlearn(jax.random.key(1), state, data, forget)
      >>> int(after.status), int(after.memory.diagnostics.fallback)
      (0, 0)
    """
    _validate.one_of(RULES, method=method)
    if config.refresh and RULES[method].mode != "kkt":
        raise ValueError(
            f"refresh={config.refresh} takes Newton steps with MUter's matrix, which "
            f"method={method!r} has not: give refresh=0."
        )
    fixed = {"model": model, "config": config, "method": method}

    def fit(key: Array, data: Dataset) -> State:
        data = _sharding.automatic(data)
        check_model(key, model, data)
        found, params = _trained(key, data, model=model, config=config)
        state = _prepared(found, params, data, **fixed)
        if _validate.known(state.status) and state.status == Status.NOT_CONVERGED:
            warnings.warn(
                f"adversarial training stopped at a mean gradient of {float(found.gradient):.2g}, "
                f"above tolerance={config.tolerance:.2g}: the step assumes an optimum. Kinks of "
                "ReLU, a box or a large radius do this; see newton_steps, ball and l2.",
                stacklevel=2,
            )
        figures = state.memory.diagnostics
        if _validate.known(figures.fallback) and figures.fallback:
            warnings.warn(
                f"{int(figures.fallback)} of {data.y.shape[0]} rows have no strict inner maximum "
                f"(largest residual {float(figures.inner_residual):.2g}, smallest curvature "
                f"{float(figures.inner_curvature):.2g}): they count with their direct Hessian. "
                "With more than a few, retrain instead.",
                stacklevel=2,
            )
        return state

    def unlearn(key: Array, state: State, data: Dataset, forget: Array) -> State:
        data = _sharding.automatic(data)
        one_row = jax.ShapeDtypeStruct((1, *data.x.shape[1:]), data.x.dtype)
        logits = jax.eval_shape(model.apply, state.params, one_row)
        _validate.dataset(data, num_classes=logits.shape[-1])
        _validate.forget_mask(forget, data.y.shape[0], removed=state.removed)
        asked = (forget & ~state.removed).any()
        if _validate.known(asked):
            if not asked:
                return state
            state = _unlearn(key, state, data, forget, **fixed)
            if state.memory.diagnostics.lost_class:
                warnings.warn(LOST_CLASS, stacklevel=2)
            return state
        answer = functools.partial(_unlearn, key, state, data, forget, **fixed)
        return jax.lax.cond(asked, answer, lambda: state)

    def predict(state: State, x: Array) -> Array:
        return model.apply(state.params, x)

    return Unlearner(fit, unlearn, predict)


def adopt(
    model: Model, config: MuterConfig, *, method: str = "muter"
) -> Callable[[State, Dataset], State]:
    """From MUter's trained state that of another method: the same model, another matrix.

    Args:
      model, config, method: as for :func:`unlearner`.

    Returns:
      ``adopted(state, data)`` with ``state`` from the ``fit`` of ``method="muter"`` on the same
      rows: what the ``fit`` of ``method`` would have left after the same training.

    Cost: one matrix, no training.

    Example:
      >>> from jaxunlearn import models
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [0.8]]), jnp.array([0, 1, 1]))
      >>> model, config = models.logistic(2), MuterConfig(tolerance=1e-5)
      >>> state = unlearner(model, TrainConfig(), config).fit(jax.random.key(0), data)
      >>> newton = adopt(model, config, method="muter_newton")(state, data)
      >>> bool((newton.memory.matrix == state.memory.matrix).all())
      False
    """
    _validate.one_of(RULES, method=method)

    def adopted(state: State, data: Dataset) -> State:
        data = _sharding.automatic(data)
        given = state.memory.params, state.memory.delta, state.params, data
        memory = _remembered(*given, model=model, config=config, method=method)
        return state._replace(memory=memory)

    return adopted


@functools.partial(jax.jit, static_argnames=("model", "config"))
def _trained(key, data, *, model, config) -> tuple[Trained, Params]:
    """The same for all methods, so that it is compiled once for all."""
    init_key, attack_key = jax.random.split(key)
    params = model.init(init_key, data.x[:1])
    head, _, loss_fn = _last_layer(model, config, params, data)
    wide = _wide(data)
    inner = pgd(attack_key, loss_fn, head, wide, ball=config.ball, config=config.attack)
    how = {"tolerance": config.tolerance, "steps": config.newton_steps}
    how |= {"ball": config.ball, "dense": _dense(config, head)}
    return adversarial_newton(loss_fn, head, wide, inner.delta, **how), params


@functools.partial(jax.jit, static_argnames=("model", "config", "method"))
def _prepared(found, params, data, *, model, config, method) -> State:
    _, join, _ = _last_layer(model, config, params, data)
    n = data.y.shape[0]
    given, fixed = (found.params, found.inner.delta), {"model": model, "config": config}
    status = jnp.where(found.converged, Status.OK, Status.NOT_CONVERGED)
    attack = config.attack.restarts * (config.attack.steps + 1)
    return State(
        params=join(found.params),
        removed=jnp.zeros(n, bool),
        memory=_remembered(*given, params, data, **fixed, method=method),
        # Counted as backward passes: the attack, and what a Newton step takes at least.
        grads=jnp.float32(n) * (attack + 20 * found.steps.astype(jnp.float32) + 1),
        status=_finite(found.params, status),
        certificate=(),
    )


@functools.partial(jax.jit, static_argnames=("model", "config", "method"))
def _remembered(head, delta, params, data, *, model, config, method) -> Memory:
    _, _, loss_fn = _last_layer(model, config, params, data)
    how = {"ball": config.ball, "terms": config.terms, "tolerance": config.tolerance}
    how |= {"rule": RULES[method], "dense": _dense(config, head)}
    return prepare(loss_fn, head, _wide(data), delta, **how)


@functools.partial(jax.jit, static_argnames=("model", "config", "method"))
def _unlearn(key, state, data, forget, *, model, config, method) -> State:
    head, join, loss_fn = _last_layer(model, config, state.params, data)
    wide, n = _wide(data), data.y.shape[0]
    how = {"ball": config.ball, "solver": _solver(config, head)}
    rule = RULES[method]
    given = loss_fn, state.memory, wide, forget
    head, memory = remove(*given, rule=rule, terms=config.terms, **how)
    spent = jnp.sum(forget & ~state.removed).astype(jnp.float32)
    if isinstance(memory.matrix, tuple):
        spent = spent + 4 * n * memory.diagnostics.iterations.astype(jnp.float32)
    if config.refresh:
        head = refresh(loss_fn, head, memory, wide, steps=config.refresh, **how)
        spent = spent + 20 * n * config.refresh
    if config.noise:
        leaves, structure = jax.tree.flatten(head)
        keys = jax.random.split(key, len(leaves))
        draw = lambda k, leaf: config.noise * jax.random.normal(k, leaf.shape, leaf.dtype)
        noise = jax.tree.unflatten(structure, list(map(draw, keys, leaves)))
        head = tree.add_scaled(head, 1, noise)
    return state._replace(
        params=join(head),
        removed=state.removed | forget,
        memory=memory,
        grads=spent,
        status=_finite(head, memory.status),
    )


def _last_layer(
    model: Model, config: MuterConfig, params: Params, data: Dataset
) -> tuple[Any, Callable, LossFn]:
    """The part that is trained, widened to float32; how to put it back; its loss."""
    name = config.head
    if isinstance(params, dict):
        name = name or max(params, key=_natural)
        if name not in params:
            raise ValueError(f"head={name!r} is not in the parameters: {', '.join(params)}.")
    elif name is not None:
        raise ValueError(f"head={name!r} names a part, but the parameters have no names.")
    head = params if name is None else params[name]
    frozen = jax.tree.map(_widened, params)
    whole = lambda h: h if name is None else {**frozen, name: h}
    join = lambda h: _like(h, head) if name is None else {**params, name: _like(h, head)}
    plain = cross_entropy(model.apply)

    def general(h, row):
        squares = [jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(h)]
        return plain(whole(h), row) + config.l2 / 2 * sum(squares)

    loss_fn: LossFn = general
    if name is not None and is_dense(head):
        leaves, structure = jax.tree.flatten(frozen)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        if _ends_dense(model.apply, name, structure, shapes, data.x.shape[1:]):
            features = functools.partial(_features, model.apply, name, frozen)
            loss_fn = LastLayer(features, config.l2)
    return jax.tree.map(_widened, head), join, loss_fn


def _features(apply, name: str, params: Params, x: Array) -> Array:
    """What a dense last layer sees of one row: the derivative of a logit in its own weights."""
    head = params[name]
    logit = lambda kernel: apply({**params, name: {**head, "kernel": kernel}}, x[None])[0, 0]
    return jax.grad(logit)(head["kernel"])[:, 0]


@functools.lru_cache
def _ends_dense(apply, name: str, structure, shapes: tuple, row: tuple[int, ...]) -> bool:
    """Whether the logits are ``W^T h(x) + b``, tried out at random parameters."""
    with jax.ensure_compile_time_eval():
        keys = jax.random.split(jax.random.key(0), len(shapes) + 1)
        draw = lambda key, like: jax.random.normal(key, like[0], like[1]) / 2
        params = jax.tree.unflatten(structure, map(draw, keys[1:], shapes))
        x = jax.random.uniform(keys[0], (4, *row))
        h = jnp.stack([_features(apply, name, params, one) for one in x])
        head = params[name]
        bias = head.get("bias", jnp.zeros(head["kernel"].shape[1]))
        found, logits = h @ head["kernel"] + bias[None], apply(params, x)
        return bool(jnp.allclose(found, logits, rtol=1e-3, atol=1e-3 * jnp.abs(logits).max()))


def _natural(name: str) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _widened(leaf: Array) -> Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _wide(data: Dataset) -> Dataset:
    return data._replace(x=_widened(data.x))


def _like(values: Params, original: Params) -> Params:
    return jax.tree.map(lambda v, o: v.astype(o.dtype), values, original)


def _dense(config: MuterConfig, head: Params) -> bool:
    return tree.size(head) <= config.dense_limit


def _solver(config: MuterConfig, head: Params) -> CG | Cholesky:
    if config.solver is not None:
        return config.solver
    return Cholesky() if _dense(config, head) else CG()


def _finite(params: Params, status: Array) -> Array:
    return jnp.where(tree.all_finite(params), status, Status.NOT_FINITE).astype(jnp.int32)

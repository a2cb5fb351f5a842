"""Influence unlearning (IU): one Newton-like step away from the rows to forget.

Removing m of n rows moves the optimum by ``F^-1 (m / n) (mean gradient of the
forgotten rows - mean gradient of the remaining rows)``, with F the curvature of the
remaining loss. Both functions take the empirical Fisher matrix for F:
:func:`influence` exactly, on a sample of rows, by Woodbury's identity;
:func:`influence_woodfisher` by the recursion in the official code of the
sparse-unlearning papers, which is no inverse (see there).
"""

import dataclasses
import functools

import jax
import jax.flatten_util
import jax.numpy as jnp

from jaxunlearn import _sharding, _validate, tree
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.posthoc import Update, posthoc
from jaxunlearn.primitives.gradients import gradient_sum, per_sample_gradients
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.pruned import PruningConfig
from jaxunlearn.types import Array, Dataset, LossFn, Model, Params, PyTree, Status, Unlearner

# Rows whose activations are held at once.
CHUNK = 64
# Bytes that the sampled gradients may take by default.
SAMPLE_BYTES = 2**29


@dataclasses.dataclass(frozen=True)
class InfluenceConfig:
    """The step of :func:`influence`.

    Attributes:
      damping: added to the Fisher matrix, > 0. Networks that memorised their rows
        have a nearly singular one, and no damping suits all of them.
      scale: length of the step; 1 is the Newton step.
      samples: rows in the Fisher matrix; None for 1000, or as many as fit in 512 MiB.
    """

    damping: float = 0.03
    scale: float = 1.0
    samples: int | None = None

    def __post_init__(self):
        _validate.positive(damping=self.damping, scale=self.scale)
        if self.samples is not None:
            _validate.whole(samples=self.samples)


@dataclasses.dataclass(frozen=True)
class WoodFisherConfig:
    """The step of :func:`influence_woodfisher`.

    Attributes:
      scale: length of the step; 0.2 is the official parser's default, ConMU searches [1, 20].
      terms: rows in the recursion, and the constant N in it (1000, hard-coded there).
    """

    scale: float = 0.2
    terms: int = 1000

    def __post_init__(self):
        _validate.positive(scale=self.scale)
        _validate.whole(terms=self.terms)


def influence(
    key: Array,
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    forget: Array,
    *,
    retain: Array | None = None,
    config: InfluenceConfig = InfluenceConfig(),
    mask: PyTree | None = None,
) -> Params:
    """Adds ``scale * (damping I + G^T G / M)^-1 v`` to the parameters.

    ``v = (m/n) (mean gradient of forget - mean gradient of retain)`` and the rows of
    ``G [M, P]`` are gradients of M retained rows: Fisher's matrix for the Hessian in
    Koh and Liang (2017), Eq. 2. By Woodbury the system is M by M:
    ``(1/d) [v - G^T (d M I + G G^T)^-1 G v]`` with d the damping.

    Guarantee: none beyond convex losses, where the error is of second order in m/n
    when Fisher equals the Hessian. The result is only as good as the damping: too
    little makes a huge step, too much makes none.

    Args:
      key: ``jax.random.key``: which retained rows enter the Fisher matrix.
      loss_fn: ``loss_fn(params, example) -> scalar`` for one unbatched row.
      params: the trained parameters; not modified.
      data: all rows.
      forget: ``bool[n]``, True for the rows to forget, at least one.
      retain: ``bool[n]``, rows still in training; ``~forget`` by default.
      config: damping, scale and number of rows.
      mask: pruning mask to stay within.

    Returns:
      The new parameters.

    Cost: n + M sample gradients and an M by M Cholesky factorisation. Memory: twice M P
    floats. Differentiable in ``params`` and the data.

    Raises:
      ValueError: a mask of another length or dtype, or one that forgets no rows or all.

    Example:
      >>> data = Dataset(jnp.array([[1.0], [1.0], [5.0]]), jnp.array([0, 0, 0]))
      >>> loss_fn = lambda params, row: 0.5 * jnp.sum((params - row.x) ** 2)
      >>> at_optimum = jnp.array([7.0 / 3])
      >>> forget = jnp.array([False, False, True])
      >>> params = influence(jax.random.key(0), loss_fn, at_optimum, data, forget)
      >>> bool(params[0] < at_optimum[0])  # away from 5, towards 1
      True
    """
    data, retain = _checked(data, forget, retain)
    return _influence(key, loss_fn, params, data, forget, retain, config, mask).params


def _influence(key, loss_fn, params, data, forget, retain, config, mask) -> Update:
    affordable = max(1, SAMPLE_BYTES // (8 * max(1, tree.size(params))))
    samples = min(1000, affordable) if config.samples is None else config.samples
    count = min(data.y.shape[0], samples)
    given = key, params, data, forget, retain, config.damping, config.scale, mask
    return _influence_step(*given, loss_fn=loss_fn, count=count)


@functools.partial(jax.jit, static_argnames=("loss_fn", "count"))
def _influence_step(
    key, params, data, forget, retain, damping, scale, mask, *, loss_fn, count
) -> Update:
    n = data.y.shape[0]
    v, unravel = jax.flatten_util.ravel_pytree(
        _direction(loss_fn, params, data, forget, retain, mask)
    )
    # A random sample of the retained rows; with fewer than `count` of them, the rest is zeroed.
    rows = jnp.argsort(jnp.where(retain, jax.random.uniform(key, (n,)), 2.0))[:count]
    used = retain[rows].astype(v.dtype)
    sample = Dataset(data.x[rows], data.y[rows])
    grads = per_sample_gradients(loss_fn, params, sample, chunk=CHUNK)
    if mask is not None:
        grads = jax.tree.map(lambda g, m: g * m[None], grads, mask)
    g = jnp.concatenate([leaf.reshape(count, -1) for leaf in jax.tree.leaves(grads)], axis=1)
    g = g.astype(v.dtype) * used[:, None]

    matmul = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    kept = used.sum()
    system = matmul(g, g.T) + damping * kept * jnp.eye(count, dtype=v.dtype)
    factor = jax.scipy.linalg.cho_factor(system)

    def solve(r: Array) -> Array:
        return (r - matmul(g.T, jax.scipy.linalg.cho_solve(factor, matmul(g, r)))) / damping

    def residual(x: Array) -> Array:
        return v - damping * x - matmul(g.T, matmul(g, x)) / kept

    # With little damping the identity subtracts nearly equal vectors: refine its result.
    step = solve(v)
    for _ in range(2):
        step = step + solve(residual(step))
    solved = jnp.linalg.norm(residual(step)) <= 1e-2 * jnp.linalg.norm(v)
    params = tree.add_scaled(params, scale, unravel(step))
    status = jnp.where(solved, Status.OK, Status.NOT_CONVERGED)
    return Update(params, grads=jnp.float32(n + count), status=status)


def influence_woodfisher(
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    forget: Array,
    *,
    retain: Array | None = None,
    config: WoodFisherConfig = WoodFisherConfig(),
    mask: PyTree | None = None,
) -> Params:
    """The influence step as the official code computes it (Unlearn-Sparse, "Wfisher").

    ``k = v, o = g_1``; then for single-row gradients g: ``t = o . g``,
    ``k -= (k . g) / (N + t) o`` and ``o -= t / (N + t) o``.

    Guarantee: none. ``o`` is only ever rescaled, so ``k - v`` stays parallel to the
    first row's gradient: the recursion applies no inverse curvature, and the step is
    nearly ``scale * v``, plain first order. Kept because published tables used it; the
    function that does what was meant is :func:`influence`.

    Args:
      loss_fn: ``loss_fn(params, example) -> scalar`` for one unbatched row.
      params: the trained parameters; not modified.
      data: all rows; the first ``terms + 1`` retained ones, in stored order, enter.
      forget: ``bool[n]``, True for the rows to forget, at least one.
      retain: ``bool[n]``, rows still in training; ``~forget`` by default.
      config: scale and number of rows.
      mask: pruning mask to stay within.

    Returns:
      The new parameters.

    Cost: n + terms sample gradients, the latter one after the other.

    Raises:
      ValueError: a mask of another length or dtype, or one that forgets no rows or all.

    Example:
      >>> data = Dataset(jnp.array([[1.0], [1.0], [5.0]]), jnp.array([0, 0, 0]))
      >>> loss_fn = lambda params, row: 0.5 * jnp.sum((params - row.x) ** 2)
      >>> forget = jnp.array([False, False, True])
      >>> params = influence_woodfisher(loss_fn, jnp.array([7.0 / 3]), data, forget)
      >>> bool(params[0] < 7.0 / 3)
      True
    """
    data, retain = _checked(data, forget, retain)
    given = params, data, forget, retain, config.scale, mask
    return _woodfisher(*given, loss_fn=loss_fn, terms=config.terms)


@functools.partial(jax.jit, static_argnames=("loss_fn", "terms"))
def _woodfisher(params, data, forget, retain, scale, mask, *, loss_fn, terms) -> Params:
    n = data.y.shape[0]
    direction = _direction(loss_fn, params, data, forget, retain, mask)
    v, unravel = jax.flatten_util.ravel_pytree(direction)
    count = min(terms + 1, n)
    rows = jnp.argsort(~retain, stable=True)[:count]

    def gradient(row) -> Array:
        example = Dataset(data.x[row], data.y[row])
        grads = jax.grad(loss_fn)(params, example)
        if mask is not None:
            grads = jax.tree.map(jnp.multiply, grads, mask)
        return jax.flatten_util.ravel_pytree(grads)[0].astype(v.dtype)

    def term(carry, row):
        k, o = carry
        g = gradient(row)
        t = o @ g
        shrink = jnp.where(retain[row], 1 / (terms + t), 0.0).astype(v.dtype)
        return (k - shrink * (k @ g) * o, o - shrink * t * o), None

    (k, _), _ = jax.lax.scan(term, (v, gradient(rows[0])), rows[1:])
    return tree.add_scaled(params, scale, unravel(k))


def unlearner(
    model: Model,
    train: TrainConfig,
    config: InfluenceConfig = InfluenceConfig(),
    *,
    prune: PruningConfig | None = None,
) -> Unlearner:
    """:func:`influence` as an unlearner."""
    loss_fn = cross_entropy(model.apply)

    def update(key, params, data, request, mask):
        return _influence(key, loss_fn, params, data, request.forget, request.retain, config, mask)

    return posthoc(model, train, update, prune=prune)


def woodfisher_unlearner(
    model: Model,
    train: TrainConfig,
    config: WoodFisherConfig = WoodFisherConfig(),
    *,
    prune: PruningConfig | None = None,
) -> Unlearner:
    """:func:`influence_woodfisher` as an unlearner."""
    loss_fn = cross_entropy(model.apply)

    def update(key, params, data, request, mask):
        forget, retain = request
        params = influence_woodfisher(
            loss_fn, params, data, forget, retain=retain, config=config, mask=mask
        )
        n = data.y.shape[0]
        return Update(params, grads=jnp.float32(n + min(config.terms + 1, n)))

    return posthoc(model, train, update, prune=prune)


def _checked(data: Dataset, forget: Array, retain: Array | None) -> tuple[Dataset, Array]:
    data = _sharding.automatic(data)
    _validate.rows(data)
    _validate.forget_mask(forget, data.y.shape[0], some=True)
    if retain is None:
        return data, ~jnp.asarray(forget)
    _validate.keep_mask(retain, data.y.shape[0])
    return data, retain


def _direction(loss_fn, params, data, forget, retain, mask) -> PyTree:
    """``(m/n) (mean gradient of forget - mean gradient of retain)``."""
    m, kept = jnp.sum(forget), jnp.sum(retain)
    n = jnp.maximum(m + kept, 1)
    chunk = min(CHUNK, data.y.shape[0])
    # One pass for both means: rows outside both have weight zero.
    weights = forget * (1 / n) - retain * (m / (n * jnp.maximum(kept, 1)))
    v = gradient_sum(loss_fn, params, data, weights=weights, chunk=chunk)
    if mask is not None:
        v = jax.tree.map(jnp.multiply, v, mask)
    # What follows is linear algebra: in float32 at least, whatever the parameters are.
    return jax.tree.map(lambda g: g.astype(jnp.promote_types(g.dtype, jnp.float32)), v)

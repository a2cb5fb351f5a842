"""Products with the second derivatives of a loss, matrix-free, in bounded memory.

For n rows at their perturbations the matrix is ``sum_i weights_i H_i``, with one of these per row:

- ``kkt``: the total Hessian ``d_ww + C^T P K^+ P C``, the perturbation following the parameters
  as the constrained maximum that it is.
- ``direct``: ``d_ww``, the perturbation held fixed.
- ``paper``: ``d_ww - C^T N C`` with ``N = sum_{j < terms} (I - d_dd)^j``, Eq. 16 of Liu et al.
  (2023): it takes the perturbation for an unconstrained maximum.
- ``fisher``: ``g g^T``, the gradient at the row's own label.
"""

import functools
from collections.abc import Callable

import jax
import jax.flatten_util
import jax.numpy as jnp

from jaxunlearn import _sharding, _validate
from jaxunlearn.primitives import last_layer
from jaxunlearn.primitives._rows import scan_chunks
from jaxunlearn.primitives.balls import Ball, L2Ball
from jaxunlearn.primitives.inner import follow
from jaxunlearn.primitives.last_layer import LastLayer
from jaxunlearn.primitives.solve import CG
from jaxunlearn.types import ApplyFn, Array, Dataset, LossFn, Params

MODES = ("kkt", "direct", "paper", "fisher")
# The solve for the perturbation's derivative: to rounding, so that products are symmetric.
INNER = CG(tol=1e-12, maxiter=200)


def total_product(
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    delta: Array,
    v: Params,
    *,
    ball: Ball | None = None,
    mode: str = "kkt",
    trusted: Array | None = None,
    weights: Array | None = None,
    terms: int = 3,
    chunk: int = 64,
) -> Params:
    """``sum_i weights_i H_i v`` at the perturbed rows, see the module for the modes.

    Args:
      loss_fn: loss of one row.
      params: any pytree of floats.
      data: rows.
      delta: ``float[n, ...]``, their perturbations; zeros for the clean Hessian.
      v: like ``params``.
      ball: where delta lies; only ``kkt`` asks for it.
      mode: which Hessian.
      trusted: ``bool[n]``, for ``kkt``: rows where delta is a strict maximum; the others get the
        direct Hessian. All by default.
      weights: ``bool`` or ``float[n]``; all ones by default.
      terms: of the Neumann series in ``paper``.
      chunk: rows computed at once.

    Returns:
      Like ``params``.

    Cost: about 4 sample gradients a row; ``kkt`` adds 2 for every step of the inner solve, and
    ``paper`` 2 for every term. Memory: the activations of ``chunk`` rows. Differentiable.

    Raises:
      ValueError: an unknown mode, ``kkt`` without a ball, rows or weights that do not match.

    Example:
      >>> data = Dataset(jnp.array([[1.0, 0.0]]), jnp.array([0]))
      >>> loss_fn = lambda w, row: jnp.exp(w @ row.x)
      >>> w, ball = jnp.array([0.0, 2.0]), L2Ball(0.5)
      >>> from jaxunlearn.primitives.adversarial import fgsm
      >>> delta, v = fgsm(loss_fn, w, data, ball=ball).delta, jnp.array([1.0, 0.0])
      >>> product = total_product(loss_fn, w, data, delta, v, ball=ball)
      >>> robust = lambda w: jnp.exp(w[0] + 0.5 * jnp.linalg.norm(w))  # the maximum in the ball
      >>> bool(jnp.allclose(product, jax.hessian(robust)(w) @ v, rtol=1e-4))
      True
    """
    data = _sharding.automatic(data)
    _validate.rows(data)
    _validate.one_of(MODES, mode=mode)
    _validate.whole(chunk=chunk, terms=terms)
    if mode == "kkt" and ball is None:
        raise ValueError("mode='kkt' needs the ball in which delta was found: give ball.")
    n = data.y.shape[0]
    weights = jnp.ones(n) if weights is None else _validate.as_weights(weights)
    trusted = jnp.ones(n, bool) if trusted is None else trusted
    static = {"loss_fn": loss_fn, "ball": ball, "mode": mode, "terms": terms}
    given = params, data, delta, trusted, weights, v
    return _total_product(*given, **static, chunk=min(chunk, n))


@functools.partial(jax.jit, static_argnames=("loss_fn", "ball", "mode", "terms", "chunk"))
def _total_product(params, data, delta, trusted, weights, v, *, loss_fn, ball, mode, terms, chunk):
    row_product = functools.partial(_PRODUCTS[mode], loss_fn, ball, terms)

    def part(total, inputs):
        w, rows = inputs[0], inputs[1:]
        some = jax.vmap(lambda *one: row_product(params, *one, v))(*rows)
        wide = lambda t, h: t + jnp.tensordot(w.astype(t.dtype), h.astype(t.dtype), 1)
        return jax.tree.map(wide, total, some), None

    total = jax.tree.map(_wide_zeros, params)
    total = scan_chunks(part, total, (weights, data, delta, trusted), chunk)
    return jax.tree.map(lambda t, p: t.astype(p.dtype), total, params)


def _kkt_product(loss_fn, ball, terms, params, row, delta, trusted, v):
    def danskin(p):
        # By Danskin's theorem the gradient of the maximum is that at the maximum.
        moved = follow(loss_fn, p, row, delta, trusted, ball, INNER)
        return jax.grad(loss_fn)(p, row._replace(x=row.x + moved))

    return jax.jvp(danskin, (params,), (v,))[1]


def _direct_product(loss_fn, ball, terms, params, row, delta, trusted, v):
    at = row._replace(x=row.x + delta)
    return jax.jvp(lambda p: jax.grad(loss_fn)(p, at), (params,), (v,))[1]


def _fisher_product(loss_fn, ball, terms, params, row, delta, trusted, v):
    g = jax.grad(loss_fn)(params, row._replace(x=row.x + delta))
    along = sum(map(jnp.vdot, jax.tree.leaves(g), jax.tree.leaves(v)))
    return jax.tree.map(lambda leaf: along * leaf, g)


def _paper_product(loss_fn, ball, terms, params, row, delta, trusted, v):
    value = lambda p, d: loss_fn(p, row._replace(x=row.x + d))
    bend = lambda u: jax.jvp(lambda d: jax.grad(value, 1)(params, d), (delta,), (u,))[1]
    _, moved = jax.jvp(lambda p: jax.grad(value, 1)(p, delta), (params,), (v,))
    power = series = moved
    for _ in range(terms - 1):
        power = power - bend(power)
        series = series + power
    indirect = jax.jvp(lambda d: jax.grad(value)(params, d), (delta,), (series,))[1]
    direct = _direct_product(loss_fn, ball, terms, params, row, delta, trusted, v)
    return jax.tree.map(jnp.subtract, direct, indirect)


_PRODUCTS: dict[str, Callable] = {
    "kkt": _kkt_product,
    "direct": _direct_product,
    "paper": _paper_product,
    "fisher": _fisher_product,
}


def total_matrix(
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    delta: Array,
    *,
    ball: Ball | None = None,
    mode: str = "kkt",
    trusted: Array | None = None,
    weights: Array | None = None,
    terms: int = 3,
    chunk: int = 16,
) -> Array:
    """``sum_i weights_i H_i`` as ``float[p, p]`` over the raveled parameters, for small models.

    Row by row in dense blocks: ``C [d, p]``, ``K [d, d]`` and its factorisation, no iteration.
    It shares only the loss with :func:`total_product`, so each checks the other; it is also
    faster where inputs have a few hundred entries.

    Args: as :func:`total_product`.

    Cost: ``d`` to ``p + d`` gradients and ``d^3 / 3 + d p^2`` multiplications a row. Memory:
    ``chunk d (d + 2 p)`` floats, and ``p^2``.

    Example:
      >>> data = Dataset(jnp.array([[1.0, 0.0]]), jnp.array([0]))
      >>> loss_fn = lambda w, row: 0.5 * (w @ row.x) ** 2
      >>> total_matrix(loss_fn, jnp.ones(2), data, 0 * data.x, mode="direct").tolist()
      [[1.0, 0.0], [0.0, 0.0]]
    """
    data = _sharding.automatic(data)
    _validate.rows(data)
    _validate.one_of(MODES, mode=mode)
    if mode == "kkt" and ball is None:
        raise ValueError("mode='kkt' needs the ball in which delta was found: give ball.")
    n = data.y.shape[0]
    weights = jnp.ones(n) if weights is None else _validate.as_weights(weights)
    trusted = jnp.ones(n, bool) if trusted is None else trusted
    static = {"loss_fn": loss_fn, "ball": ball, "mode": mode, "terms": terms}
    given, chunk = (params, data, delta, trusted, weights), min(chunk, n)
    if isinstance(loss_fn, LastLayer):
        last_layer.check(params)
        return last_layer.matrix(*given, **static, chunk=chunk)
    return _total_matrix(*given, **static, chunk=chunk)


@functools.partial(jax.jit, static_argnames=("loss_fn", "ball", "mode", "terms", "chunk"))
def _total_matrix(params, data, delta, trusted, weights, *, loss_fn, ball, mode, terms, chunk):
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def one(row, d, trust):
        value = lambda w, e: loss_fn(unravel(w), row._replace(x=row.x + e.reshape(row.x.shape)))
        d = d.ravel()
        if mode == "fisher":
            g = jax.grad(value)(flat, d)
            return jnp.outer(g, g)
        direct = jax.hessian(value)(flat, d)
        if mode == "direct":
            return direct
        g, a = jax.grad(value, 1)(flat, d), jax.hessian(value, 1)(flat, d)
        narrow = d.size < flat.size
        cross = (
            jax.jacrev(jax.grad(value, 1))(flat, d)
            if narrow
            else jax.jacfwd(jax.grad(value, 1))(flat, d)
        )
        eye = jnp.eye(d.size, dtype=d.dtype)
        if mode == "paper":
            power = series = cross
            for _ in range(terms - 1):
                power = power - a @ power
                series = series + power
            return direct - cross.T @ series
        shaped = lambda u: u.reshape(row.x.shape)
        project, nu = ball.tangent(row.x, shaped(d), shaped(g))
        p = jax.vmap(lambda u: project(shaped(u)).ravel())(eye)
        k = p @ (nu * eye - a) @ p + eye - p
        factor = jnp.linalg.cholesky(k)
        fine = trust & jnp.isfinite(factor).all()
        half = jax.scipy.linalg.solve_triangular(
            jnp.where(fine, factor, eye), p @ cross, lower=True
        )
        return direct + jnp.where(fine, half.T @ half, 0.0)

    def part(total, inputs):
        w, rows = inputs[0], inputs[1:]
        return total + jnp.tensordot(w.astype(total.dtype), jax.vmap(one)(*rows), 1), None

    wide = jnp.promote_types(flat.dtype, jnp.float32)
    total = jnp.zeros((flat.size, flat.size), wide)
    return scan_chunks(part, total, (weights, data, delta, trusted), chunk)


def gauss_newton_product(
    apply_fn: ApplyFn,
    params: Params,
    data: Dataset,
    v: Params,
    *,
    weights: Array | None = None,
    chunk: int = 64,
) -> Params:
    """``sum_i weights_i J_i^T S_i J_i v`` for cross-entropy, positive semidefinite always.

    ``J`` is the Jacobian of the logits and ``S = diag(p) - p p^T`` the Hessian of cross-entropy in
    them. Equal to the Hessian for logits linear in the parameters, and to the Fisher matrix whose
    labels are drawn from the model.

    Args:
      apply_fn: ``apply_fn(params, x[B, ...]) -> logits[B, C]``.
      params, data, v, weights, chunk: as in :func:`total_product`.

    Cost: about 3 sample gradients a row.

    Example:
      >>> data = Dataset(jnp.ones((1, 1)), jnp.array([0]))
      >>> apply_fn = lambda w, x: x @ w
      >>> v = jnp.array([[1.0, 0.0]])
      >>> gauss_newton_product(apply_fn, jnp.zeros((1, 2)), data, v).tolist()
      [[0.25, -0.25]]
    """
    data = _sharding.automatic(data)
    _validate.rows(data)
    n = data.y.shape[0]
    weights = jnp.ones(n) if weights is None else _validate.as_weights(weights)
    return _gauss_newton(params, data, weights, v, apply_fn=apply_fn, chunk=min(chunk, n))


@functools.partial(jax.jit, static_argnames=("apply_fn", "chunk"))
def _gauss_newton(params, data, weights, v, *, apply_fn, chunk):
    def part(total, inputs):
        w, rows = inputs
        logits, pull = jax.vjp(lambda p: apply_fn(p, rows.x), params)
        _, moved = jax.jvp(lambda p: apply_fn(p, rows.x), (params,), (v,))
        p = jax.nn.softmax(logits)
        curved = p * (moved - jnp.sum(p * moved, -1, keepdims=True))
        (some,) = pull(curved * w[:, None].astype(curved.dtype))
        return jax.tree.map(lambda t, g: t + g.astype(t.dtype), total, some), None

    total = scan_chunks(part, jax.tree.map(_wide_zeros, params), (weights, data), chunk)
    return jax.tree.map(lambda t, p: t.astype(p.dtype), total, params)


def softmax_factors(w: Array, x: Array, y: Array, delta: Array, *, ball: L2Ball):
    """Prepares KKT products for softmax regression with the attack on its own inputs.

    With ``S = diag(p) - p p^T = R R^T``, ``A = W S W^T`` and ``U = P W R``, Woodbury's identity
    gives ``(nu I - U U^T)^-1 = (1 / nu) [I + U (nu I - U^T U)^-1 U^T]``: one L by L factor a row,
    and no iteration.

    Args:
      w: ``float[d, L]``; logits are ``x @ w``.
      x: ``float[n, d]``.
      y: ``int[n]``.
      delta: ``float[n, d]`` on the sphere, the inner maxima.
      ball: an :class:`L2Ball`.

    Returns:
      The factors for :func:`softmax_product`, with ``fine: bool[n]`` last: False for rows
      without a strict maximum, which count with their direct Hessian.

    Cost: O(d L^2 + L^3) a row. Memory: ``n d (L + 2)`` floats.

    Example:
      >>> w, x, y = jnp.eye(2), jnp.ones((1, 2)), jnp.array([0])
      >>> factors = softmax_factors(w, x, y, jnp.array([[-0.1, 0.1]]), ball=L2Ball(0.02**0.5))
      >>> bool(factors[-1][0])
      True
    """
    moved = x + delta
    p = jax.nn.softmax(moved @ w)
    e = p - jax.nn.one_hot(y, w.shape[1], dtype=p.dtype)
    direction = delta / jnp.maximum(jnp.linalg.norm(delta, axis=1, keepdims=True), 1e-30)
    g = e @ w.T
    nu = jnp.sum(g * direction, 1) / ball.radius
    q = jnp.sqrt(p)
    root = q[:, :, None] * (
        jnp.eye(w.shape[1], dtype=p.dtype)[None] - q[:, :, None] * q[:, None, :]
    )
    u = jnp.einsum("dl,nlm->ndm", w, root)
    u = u - direction[:, :, None] * jnp.einsum("nd,ndm->nm", direction, u)[:, None, :]
    small = nu[:, None, None] * jnp.eye(w.shape[1], dtype=p.dtype)[None]
    small = small - jnp.einsum("ndl,ndm->nlm", u, u)
    factor = jnp.linalg.cholesky(small)
    fine = jnp.isfinite(factor).all((1, 2)) & (nu > 0)
    eye = jnp.eye(w.shape[1], dtype=p.dtype)[None]
    factor = jnp.where(fine[:, None, None], factor, eye)
    return moved, p, e, direction, jnp.where(fine, nu, 1.0), u, factor, fine


def softmax_product(w: Array, factors, v: Array, *, weights: Array | None = None) -> Array:
    """``sum_i weights_i H_i v`` from :func:`softmax_factors`, ``v: float[d, L]``.

    Cost: O(n d L): six products of matrices, no iteration.

    Example:
      >>> w, x, y = jnp.eye(2), jnp.ones((1, 2)), jnp.array([0])
      >>> factors = softmax_factors(w, x, y, jnp.array([[-0.1, 0.1]]), ball=L2Ball(0.02**0.5))
      >>> softmax_product(w, factors, jnp.ones((2, 2))).shape
      (2, 2)
    """
    moved, p, e, direction, nu, u, factor, fine = factors
    weights = jnp.ones(p.shape[0], p.dtype) if weights is None else weights.astype(p.dtype)
    curved = lambda t: p * (t - jnp.sum(p * t, 1, keepdims=True))
    tangent = lambda z: z - direction * jnp.sum(direction * z, 1, keepdims=True)
    s = curved(moved @ v)
    z = tangent(e @ v.T + s @ w.T)  # P C v
    inner = jnp.einsum("ndl,nd->nl", u, z)
    inner = jax.vmap(lambda f, r: jax.scipy.linalg.cho_solve((f, True), r))(factor, inner)
    z = tangent(z + jnp.einsum("ndl,nl->nd", u, inner)) / nu[:, None]
    z = jnp.where(fine[:, None], z, 0.0) * weights[:, None]
    out = moved.T @ (weights[:, None] * s)
    return out + z.T @ e + moved.T @ curved(z @ w)


def _wide_zeros(p: Array) -> Array:
    return jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32))

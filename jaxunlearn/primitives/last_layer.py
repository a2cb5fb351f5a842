"""Softmax cross-entropy of a dense last layer, and its total Hessian in closed form.

With features ``h`` of a row, ``J`` their derivative in the input, logits ``z = W^T h + b``,
``e = softmax(z) - onehot(y)`` and ``S`` the Hessian of cross-entropy in the logits, the input
gradient is ``J^T W e`` and its derivative in the last layer

    C = J^T B,    B = e (x) I + (W S) (x) h.

What every mode of :mod:`jaxunlearn.primitives.curvature` puts between ``C^T`` and ``C`` therefore
only matters as ``G = J [..] J^T``, a matrix of the size of the features, and the sum over rows of
``B^T G B`` is three products of matrices. In place of ``d`` rows of ``C`` with ``p`` columns each
row of the data has one ``G``: ``last_layer_vs_any`` of ``benchmarks.muter`` says what that saves.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.flatten_util
import jax.numpy as jnp

from jaxunlearn.primitives._rows import scan_chunks
from jaxunlearn.types import Array, Dataset, Params


@dataclasses.dataclass(frozen=True, eq=False)
class LastLayer:
    """The loss of one row under a dense last layer on given features.

    ``loss(w, row) = -log softmax(W^T h(x) + b)[y] + l2 / 2 (|W|^2 + |b|^2)``, a loss function as
    any other; :func:`~jaxunlearn.primitives.curvature.total_matrix` knows it and computes its
    matrix in closed form. It is compared by identity: make it once.

    Attributes:
      features: ``features(x) -> float[q]`` of one row.
      l2: regularisation.

    Example:
      >>> loss_fn = LastLayer(jnp.ravel, l2=0.1)
      >>> w = {"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}
      >>> float(loss_fn(w, Dataset(jnp.ones(2), jnp.array(0)))) == float(jnp.log(3.0))
      True
    """

    features: Callable[[Array], Array]
    l2: float = 0.0

    def __call__(self, head: Params, row: Dataset) -> Array:
        z = self.features(row.x) @ head["kernel"] + head.get("bias", 0.0)
        squares = sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(head))
        return jax.nn.logsumexp(z) - z[row.y] + self.l2 / 2 * squares


def is_dense(head: Params) -> bool:
    """Whether parameters are those of a dense layer: a kernel ``[q, C]``, and perhaps a bias.

    Example:
      >>> is_dense({"kernel": jnp.zeros((2, 3)), "bias": jnp.zeros(3)}), is_dense(jnp.zeros(3))
      (True, False)
    """
    return (
        isinstance(head, dict)
        and set(head) in ({"kernel"}, {"kernel", "bias"})
        and jnp.ndim(head["kernel"]) == 2
        and jnp.shape(head.get("bias", head["kernel"][0])) == jnp.shape(head["kernel"])[1:]
    )


def check(head: Params) -> None:
    """Refuses parameters that are no dense layer's.

    Example:
      >>> check({"kernel": jnp.zeros((2, 3))})
    """
    if not is_dense(head):
        shapes = jax.tree.map(jnp.shape, head)
        raise ValueError(
            f"params={shapes} are not those of a LastLayer: give a dict with kernel[q, C] and, "
            "if the layer has one, bias[C]."
        )


@functools.partial(jax.jit, static_argnames=("loss_fn", "ball", "mode", "terms", "chunk"))
def matrix(
    head: Params, data: Dataset, delta, trusted, weights, *, loss_fn, ball, mode, terms, chunk
) -> Array:
    """``sum_i weights_i H_i``; arguments as those of ``total_matrix``, which see.

    Cost, a row: the derivative of the features, ``d^3 / 3 + d^2 q`` multiplications for ``kkt``
    and ``3 p^2`` in products of matrices. Memory: ``chunk (d^2 + 2 p (q + C))`` floats, and
    ``3 p^2``.

    Example:
      >>> data, yes = Dataset(jnp.ones((1, 2)), jnp.array([0])), jnp.ones(1, bool)
      >>> head, how = {"kernel": jnp.zeros((2, 2))}, {"ball": None, "mode": "direct", "terms": 1}
      >>> how |= {"loss_fn": LastLayer(jnp.ravel), "chunk": 1}
      >>> matrix(head, data, 0 * data.x, yes, yes, **how)[0].tolist()
      [0.25, -0.25, 0.25, -0.25]
    """
    flat = jax.flatten_util.ravel_pytree(head)[0]
    wide = jnp.promote_types(flat.dtype, jnp.float32)
    (q, classes), bias = head["kernel"].shape, int("bias" in head)
    a = q + bias  # the bias is the weight of a feature that is 1, and is raveled first
    one = functools.partial(_row, loss_fn.features, head, ball, mode, terms)
    rows = weights, data, delta, trusted

    def fisher(total, inputs):
        w, (h, e, *_) = inputs[0].astype(wide), jax.vmap(one)(*inputs[1:])
        own = _outer(h, e) + loss_fn.l2 * flat[None]
        return total + (w[:, None] * own).T @ own, None

    if mode == "fisher":
        return scan_chunks(fisher, jnp.zeros((flat.size, flat.size), wide), rows, chunk)

    def part(total, inputs):
        w, (h, e, s, g, pushed) = inputs[0].astype(wide), jax.vmap(one)(*inputs[1:])
        # G and G W S have no entries at the bias, which moves no input gradient by itself.
        wider = jnp.pad(pushed, ((0, 0), (bias, 0), (0, 0))).reshape(w.size, -1)
        g = jnp.pad(g, ((0, 0), (bias, 0), (bias, 0))).reshape(w.size, -1)
        pairs = jnp.concatenate([_outer(h, h), g])
        others = jnp.concatenate([s.reshape(w.size, -1), _outer(e, e)])
        pairs = total[0] + (jnp.tile(w, 2)[:, None] * pairs).T @ others
        return (pairs, total[1] + (w[:, None] * wider).T @ _outer(e, h)), None

    start = jnp.zeros((a * a, classes**2), wide), jnp.zeros((flat.size, flat.size), wide)
    pairs, mixed = scan_chunks(part, start, rows, chunk)
    pairs = pairs.reshape(a, a, classes, classes).transpose(0, 2, 1, 3).reshape(flat.size, -1)
    mixed = mixed.reshape(a, classes, classes, a).transpose(0, 2, 3, 1).reshape(flat.size, -1)
    return pairs + mixed + mixed.T + loss_fn.l2 * weights.sum() * jnp.eye(flat.size, dtype=wide)


def _outer(x: Array, y: Array) -> Array:
    """Outer products of rows, raveled."""
    return (x[:, :, None] * y[:, None, :]).reshape(x.shape[0], -1)


def _row(features, head, ball, mode, terms, row, delta, trusted):
    """Of one row: h with the 1 of the bias, e, ``S + S W^T G W S``, G and ``G W S``."""
    kernel, x = head["kernel"], row.x + delta
    h = features(x)
    p = jax.nn.softmax(h @ kernel + head.get("bias", 0.0))
    e = p - jax.nn.one_hot(row.y, p.size, dtype=p.dtype)
    s = jnp.diag(p) - jnp.outer(p, p)
    g = _moved(features, kernel, ball, mode, terms, row.x, delta, trusted, e, s)
    pushed = g @ (kernel @ s)
    full = jnp.concatenate([jnp.ones(1, h.dtype), h]) if "bias" in head else h
    return full, e, s + (kernel @ s).T @ pushed, g, pushed


def _moved(features, kernel, ball, mode, terms, x, delta, trusted, e, s):
    """G of one row: by how much its features follow a push on themselves, delta being free."""
    x, before = x + delta, x
    q = kernel.shape[0]
    if mode in ("direct", "fisher"):
        return jnp.zeros((q, q), x.dtype)
    j = (jax.jacrev if q <= x.size else jax.jacfwd)(features)(x).reshape(q, -1)
    along = kernel @ e
    curved = jax.hessian(lambda x: features(x) @ along)(x).reshape(x.size, x.size)
    a = j.T @ (kernel @ s @ kernel.T) @ j + curved
    if mode == "paper":
        power = series = j.T
        for _ in range(terms - 1):
            power = power - a @ power
            series = series + power
        return -j @ series
    project, nu = ball.tangent(before, delta, (j.T @ along).reshape(x.shape))
    tangent = jax.vmap(lambda v: project(v.reshape(x.shape)).ravel())
    eye = jnp.eye(x.size, dtype=x.dtype)
    # K = P (nu I - A) P, and the identity on what P removes.
    k = tangent(tangent(nu * eye - a).T) + eye - tangent(eye)
    factor = jnp.linalg.cholesky(k)
    fine = trusted & jnp.isfinite(factor).all()
    half = jnp.where(fine, factor, eye)
    half = jax.scipy.linalg.solve_triangular(half, tangent(j).T, lower=True)
    return jnp.where(fine, half.T @ half, 0.0)

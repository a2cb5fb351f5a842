"""Membership scores: what one row's logits say about having been trained on.

A membership attack sees one number a row. All functions here take ``logits[n, C]``
and ``y[n]`` and return that number as ``float[n]`` (float32, or the dtype of the
logits if wider: in half precision most confident rows would tie at 1). A trained-on
row tends to have a high confidence, logit confidence and correctness, and a low
loss, entropy and modified entropy. Attacks expect *higher = member*: negate the
last three.
"""

import jax
import jax.numpy as jnp

from jaxunlearn.audit import _inputs
from jaxunlearn.audit.accuracy import correct
from jaxunlearn.types import Array


def _checked(logits, y) -> tuple[Array, Array]:
    logits = _inputs.logits(logits)
    return logits, _inputs.labels(y, logits.shape)


def _of_label(values: Array, y: Array) -> Array:
    return jnp.take_along_axis(values, y[:, None], axis=-1)[:, 0]


def _log_complement(logits: Array) -> Array:
    """``log(1 - p_c)`` for all c, without ever subtracting from 1 a p_c near 1.

    Only the largest class can have p_c > 1/2, so only there the sum over the other
    classes is needed; elsewhere ``log1p`` is accurate.
    """
    log_p = jax.nn.log_softmax(logits)
    top = jax.nn.one_hot(log_p.argmax(-1), log_p.shape[-1], dtype=bool)
    rest = jax.nn.logsumexp(jnp.where(top, -jnp.inf, log_p), axis=-1, keepdims=True)
    return jnp.where(top, rest, jnp.log1p(-jnp.exp(log_p)))


def _times_log(p: Array, log_q: Array) -> Array:
    """``p log q`` with 0 log 0 = 0."""
    return jnp.where(p == 0, 0, p * log_q)


def correctness(logits: Array, y: Array) -> Array:
    """1 for rows classified rightly, else 0.

    Example:
      >>> correctness(jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])).tolist()
      [1.0, 0.0]
    """
    logits, y = _checked(logits, y)
    return correct(logits, y).astype(logits.dtype)


def loss(logits: Array, y: Array) -> Array:
    """Cross-entropy ``-log p_y`` in nats, the score of Yeom et al. (2018).

    Example:
      >>> round(float(loss(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)
      1.3863
    """
    logits, y = _checked(logits, y)
    return -_of_label(jax.nn.log_softmax(logits), y)


def confidence(logits: Array, y: Array) -> Array:
    """``p_y``, the softmax probability of the label: the score that the papers report.

    Example:
      >>> round(float(confidence(jnp.zeros((1, 4)), jnp.array([2]))[0]), 4)
      0.25
    """
    return jnp.exp(-loss(logits, y))


def logit_confidence(logits: Array, y: Array) -> Array:
    """``log(p_y / (1 - p_y))``, the confidence on a scale that does not saturate.

    Same order of rows as :func:`confidence`, which in float32 rounds to 1 as soon as
    1 - p_y < 6e-8. Computed as ``z_y - logsumexp(z_c, c != y)``, so it is finite for all
    finite logits, and near Gaussian over models (Carlini et al. 2022, LiRA).

    Example:
      >>> round(float(logit_confidence(jnp.array([[30.0, 0.0]]), jnp.array([0]))[0]), 4)
      30.0
    """
    logits, y = _checked(logits, y)
    label = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    rest = jax.nn.logsumexp(jnp.where(label, -jnp.inf, logits), axis=-1)
    return _of_label(logits, y) - rest


def entropy(logits: Array, y: Array | None = None) -> Array:
    """``-sum_c p_c log p_c`` in nats; the label plays no part (``y`` is accepted and ignored).

    Example:
      >>> round(float(entropy(jnp.zeros((1, 4)))[0]), 4)
      1.3863
    """
    log_p = jax.nn.log_softmax(_inputs.logits(logits))
    return -_times_log(jnp.exp(log_p), log_p).sum(-1)


def modified_entropy(logits: Array, y: Array) -> Array:
    """Entropy that knows the label (Song and Mittal 2021): 0 if right and sure.

    ``-(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c)``, in nats.

    The code published with Unlearn-Sparse (reused for ConMU) computes something
    else: it indexes the label columns of *all* rows at once, so every row is overwritten by
    the labels of the others, and its log of the complement takes log p. We compute
    the formula. Confident rows stay accurate: ``1 - p`` is never formed by subtraction.

    Example:
      >>> sure_and_right, sure_and_wrong = modified_entropy(
      ...     jnp.array([[50.0, 0.0], [50.0, 0.0]]), jnp.array([0, 1]))
      >>> bool(sure_and_right < 1e-6), round(float(sure_and_wrong), 3)
      (True, 100.0)
    """
    logits, y = _checked(logits, y)
    log_p, log_rest = jax.nn.log_softmax(logits), _log_complement(logits)
    label = jax.nn.one_hot(y, logits.shape[-1], dtype=bool)
    # The label swaps p and 1 - p; then both halves are one sum of p log(1 - p).
    p = jnp.exp(jnp.where(label, log_rest, log_p))
    return -_times_log(p, jnp.where(label, log_p, log_rest)).sum(-1)

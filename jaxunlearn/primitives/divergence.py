"""How far two softmax outputs are apart: Kullback-Leibler both ways, Jensen-Shannon.

As terms of a loss and as measures alike: they take any leading axes, can be differentiated, and
soften both outputs by a temperature. KL is not symmetric, and papers, codes and libraries differ in
which argument comes first: here ``kl(p, q)`` is KL(p || q), the expectation under p.
"""

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.types import Array


def kl(p_logits: Array, q_logits: Array, *, temperature: Array | float = 1.0) -> Array:
    """KL(p || q) of two softmax distributions, ConMU equation (6).

    ``sum_c p_c (log p_c - log q_c)`` with ``p = softmax(p_logits / T)``, from log-softmax, so it
    is finite for all finite logits. Swap the arguments for the other direction: as a loss of q,
    KL(p || q) makes q cover all that p holds possible (its gradient in the logits of q is
    ``(q - p) / T``), KL(q || p) lets q keep to one of its modes.

    Args:
      p_logits: ``float[..., C]``.
      q_logits: the same shape.
      temperature: T > 0; may be traced. There is no factor T^2.

    Returns:
      ``float[...]`` in nats, >= 0; absolute error about 1e-7 in float32.

    Raises:
      ValueError: shapes that differ, a temperature that is not > 0.

    Example:
      >>> p, q = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
      >>> round(float(kl(p, q)), 4), round(float(kl(q, p)), 4)
      (0.1438, 0.1308)
    """
    return kl_of_logs(*_log_softmax(p_logits, q_logits, temperature))


def jensen_shannon(p_logits: Array, q_logits: Array, *, temperature: Array | float = 1.0) -> Array:
    """Jensen-Shannon divergence of two softmax distributions.

    ``KL(p || m) / 2 + KL(q || m) / 2`` with m = (p + q) / 2: symmetric, 0 for equal outputs,
    log 2 for outputs that are sure of different classes. (SciPy's ``jensenshannon`` is its root.)

    Args:
      p_logits: ``float[..., C]``.
      q_logits: the same shape.
      temperature: as in :func:`kl`.

    Returns:
      ``float[...]`` in nats, in [0, log 2].

    Raises:
      ValueError: as :func:`kl`.

    Example:
      >>> sure = jnp.array([100.0, 0.0])
      >>> round(float(jensen_shannon(sure, sure[::-1])), 4)
      0.6931
    """
    return jensen_shannon_of_logs(*_log_softmax(p_logits, q_logits, temperature))


def kl_of_logs(log_p: Array, log_q: Array) -> Array:
    """:func:`kl` from log-probabilities, where many are compared and each is computed once.

    Example:
      >>> half = jnp.log(jnp.array([0.5, 0.5]))
      >>> float(kl_of_logs(half, half))
      0.0
    """
    p = jnp.exp(log_p)
    total = jnp.where(p > 0, p * (log_p - log_q), 0).sum(-1)
    # Rounding can take a sum whose terms cancel just below 0. A constant lifts it: a maximum would
    # halve or lose the derivatives where the two agree, and with them the Fisher matrix.
    return total + jax.lax.stop_gradient(jnp.maximum(-total, 0))


def jensen_shannon_of_logs(log_p: Array, log_q: Array) -> Array:
    """:func:`jensen_shannon` from log-probabilities.

    Example:
      >>> half = jnp.log(jnp.array([0.5, 0.5]))
      >>> float(jensen_shannon_of_logs(half, half))
      0.0
    """
    log_m = jnp.logaddexp(log_p, log_q) - jnp.log(2.0)
    return jnp.minimum((kl_of_logs(log_p, log_m) + kl_of_logs(log_q, log_m)) / 2, jnp.log(2.0))


def _log_softmax(p_logits, q_logits, temperature) -> tuple[Array, Array]:
    if jnp.shape(p_logits) != jnp.shape(q_logits):
        raise ValueError(
            f"p_logits has shape {jnp.shape(p_logits)} and q_logits has shape "
            f"{jnp.shape(q_logits)}; they must be the outputs of two models for the same rows."
        )
    if not hasattr(temperature, "shape"):
        _validate.positive(temperature=temperature)
    return jax.nn.log_softmax(p_logits / temperature), jax.nn.log_softmax(q_logits / temperature)

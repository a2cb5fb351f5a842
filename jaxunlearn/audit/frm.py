"""FRM: ConMU's one-number comparison of an unlearned with a retrained model."""

import jax.numpy as jnp
import numpy as np

from jaxunlearn._validate import known
from jaxunlearn.audit import _inputs
from jaxunlearn.types import Array


def frm(metrics: Array, reference: Array) -> Array:
    """Forget-Retain-MIA score, ConMU equation (9): 1 is equal to retraining, 0 is far.

    ``exp(-sum_q |q_u - q_r| / q_r)`` over q = forget accuracy, retain accuracy and MIA efficacy,
    of the unlearned model (u) and the retrained one (r).

    How to read it:

    - Give the *mean of several* retrained models as ``reference``, and report the value
      with the null of :func:`frm_null`. A perfect unlearner does not score 1: in the
      records of ``make demo`` a retrained model scores .92 on average, .80 at the least of
      25. A score without this band cannot be judged.
    - It counts forget accuracy twice: the confidence attack is largely a test of
      correctness, MIA ~ 1 - FA (within .03 in 52 of 60 rows of the paper's tables).
    - The MIA term dominates, because its denominator is small.
    - The ratio makes it blow up where the retrained model scores near 0.

    Args:
      metrics: ``float[..., 3]`` of the unlearned model, in any fixed order, as fractions or
        as percentages.
      reference: ``float[..., 3]`` of retraining, same order, shape and unit.

    Returns:
      ``float[...]`` in [0, 1]. For a term with q_r = 0 (the paper does not say): no
      gap counts 0, any gap makes the score 0. NaN in, nan out.

    Raises:
      ValueError: shapes that differ, a last axis that is not 3, negative metrics.

    The example is the ConMU row of ResNet-18, CIFAR-10, random forgetting (FA, RA, MIA; printed
    as .855).

    Example:
      >>> round(float(frm(jnp.array([81.22, 81.75, 18.93]), jnp.array([80.46, 91.47, 19.62]))), 3)
      0.86
    """
    unlearned, retrained = _metrics(metrics, "metrics"), _metrics(reference, "reference")
    if unlearned.shape != retrained.shape:
        raise ValueError(
            f"metrics has shape {unlearned.shape} and reference has shape {retrained.shape}; "
            "they must be equal."
        )
    gap = jnp.abs(unlearned - retrained)
    return jnp.exp(-jnp.where(gap == 0, 0, gap / retrained).sum(-1))


def frm_null(references: Array) -> Array:
    """FRM of each retrained model against the mean of the others: what retraining itself scores.

    Args:
      references: ``float[K, 3]``, the metrics of K >= 2 retrained models (>= 5 to be useful).

    Returns:
      ``float[K]``. :func:`~jaxunlearn.audit.null_band` makes a band of them, without the
      factor of :func:`~jaxunlearn.audit.jsd_null`: the values share a mean, not pairs. Slightly
      low, so slightly generous to a method that is compared with the mean of all K,
      since each mean has one model less.

    Raises:
      ValueError: not ``[K, 3]``, K < 2, negative metrics.

    Example:
      >>> references = jnp.array([[0.84, 0.92, 0.20], [0.86, 0.92, 0.22], [0.85, 0.92, 0.21]])
      >>> [round(float(v), 2) for v in frm_null(references)]
      [0.92, 0.91, 1.0]
    """
    values = _metrics(references, "references")
    if values.ndim != 2 or values.shape[0] < 2:
        raise ValueError(
            f"references has shape {values.shape}, but must be [K, 3] with K >= 2 retrained models."
        )
    # A mean of the others, not (sum - own): subtraction would lose digits for large K.
    others = 1 - jnp.eye(len(values), dtype=values.dtype)
    return frm(values, others @ values / (len(values) - 1))


def _metrics(value, name: str) -> Array:
    value = _inputs.widen(value)
    if value.ndim == 0 or value.shape[-1] != 3:
        raise ValueError(
            f"{name} has shape {value.shape}, but its last axis must be the 3 metrics: "
            "forget accuracy, retain accuracy, MIA efficacy."
        )
    if known(value) and bool((np.asarray(value) < 0).any()):
        raise ValueError(f"{name} has negative entries, but accuracies and efficacies are >= 0.")
    return value

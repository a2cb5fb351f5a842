"""The interclass confusion test: labels of two classes were swapped; is the confusion unlearned?"""

import jax.numpy as jnp

from jaxunlearn.audit import _inputs
from jaxunlearn.audit.intervals import mean_interval
from jaxunlearn.audit.report import AuditReport, per_model
from jaxunlearn.types import Array


def interclass_error(
    logits: Array, y: Array, classes: tuple[int, int], *, weights: Array | None = None
) -> Array:
    """Share of the rows of two classes that are taken for the other one of the two.

    ``(C[a, b] + C[b, a]) / (n_a + n_b)``, C counting rows of the first class answered as the second
    (Goel et al. 2022, arXiv 2201.06640, IC-ERR). After a training with swapped labels it is large;
    after retraining without the swapped rows it is what the classes are confused by themselves.

    Args:
      logits: ``float[n, C]``.
      y: ``int[n]``, the *true* labels.
      classes: the two.
      weights: ``bool[n]`` or ``float[n]``.

    Returns:
      float scalar in [0, 1]; nan if no row of the two has weight, or one of them a NaN logit.

    Raises:
      ValueError: shapes that do not match, equal classes, classes that the logits lack.

    Example:
      >>> logits = jnp.eye(3)[jnp.array([0, 1, 1, 2])]  # answers
      >>> float(interclass_error(logits, jnp.array([0, 0, 1, 2]), (0, 1)))
      0.3333333432674408
    """
    logits = _inputs.logits(logits)
    y = _inputs.labels(y, logits.shape)
    known = range(logits.shape[1])
    if len(classes) != 2 or classes[0] == classes[1] or any(c not in known for c in classes):
        raise ValueError(
            f"classes={classes!r} must be two different ones below {logits.shape[1]}, the outputs."
        )
    a, b = classes
    answer = logits.argmax(-1)
    wrong = ((y == a) & (answer == b)) | ((y == b) & (answer == a))
    either = ((y == a) | (y == b)) * _inputs.weights(weights, logits[:, 0])
    broken = jnp.isnan(logits).any(-1)  # argmax would answer with the place of the NaN
    return _inputs.weighted_mean(jnp.where(broken, jnp.nan, wrong), _inputs.widen(either))


def confusion_report(unlearned, *, null) -> AuditReport:
    """Mean :func:`interclass_error` of M unlearned models, against M retrained ones.

    Args:
      unlearned: ``float[M]``.
      null: ``float[M]`` of models retrained without the swapped rows.

    Returns:
      :class:`AuditReport`, both with t intervals over models.

    Raises:
      ValueError: fewer than 8 models, unequal sizes, errors that do not lie in [0, 1] (NaN).

    Example:
      >>> confusion_report([0.3, 0.31] * 4, null=[0.1, 0.11] * 4).above_null
      True
    """
    unlearned, null = per_model(0, 1, unlearned=unlearned, null=null)
    interval = mean_interval(unlearned)
    return AuditReport(
        "interclass error", interval.estimate, interval, mean_interval(null), len(unlearned), {}
    )

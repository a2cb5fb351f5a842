"""The interclass confusion test: labels of two classes were swapped; is the confusion unlearned?"""

import numpy as np

from jaxunlearn import _validate
from jaxunlearn.audit import _inputs
from jaxunlearn.audit.intervals import mean_interval
from jaxunlearn.audit.report import AuditReport, enough
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
      float scalar in [0, 1]; nan if no row of the two has weight.

    Raises:
      ValueError: shapes that do not match, equal classes, classes that the logits lack.

    Example:
      >>> import jax.numpy as jnp
      >>> logits = jnp.eye(3)[jnp.array([0, 1, 1, 2])]  # answers
      >>> float(interclass_error(logits, jnp.array([0, 0, 1, 2]), (0, 1)))
      0.3333333432674408
    """
    logits = _inputs.logits(logits)
    y = _inputs.labels(y, logits.shape)
    a, b = classes
    _validate.whole(0, a=a, b=b)
    if a == b or max(a, b) >= logits.shape[1]:
        raise ValueError(
            f"classes={classes!r} must be two different ones below {logits.shape[1]}, the outputs."
        )
    answer = logits.argmax(-1)
    wrong = ((y == a) & (answer == b)) | ((y == b) & (answer == a))
    either = ((y == a) | (y == b)) * _inputs.weights(weights, logits[:, 0])
    return _inputs.weighted_mean(_inputs.widen(wrong), _inputs.widen(either))


def confusion_report(unlearned, *, null) -> AuditReport:
    """Mean :func:`interclass_error` of M unlearned models, against M retrained ones.

    Args:
      unlearned: ``float[M]``.
      null: ``float[M]`` of models retrained without the swapped rows.

    Returns:
      :class:`AuditReport`, both with t intervals over models.

    Raises:
      ValueError: fewer than 8 models, unequal sizes.

    Example:
      >>> confusion_report([0.3, 0.31] * 4, null=[0.1, 0.11] * 4).above_null
      True
    """
    unlearned, null = np.asarray(unlearned, float), np.asarray(null, float)
    if unlearned.shape != null.shape or unlearned.ndim != 1:
        raise ValueError(
            f"unlearned has shape {unlearned.shape} and null has shape {null.shape}; give "
            "one error for each of as many models."
        )
    enough(len(unlearned))
    interval = mean_interval(unlearned)
    return AuditReport(
        "interclass error", interval.estimate, interval, mean_interval(null), len(unlearned), {}
    )

"""Population attacks: one threshold for all rows, on each unlearned model. Host code."""

import numpy as np

from jaxunlearn import _validate
from jaxunlearn.audit import scores as score_functions
from jaxunlearn.audit.intervals import mean_interval
from jaxunlearn.audit.report import AuditReport, arms, pair
from jaxunlearn.audit.roc_curve import rank_auc, roc_curve, tpr_at

# Score functions by name, and the sign that makes higher mean member.
SCORES = {
    "loss": (score_functions.loss, -1),
    "confidence": (score_functions.logit_confidence, 1),
    "entropy": (score_functions.entropy, -1),
    "modified_entropy": (score_functions.modified_entropy, -1),
}


def member_scores(logits, y, *, score: str = "confidence") -> np.ndarray:
    """A membership score of each row under each model, higher for members.

    Args:
      logits: ``float[M, n, C]``.
      y: ``int[n]``.
      score: ``loss``, ``confidence`` (on the logit scale, where it does not saturate), ``entropy``
        or ``modified_entropy``.

    Returns:
      ``float64[M, n]``.

    Raises:
      ValueError: an unknown score, logits that are not [M, n, C], labels that do not fit.

    Example:
      >>> member_scores(np.zeros((2, 1, 4)), np.array([0])).round(3).tolist()
      [[-1.099], [-1.099]]
    """
    _validate.one_of(SCORES, score=score)
    logits = np.asarray(logits)
    if logits.ndim != 3:
        raise ValueError(f"logits has shape {logits.shape}, but must be [M, n, C].")
    function, sign = SCORES[score]
    m, n, _ = logits.shape
    y = np.asarray(y)
    if y.shape != (n,):
        raise ValueError(f"y has shape {y.shape}, but must be ({n},): a label for each row.")
    flat = function(logits.reshape(m * n, -1), np.tile(y, m))
    return sign * np.asarray(flat, np.float64).reshape(m, n)


def population_attack(forget, test, *, null, name: str = "confidence") -> AuditReport:
    """Forgotten rows against test rows by one threshold: AUC, and TPR at 0.1% and 1% FPR.

    What an attacker does who knows no other model. Averages over rows: a weak attack, whose
    silence says little. One half is a guess; *below* retraining's is no success, the rows stand
    out.

    Args:
      forget: ``float[M, f]`` scores of the forgotten rows under M unlearned models, higher for
        members; see :func:`member_scores`.
      test: ``float[M, t]`` of rows that no model has seen.
      null: the same pair under M retrained models.
      name: of the score.

    Returns:
      :class:`AuditReport`: mean AUC over models, with a t interval over models. ``detail``:
      ``tpr_at_01fpr``, ``tpr_at_1fpr``, the same of the null as ``null_...``, and ``roc`` of all
      models together.

    Raises:
      ValueError: fewer than 8 models, arms of unequal size, constant or non-finite scores, a null
        that is no pair.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> forget, test, a, b = rng.normal(0, 1, (4, 16, 200))
      >>> population_attack(forget + 1, test, null=(a, b)).above_null
      True
    """
    null_forget, null_test = pair(null)
    forget, null_forget = arms(forget=forget, **{"null[0]": null_forget})
    test, null_test = arms(test=test, **{"null[1]": null_test})
    if len(forget) != len(test):
        raise ValueError(
            f"forget has {len(forget)} models and test has {len(test)}; they must be the same ones."
        )
    interval, reference = _auc(forget, test), _auc(null_forget, null_test)
    return AuditReport(
        name=f"{name} threshold, AUC",
        value=interval.estimate,
        interval=interval,
        null=reference,
        n_models=len(forget),
        detail={
            "tpr_at_01fpr": _tpr(forget, test, 0.001),
            "tpr_at_1fpr": _tpr(forget, test, 0.01),
            "null_tpr_at_01fpr": _tpr(null_forget, null_test, 0.001),
            "null_tpr_at_1fpr": _tpr(null_forget, null_test, 0.01),
            "roc": roc_curve(forget.ravel(), test.ravel()),
        },
    )


def _auc(forget: np.ndarray, test: np.ndarray):
    return mean_interval([rank_auc(f, t) for f, t in zip(forget, test, strict=True)])


def _tpr(forget: np.ndarray, test: np.ndarray, fpr: float) -> float:
    return float(np.mean([tpr_at(f, t, fpr) for f, t in zip(forget, test, strict=True)]))

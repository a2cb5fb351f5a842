"""LiRA: was this row in the training set, by its own law over models with and without it?

The likelihood-ratio attack of Carlini et al. (2022), on trainings, not on unlearning: how much
there is to forget, and which rows are exposed. Every one of M models is attacked with the other
M - 1 as its shadows. Host code, float64.
"""

import numpy as np
from scipy import stats

from jaxunlearn import _validate
from jaxunlearn.audit.intervals import Interval, mean_interval
from jaxunlearn.audit.report import AuditReport, arms
from jaxunlearn.audit.roc_curve import rank_auc, roc_curve, tpr_at

MODES = ("online", "offline")
VARIANCES = ("row", "pooled")


def lira(scores, member, *, mode: str = "online", variance: str = "row") -> AuditReport:
    """LiRA's power on models trained on random subsets: AUC, and TPR at a very low FPR.

    ``online``: ``log N(s; mu_in, sd_in) - log N(s; mu_out, sd_out)``, the laws of row i
    fitted to the other models with and without it. ``offline``: ``Phi((s - mu_out) / sd_out)``,
    from models without it alone, as if they had been trained before the row was known.

    Args:
      scores: ``float[M, n]``, the logit confidence of n rows under M models, each trained on about
        half of them; see :func:`~jaxunlearn.audit.shadows`.
      member: ``bool[M, n]``, whether the model was trained on the row.
      mode: ``online`` or ``offline``.
      variance: ``row``, or ``pooled`` over rows (better below about 64 models).

    Returns:
      :class:`AuditReport`: the AUC over all rows and models; its interval is over models. The null
      attacks with the memberships of another model, which the scores know nothing of. ``detail``:
      ``tpr_at_01fpr``, ``tpr_at_1fpr``, ``roc``, ``null_tpr_at_1fpr``, ``ratios`` ``[M, n]``.
      Where nothing differs ``online`` scores less than one half at few models (.44 at 8, .48 at 16,
      .49 at 32): the law of a model's own kind rests on one model less.

    Cost: O(M n).

    Raises:
      ValueError: shapes that differ, fewer than 8 models, a row that fewer than three of them
        have or have not, constant or non-finite scores.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> member = rng.random((64, 100)) < 0.5
      >>> report = lira(rng.normal(0, 1, (64, 100)) + 2 * member, member)
      >>> 0.9 < report.value < 0.94, report.null.low < 0.5 < report.null.high  # truth: .921
      (True, True)
    """
    _validate.one_of(MODES, mode=mode)
    _validate.one_of(VARIANCES, variance=variance)
    scores, member = checked(scores, member)
    ratios = _ratios(scores, member, mode, variance)
    other = np.roll(member, 1, axis=0)
    nothing = _ratios(scores, other, mode, variance)
    interval, null = _auc(ratios, member), _auc(nothing, other)
    inside, outside = ratios[member], ratios[~member]
    return AuditReport(
        name=f"LiRA ({mode}), AUC",
        value=interval.estimate,
        interval=interval,
        null=null,
        n_models=len(scores),
        detail={
            "tpr_at_01fpr": tpr_at(inside, outside, 0.001),
            "tpr_at_1fpr": tpr_at(inside, outside, 0.01),
            "null_tpr_at_1fpr": tpr_at(nothing[other], nothing[~other], 0.01),
            "roc": roc_curve(inside, outside),
            "ratios": ratios,
        },
    )


def vulnerability(scores, member) -> np.ndarray:
    """How far apart LiRA's two laws of each row lie, in standard deviations.

    ``(mu_in - mu_out) / sqrt((var_in + var_out) / 2)``: the most exposed rows have the largest. The
    average over random rows hides them (``docs/audit.md``).

    Args:
      scores: ``float[M, n]``; see :func:`lira`.
      member: ``bool[M, n]``.

    Returns:
      ``float64[n]``.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> member = rng.random((64, 3)) < 0.5
      >>> scores = rng.normal(0, 1, (64, 3)) + member * [0, 1, 5]
      >>> vulnerability(scores, member).argsort().tolist()
      [0, 1, 2]
    """
    scores, member = checked(scores, member)
    (mean_in, var_in), (mean_out, var_out) = (_moments(scores, k) for k in (member, ~member))
    spread = np.sqrt((var_in + var_out) / 2)
    return (mean_in - mean_out) / np.maximum(spread, 0.01 * np.median(spread) + 1e-6)


def checked(scores, member) -> tuple[np.ndarray, np.ndarray]:
    """Scores as ``float64[M, n]`` and memberships as ``bool[M, n]``, three of each kind a row."""
    [scores] = arms(scores=scores)
    member = np.asarray(member)
    if member.shape != scores.shape or member.dtype != np.bool_:
        raise ValueError(
            f"member has shape {member.shape} and dtype {member.dtype}, but must be "
            f"bool{list(scores.shape)}: which row each model was trained on."
        )
    counts = member.sum(0)
    few = np.flatnonzero((counts < 3) | (len(member) - counts < 3))
    if few.size:
        raise ValueError(
            f"member has {counts[few[0]]} of {len(member)} models with row {few[0]} (and "
            f"{few.size - 1} rows like it), but each row needs 3 with it and 3 without. Audit the "
            "rows that were drawn, or train more models."
        )
    return scores, member


def _moments(scores: np.ndarray, of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count = of.sum(0)
    mean = np.where(of, scores, 0).sum(0) / count
    return mean, np.where(of, (scores - mean) ** 2, 0).sum(0) / (count - 1)


def _others(scores: np.ndarray, of: np.ndarray, variance: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation ``[M, n]`` of ``of``, without the model that is asked."""
    mean, var = _moments(scores, of)
    count = of.sum(0)
    gap = scores - mean
    # Taking a value out of a mean and a sum of squares, in one pass.
    means = np.where(of, mean - gap / (count - 1), mean)
    squares = var * (count - 1) - np.where(of, gap**2 * count / (count - 1), 0)
    freedom = count - 1 - of
    if variance == "pooled":
        spread = np.sqrt(squares.sum(1, keepdims=True) / freedom.sum(1, keepdims=True))
        return means, np.broadcast_to(spread, means.shape)
    spread = np.sqrt(np.maximum(squares, 0) / freedom)
    return means, np.maximum(spread, 0.01 * np.median(spread) + 1e-6)


def _ratios(scores: np.ndarray, member: np.ndarray, mode: str, variance: str) -> np.ndarray:
    mean_out, sd_out = _others(scores, ~member, variance)
    if mode == "offline":  # as good as its logarithm, and does not saturate
        return (scores - mean_out) / sd_out
    mean_in, sd_in = _others(scores, member, variance)
    return stats.norm.logpdf(scores, mean_in, sd_in) - stats.norm.logpdf(scores, mean_out, sd_out)


def _auc(ratios: np.ndarray, member: np.ndarray) -> Interval:
    each = [
        rank_auc(r[k], r[~k]) for r, k in zip(ratios, member, strict=True) if 0 < k.sum() < k.size
    ]
    value, spread = rank_auc(ratios[member], ratios[~member]), mean_interval(each)
    shift = value - spread.estimate
    return Interval(value, spread.low + shift, spread.high + shift)

"""U-LiRA and RULI: likelihood-ratio tests of single rows between two kinds of models.

Both see a score of each row, near normal over models (the logit confidence), and fit its law to
models other than the one that is asked. Host code, float64.
"""

import math

import numpy as np
from scipy import stats

from jaxunlearn import _validate
from jaxunlearn.audit.intervals import Interval, mean_interval
from jaxunlearn.audit.report import AuditReport, arms, enough
from jaxunlearn.audit.roc_curve import rank_auc, tpr_at

DENSITIES = ("gaussian", "kde")


def ulira(unlearned, retrained, *, null, density: str = "gaussian") -> AuditReport:
    """U-LiRA: how often a likelihood ratio on one row tells an unlearned from a retrained model.

    For each row a law is fitted to the scores of half of the unlearned models and one to those of
    half of the retrained models; each model of the other halves is called unlearned where
    ``p_u(score) > p_r(score)``; then the halves are exchanged (Hayes et al. 2024, arXiv
    2403.01218). One half is a guess: forgotten. With ``density="kde"`` it is the efficacy test of
    RULI (Naderloui et al. 2025), which assumes no shape.

    Args:
      unlearned: ``float[M, n]``, scores of the n forgotten rows under M unlearned models.
      retrained: ``float[M, n]`` under M models retrained without them. Pair m may share its key.
      null: ``float[M, n]`` under M further retrained models, with keys of their own.
      density: ``gaussian``, or ``kde`` with Silverman's bandwidth.

    Returns:
      :class:`AuditReport`: the accuracy, averaged over rows; its interval is over pairs of models
      (rows of one model are not independent). ``detail``: ``row_accuracy``, ``auc``, ``ratios``
      ``[2, M, n]`` and ``null_auc``.

    Cost: O(M n), ``kde`` O(M^2 n).

    Raises:
      ValueError: shapes that differ, fewer than 8 models, constant or non-finite scores.

    Example:
      >>> rng = np.random.default_rng(2)
      >>> a, b, c = rng.normal(0, 1, (3, 64, 50))
      >>> report = ulira(a + 1, b, null=c)
      >>> 0.65 < report.value < 0.72, report.null.low < 0.5 < report.null.high  # truth: .69
      (True, True)
    """
    unlearned, retrained, null = arms(unlearned=unlearned, retrained=retrained, null=null)
    _validate.one_of(DENSITIES, density=density)
    ratios = _cross_fitted(unlearned, retrained, density)
    nothing = _cross_fitted(null, retrained, density)
    interval = _accuracy(ratios)
    return AuditReport(
        name="U-LiRA accuracy" if density == "gaussian" else "RULI efficacy, accuracy",
        value=interval.estimate,
        interval=interval,
        null=_accuracy(nothing),
        n_models=len(unlearned),
        detail={
            "row_accuracy": _correct(ratios).mean((0, 1)),
            "auc": rank_auc(ratios[0].ravel(), ratios[1].ravel()),
            "null_auc": rank_auc(nothing[0].ravel(), nothing[1].ravel()),
            "ratios": ratios,
        },
    )


def _cross_fitted(u: np.ndarray, r: np.ndarray, density: str) -> np.ndarray:
    """Log likelihood ratios ``[2, M, n]`` of both arms, each by the half that it is not in."""
    half = np.arange(len(u)) % 2 == 0
    out = np.empty((2, *u.shape))
    for fit, test in ((half, ~half), (~half, half)):
        for arm, scores in enumerate((u, r)):
            seen = scores[test]
            out[arm, test] = log_density(u[fit], seen, density) - log_density(r[fit], seen, density)
    return out


def log_density(fit: np.ndarray, at: np.ndarray, density: str) -> np.ndarray:
    """Log density of ``at[k, n]`` under the law of each column of ``fit[m, n]``.

    The spread of a column is at least a hundredth of the median spread: one that is constant would
    have a law without width.
    """
    spread = fit.std(0, ddof=1)
    spread = np.maximum(spread, 0.01 * np.median(spread) + 1e-6)
    if density == "gaussian":
        return stats.norm.logpdf(at, fit.mean(0), spread)
    # Silverman's rule with the smaller of two spreads, as for laws with heavy tails.
    quartiles = np.subtract(*np.quantile(fit, (0.75, 0.25), axis=0)) / 1.349
    width = 0.9 * np.where(quartiles > 0, np.minimum(spread, quartiles), spread)
    width = np.maximum(width * len(fit) ** -0.2, 1e-6)
    return kernel_density(fit, at, width)


def kernel_density(fit: np.ndarray, at: np.ndarray, width) -> np.ndarray:
    """Log of ``mean_i N(at; fit_i, width^2)``, for each column."""
    z = (at[:, None] - fit[None]) / width
    top = -0.5 * (z**2).min(1)
    total = np.log(np.exp(-0.5 * z**2 - top[:, None]).mean(1)) + top
    return total - np.log(width) - 0.5 * math.log(2 * math.pi)


def _correct(ratios: np.ndarray) -> np.ndarray:
    """1 where the sign is right, 1/2 where there is none; ``[2, M, n]``."""
    return (1 + np.sign(ratios) * np.array([1, -1])[:, None, None]) / 2


def _accuracy(ratios: np.ndarray) -> Interval:
    return mean_interval(_correct(ratios).mean((0, 2)))


def ruli(
    unlearned, removed, *, retrained, bandwidth: float | None = None, groups=None
) -> AuditReport:
    """RULI's privacy test: whether unlearning leaves a trace that rows never seen do not have.

    M models were each trained with some of the target rows and unlearned those; the other targets
    they never saw. For each row and model: the ratio of kernel densities of its score under the
    *other* models that removed it and under those that never saw it (Naderloui et al. 2025, USENIX
    Security, Game 2). An AUC of one half: removed rows look like unseen ones.

    Deviation: every model is asked, by the M - 1 others, where the paper asks one target model;
    Silverman's bandwidth, where the official code has 1 whatever the scale (``bandwidth=1.0``).

    Args:
      unlearned: ``float[M, n]``, logit confidences of n target rows under M unlearned models.
      removed: ``bool[M, n]``, True where the model was trained on the row and unlearned it, False
        where it never saw it. Each row needs both in at least 4 models.
      retrained: ``float[M, n]`` under M models retrained without those rows; the null.
      bandwidth: of the kernels; None for Silverman's rule.
      groups: name -> ``bool[n]``, rows to report apart, as the most vulnerable and protected.

    Returns:
      :class:`AuditReport`: the AUC over all rows and models, with an interval over models.
      ``detail``: ``accuracy``, ``tpr_at_1fpr``, ``ratios`` ``[M, n]``, and for each group
      ``NAME_auc``, ``NAME_null_auc``, ``NAME_tpr_at_1fpr``. Where nothing differs it scores .53 at
      8 models, .51 at 16 and .505 at 64, so compare with the null.

    Cost: O(M^2 n).

    Raises:
      ValueError: shapes that differ, fewer than 8 models, a row without both kinds, constant
        scores, a bandwidth that is not > 0, a group that is not ``bool[n]`` or is empty.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> removed = rng.random((32, 40)) < 0.5
      >>> scores, retrained = rng.normal(0, 1, (2, 32, 40))
      >>> report = ruli(scores + 1.5 * removed, removed, retrained=retrained)
      >>> report.value > 0.75 > report.null.high
      True
    """
    unlearned, retrained = arms(unlearned=unlearned, retrained=retrained)
    if bandwidth is not None:
        _validate.positive(bandwidth=bandwidth)
    groups = {name: np.asarray(rows) for name, rows in (groups or {}).items()}
    for name, rows in groups.items():
        if rows.shape != unlearned.shape[1:] or rows.dtype != np.bool_ or not rows.any():
            raise ValueError(
                f"groups[{name!r}] has shape {rows.shape} and dtype {rows.dtype}, but must be "
                f"bool[{unlearned.shape[1]}] with a True in it: the rows of the group."
            )
    removed = np.asarray(removed)
    if removed.shape != unlearned.shape or removed.dtype != np.bool_:
        raise ValueError(
            f"removed has shape {removed.shape} and dtype {removed.dtype}, but must be "
            f"bool{list(unlearned.shape)}: which row each model was trained on and unlearned."
        )
    counts = removed.sum(0)
    few = np.flatnonzero((counts < 4) | (len(removed) - counts < 4))
    if few.size:
        raise ValueError(
            f"removed is True for {counts[few[0]]} of {len(removed)} models in row {few[0]} (and "
            f"{few.size - 1} rows like it), but each row needs 4 of both kinds."
        )
    ratios = _left_out(unlearned, removed, bandwidth)
    nothing = _left_out(retrained, removed, bandwidth)
    interval, null = _auc_over_models(ratios, removed), _auc_over_models(nothing, removed)
    detail = {
        "accuracy": float((((ratios > 0) == removed).mean(0)).mean()),
        "tpr_at_1fpr": tpr_at(ratios[removed], ratios[~removed], 0.01),
        "ratios": ratios,
    }
    for name, rows in groups.items():
        inside, out = ratios[:, rows], removed[:, rows]
        detail[f"{name}_auc"] = rank_auc(inside[out], inside[~out])
        detail[f"{name}_tpr_at_1fpr"] = tpr_at(inside[out], inside[~out], 0.01)
        none = nothing[:, rows]
        detail[f"{name}_null_auc"] = rank_auc(none[out], none[~out])
    return AuditReport("RULI privacy, AUC", interval.estimate, interval, null, len(removed), detail)


def _left_out(scores: np.ndarray, removed: np.ndarray, bandwidth: float | None) -> np.ndarray:
    """Log ratios ``[M, n]`` of each model under the laws of the others."""
    enough(len(scores))
    gaps = scores[:, None] - scores[None]  # [asked, other, n]
    itself = np.eye(len(scores), dtype=bool)[..., None]
    out = []
    for kind in (removed, ~removed):
        of = kind[None] & ~itself
        count = of.sum(1)
        if bandwidth is None:
            total = np.where(kind, scores, 0).sum(0)
            mean = total / kind.sum(0)
            spread = np.sqrt(np.where(kind, (scores - mean) ** 2, 0).sum(0) / (kind.sum(0) - 1))
            spread = np.maximum(spread, 0.01 * np.median(spread) + 1e-6)
            width = 0.9 * spread * kind.sum(0) ** -0.2
        else:
            width = np.full(scores.shape[1], bandwidth)
        exponent = np.where(of, -0.5 * (gaps / width) ** 2, -np.inf)
        top = exponent.max(1)
        total = np.log(np.exp(exponent - top[:, None]).sum(1)) + top
        out.append(total - np.log(count) - np.log(width))
    return out[0] - out[1]


def _auc_over_models(ratios: np.ndarray, removed: np.ndarray) -> Interval:
    """AUC over all, with the t interval of the AUCs of single models around it."""
    each = [
        rank_auc(r[k], r[~k]) for r, k in zip(ratios, removed, strict=True) if 0 < k.sum() < k.size
    ]
    spread = mean_interval(each)
    value = rank_auc(ratios[removed], ratios[~removed])
    return Interval(
        value, value + spread.low - spread.estimate, value + spread.high - spread.estimate
    )

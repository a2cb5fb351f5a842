"""Epsilon lower bounds of jax-privacy: their code, through the ``audit`` extra.

    pip install "jaxunlearn[audit]"

:func:`privacy_bounds` hands scores to ``jax_privacy.auditing.CanaryScoreAuditor``. These bounds
take rows, not models, as the sample: many rows that were in, many that were not, under one model
or few.
"""

import importlib
import math
from typing import Any

import numpy as np

from jaxunlearn import _validate
from jaxunlearn.audit.intervals import Interval
from jaxunlearn.audit.report import AuditReport, pair

BOUNDS = ("clopper_pearson", "one_run", "bootstrap")


def privacy_bounds(
    inside,
    outside,
    *,
    null,
    bound: str = "clopper_pearson",
    delta: float = 1e-5,
    level: float = 0.95,
    seed: int = 0,
) -> AuditReport:
    """Epsilon of an attack's scores, by jax-privacy.

    - ``clopper_pearson``: a lower bound with probability ``level``, from exact bounds on both rates
      (threshold chosen on one half of the scores).
    - ``one_run``: the bound of Steinke et al. (2023), valid for scores of *one* model whose rows
      were put in or left out by independent coins (threshold chosen likewise).
    - ``bootstrap``: an estimate from the rates themselves, with bootstrap quantiles: no bound.

    Args:
      inside: ``float[m]`` scores of rows that were in, which should be higher.
      outside: ``float[k]`` scores of rows that were not.
      null: the same pair where nothing differs, under retrained models, say.
      bound: see above.
      delta: in (0, 1).
      level: in (.5, 1).
      seed: of the split and the bootstrap.

    Returns:
      :class:`AuditReport`. A lower bound is its own interval, open above. ``n_models`` is 1: rows
      are the sample.

    Raises:
      ValueError: bad scores, bound, delta or level; constant scores.
      ModuleNotFoundError: jax-privacy is not installed; the message says how.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> a, b, c, d = rng.normal(0, 1, (4, 2000))
      >>> report = privacy_bounds(a + 2, b, null=(c, d))  # doctest: +SKIP
      >>> report.value > 2 > 0.2 > report.null.estimate  # doctest: +SKIP
      True
    """
    auditing = _auditing()
    _validate.one_of(BOUNDS, bound=bound)
    _validate.fraction(delta=delta)
    if not 0.5 < level < 1:
        raise ValueError(f"level={level!r} must lie in (.5, 1).")

    def found(inside, outside) -> Interval:
        inside, outside = (np.asarray(value, np.float64) for value in (inside, outside))
        for name, value in (("inside", inside), ("outside", outside)):
            if value.ndim != 1 or value.size < 20 or not np.isfinite(value).all():
                raise ValueError(
                    f"{name} has shape {value.shape}, but must be [n] with n >= 20 finite scores."
                )
        if np.ptp(np.concatenate([inside, outside])) == 0:
            raise ValueError("inside and outside are constant scores, which tell nothing apart.")
        auditor = auditing.CanaryScoreAuditor(inside, outside)
        split = auditing.Split(seed=seed)
        if bound == "bootstrap":
            rng = auditing.BootstrapParams.confidence_interval(confidence=level, seed=seed)
            low, high = auditor.epsilon_raw_counts(delta=delta, bootstrap_params=rng)
            value = auditor.epsilon_raw_counts(delta=delta)
            return Interval(float(value), float(low), float(high))
        method = getattr(auditor, f"epsilon_{bound}")
        value = float(method(1 - level, delta, threshold_strategy=split))
        return Interval(value, value, math.inf)

    interval = found(inside, outside)
    return AuditReport(
        f"epsilon, jax-privacy {bound}", interval.estimate, interval, found(*pair(null)), 1, {}
    )


def _auditing() -> Any:
    try:
        return importlib.import_module("jax_privacy.auditing")
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "jax-privacy is not installed. It is the extra `audit`: "
            'pip install "jaxunlearn[audit]" (with -c constraints.txt, as make does).'
        ) from None

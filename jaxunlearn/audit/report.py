"""What an audit over many models answers: a number, how sure it is, and what retraining scores."""

from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.audit.intervals import Interval

# Fewer models an arm say next to nothing: see `null_epsilon`.
LEAST_MODELS = 8


class AuditReport(NamedTuple):
    """A number about M unlearned models, and the same number about M retrained ones.

    Attributes:
      name: of the audit and of what ``value`` is.
      value: the number.
      interval: with its 95% interval; the docstring of each audit says over what.
      null: the same number where retraining is audited against retraining, M models each. A
        ``value`` whose interval overlaps it shows nothing.
      n_models: M, models in each arm.
      detail: further numbers and arrays by name, in NumPy.

    Example:
      >>> report = AuditReport("accuracy", 0.7, Interval(0.7, 0.68, 0.72),
      ...                      Interval(0.5, 0.49, 0.51), 128, {})
      >>> report.above_null, report.clear_of_null
      (True, True)
    """

    name: str
    value: float
    interval: Interval
    null: Interval
    n_models: int
    detail: dict[str, Any]

    @property
    def above_null(self) -> bool:
        """Whether the whole interval lies above that of the null.

        What an attack's power does; forgetting quality and relearn time fall instead.
        """
        return bool(self.interval.low > self.null.high)

    @property
    def clear_of_null(self) -> bool:
        """Whether the two intervals do not meet, whichever is higher; False if a bound is nan."""
        return bool(self.above_null or self.interval.high < self.null.low)


def arms(**named) -> list[np.ndarray]:
    """The named scores as ``float64[M, n]`` of one shape, M >= 8, in which something varies.

    Raises:
      ValueError: a score array of another shape, too few models, NaN, constant scores.
    """
    out: dict[str, np.ndarray] = {}
    for name, value in named.items():
        value = np.asarray(value, np.float64)
        if value.ndim != 2 or value.size == 0:
            raise ValueError(
                f"{name} has shape {value.shape}, but must be [M, n]: M models and n >= 1 rows."
            )
        out[name] = value
    first, *others = out
    for name in others:
        if out[name].shape != out[first].shape:
            raise ValueError(
                f"{name} has shape {out[name].shape} and {first} has shape {out[first].shape}; "
                "they must be equal: as many models in each arm, and the same rows in the same "
                "order. Drop models from the larger arm."
            )
    enough(out[first].shape[0])
    for name, value in out.items():
        if not np.isfinite(value).all():
            bad = np.flatnonzero(~np.isfinite(value).all(1))
            raise ValueError(
                f"{name} has values that are not finite in {bad.size} of {len(value)} models "
                f"(first: {bad[:5].tolist()}): trainings that diverged. Audit the others, and say "
                "how many were left out."
            )
        if np.ptp(value) == 0:
            raise ValueError(
                f"{name} is {float(value.flat[0])!r} for every model and every row: constant "
                "scores tell nothing apart. Use one that varies, such as logit_confidence."
            )
    return list(out.values())


def per_model(low: float, high: float, **named) -> list[np.ndarray]:
    """The named numbers as ``float64[M]`` of one length, M >= 8, each in [low, high]."""
    out = {name: np.asarray(value, np.float64) for name, value in named.items()}
    shapes = [value.shape for value in out.values()]
    if len(set(shapes)) > 1 or len(shapes[0]) != 1:
        raise ValueError(
            f"{', '.join(out)} have shapes {', '.join(map(str, shapes))}, but must be [M]: one "
            "number for each model, and the same number of models in each."
        )
    enough(shapes[0][0])
    for name, value in out.items():
        bad = np.flatnonzero(~((value >= low) & (value <= high)))
        if bad.size:
            raise ValueError(
                f"{name} has {bad.size} of {len(value)} values that do not lie in [{low:g}, "
                f"{high:g}] (first: {value[bad[0]]:g} of model {bad[0]}). Leave out models that "
                "diverged or were not measured, and say how many."
            )
    return list(out.values())


def pair(value, *, name: str = "null") -> tuple:
    """The two score arrays of a null."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise ValueError(
            f"{name} must be a pair of score arrays, (rows asked about, other rows), under "
            f"retrained models, but is {type(value).__name__}."
        ) from None
    return first, second


def enough(models: int) -> None:
    """At least 8 models; the error says what fewer would do."""
    if models >= LEAST_MODELS:
        return
    from jaxunlearn.audit.epsilon import null_epsilon  # which uses this module

    bias = f"{null_epsilon(models):.1f}" if models >= 2 else "any number"
    raise ValueError(
        f"There are {models} models in each arm, but at least {LEAST_MODELS} are needed (64 to be "
        f"of use): with {models}, retraining against itself would have a mean epsilon of {bias} "
        f"instead of 0, with 64 one of {null_epsilon(64):.1f}."
    )

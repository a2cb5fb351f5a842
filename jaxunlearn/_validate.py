"""Checks of arguments, before anything is traced.

Every message names the argument, the value it had, and what to do about it.
Checks that need values are skipped for tracers: under ``jit`` only shapes and
dtypes are known, and the eager callers of this library check first.
"""

import difflib
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxunlearn.types import Array, Dataset


def known(value) -> bool:
    """Whether ``value`` has a value to look at, that is, is not being traced."""
    return not isinstance(value, Tracer)


def fraction(**named: float) -> None:
    """Every argument lies strictly between 0 and 1."""
    for name, value in named.items():
        if not 0 < value < 1:
            raise ValueError(f"{name}={value!r} must lie strictly between 0 and 1.")


def positive(**named: float) -> None:
    """Every argument is a finite number > 0."""
    for name, value in named.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value!r} must be a finite number > 0.")


def not_negative(**named: float) -> None:
    """Every argument is a finite number >= 0."""
    for name, value in named.items():
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value!r} must be a finite number >= 0.")


def finite(**named: float) -> None:
    """Every argument is a finite number."""
    for name, value in named.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}={value!r} must be a finite number.")


def whole(minimum: int = 1, **named: int) -> None:
    """Every argument is an integer >= ``minimum``."""
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
            raise ValueError(f"{name}={value!r} must be an integer >= {minimum}.")


def one_of(choices: Iterable[str], **named: str) -> None:
    """Every argument is one of ``choices``; the error offers the nearest ones."""
    choices = list(choices)
    for name, value in named.items():
        if value not in choices:
            near = difflib.get_close_matches(str(value), choices, n=3, cutoff=0.4)
            hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"{name}={value!r} is unknown.{hint} Known: {', '.join(choices)}.")


def forget_mask(forget, n: int, *, name: str = "forget", removed=None, some: bool = False) -> None:
    """``forget`` is ``bool[n]`` and, with ``removed``, leaves at least one row.

    With ``some`` it must name at least one row, too.
    """
    shape, dtype = np.shape(forget), getattr(forget, "dtype", None) or np.asarray(forget).dtype
    if dtype != np.bool_:
        raise ValueError(
            f"{name} has dtype {dtype}, but must be a boolean mask over the {n} training rows: "
            "jaxunlearn.data.forget_indices(indices, n) makes one from row numbers."
        )
    if shape != (n,):
        raise ValueError(
            f"{name} has shape {shape}, but must be ({n},): one entry for each training row, "
            "those already removed included."
        )
    if some and known(forget) and not np.asarray(forget).any():
        raise ValueError(f"{name} names none of the {n} training rows: nothing is to be forgotten.")
    if known(forget) and (removed is None or known(removed)):
        gone = np.asarray(forget) if removed is None else np.asarray(forget) | np.asarray(removed)
        if n and gone.all():
            raise ValueError(
                f"{name} leaves none of the {n} training rows: nothing remains to keep. "
                "Forget fewer rows, or delete the model."
            )


def keep_mask(retain, n: int, *, name: str = "retain") -> None:
    """``retain`` is ``bool[n]``."""
    shape, dtype = np.shape(retain), getattr(retain, "dtype", None)
    if shape != (n,) or dtype != np.bool_:
        raise ValueError(
            f"{name} has shape {shape} and dtype {dtype}, but must be bool[{n}]: True for the "
            "training rows that are to be kept."
        )


def row_weights(weights, n: int, *, name: str = "weights") -> None:
    """``weights`` is ``[..., n]``, finite, not negative, and not all zero in any row."""
    shape = np.shape(weights)
    if not shape or shape[-1] != n:
        raise ValueError(
            f"{name} has shape {shape}, but must end in {n}: one for each row of data."
        )
    if known(weights):
        values = np.asarray(weights)
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"{name} must be finite and >= 0, but has other values.")
        if not (values > 0).any(-1).all():
            raise ValueError(
                f"{name} is zero for all {n} rows: nothing remains to train on. Keep some rows."
            )


def as_weights(weights) -> Array:
    """Weights as an array: float64 if they are, else float32."""
    weights = jnp.asarray(weights)
    return weights.astype(weights.dtype if weights.dtype == jnp.float64 else jnp.float32)


@jax.jit  # one pass over the data, and nothing in between that is as large
def _all_finite(x):
    return jnp.isfinite(x).all()


def rows(data: Dataset, *, name: str = "data") -> None:
    """Inputs and labels have the same number of rows, at least one, and inputs are finite."""
    x_shape, y_shape = np.shape(data.x), np.shape(data.y)
    if len(x_shape) < 1 or len(y_shape) != 1 or x_shape[0] != y_shape[0]:
        raise ValueError(
            f"{name}.x has shape {x_shape} and {name}.y has shape {y_shape}; "
            "they must be [n, ...] and [n] with the same n."
        )
    if x_shape[0] == 0:
        raise ValueError(f"{name} has no rows.")
    if not known(data.x):
        return
    # Known data may also be closed over by a function that is being traced.
    with jax.ensure_compile_time_eval():
        finite = bool(_all_finite(data.x))
    if not finite:
        bad = np.flatnonzero(~np.isfinite(np.asarray(data.x)).reshape(x_shape[0], -1).all(1))
        raise ValueError(
            f"{name}.x has NaN or infinite values in {bad.size} rows "
            f"(first: {bad[:5].tolist()}). Drop or impute them first."
        )


def dataset(data: Dataset, *, num_classes: int | None = None, name: str = "data") -> None:
    """:func:`rows`, and labels are integers in ``[0, num_classes)``."""
    rows(data, name=name)
    if not np.issubdtype(data.y.dtype, np.integer):
        raise ValueError(f"{name}.y has dtype {data.y.dtype}, but class labels must be integers.")
    if known(data.y):
        labels = np.asarray(data.y)
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (num_classes is not None and high >= num_classes):
            top = "num_classes - 1" if num_classes is None else num_classes - 1
            raise ValueError(
                f"{name}.y has labels from {low} to {high}, but they must lie in 0..{top}. "
                "Renumber the labels from 0, or give the model more outputs."
            )

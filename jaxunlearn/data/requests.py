"""Requests to be forgotten: boolean masks over the training rows, kept in files.

A mask, not a list of rows, because its shape does not depend on the request.
"""

import hashlib
import io
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn._files import atomic_write
from jaxunlearn.types import Array, Dataset


def forget_random(key: Array, y: Array, fraction: float) -> Array:
    """Forgets exactly ``round(fraction * n)`` rows, all such sets equally likely.

    Args:
      key: a ``jax.random.key``.
      y: ``int[n]`` labels; only their number counts.
      fraction: of all rows, strictly between 0 and 1. A half is rounded to even.

    Returns:
      ``bool[n]``, True for the rows to forget.

    Raises:
      ValueError: ``fraction`` lies outside (0, 1), or rounds to no row or to all.

    Cost: one random permutation of ``n`` numbers. Can be jitted and vmapped over ``key``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> int(forget_random(jax.random.key(0), jnp.zeros(50, int), 0.2).sum())
      10
    """
    _validate.fraction(fraction=fraction)
    n = _rows(y)
    count = _count(fraction, n, "rows")
    if count == n:
        raise ValueError(f"fraction={fraction!r} of {n} rows is all of them. Forget fewer.")
    return jax.random.permutation(key, n) < count


def forget_class(key: Array, y: Array, label: int, fraction: float = 1.0) -> Array:
    """Forgets ``round(fraction * m)`` of the ``m`` rows with one label, chosen uniformly.

    Args:
      key: a ``jax.random.key``; without effect if ``fraction`` is 1.
      y: ``int[n]`` labels.
      label: the class to forget, one of the labels in ``y``.
      fraction: of the rows of that class, in (0, 1]. A half is rounded to even.

    Returns:
      ``bool[n]``, True for the rows to forget.

    Raises:
      ValueError: no row has ``label``, ``fraction`` lies outside (0, 1] or rounds to
        no row, or no other class remains.

    Not for use under ``jit``: how many rows are chosen depends on the values of ``y``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> forget_class(jax.random.key(0), jnp.array([0, 1, 1, 2]), 1).tolist()
      [False, True, True, False]
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction!r} must lie in (0, 1]; 1 is the whole class.")
    _validate.whole(0, label=label)
    n = _rows(y)
    rows = np.flatnonzero(np.asarray(y) == label)
    if rows.size == 0:
        raise ValueError(f"label={label!r} has no rows. Labels: {np.unique(y).tolist()}.")
    count = _count(fraction, rows.size, f"rows with label {label}")
    return forget_indices(jax.random.permutation(key, rows)[:count], n)


def forget_indices(indices, n: int) -> Array:
    """Forgets the rows with these numbers.

    Args:
      indices: ``int[k]``, any order, each in ``[0, n)`` and none twice; may be empty.
      n: the number of training rows, those already removed included.

    Returns:
      ``bool[n]``, True for the rows to forget.

    Raises:
      ValueError: an index is no integer, out of range or repeated, or all rows are named.

    Example:
      >>> forget_indices([2, 0], 4).tolist()
      [True, False, True, False]
    """
    _validate.whole(n=n)
    indices = np.asarray(indices)
    if indices.ndim != 1 or (indices.size and not np.issubdtype(indices.dtype, np.integer)):
        raise ValueError(
            f"indices has shape {indices.shape} and dtype {indices.dtype}, but must be a flat "
            "list of integers. A boolean mask over the rows is a request already."
        )
    indices = indices.astype(np.int64)
    outside = indices[(indices < 0) | (indices >= n)]
    if outside.size:
        raise ValueError(
            f"indices={outside[:5].tolist()} do not lie in 0..{n - 1}. Count rows from 0 in the "
            "training data given to fit."
        )
    rows, times = np.unique(indices, return_counts=True)
    if (times > 1).any():
        raise ValueError(
            f"indices={rows[times > 1][:5].tolist()} occur more than once. Name each row once."
        )
    mask = np.zeros(n, bool)
    mask[rows] = True
    _validate.forget_mask(mask, n, name="indices")
    return jnp.asarray(mask)


def confuse_classes(
    key: Array, data: Dataset, classes: tuple[int, int], fraction: float
) -> tuple[Dataset, Array]:
    """Swaps the labels of some rows of two classes, and asks to forget those rows.

    The request of the interclass confusion test (Goel et al. 2022, arXiv 2201.06640): the model is
    trained on the swapped labels, and :func:`~jaxunlearn.audit.interclass_error` says how much of
    the confusion is left after unlearning.

    Args:
      key: a ``jax.random.key``.
      data: all training rows.
      classes: the two labels.
      fraction: of the rows of each of the two, in (0, 1).

    Returns:
      The rows with swapped labels, and ``bool[n]``, True where they were swapped.

    Raises:
      ValueError: equal classes, a class without rows, ``fraction`` out of range or of no row.

    Not for use under ``jit``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> rows = Dataset(jnp.zeros((6, 1)), jnp.array([0, 0, 1, 1, 2, 2]))
      >>> confused, forget = confuse_classes(jax.random.key(0), rows, (0, 1), 0.5)
      >>> int(forget.sum()), sorted(confused.y.tolist()), confused.y[4:].tolist()
      (2, [0, 0, 1, 1, 2, 2], [2, 2])
    """
    a, b = classes
    if a == b:
        raise ValueError(f"classes={classes!r} must be two different ones.")
    _validate.fraction(fraction=fraction)
    masks = [
        forget_class(k, data.y, c, fraction)
        for k, c in zip(jax.random.split(key), classes, strict=True)
    ]
    forget = masks[0] | masks[1]
    swapped = jnp.where(data.y == a, b, a).astype(data.y.dtype)
    return Dataset(data.x, jnp.where(forget, swapped, data.y)), forget


def split_hash(forget: Array) -> str:
    """A short name for a request, the same on every machine: 16 hexadecimal digits.

    The first 64 bits of SHA-256 over ``n`` and the bits of the mask. It finds mix-ups
    and damage; it is no protection against forgery.

    Args:
      forget: ``bool[n]``.

    Raises:
      ValueError: ``forget`` is not ``bool[n]``.

    Example:
      >>> split_hash(forget_indices([2, 0], 4))
      '5f326b674d450ace'
    """
    mask = np.asarray(forget)
    if mask.ndim != 1 or mask.dtype != np.bool_:
        raise ValueError(
            f"forget has shape {mask.shape} and dtype {mask.dtype}, but must be bool[n]: "
            "jaxunlearn.data.forget_indices(indices, n) makes one from row numbers."
        )
    return hashlib.sha256(b"%d:" % mask.size + np.packbits(mask).tobytes()).hexdigest()[:16]


def save_split(path: str | os.PathLike[str], forget: Array) -> str:
    """Writes a request to a file, so that every method and every run uses the same one.

    The file is a plain ``.npz`` (no pickle): ``numpy.load(path)["forget"]`` is the mask.
    It is written in one step, so a killed process leaves the old file or the new one.

    Args:
      path: of the file, made with its folders, under exactly this name.
      forget: ``bool[n]``.

    Returns:
      ``split_hash(forget)``.

    Raises:
      ValueError: ``forget`` is not ``bool[n]``, or the file holds another request: results
        that were made with it would no longer be reproducible.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     name = save_split(f"{folder}/split.npz", forget_indices([2, 0], 4))
      ...     load_split(f"{folder}/split.npz").tolist()
      [True, False, True, False]
    """
    path = Path(path)
    name = split_hash(forget)
    if path.exists():
        there = split_hash(load_split(path))
        if there != name:
            raise ValueError(
                f"path={str(path)!r} holds the request {there}, not {name}. "
                "Choose another path, or delete the file."
            )
        return name
    with atomic_write(path) as file:
        np.savez_compressed(file, forget=np.asarray(forget), hash=np.array(name))
    return name


def load_split(path: str | os.PathLike[str]) -> Array:
    """Reads a request that :func:`save_split` wrote, and checks its hash.

    Args:
      path: of the file.

    Returns:
      ``bool[n]``, True for the rows to forget.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or is none of ours.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     name = save_split(f"{folder}/split.npz", forget_indices([1], 3))
      ...     load_split(f"{folder}/split.npz").tolist()
      [False, True, False]
    """
    content = io.BytesIO(Path(path).read_bytes())
    try:
        with np.load(content, allow_pickle=False) as file:
            mask, name = file["forget"], str(file["hash"])
        intact = split_hash(mask) == name
    except Exception:  # NumPy and zipfile have an exception for each way to be broken
        intact = False
    if not intact:
        raise ValueError(
            f"path={str(path)!r} is corrupted or no saved split: it cannot be read, or its rows "
            "do not match its hash. Delete it and save the request again."
        )
    return jnp.asarray(mask)


def _rows(y: Array) -> int:
    if np.ndim(y) != 1 or np.shape(y)[0] == 0:
        raise ValueError(f"y has shape {np.shape(y)}, but must be [n]: one label for each row.")
    return np.shape(y)[0]


def _count(fraction: float, total: int, what: str) -> int:
    count = round(fraction * total)
    if count == 0:
        raise ValueError(f"fraction={fraction!r} of {total} {what} is no row. Use a larger one.")
    return count

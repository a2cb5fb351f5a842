"""Patches and networks in files: NumPy archives without pickle, which an auditor can read.

A patch file says which network it is for (by a hash of the weights), where that was
certified, and with which multipliers; it is all that a check needs beside the weights.
"""

import hashlib
import io
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn._files import atomic_write
from jaxunlearn.primitives.outcomes import Outcome
from jaxunlearn.primitives.patches import Patches
from jaxunlearn.primitives.regions import dense_layers
from jaxunlearn.types import Dataset

FORMAT = "jaxunlearn patches 1"
# At 0.5 the gates of 500 patches reach 68 other images of MNIST, from 10 on none.
SOFTEST = 10.0
# What float32 holds, with room for a sum.
LARGEST = 1e30
OPTIONAL = ("low", "high", "dual", "requests", "outcome")
_write: Any = np.savez


class PatchFile(NamedTuple):
    """What a patch file holds.

    Attributes:
      patches: :class:`~jaxunlearn.primitives.patches.Patches`, as NumPy arrays.
      model: hash of the network they are for (:func:`model_hash`).
      sharpness: lambda.
      margin: epsilon, by which the target leads inside.
      rows: ``int32[K]``, the training row that each is for; -1 if that is not told.
      low: least inputs that the certificates hold for, ``float[d]``; None without.
      high: greatest ones.
      dual: ``float32[K, L, N]``, multipliers of the certificates; None without.
      requests: ``int32[R]``, the training rows that asked; None if it is those of ``rows``.
      outcome: ``int32[R]``, what became of each, an
        :class:`~jaxunlearn.primitives.outcomes.Outcome`; None if that is not told.
    """

    patches: Patches
    model: str
    sharpness: float
    margin: float
    rows: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dual: np.ndarray | None = None
    requests: np.ndarray | None = None
    outcome: np.ndarray | None = None


def model_hash(params: Any) -> str:
    """SHA-256 over the shapes, dtypes and bytes of the dense layers, in hexadecimal.

    Example:
      >>> layers = [(np.ones((1, 2)), np.zeros(2)), (np.eye(2), np.zeros(2))]
      >>> other = [layers[0], (np.eye(2), np.full(2, 1e-9))]
      >>> model_hash(layers) == model_hash(layers), model_hash(layers) == model_hash(other)
      (True, False)
    """
    digest = hashlib.sha256()
    for layer in dense_layers(params):
        for leaf in layer:
            leaf = np.ascontiguousarray(leaf)
            leaf = leaf.astype(leaf.dtype.newbyteorder("<"))
            digest.update(f"{leaf.dtype.name}{leaf.shape}".encode())
            digest.update(leaf.tobytes())
    return digest.hexdigest()


def save_patches(path: str | os.PathLike[str], file: PatchFile) -> None:
    """Writes a patch file, whole or not at all.

    Args:
      path: ends in ``.npz`` by habit.
      file: what to write.

    Raises:
      ValueError: arrays that do not fit together (:func:`fits_together`).

    Example:
      >>> import tempfile
      >>> from jaxunlearn.primitives.patches import empty
      >>> file = PatchFile(empty(2, 8, 3), "0" * 64, 1000.0, 0.1, np.array([4, 7], np.int32))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_patches(folder + "/patches.npz", file)
      ...     load_patches(folder + "/patches.npz").rows.tolist()
      [4, 7]
    """
    fits_together(file, str(path))
    arrays = {name: leaf for name, leaf in file.patches._asdict().items() if leaf is not None}
    arrays |= {name: leaf for name, leaf in file._asdict().items() if leaf is not None}
    del arrays["patches"]
    with atomic_write(pathlib.Path(path)) as out:
        _write(out, format=FORMAT, **{name: np.asarray(leaf) for name, leaf in arrays.items()})


def load_patches(path: str | os.PathLike[str]) -> PatchFile:
    """Reads a patch file; the checksums of the archive notice damage.

    Args:
      path: of the file.

    Returns:
      :class:`PatchFile`, with NumPy arrays.

    Raises:
      FileNotFoundError: nothing at ``path``.
      ValueError: it is truncated, damaged, of another format, or its arrays do not match.

    Example:
      >>> import tempfile
      >>> with tempfile.NamedTemporaryFile() as file:
      ...     try:
      ...         load_patches(file.name)
      ...     except ValueError as error:
      ...         print("is no patch file" in str(error))
      True
    """
    arrays = _read(path, "patch file")
    if str(arrays.pop("format", "")) != FORMAT:
        raise ValueError(f"path={str(path)!r} is no patch file: its format is not {FORMAT!r}.")
    optional = {name: arrays.pop(name, None) for name in OPTIONAL}
    try:
        given = {name: arrays.pop(name) for name in Patches._fields[:4]}
        patches = Patches(**given, care=arrays.pop("care", None), group=arrays.pop("group", None))
        file = PatchFile(
            patches=patches,
            model=str(arrays.pop("model")),
            sharpness=float(arrays.pop("sharpness")),
            margin=float(arrays.pop("margin")),
            rows=arrays.pop("rows"),
            **optional,
        )
    except KeyError as error:
        raise ValueError(f"path={str(path)!r} is a patch file without {error}: damaged.") from None
    except TypeError as error:  # of a number that is none
        raise ValueError(
            f"path={str(path)!r}: sharpness or margin is no number ({error})."
        ) from None
    if arrays:
        raise ValueError(f"path={str(path)!r} holds {sorted(arrays)}, which no patch file has.")
    fits_together(file, str(path))
    return file


def save_network(path: str | os.PathLike[str], params: Any) -> None:
    """Writes the dense layers of a network for an auditor: ``kernel_0``, ``bias_0``, ...

    Args:
      path: of the file.
      params: dense ReLU layers.

    Raises:
      ValueError: no hidden layer.

    Example:
      >>> import tempfile
      >>> layers = [(np.ones((1, 2)), np.zeros(2)), (np.eye(2), np.zeros(2))]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_network(folder + "/network.npz", layers)
      ...     model_hash(load_network(folder + "/network.npz")) == model_hash(layers)
      True
    """
    arrays = {}
    for number, layer in enumerate(dense_layers(params)):
        arrays |= {f"{name}_{number}": np.asarray(leaf) for name, leaf in layer._asdict().items()}
    with atomic_write(pathlib.Path(path)) as out:
        _write(out, **arrays)


def load_network(path: str | os.PathLike[str]) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """Reads what :func:`save_network` wrote.

    Args:
      path: of the file.

    Returns:
      Layers, as every function of :mod:`jaxunlearn.primitives.regions` takes them.

    Raises:
      FileNotFoundError: nothing at ``path``.
      ValueError: it is damaged, or holds no layers.

    Example:
      >>> import tempfile
      >>> layers = [(np.ones((1, 2)), np.zeros(2)), (np.eye(2), np.zeros(2))]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_network(folder + "/network.npz", layers)
      ...     [kernel.shape for kernel, _ in load_network(folder + "/network.npz")]
      [(1, 2), (2, 2)]
    """
    arrays = _read(path, "network file")
    count = len(arrays) // 2
    names = [(f"kernel_{number}", f"bias_{number}") for number in range(count)]
    if {name for pair in names for name in pair} != arrays.keys():
        raise ValueError(
            f"path={str(path)!r} holds {sorted(arrays)}, but a network file holds kernel_0, "
            "bias_0, kernel_1, ...: save_network writes one."
        )
    layers = [(arrays[kernel], arrays[bias]) for kernel, bias in names]
    dense_layers(layers)
    return layers


def save_data(path: str | os.PathLike[str], data: Dataset) -> None:
    """Writes rows for an auditor: ``x``, flat, and ``y``.

    Args:
      path: of the file.
      data: inputs of the dense layers, and labels.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_data(folder + "/data.npz", Dataset(np.ones((2, 2, 2)), np.array([0, 1])))
      ...     load_data(folder + "/data.npz").x.shape
      (2, 4)
    """
    x: Any = np.asarray(data.x).reshape(len(data.x), -1)
    with atomic_write(pathlib.Path(path)) as out:
        _write(out, x=x, y=np.asarray(data.y))


def load_data(path: str | os.PathLike[str]) -> Dataset:
    """Reads what :func:`save_data` wrote.

    Args:
      path: of the file.

    Raises:
      FileNotFoundError: nothing at ``path``.
      ValueError: it is damaged, or has no ``x`` and ``y`` of as many rows.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_data(folder + "/data.npz", Dataset(np.ones((2, 3)), np.array([0, 1])))
      ...     load_data(folder + "/data.npz").y.tolist()
      [0, 1]
    """
    arrays = _read(path, "data file")
    if arrays.keys() != {"x", "y"}:
        raise ValueError(f"path={str(path)!r} holds {sorted(arrays)}, but must hold x and y.")
    x, y = arrays["x"], arrays["y"]
    if y.ndim != 1 or x.shape[:1] != y.shape:
        raise ValueError(f"path={str(path)!r}: x has shape {x.shape} and y {y.shape}.")
    return Dataset(x.reshape(len(x), -1), y)


def _read(path, what: str) -> dict[str, Any]:
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {what} at {str(path)!r}.")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # what a damaged archive raises is anybody's guess
        raise ValueError(
            f"path={str(path)!r} is no {what}, or it is damaged ({error}). Ask for it again."
        ) from None


def fits_together(file: PatchFile, path: str) -> None:
    """Raises ValueError unless shapes, dtypes and values of a patch file fit each other.

    Args:
      file: to check.
      path: how to call it.

    Raises:
      ValueError: with all that is wrong.

    Example:
      >>> from jaxunlearn.primitives.patches import empty
      >>> soft = PatchFile(empty(1, 8, 3), "0" * 64, 0.5, 0.1, np.array([4]))
      >>> try:
      ...     fits_together(soft, "soft.npz")
      ... except ValueError as error:
      ...     print("sharpness=0.5" in str(error))
      True
    """
    p = file.patches
    shape = np.shape(p.bits)
    if len(shape) != 2 or np.ndim(p.delta) != 2 or np.asarray(p.bits).dtype != np.uint8:
        raise ValueError(f"path={path!r}: bits and delta must be uint8[K, W] and float[K, L].")
    count, classes = shape[0], np.shape(p.delta)[1]
    asked = 0 if file.requests is None else np.size(file.requests)
    box = next((np.size(side) for side in (file.low, file.high) if side is not None), 0)
    several = () if file.dual is None else np.shape(file.dual)[2:3] or (-1,)
    wrong = []
    for name, leaf, want, kinds, least, most in (
        ("delta", p.delta, (count, classes), "f", -LARGEST, LARGEST),
        ("target", p.target, (count,), "iu", 0, classes - 1),
        ("replace", p.replace, (count,), "b", 0, 1),
        ("care", p.care, shape, "u", 0, 255),
        ("group", p.group, (count,), "iu", 0, count - 1),
        ("rows", file.rows, (count,), "iu", -1, np.inf),
        ("requests", file.requests, (asked,), "iu", 0, np.inf),
        ("outcome", file.outcome, (asked,), "iu", 0, Outcome.OUTSIDE),
        ("dual", file.dual, (count, classes, *several), "f", -np.inf, np.inf),
        ("low", file.low, (box,), "fiu", -LARGEST, LARGEST),
        ("high", file.high, (box,), "fiu", -LARGEST, LARGEST),
    ):
        if leaf is None:
            continue
        leaf = np.asarray(leaf)
        if leaf.shape != want:
            wrong.append(f"{name} has shape {leaf.shape}, not {want}")
        elif leaf.dtype.kind not in kinds or leaf.dtype.itemsize > 8:
            wrong.append(f"{name} has dtype {leaf.dtype}, which is of the wrong kind")
        elif name != "dual" and not ((leaf >= least) & (leaf <= most)).all():  # nor NaN
            wrong.append(f"{name} is not in {least:g}..{most:g}")
    wrong = wrong or _values(file)
    if wrong:
        raise ValueError(f"path={path!r} does not fit together: {'; '.join(wrong)}.")


def _values(file: PatchFile) -> list[str]:
    """What is wrong with the values, where shapes and dtypes are right."""
    wrong = []
    if not SOFTEST <= file.sharpness < LARGEST:
        wrong.append(
            f"sharpness={file.sharpness} must be {SOFTEST} at least: softer gates reach far "
            "beyond their regions"
        )
    if not 0 < file.margin < LARGEST:
        wrong.append(f"margin={file.margin} must be > 0")
    if file.requests is not None:
        requests, rows = np.asarray(file.requests), np.asarray(file.rows)
        if np.unique(requests).size < requests.size:
            wrong.append("requests has a row more than once")
        if strangers := np.setdiff1d(rows[rows >= 0], requests).tolist():
            wrong.append(f"rows has some that are not in requests: {strangers[:5]}")
    if file.low is None or file.high is None:
        wrong += ["it has multipliers, but no input box"] * (file.dual is not None)
        wrong += ["it has one side of a box"] * (file.low is not file.high)
    elif (np.asarray(file.low) > file.high).any() or np.array_equal(file.low, file.high):
        wrong.append("its box must have low <= high, and not be a single point")
    return wrong

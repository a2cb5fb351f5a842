"""Which rows belong to which client: drawn from a seed, kept in files.

All of it happens on the host, before anything is compiled: a partition is a table of row numbers
that every later function takes as it is.
"""

import hashlib
import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxunlearn import _validate
from jaxunlearn._files import atomic_write

KINDS = ("iid", "dirichlet", "class")


class Partition(NamedTuple):
    """The rows of every client.

    Attributes:
      rows: ``int32[K, M]``, the row numbers of client k in its first ``counts[k]`` places; the
        others repeat one of its rows.
      counts: ``int32[K]``, at least 1 each.
    """

    rows: np.ndarray
    counts: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """``bool[K, M]``: the places that hold a row and no padding."""
        return np.arange(self.rows.shape[1]) < self.counts[:, None]

    @property
    def n(self) -> int:
        """Rows of all clients together."""
        return int(self.counts.sum())


def of_lists(lists) -> Partition:
    """A partition from one list of row numbers for each client.

    Args:
      lists: K sequences of row numbers that together name every row of ``0..n - 1`` once.

    Raises:
      ValueError: a client without rows; a row that no client or more than one owns; numbers that
        are not integers.

    Example:
      >>> of_lists([[0, 3], [1, 2, 4]]).rows.tolist()
      [[0, 3, 0], [1, 2, 4]]
    """
    lists = [np.asarray(rows) for rows in lists]
    if not lists:
        raise ValueError("lists=[] has no clients: give one list of row numbers for each.")
    empty = [k for k, rows in enumerate(lists) if rows.size == 0]
    if empty:
        raise ValueError(
            f"clients {empty[:5]} of {len(lists)} have no rows: use fewer clients, a larger alpha, "
            "or another seed."
        )
    for k, rows in enumerate(lists):
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise ValueError(
                f"lists[{k}] has shape {rows.shape} and dtype {rows.dtype}, but must be row "
                "numbers: int[m]."
            )
    counts = np.array([rows.size for rows in lists], np.int32)
    everyone = np.sort(np.concatenate(lists))
    if not np.array_equal(everyone, np.arange(everyone.size)):
        raise ValueError(
            f"lists name {everyone.size} rows from {everyone[0]} to {everyone[-1]}, but must name "
            f"each of 0..{everyone.size - 1} once."
        )
    most = counts.max()
    rows = np.stack(
        [np.pad(rows, (0, most - rows.size), constant_values=rows[0]) for rows in lists]
    )
    return Partition(rows.astype(np.int32), counts)


def iid(seed: int, n: int, clients: int) -> Partition:
    """Random clients of equal size, up to one row.

    Args:
      seed: of ``numpy.random.default_rng``; the same seed gives the same partition anywhere.
      n: rows.
      clients: K, at most n.

    Raises:
      ValueError: more clients than rows.

    Example:
      >>> iid(0, 10, 3).counts.tolist()
      [4, 3, 3]
    """
    _check(seed, n, clients)
    return of_lists(np.array_split(np.random.default_rng(seed).permutation(n), clients))


def dirichlet(seed: int, y, clients: int, *, alpha: float = 0.5) -> Partition:
    """Label skew: of every class, client k has the share ``p_k``, ``p ~ Dirichlet(alpha)``.

    The partition of Hsu et al. 2019 (arXiv 1909.06335) in the form that most code uses: one draw
    of shares for each class. Draws that leave a client without rows are repeated, up to a thousand.

    Args:
      seed: as in :func:`iid`.
      y: ``int[n]`` labels.
      clients: K.
      alpha: > 0; towards 0 each class lies with one client, towards infinity all are alike.

    Raises:
      ValueError: alpha, or more clients than rows; no draw that gives every client a row.

    Example:
      >>> part = dirichlet(0, np.repeat([0, 1], 50), 4, alpha=0.3)
      >>> part.n, bool(part.counts.min() >= 1)
      (100, True)
    """
    y = _labels(y)
    _check(seed, y.size, clients)
    _validate.positive(alpha=alpha)
    draw = np.random.default_rng(seed)
    for _ in range(1000):
        lists: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for label in np.unique(y):
            rows = draw.permutation(np.flatnonzero(y == label))
            ends = np.cumsum(draw.dirichlet(np.full(clients, alpha))) * rows.size
            for k, part in enumerate(np.split(rows, ends[:-1].round().astype(int))):
                lists[k].append(part)
        joined = [draw.permutation(np.concatenate(parts)) for parts in lists]
        if all(rows.size for rows in joined):
            return of_lists(joined)
    raise ValueError(
        f"alpha={alpha!r} left one of {clients} clients without rows in 1000 draws: use a larger "
        "alpha, or fewer clients."
    )


def by_class(seed: int, y, clients: int, *, classes: int = 2) -> Partition:
    """Pathological skew (McMahan et al. 2017): each client has rows of about ``classes`` classes.

    Rows are sorted by label and cut into ``classes`` times K pieces; each client gets ``classes``
    pieces at random.

    Args:
      seed: as in :func:`iid`.
      y: ``int[n]`` labels.
      clients: K.
      classes: pieces a client.

    Raises:
      ValueError: more pieces than rows.

    Example:
      >>> y = np.repeat([0, 1, 2, 3], 5)
      >>> [np.unique(y[r]).size for r in by_class(0, y, 4, classes=1).rows]
      [1, 1, 1, 1]
    """
    y = _labels(y)
    _validate.whole(classes=classes)
    _check(seed, y.size, clients * classes, "clients * classes")
    _check(seed, y.size, clients)
    draw = np.random.default_rng(seed)
    order = draw.permutation(y.size)
    pieces = np.array_split(order[np.argsort(y[order], kind="stable")], clients * classes)
    given = draw.permutation(clients * classes).reshape(clients, classes)
    return of_lists([np.concatenate([pieces[i] for i in own]) for own in given])


def make(
    kind: str, seed: int, y, clients: int, *, alpha: float = 0.5, classes: int = 2
) -> Partition:
    """One of the three partitions by its name, as configurations give it.

    Args:
      kind: ``iid``, ``dirichlet`` or ``class``.
      seed, clients, alpha, classes: as there.
      y: ``int[n]`` labels; for ``iid`` only their number counts, so they may be traced.

    Raises:
      ValueError: an unknown kind; labels that are being traced by ``jit`` where they are needed.

    Example:
      >>> make("iid", 0, np.zeros(6, int), 2).counts.tolist()
      [3, 3]
    """
    _validate.one_of(KINDS, kind=kind)
    if kind == "iid":
        return iid(seed, np.shape(y)[0], clients)
    if not _validate.known(y):
        raise ValueError(
            f"kind={kind!r} looks at the labels, which are being traced here: make the partition "
            "outside of jit and give it instead."
        )
    if kind == "dirichlet":
        return dirichlet(seed, y, clients, alpha=alpha)
    return by_class(seed, y, clients, classes=classes)


def partition_hash(partition: Partition) -> str:
    """A short name for a partition, the same on every machine: 16 hexadecimal digits.

    Example:
      >>> partition_hash(iid(0, 4, 2)) == partition_hash(iid(0, 4, 2))
      True
    """
    digest = hashlib.sha256(b"%d:%d:" % partition.rows.shape)
    digest.update(partition.rows.astype("<i4").tobytes() + partition.counts.astype("<i4").tobytes())
    return digest.hexdigest()[:16]


def save_partition(path: str | os.PathLike[str], partition: Partition) -> str:
    """Writes a partition to a plain ``.npz``, in one step, so that every run uses the same one.

    Args:
      path: of the file, made with its folders.
      partition: to keep.

    Returns:
      :func:`partition_hash` of it.

    Raises:
      ValueError: the file holds another partition.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     name = save_partition(f"{folder}/clients.npz", iid(0, 6, 2))
      ...     load_partition(f"{folder}/clients.npz").counts.tolist()
      [3, 3]
    """
    path, name = Path(path), partition_hash(partition)
    if path.exists():
        there = partition_hash(load_partition(path))
        if there != name:
            raise ValueError(
                f"path={str(path)!r} holds the partition {there}, not {name}. "
                "Choose another path, or delete the file."
            )
        return name
    with atomic_write(path) as file:
        np.savez_compressed(file, rows=partition.rows, counts=partition.counts, hash=np.array(name))
    return name


def load_partition(path: str | os.PathLike[str]) -> Partition:
    """Reads what :func:`save_partition` wrote, and checks its hash and that it is a partition.

    Args:
      path: of the file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or is none of ours.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     name = save_partition(f"{folder}/clients.npz", iid(1, 5, 2))
      ...     partition_hash(load_partition(f"{folder}/clients.npz")) == name
      True
    """
    content = io.BytesIO(Path(path).read_bytes())
    try:
        with np.load(content, allow_pickle=False) as file:
            found, name = Partition(file["rows"], file["counts"]), str(file["hash"])
        lists = [rows[:count] for rows, count in zip(*found, strict=True)]
        intact = partition_hash(of_lists(lists)) == partition_hash(found) == name
    except Exception:  # NumPy and zipfile have an exception for each way to be broken
        intact = False
    if not intact:
        raise ValueError(
            f"path={str(path)!r} is corrupted or no saved partition: it cannot be read, or its "
            "rows do not match its hash. Delete it and save the partition again."
        )
    return found


def _labels(y) -> np.ndarray:
    y = np.asarray(y)
    if y.ndim != 1 or y.size == 0:
        raise ValueError(f"y has shape {y.shape}, but must be [n]: one label for each row.")
    return y


def _check(seed: int, n: int, clients: int, name: str = "clients") -> None:
    _validate.whole(0, seed=seed)
    _validate.whole(n=n)
    _validate.whole(**{name.replace(" * ", "_times_"): clients})
    if clients > n:
        raise ValueError(
            f"{name}={clients} is more than the {n} rows: some would have no rows. Use fewer."
        )

"""Requests to be forgotten, as clients make them: masks over all rows, as everywhere else."""

import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.federated.partition import Partition
from jaxunlearn.types import Array


def forget_client(partition: Partition, *clients: int) -> Array:
    """Forgets all rows of the clients that leave.

    Args:
      partition: who owns what.
      *clients: their numbers.

    Returns:
      ``bool[n]``.

    Raises:
      ValueError: a client that does not exist; all of them.

    Example:
      >>> from jaxunlearn.federated import partition
      >>> forget_client(partition.of_lists([[0, 3], [1, 2]]), 1).tolist()
      [False, True, True, False]
    """
    return _mask(partition, *(_rows(partition, client) for client in clients))


def forget_rows(partition: Partition, client: int, rows) -> Array:
    """Forgets rows of one client, which may ask for its own alone.

    Args:
      partition: who owns what.
      client: that asks.
      rows: numbers of rows in the whole data.

    Returns:
      ``bool[n]``.

    Raises:
      ValueError: rows that the client does not own, by number.

    Example:
      >>> from jaxunlearn.federated import partition
      >>> forget_rows(partition.of_lists([[0, 3], [1, 2]]), 0, [3]).tolist()
      [False, False, False, True]
    """
    rows, own = np.atleast_1d(np.asarray(rows)), _rows(partition, client)
    if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
        raise ValueError(f"rows has shape {rows.shape} and dtype {rows.dtype}, but must be int[k].")
    rows = rows.astype(np.int64)  # none at all are an empty array of floats
    strange = np.setdiff1d(rows, own)
    if strange.size:
        raise ValueError(
            f"client={client} asks to forget rows {strange[:5].tolist()}, which it does not own. "
            f"A client can only have its own {own.size} rows forgotten."
        )
    return _mask(partition, rows)


def forget_class(partition: Partition, y, label: int, *, clients=None) -> Array:
    """Forgets the rows of one class, at all clients or at some.

    Args:
      partition: who owns what.
      y: ``int[n]`` labels.
      label: the class.
      clients: number or numbers of the clients that ask; all if None.

    Returns:
      ``bool[n]``.

    Raises:
      ValueError: no client, or clients that have no such row.

    Example:
      >>> from jaxunlearn.federated import partition
      >>> two = partition.of_lists([[0, 3], [1, 2]])
      >>> forget_class(two, np.array([7, 7, 1, 1]), 7, clients=[0]).tolist()
      [True, False, False, False]
    """
    y = np.asarray(y)
    if y.shape != (partition.n,):
        raise ValueError(f"y has shape {y.shape}, but must be ({partition.n},): one for each row.")
    everyone = range(len(partition.counts))
    clients = everyone if clients is None else np.atleast_1d(clients).tolist()
    if not clients:
        raise ValueError("clients=[] names no client: leave it at None for all of them.")
    rows = np.concatenate([_rows(partition, client) for client in clients])
    rows = rows[y[rows] == label]
    if rows.size == 0:
        raise ValueError(f"label={label!r} has no rows at these {len(clients)} clients.")
    return _mask(partition, rows)


def _rows(partition: Partition, client: int) -> np.ndarray:
    _validate.whole(0, client=client)
    clients = len(partition.counts)
    if client >= clients:
        raise ValueError(f"client={client} does not exist: there are {clients}, from 0.")
    return partition.rows[client, : partition.counts[client]]


def _mask(partition: Partition, *rows: np.ndarray) -> Array:
    mask = np.zeros(partition.n, bool)
    for some in rows:
        mask[some] = True
    _validate.forget_mask(mask, partition.n)
    return jnp.asarray(mask)

"""Clients as the leading axis of a pytree: padded to one size, with counts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn import _validate
from jaxunlearn.federated.partition import Partition
from jaxunlearn.types import Array, Dataset


class Clients(NamedTuple):
    """The rows of K clients.

    Attributes:
      data: leaves ``[K, M, ...]``.
      weights: ``float32[K, M]``: 0 for padding and for rows that were removed, which are then not
        even read.
      number: ``int32[K]``, of each client: what its randomness comes from.
    """

    data: Dataset
    weights: Array
    number: Array

    @property
    def counts(self) -> Array:
        """``float32[K]``: the rows of each client that count."""
        return jnp.sum(self.weights > 0, axis=1).astype(jnp.float32)


def gather(data: Dataset, partition: Partition, *, keep: Array | None = None) -> Clients:
    """Deals the rows of one dataset out to its clients.

    Args:
      data: ``n`` rows.
      partition: of these n rows.
      keep: ``bool[n]``; rows that are False have weight 0.

    Returns:
      :class:`Clients`. A copy of the data, with padding.

    Raises:
      ValueError: a partition of another number of rows.

    Example:
      >>> from jaxunlearn.federated import partition
      >>> data = Dataset(jnp.arange(3.0)[:, None], jnp.array([0, 1, 1]))
      >>> clients = gather(data, partition.of_lists([[2], [0, 1]]))
      >>> clients.data.x[..., 0].tolist(), clients.counts.tolist()
      ([[2.0, 2.0], [0.0, 1.0]], [1.0, 2.0])
    """
    n = np.shape(data.y)[0]
    if n != partition.n:
        raise ValueError(
            f"partition has {partition.n} rows, but data has {n}: it is of another dataset."
        )
    if keep is not None:
        _validate.keep_mask(keep, n, name="keep")
    rows = jnp.asarray(partition.rows)
    weights = jnp.asarray(partition.present, jnp.float32)
    if keep is not None:
        weights = weights * jnp.asarray(keep)[rows]
    held = jax.tree.map(lambda leaf: leaf[rows], data)
    return Clients(held, weights, jnp.arange(rows.shape[0], dtype=jnp.int32))


def spread(clients: Clients, mesh: Mesh) -> Clients:
    """Spreads the client axis over the devices of a mesh, of one process or of several.

    Every function of this package then runs the same code, each device with its own clients. With
    several processes (``jax.distributed``) each calls this with the same arrays, or with arrays of
    which only its own clients are right: it reads no others.

    Args:
      clients: K of them; filled up with empty ones to a multiple of the devices.
      mesh: of one axis.

    Raises:
      ValueError: a mesh of several axes.

    Example:
      >>> from jaxunlearn.federated import partition
      >>> data = Dataset(jnp.arange(3.0)[:, None], jnp.array([0, 1, 1]))
      >>> clients = gather(data, partition.of_lists([[2], [0, 1]]))
      >>> mesh = Mesh(np.array(jax.devices()[:1]), ("clients",))
      >>> spread(clients, mesh).counts.tolist()
      [1.0, 2.0]
    """
    if len(mesh.axis_names) != 1:
        raise ValueError(f"mesh has the axes {mesh.axis_names}, but must have one: clients.")
    mesh = Mesh(mesh.devices, mesh.axis_names)  # with an axis that the compiler may use
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names[0]))
    clients = pad(clients, mesh.size)

    def place(leaf):
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(place, clients)


def pad(clients: Clients, multiple: int) -> Clients:
    """Clients of weight 0 behind the others, up to a multiple.

    Example:
      >>> from jaxunlearn.federated import partition
      >>> data = Dataset(jnp.arange(3.0)[:, None], jnp.array([0, 1, 1]))
      >>> pad(gather(data, partition.of_lists([[2], [0, 1]])), 3).counts.tolist()
      [1.0, 2.0, 0.0]
    """
    count = clients.number.shape[0]
    more = -count % multiple
    if more == 0:
        return clients
    end = lambda leaf, **how: jnp.pad(leaf, [(0, more), *[(0, 0)] * (leaf.ndim - 1)], **how)
    number = jnp.concatenate([clients.number, count + jnp.arange(more, dtype=jnp.int32)])
    data = jax.tree.map(lambda leaf: end(leaf, mode="edge"), clients.data)
    return Clients(data, end(clients.weights), number)

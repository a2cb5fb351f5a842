"""Data spread over several devices: how it lies, and in a form that gathers accept."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from jaxunlearn import _validate
from jaxunlearn.types import Array, Dataset, PyTree


def automatic(arrays: PyTree) -> PyTree:
    """The same arrays with mesh axes that the compiler may use as it likes.

    ``jax.make_mesh`` makes axes of the explicit type, with which a gather of rows must say
    how its result lies. Everything stays on its device.
    """

    def one(leaf: Array) -> Array:
        sharding = getattr(leaf, "sharding", None) if _validate.known(leaf) else None
        if not isinstance(sharding, NamedSharding) or not isinstance(sharding.mesh, Mesh):
            return leaf
        if AxisType.Explicit not in sharding.mesh.axis_types:
            return leaf
        mesh = Mesh(sharding.mesh.devices, sharding.mesh.axis_names)
        return jax.device_put(leaf, NamedSharding(mesh, sharding.spec))

    return jax.tree.map(one, arrays)


def of_rows(data: Dataset) -> NamedSharding | None:
    """The sharding of the rows, if they are spread over several devices."""
    sharding = getattr(data.y, "sharding", None) if _validate.known(data.y) else None
    if isinstance(sharding, NamedSharding) and not sharding.is_fully_replicated:
        return sharding
    return None

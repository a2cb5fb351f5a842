"""States on disk, by orbax: whole or not at all, and without pickle."""

import os
import pathlib
import shutil
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxunlearn.types import PyTree


def save(path: str | os.PathLike[str], state: PyTree) -> None:
    """Writes a state, or another pytree of arrays of numbers, to the folder ``path``.

    It appears under its name only once it is complete.

    Args:
      path: the folder, made with those above it.
      state: JAX or NumPy arrays, of any shape but empty ones; ``None`` and ``()`` may
        stand for what is not there.

    Cost: one copy of the arrays in the memory of the host.

    Raises:
      ValueError: ``path`` exists; a leaf is no array (a Python float), is empty, or holds
        no numbers (a typed key: save its ``jax.random.key_data``).

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(folder + "/state", {"w": jnp.arange(3)})
      ...     restore(folder + "/state", {"w": jnp.zeros(3, int)})["w"].tolist()
      [0, 1, 2]
    """
    path = pathlib.Path(path).absolute()
    if path.exists():
        raise ValueError(f"path={str(path)!r} exists; remove it first, or give another one.")
    for keys, leaf in jax.tree_util.tree_leaves_with_path(state):
        _check_leaf(f"state{jax.tree_util.keystr(keys)}", leaf)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(temporary, [state])  # in a list: orbax takes no bare array
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def restore(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Reads what :func:`save` wrote.

    Args:
      path: the folder.
      like: a pytree of the same structure, with arrays or ``jax.ShapeDtypeStruct`` of the
        same shapes and dtypes: ``jax.eval_shape(unlearner.fit, key, data)`` gives one.

    Returns:
      The arrays, each placed as the leaf of ``like`` is. A leaf that does not say where
      (NumPy, a ``ShapeDtypeStruct`` without devices) goes to the first local device.

    Raises:
      FileNotFoundError: nothing at ``path``.
      ValueError: another structure, shape or dtype than ``like``, or ``like`` is none
        that :func:`save` could write.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(folder + "/state", [jnp.ones(2)])
      ...     restore(folder + "/state", [jax.ShapeDtypeStruct((2,), "float32")])[0].tolist()
      [1.0, 1.0]
    """
    path = pathlib.Path(path).absolute()
    if not path.exists():
        raise FileNotFoundError(f"There is no state at {str(path)!r}.")
    for keys, leaf in jax.tree_util.tree_leaves_with_path(like):
        _check_leaf(f"like{jax.tree_util.keystr(keys)}", leaf)
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=_sharding(leaf))
    with ocp.StandardCheckpointer() as checkpointer:
        [state] = checkpointer.restore(path, [jax.tree.map(place, like)])
        stored = jax.tree.leaves(checkpointer.metadata(path).item_metadata.tree)
    # Orbax checks structure and shapes, but converts dtypes without a word.
    dtypes = {leaf.name: leaf.dtype for leaf in stored}
    for keys, leaf in jax.tree_util.tree_leaves_with_path([like]):
        there = dtypes[jax.tree_util.keystr(keys, simple=True, separator=".")]
        if there != leaf.dtype:
            raise ValueError(
                f"like{jax.tree_util.keystr(keys[1:])} has dtype {leaf.dtype}, but {str(path)!r} "
                f"holds {there}: restore that one, and convert it then."
            )
    return state


def _check_leaf(name: str, leaf) -> None:
    """Orbax would take Python numbers and keys, and give back something else."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        raise ValueError(
            f"{name}={leaf!r} is a {type(leaf).__name__}, but only arrays are stored: "
            "numpy.asarray makes one of a number."
        )
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        raise ValueError(
            f"{name} is a typed key: store jax.random.key_data(key), and make a key of it again "
            "by jax.random.wrap_key_data."
        )
    if not (jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool):
        raise ValueError(f"{name} has dtype {leaf.dtype}, but only numbers and bools are stored.")
    if leaf.size == 0:
        raise ValueError(f"{name} has shape {leaf.shape}: there is nothing in it. Leave it out.")


def _sharding(leaf) -> jax.sharding.Sharding:
    """Where a leaf lies; what ``eval_shape`` finds may name axes but no devices."""
    sharding = getattr(leaf, "sharding", None)
    abstract = isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh)
    if sharding is None or abstract:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return sharding

"""States on disk, by orbax: whole or not at all, and without pickle."""

import os
import pathlib
import shutil
import uuid

import jax
import orbax.checkpoint as ocp

from jaxunlearn.types import PyTree


def save(path: str | os.PathLike[str], state: PyTree) -> None:
    """Writes a state, or any pytree of arrays, to the folder ``path``.

    It appears under its name only once it is complete.

    Raises:
      ValueError: ``path`` exists.

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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(temporary, state)
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def restore(path: str | os.PathLike[str], like: PyTree) -> PyTree:
    """Reads what :func:`save` wrote.

    Args:
      path: the folder.
      like: a pytree of the same structure, with arrays or ``jax.ShapeDtypeStruct`` of the
        same shapes and dtypes: ``jax.eval_shape(unlearner.fit, key, data)`` gives one.

    Raises:
      FileNotFoundError: nothing at ``path``.
      ValueError: another structure, shape or dtype than ``like``.

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
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device)
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(path, jax.tree.map(place, like))
        stored = jax.tree.leaves(checkpointer.metadata(path).item_metadata.tree)
    # Orbax checks structure and shapes, but converts dtypes without a word.
    dtypes = {leaf.name: leaf.dtype for leaf in stored}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(like):
        name = jax.tree_util.keystr(keys, simple=True, separator=".")
        if dtypes[name] != leaf.dtype:
            raise ValueError(
                f"like has dtype {leaf.dtype} at {name}, but {str(path)!r} holds {dtypes[name]}: "
                "restore that one, and convert it then."
            )
    return state

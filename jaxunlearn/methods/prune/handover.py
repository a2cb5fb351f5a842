"""From the state of an unlearner to the files that an auditor takes."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn.kernels import region_gate
from jaxunlearn.methods.prune.config import PruneClassConfig, PruneConfig
from jaxunlearn.primitives import patch_files, regions, splits
from jaxunlearn.primitives import patches as patching
from jaxunlearn.primitives.outcomes import settled
from jaxunlearn.primitives.patch_files import PatchFile
from jaxunlearn.primitives.patches import Patches
from jaxunlearn.types import Array, Dataset, Model, State

# Rows whose features are computed at once: a convolution may take a megabyte for each.
CHUNK = 512


def patch_file(
    model: Model,
    state: State,
    data: Dataset,
    *,
    config: PruneConfig | PruneClassConfig,
    split: splits.Split | None = None,
) -> PatchFile:
    """All requests of a state so far: what became of each, its patches and their certificates.

    Args:
      model: of the unlearner.
      state: after at least one request.
      data: the training data, as given to ``fit``.
      config: of the unlearner.
      split: likewise.

    Returns:
      :class:`~jaxunlearn.primitives.patch_files.PatchFile`, with the patches that do something.
      Outcomes are evaluated anew, with all patches together.

    Raises:
      ValueError: nobody asked yet.

    Example:
      >>> from jaxunlearn import TrainConfig, models
      >>> from jaxunlearn.methods.prune import unlearner
      >>> train = Dataset(jnp.array([[0.0], [1.0]]), jnp.array([0, 1]))
      >>> model, config = models.mlp(2, hidden=(4,)), PruneConfig()
      >>> method = unlearner(model, TrainConfig(epochs=50, batch_size=2), config)
      >>> state, forget = method.fit(jax.random.key(0), train), jnp.array([True, False])
      >>> state = method.unlearn(jax.random.key(1), state, train, forget)
      >>> file = patch_file(model, state, train, config=config)
      >>> file.requests.tolist(), file.outcome.tolist()
      ([0], [0])
    """
    parts = splits.split(model) if split is None else split
    layers = regions.dense_layers(parts.head(state.params))
    asked = np.flatnonzero(state.removed)
    if not asked.size:
        raise ValueError("state has no requests: nobody asked yet, and there is nothing to audit.")
    x, y = _features(parts, state, data.x[asked]), data.y[asked]
    z, logits = regions.preactivations(layers, x)
    kept, rows = state.memory.patches, np.asarray(state.memory.rows)
    gates = region_gate(z, kept.bits, care=kept.care, sharpness=config.sharpness)
    inside, box = jnp.ones(y.shape, bool), {}
    if config.low is not None and config.high is not None:
        inside = ((x >= config.low) & (x <= config.high)).all(-1)
        box = {"low": np.full(x.shape[1], config.low), "high": np.full(x.shape[1], config.high)}
    works = np.flatnonzero(patching.live(kept))
    own = jnp.asarray(np.isin(asked, rows[works]))
    outcome = settled(kept, gates, logits, y, own=own, inside=inside)
    certified = isinstance(config, PruneConfig) and config.mode == "region"
    return PatchFile(
        patches=_only(kept, works),
        model=patch_files.model_hash(layers),
        sharpness=config.sharpness,
        margin=config.margin,
        rows=rows[works],
        dual=np.asarray(state.certificate)[works] if certified else None,
        requests=asked.astype(np.int32),
        outcome=np.asarray(outcome),
        **box,
    )


def hand_over(
    folder: str | os.PathLike[str],
    model: Model,
    state: State,
    data: Dataset,
    *,
    config: PruneConfig | PruneClassConfig,
    split: splits.Split | None = None,
) -> PatchFile:
    """Writes ``patches.npz``, ``network.npz`` and ``rows.npz`` for ``jaxunlearn audit-patch``.

    The last two are the dense layers, and the training data as these layers see it.

    Args:
      folder: made if it is not there.
      model: of the unlearner.
      state: after at least one request.
      data: the training data, as given to ``fit``.
      config: of the unlearner.
      split: likewise.

    Returns:
      What :func:`patch_file` makes.

    Raises:
      ValueError: nobody asked yet.

    Example:
      >>> import tempfile
      >>> from jaxunlearn import TrainConfig, models
      >>> from jaxunlearn.methods.prune import unlearner
      >>> train = Dataset(jnp.array([[0.0], [1.0]]), jnp.array([0, 1]))
      >>> model, config = models.mlp(2, hidden=(4,)), PruneConfig()
      >>> method = unlearner(model, TrainConfig(epochs=50, batch_size=2), config)
      >>> state, forget = method.fit(jax.random.key(0), train), jnp.array([True, False])
      >>> state = method.unlearn(jax.random.key(1), state, train, forget)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = hand_over(folder, model, state, train, config=config)
      ...     sorted(os.listdir(folder))
      ['network.npz', 'patches.npz', 'rows.npz']
    """
    parts = splits.split(model) if split is None else split
    file = patch_file(model, state, data, config=config, split=parts)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    patch_files.save_network(folder / "network.npz", parts.head(state.params))
    patch_files.save_data(folder / "rows.npz", data._replace(x=_features(parts, state, data.x)))
    patch_files.save_patches(folder / "patches.npz", file)
    return file


def _features(parts: splits.Split, state: State, x: Array) -> Array:
    """Inputs of the dense layers."""
    call, starts = jax.jit(parts.features), range(0, x.shape[0], CHUNK)
    return jnp.concatenate([call(state.params, x[at : at + CHUNK]) for at in starts])


def _only(patches: Patches, some: np.ndarray) -> Patches:
    """Some of them, groups numbered anew; a group's first is among them if any is."""
    kept = jax.tree.map(lambda leaf: np.asarray(leaf)[some], patches)
    if kept.group is None:
        return kept
    return kept._replace(group=np.searchsorted(some, kept.group).astype(np.int32))

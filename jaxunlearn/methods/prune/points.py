"""Patches of points: Eq. 7 and 8 in closed form."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.certify.region_bound import region_bound
from jaxunlearn.kernels import region_gate
from jaxunlearn.methods.prune.config import PruneConfig
from jaxunlearn.methods.prune.constants import constant, lead_over, runner_up
from jaxunlearn.methods.prune.multipoint import multipoint
from jaxunlearn.primitives import patches as patching
from jaxunlearn.primitives import regions
from jaxunlearn.primitives.bounds import inside_box
from jaxunlearn.primitives.outcomes import Outcome, settled
from jaxunlearn.primitives.patches import Patches
from jaxunlearn.types import Array, Dataset, Params


class Pruned(NamedTuple):
    """Result of :func:`prune`.

    Attributes:
      patches: one for each point, empty where ``outcome`` says so.
      outcome: ``int32[K]``, an :class:`Outcome` each.
      dual: ``float[K, L, N]``, multipliers that certify the regions; None unless in mode
        ``region``.
    """

    patches: Patches
    outcome: Array
    dual: Array | None


def prune(
    params: Params,
    x: Array,
    y: Array,
    *,
    config: PruneConfig = PruneConfig(),
    key: Array | None = None,
    target: Array | None = None,
) -> Pruned:
    """One patch for each point, Eq. 7 and 8 in closed form, or Algorithm 1.

    ``t = max(0, (V + margin) / 2)`` with V the lead of any class over the target: at the point
    (``point``), or bounded over all of its region and the box (``region``); the constant is
    ``+t`` for the target and ``-t`` for all others.

    Deviations: the target is the runner-up and not a random class, which needs a smaller
    constant (by 37% at the point on MNIST, median). ``mode="paper"`` is Algorithm 1
    with random targets, whose share is of the original request (the listing reassigns the set
    that it divides by). Its constants are proved on the region of the cluster's centre, where
    no point of the data lies; each point is tested, none is certified.

    Args:
      params: dense ReLU layers (see :mod:`jaxunlearn.primitives.regions`), M_c.
      x: ``float[K, d]`` inputs of these layers, M_p(x_u).
      y: ``int[K]`` labels.
      config: what to do.
      key: ``jax.random.key`` for ``mode="paper"``.
      target: ``int[K]``, classes to answer instead of the runner-up.

    Returns:
      :class:`Pruned`.

    Guarantee: none that the point is forgotten. The answer at every ``FLIPPED`` or ``SHARED``
    point changes (evaluated, all patches together). Certified in mode ``region``: the target
    of every patch leads in all of its region within the box, in exact arithmetic, as
    :mod:`jaxunlearn.certify.patch_check` verifies. Outputs change nowhere else than in the
    regions and a collar around them. Nothing is said of points with other outcomes.

    Cost: a forward pass a point; ``region``: ``2 L iterations`` of them.

    Raises:
      ValueError: shapes, labels, NaN, a point outside of the box, a target that is the
        label, no ``key`` for the paper's algorithm.

    Example:
      >>> layers = [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))]
      >>> x, y = jnp.array([[2.0], [-1.0]]), jnp.array([0, 1])
      >>> found = prune(layers, x, y)
      >>> patching.apply_patched(layers, found.patches, x)[1].argmax(-1).tolist()
      [1, 0]
    """
    layers = regions.dense_layers(params)
    x, y = jnp.asarray(x), jnp.asarray(y)
    classes = layers[-1].bias.shape[0]
    regions.finite_rows("x", x, layers[0].kernel.shape[0])
    _validate.dataset(Dataset(x, y), num_classes=classes)
    if target is not None:
        _check_target(target, y, classes)
    if config.mode == "paper" and key is None:
        raise ValueError("key is None, but mode='paper' draws its targets: give a jax.random.key.")
    if config.low is not None:
        inside_box("x", x, config.low, config.high)
    everyone = jnp.ones(y.shape[0], bool)
    return prune_rows(layers, x, y, everyone, key, target, config=config)


def _check_target(target, y, classes: int) -> None:
    if jnp.shape(target) != y.shape or not jnp.issubdtype(jnp.result_type(target), jnp.integer):
        raise ValueError(
            f"target has shape {jnp.shape(target)} and dtype {jnp.result_type(target)}, but must "
            f"be a whole number for each of the {y.shape[0]} points."
        )
    if not _validate.known(target):
        return
    values = np.asarray(target)
    if ((values < 0) | (values >= classes)).any():
        raise ValueError(
            f"target has classes from {values.min()} to {values.max()}, but the network has "
            f"0..{classes - 1}."
        )
    if _validate.known(y) and (values == np.asarray(y)).any():
        raise ValueError("target is the label of some points: to answer that is no change.")


@functools.partial(jax.jit, static_argnames=("config",))
def prune_rows(layers, x, y, valid, key, target, *, config) -> Pruned:
    """:func:`prune` without its checks, for the rows that are ``valid`` only.

    Example:
      >>> layers = regions.dense_layers(
      ...     [(jnp.array([[1.0, -1.0]]), jnp.zeros(2)), (jnp.eye(2), jnp.zeros(2))]
      ... )
      >>> valid = jnp.array([True, False])
      >>> rows = jnp.ones((2, 1)), jnp.zeros(2, int)
      >>> found = prune_rows(layers, *rows, valid, None, None, config=PruneConfig())
      >>> [Outcome(int(code)).name for code in found.outcome]
      ['FLIPPED', 'EMPTY']
    """
    z, logits = regions.preactivations(layers, x)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    known = logits.argmax(-1) == y
    inside = jnp.ones_like(valid)
    if config.low is not None:
        inside = ((x >= config.low) & (x <= config.high)).all(-1)
    wanted = valid & known & inside
    if config.mode == "paper":
        found, dual = multipoint(layers, x, y, wanted, key, config=config).patches, None
    else:
        if target is None:
            target = runner_up(logits, y)
        found, dual = _each(layers, regions.pack(z > 0), logits, wanted, target, config)
    gates = region_gate(z, found.bits, sharpness=config.sharpness)
    own = patching.live(found)
    outcome = settled(found, gates, logits, y, own=own, inside=inside)
    return Pruned(found, jnp.where(valid, outcome, jnp.int32(Outcome.EMPTY)), dual)


def _each(layers, bits, logits, wanted, target, config):
    """Modes ``point``, ``region`` and ``replace``."""
    dual = None
    if config.mode == "replace":
        # What the network says at the point, with its label second: no outlier for an attack.
        # Some roundings lower, so that the margin is whole in exact arithmetic too.
        of_target = jnp.take_along_axis(logits, target[:, None], axis=1)
        rounding = 4 * jnp.finfo(logits.dtype).eps * (jnp.abs(of_target) + config.margin)
        own = jnp.arange(logits.shape[-1])[None] == target[:, None]
        delta = jnp.where(own, logits, jnp.minimum(logits, of_target - config.margin - rounding))
    elif config.mode == "region":
        found = region_bound(
            layers, bits, target, low=config.low, high=config.high, iterations=config.iterations
        )
        delta, dual = constant(found.bound, target, config.margin), found.dual
        dual = jnp.where(wanted[:, None, None], dual, 0)
    else:
        delta = constant(lead_over(logits, target), target, config.margin)
    made = Patches(
        bits=jnp.where(wanted[:, None], bits, 0),
        delta=jnp.where(wanted[:, None], delta, 0),
        target=jnp.where(wanted, target, 0).astype(jnp.int32),
        replace=wanted & (config.mode == "replace"),
    )
    found = patching.deduplicate(made)
    if config.mode != "point":
        return found.patches, dual
    # Points of one region with one target: the largest of their constants does for all of them.
    heights = jnp.where(found.conflict, 0, made.delta.max(-1))
    most = jax.ops.segment_max(heights, found.first, num_segments=heights.shape[0])
    signs = 2 * jax.nn.one_hot(made.target, logits.shape[-1], dtype=logits.dtype) - 1
    delta = jnp.where(patching.live(found.patches)[:, None], most[:, None] * signs, 0)
    return found.patches._replace(delta=delta), dual

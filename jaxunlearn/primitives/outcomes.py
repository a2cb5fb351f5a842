"""What became of each request to be patched."""

import enum

import jax
import jax.numpy as jnp

from jaxunlearn.primitives.patches import Patches, corrected, live
from jaxunlearn.types import Array


class Outcome(enum.IntEnum):
    """What became of one requested point.

    Example:
      >>> Outcome(1).name
      'ALREADY_WRONG'
    """

    # The answer at the point has changed.
    FLIPPED = 0
    # The network did not know its label in the first place; there is no patch.
    ALREADY_WRONG = 1
    # The patch of another point reaches it, and flips it too.
    SHARED = 2
    # The patch of another point has its region and does not flip it: its target is this point's
    # label, or its constant too small.
    CONFLICT = 3
    # The answer is still the label (Algorithm 1 stops at its share; a class is not covered).
    NOT_FLIPPED = 4
    # Outside of the input box, where no certificate holds; there is no patch.
    OUTSIDE = 5
    # No point: a place that the request did not need.
    EMPTY = 6


@jax.jit
def settled(
    patches: Patches, gates: Array, logits: Array, y: Array, *, own: Array, inside: Array
) -> Array:
    """What became of points, evaluated with all patches together.

    Args:
      patches: K of them.
      gates: ``float[R, K]`` of the points.
      logits: ``float[R, L]`` without patches.
      y: ``int[R]`` labels.
      own: ``bool[R]``, which have a patch of their own.
      inside: ``bool[R]``, which are in the input box; all where there is none.

    Returns:
      ``int32[R]``, an :class:`Outcome` each.

    Example:
      >>> from jaxunlearn.primitives.patches import empty
      >>> patches = empty(1, 8, 2)._replace(delta=jnp.array([[-1.0, 1.0]]))
      >>> gates, logits = jnp.array([[1.0], [1.0], [0.0]]), jnp.array([[1.0, 0.0]] * 3)
      >>> own, inside = jnp.array([True, False, False]), jnp.ones(3, bool)
      >>> y = jnp.array([0, 0, 1])
      >>> found = settled(patches, gates, logits, y, own=own, inside=inside)
      >>> [Outcome(int(code)).name for code in found]
      ['FLIPPED', 'SHARED', 'ALREADY_WRONG']
    """
    answer = corrected(patches, gates, logits).argmax(-1)
    of_others = ((gates >= 1) & live(patches)[None]).any(-1) & ~own
    flipped = jnp.where(of_others, Outcome.SHARED, Outcome.FLIPPED)
    stayed = jnp.where(of_others, Outcome.CONFLICT, Outcome.NOT_FLIPPED)
    outcome = jnp.where(answer != y, flipped, stayed)
    outcome = jnp.where(inside, outcome, Outcome.OUTSIDE)
    wrong = jnp.where(answer != y, Outcome.ALREADY_WRONG, Outcome.CONFLICT)  # a patch mends it
    return jnp.where(logits.argmax(-1) == y, outcome, wrong).astype(jnp.int32)

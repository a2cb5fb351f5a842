"""Checks the certificates of patches: NumPy in float64, no solver, none of the code that made them.

A certificate is a vector of multipliers. That it proves its bound is weak duality,
which is one product with the weights and a sum; nobody has to trust who found it.
"""

import enum
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn.primitives.patch_files import PatchFile, model_hash


class Claim(enum.Enum):
    """What is said about one patch.

    Example:
      >>> Claim.POINT.value
      'point'
    """

    # The target leads in a whole region: by multipliers, or by replaced logits.
    REGION = "region"
    # The file has no multipliers at all: the patch is for its point alone.
    POINT = "point"
    # Neurons are left out: no linear region, and no certificate of this kind.
    WIDER = "wider"


class Checked(NamedTuple):
    """One patch, checked.

    Attributes:
      patch: its number.
      valid: the target leads by the margin in all of the region within the box, in exact
        arithmetic, and no patch before it acts there.
      margin: by how much it is proved to lead at least; nan if nothing is proved.
      reason: why not; empty if valid.
      claim: what the file says about it. Only :attr:`Claim.REGION` can be valid, and one that
        is not valid is false.
    """

    patch: int
    valid: bool
    margin: float
    reason: str
    claim: Claim = Claim.REGION


def bound(layers, active, target: int, dual, low, high) -> np.ndarray:
    """Bounds ``max (M_l - M_target)`` over a region and box by given multipliers: ``float64[L]``.

    ``c0 + g.y + sum_i max(low_i q_i, high_i q_i)`` with ``q = c + G^T y``, for every l: valid for
    any ``y >= 0``. An allowance for the rounding of these sums is added.

    Args:
      layers: sequence of ``(kernel[in, out], bias[out])``.
      active: ``bool[N]``, the region.
      target: class to lead.
      dual: ``[L, N]``, >= 0.
      low: least inputs, a number or ``[d]``.
      high: greatest inputs.

    Returns:
      ``float64[L]``; 0 for the target.

    Cost: two forward passes for each class.

    Raises:
      ValueError: a multiplier that is negative or not finite.

    Example:
      >>> layers = [(np.array([[1.0, -1.0]]), np.zeros(2)), (np.eye(2), np.zeros(2))]
      >>> active, dual = np.array([True, False]), np.zeros((2, 2))
      >>> bound(layers, active, 1, dual, -1.0, 2.0).round(6).tolist()  # class 0 leads by x
      [2.0, 0.0]
    """
    layers = [(np.asarray(k, np.float64), np.asarray(b, np.float64)) for k, b in layers]
    y = np.asarray(dual, np.float64)
    if not (np.isfinite(y).all() and (y >= 0).all()):
        raise ValueError("dual has multipliers that are negative or not finite.")
    active = np.asarray(active, bool)
    d, classes = layers[0][0].shape[0], layers[-1][1].shape[0]
    low, high = (np.broadcast_to(np.asarray(side, np.float64), d) for side in (low, high))

    # Forward at the origin: what every neuron and logit is there, as the region continues it.
    offsets, x, start = [], np.zeros(d), 0
    for kernel, shift in layers[:-1]:
        z = x @ kernel + shift
        on = active[start : start + len(shift)]
        offsets.append(np.where(on, z, -z))
        x, start = np.where(on, z, 0.0), start + len(shift)
    kernel, shift = layers[-1]
    logits = x @ kernel + shift

    # Backward: q = c + G^T y, both at once.
    lead = np.eye(classes)
    lead[:, target] -= 1
    q, stop = lead @ kernel.T, len(active)
    for kernel, shift in layers[-2::-1]:
        start = stop - len(shift)
        on = active[start:stop]
        q = (np.where(on, q, 0.0) + np.where(on, y[:, start:stop], -y[:, start:stop])) @ kernel.T
        stop = start
    extreme = np.maximum(low * q, high * q)
    g = np.concatenate(offsets)
    value = logits - logits[target] + y @ g + extreme.sum(1)
    size = np.abs(logits).max() + y @ np.abs(g) + np.abs(extreme).sum(1)
    value = value + 1e-10 * size
    value[target] = 0.0
    return value


def check(file: PatchFile, layers) -> list[Checked]:
    """Checks the certificate of every patch that does something.

    A constant is proved if for every other class ``bound + delta_l - delta_target <= -margin``.
    A replacing patch needs no bound: on its region the logits are ``delta``. In a region that
    lies in that of an earlier patch with another constant nothing is proved: the first one acts
    (:func:`jaxunlearn.primitives.patches.corrected`).

    Args:
      file: from :func:`~jaxunlearn.primitives.patch_files.load_patches`.
      layers: the network's.

    Returns:
      One :class:`Checked` a patch.

    Cost: 2 L forward passes each, a few milliseconds at 784-256-256-10.

    Raises:
      ValueError: the file is for another network, or for these weights before they changed; its
        multipliers or its box are of other sizes.

    Example:
      >>> from jaxunlearn.primitives.patches import empty
      >>> layers = [(np.array([[1.0, -1.0]]), np.zeros(2)), (np.eye(2), np.zeros(2))]
      >>> patches = empty(1, 2, 2)._replace(
      ...     bits=np.array([[1]], np.uint8), delta=np.array([[-1.1, 1.1]]), target=np.array([1])
      ... )
      >>> dual, box = np.zeros((1, 2, 2)), (np.array([-1.0]), np.array([2.0]))
      >>> file = PatchFile(patches, model_hash(layers), 1e3, 0.1, np.array([-1]), *box, dual)
      >>> [(found.valid, round(found.margin, 3)) for found in check(file, layers)]
      [(True, 0.2)]
    """
    same_network(file, layers)
    patches, count = file.patches, sum(len(bias) for _, bias in layers[:-1])
    target, delta = np.asarray(patches.target), np.asarray(patches.delta, np.float64)
    replace, active = np.asarray(patches.replace, bool), _neurons(patches.bits, count)
    whole = np.ones_like(active) if patches.care is None else _neurons(patches.care, count)
    group = np.arange(len(active)) if patches.group is None else np.asarray(patches.group)
    works = (replace | delta.any(1))[group]
    d = layers[0][0].shape[0]
    if file.low is not None and np.shape(file.low) != (d,):
        raise ValueError(f"low has shape {np.shape(file.low)}, but the network takes {d} inputs.")
    if file.dual is not None and np.shape(file.dual)[2] != count:
        raise ValueError(
            f"dual has multipliers for {np.shape(file.dual)[2]} neurons, but the network has "
            f"{count}: the file is damaged, or for another network."
        )
    found = []
    for k in np.flatnonzero(works).tolist():
        row = int(group[k])

        def fail(reason, claim=Claim.REGION, k=k):
            found.append(Checked(k, False, float("nan"), reason, claim))

        others = np.arange(delta.shape[1]) != target[row]
        ahead = delta[row, target[row]] - delta[row]
        before = works & (group < row) & ((active == active[k]) | ~whole).all(1)
        if not whole[k].all():
            fail("it leaves neurons out: no linear region, no certificate", Claim.WIDER)
            continue
        elif file.dual is None and not replace[row]:
            fail("no multipliers: it is for its point alone", Claim.POINT)
            continue
        elif before.any():
            fail(f"patch {int(before.argmax())} has its region too, and acts there instead")
            continue
        elif replace[row] or file.dual is None:  # then it replaces, see above
            lead = float(ahead[others].min())
        else:
            try:
                bounds = file.dual[k], file.low, file.high
                upper = bound(layers, active[k], int(target[row]), *bounds)
            except ValueError as error:
                fail(str(error))
                continue
            lead = float((ahead - upper)[others].min())
        good = lead >= file.margin * (1 - 1e-6)
        reason = "" if good else f"the target leads by {lead:.6g} at least, not by {file.margin:g}"
        found.append(Checked(k, good, lead, reason))
    return found


def same_network(file: PatchFile, layers: Any) -> None:
    """Raises ValueError unless the patches are for these weights.

    Example:
      >>> from jaxunlearn.primitives.patches import empty
      >>> layers = [(np.ones((1, 2)), np.zeros(2)), (np.eye(2), np.zeros(2))]
      >>> file = PatchFile(empty(1, 2, 2), "0" * 64, 1e3, 0.1, np.array([0]))
      >>> try:
      ...     same_network(file, layers)
      ... except ValueError as error:
      ...     print("other weights" in str(error))
      True
    """
    have = model_hash(layers)
    if have != file.model:
        raise ValueError(
            f"The patches are for other weights (hash {file.model[:12]}...) than the network's "
            f"({have[:12]}...): any change of the weights voids all patches. Make them again."
        )


def _neurons(packed, count: int) -> np.ndarray:
    """``bool[K, N]``; what pads the last byte is no neuron."""
    return np.unpackbits(np.asarray(packed), axis=1, count=count, bitorder="little").astype(bool)

"""Checks the certificates of patches: NumPy in float64, no solver, none of the code that made them.

A certificate is a vector of multipliers. That it proves its bound is weak duality,
which is one product with the weights and a sum; nobody has to trust who found it.
"""

import enum
from typing import Any, NamedTuple

import numpy as np

from jaxunlearn._progress import track
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
    any ``y >= 0``. What these sums can be wrong by is added: each number is a sum of products along
    paths through the network, and an error of ``n u`` times their absolute values is the most that
    n roundings of u make of it. So no multipliers, however large, gain anything by rounding.

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

    # Forward at the origin: what every neuron and logit is there, as the region continues it, and
    # beside it the same sums of absolute values.
    offsets, sizes, start = [], [], 0
    x = x_size = np.zeros(d)
    for kernel, shift in layers[:-1]:
        z, size = x @ kernel + shift, x_size @ np.abs(kernel) + np.abs(shift)
        on = active[start : start + len(shift)]
        offsets.append(np.where(on, z, -z))
        sizes.append(size)
        x, x_size, start = np.where(on, z, 0.0), np.where(on, size, 0.0), start + len(shift)
    kernel, shift = layers[-1]
    logits, logits_size = x @ kernel + shift, x_size @ np.abs(kernel) + np.abs(shift)

    # Backward: q = c + G^T y, both at once.
    lead = np.eye(classes)
    lead[:, target] -= 1
    q, q_size, stop = lead @ kernel.T, np.abs(lead) @ np.abs(kernel).T, len(active)
    for kernel, shift in layers[-2::-1]:
        start = stop - len(shift)
        on, here = active[start:stop], y[:, start:stop]
        q = (np.where(on, q, 0.0) + np.where(on, here, -here)) @ kernel.T
        q_size = (np.where(on, q_size, 0.0) + here) @ np.abs(kernel).T
        stop = start
    value = logits - logits[target] + y @ np.concatenate(offsets)
    value += np.maximum(low * q, high * q).sum(1)
    size = logits_size + logits_size[target] + y @ np.concatenate(sizes)
    size += q_size @ np.maximum(np.abs(low), np.abs(high))
    roundings = 2 * (d + len(active) + classes + 3 * len(layers))
    value += roundings * np.finfo(np.float64).eps * size
    value[target] = 0.0
    return value


def check(file: PatchFile, layers, *, progress: bool = False) -> list[Checked]:
    """Checks the certificate of every patch that does something.

    A constant is proved if for every other class ``bound + delta_l - delta_target <= -margin``.
    A replacing patch needs no bound: on its region the logits are ``delta``. In a region that
    lies in that of an earlier patch with another constant nothing is proved: the first one acts
    (:func:`jaxunlearn.primitives.patches.corrected`). A neuron that is 0 in all of the region is of
    either sign there, so its bit tells no two regions apart.

    Args:
      file: from :func:`~jaxunlearn.primitives.patch_files.load_patches`.
      layers: the network's.
      progress: show a bar.

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
    same_sizes(file, layers)
    patches, count = file.patches, sum(len(bias) for _, bias in layers[:-1])
    target, delta = np.asarray(patches.target), np.asarray(patches.delta, np.float64)
    replace, active = np.asarray(patches.replace, bool), _neurons(patches.bits, count)
    whole = np.ones_like(active) if patches.care is None else _neurons(patches.care, count)
    group = np.arange(len(active)) if patches.group is None else np.asarray(patches.group)
    works = (replace | delta.any(1))[group]
    still = _still(layers, active, file.low, file.high)
    found = []
    for k in track(np.flatnonzero(works).tolist(), "certificates", enabled=progress):
        row = int(group[k])

        def fail(reason, claim=Claim.REGION, k=k):
            found.append(Checked(k, False, float("nan"), reason, claim))

        others = np.arange(delta.shape[1]) != target[row]
        ahead = delta[row, target[row]] - delta[row]
        before = works & (group < row) & ((active == active[k]) | ~whole | still[k]).all(1)
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
                with np.errstate(over="ignore", invalid="ignore"):  # nan proves nothing
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


def same_sizes(file: PatchFile, layers: Any) -> None:
    """Raises ValueError unless arrays of the file are of the network's sizes.

    Example:
      >>> from jaxunlearn.primitives.patches import empty
      >>> layers = [(np.ones((1, 2)), np.zeros(2)), (np.eye(2), np.zeros(2))]
      >>> file = PatchFile(empty(1, 9, 2), model_hash(layers), 1e3, 0.1, np.array([0]))
      >>> try:
      ...     same_sizes(file, layers)
      ... except ValueError as error:
      ...     print(error)
      bits has 2 bytes, but the network takes 1: the file is damaged, or for another network.
    """
    (d, _), classes = np.shape(layers[0][0]), len(layers[-1][1])
    count = sum(len(bias) for _, bias in layers[:-1])
    for name, have, want in (
        ("bits", f"{np.shape(file.patches.bits)[1]} bytes", f"{-(-count // 8)}"),
        ("delta", f"{np.shape(file.patches.delta)[1]} classes", f"{classes}"),
        ("low", None if file.low is None else f"{len(file.low)} inputs", f"{d}"),
        ("dual", None if file.dual is None else f"{file.dual.shape[2]} neurons", f"{count}"),
    ):
        if have is not None and have.split()[0] != want:
            raise ValueError(
                f"{name} has {have}, but the network takes {want}: the file is damaged, or for "
                "another network."
            )


def _still(layers, active, low, high) -> np.ndarray:
    """Neurons that are 0 in all of a region, up to rounding: ``bool[K, N]``.

    There a neuron is affine, and an affine function that is 0 at a random point of the box is 0.
    """
    rng, d = np.random.default_rng(0), np.shape(layers[0][0])[0]
    low, high = (0.0, 1.0) if low is None else (low, high)
    x = np.broadcast_to(rng.uniform(low, high, d), (len(active), d))
    x_size, found, start = np.abs(x), [], 0
    for kernel, shift in layers[:-1]:
        kernel, shift = np.asarray(kernel, np.float64), np.asarray(shift, np.float64)
        z, size = x @ kernel + shift, x_size @ np.abs(kernel) + np.abs(shift)
        found.append(np.abs(z) <= 4 * (d + active.shape[1]) * np.finfo(np.float64).eps * size)
        on = active[:, start : start + len(shift)]
        x, x_size, start = np.where(on, z, 0.0), np.where(on, size, 0.0), start + len(shift)
    return np.concatenate(found, axis=1)


def _neurons(packed, count: int) -> np.ndarray:
    """``bool[K, N]``; what pads the last byte is no neuron."""
    return np.unpackbits(np.asarray(packed), axis=1, count=count, bitorder="little").astype(bool)

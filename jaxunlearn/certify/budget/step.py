"""What k removals cannot change in one step with a quantized mean gradient: provable."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.primitives._noise import check_finite
from jaxunlearn.types import Array, PyTree

DENOMINATORS = ("remaining", "fixed")


class StepCertificate(NamedTuple):
    """What k removals cannot change in one quantized mean gradient.

    Attributes:
      k_max: ``int32`` pytree, for each coordinate the most rows that can leave, whichever they
        are, with its quantized value unchanged; ``n - 1`` if none of them matters.
      certified: ``bool`` pytree, ``k <= k_max``.
      fraction: ``float32`` scalar, share of the coordinates certified.
      budget: ``int32`` scalar, the smallest ``k_max``: up to here the whole step is unchanged.

    Example:
      >>> removal_certificate(jnp.array([0.5, 0.01]), 100, 2, clip=1.0).k_max.tolist()
      [49, 0]
    """

    k_max: PyTree
    certified: PyTree
    fraction: Array
    budget: Array


def removal_certificate(
    g: PyTree,
    n: int,
    k: int | Array,
    *,
    clip: float | tuple[PyTree, PyTree],
    threshold: float = 0.0,
    denominator: str = "remaining",
) -> StepCertificate:
    """Which coordinates of the quantized mean gradient no ``k`` removals can change.

    With ``theta`` the quantizer's threshold and every row's gradient in ``[low, high]``, removing
    ``k`` rows leaves a mean above theta iff the sum of their excesses ``g_i - theta`` is below
    ``n (g - theta)``, so that (for the sign, ``theta = 0``)

        class +1 stays if  k (high - theta) < n (g - theta),   class -1 likewise with -g,
        class 0 stays if   k (theta - low) <= n (theta - g)  and  k (theta + high) <= n (theta + g).

    With a fixed denominator theta drops out of the left sides.

    Args:
      g: mean gradient over the n rows, a pytree of float32 or float64.
      n: rows in the mean, >= 2.
      k: rows to remove, in 0..n-1; may be traced.
      clip: a bound ``C`` with ``|g_i| <= C`` in every coordinate of every row, or ``(low, high)``,
        two pytrees like ``g``. Bounds measured on the rows themselves are sound for removals of
        those rows (:func:`jaxunlearn.primitives.gradients.gradient_range`); a ``C`` that gradients
        are clipped to is sound for any data.
      threshold: of the quantizer, :func:`jaxunlearn.primitives.smoothing.ternary_threshold`.
      denominator: ``remaining``, the mean is over the rows that remain; ``fixed``, removed rows
        count zero and the sum is still divided by n.

    Returns:
      A :class:`StepCertificate`; ``k_max`` is -1 where the gradient or a bound is not finite.

    Guarantee: sound for every choice of the k rows, provided that the bounds hold and that ``g`` is
    the exact mean to within 40 roundings of the largest bound, which is taken off. Means of
    :func:`~jaxunlearn.primitives.gradients.gradient_range` are; a plain float32 sum over tens of
    thousands of rows is not. Exact for ``k = 1`` if the bounds are attained. It is about this one
    step.

    Raises:
      ValueError: gradients below float32, n below 2, k outside 0..n-1, a bound that the mean
        gradient already exceeds (with the excess), an unknown denominator.

    Example:
      >>> found = removal_certificate(jnp.array([0.5, 0.01, 0.0]), 100, 2, clip=1.0)
      >>> found.certified.tolist(), found.budget.item()
      ([True, False, False], 0)
    """
    _validate.whole(2, n=n)
    _validate.one_of(DENOMINATORS, denominator=denominator)
    _validate.not_negative(threshold=threshold)
    _refuse_narrow(g)
    if _validate.known(k):
        _validate_removed(k, n)
    if not isinstance(clip, tuple) and np.ndim(clip) != 0:
        raise ValueError(f"clip={clip!r} must be one number, or a pair (low, high) like g.")
    if isinstance(clip, tuple):
        low, high = clip
        _refuse_small_bounds(g, low, high, "clip")
    else:
        if _validate.known(clip):
            _validate.positive(clip=clip)
        high = jax.tree.map(lambda p: jnp.full(p.shape, clip, p.dtype), g)
        low = jax.tree.map(jnp.negative, high)
        _refuse_small_bounds(g, low, high, f"clip={clip!r}")
    threshold = float(threshold)
    return _certificate(g, low, high, k, n=n, threshold=threshold, denominator=denominator)


def _refuse_narrow(g: PyTree) -> None:
    leaves = jax.tree.leaves(g)
    if not leaves:
        raise ValueError("g has no leaves: there is nothing to certify.")
    for leaf in leaves:
        if leaf.dtype not in (jnp.float32, jnp.float64):
            raise ValueError(
                f"g has dtype {leaf.dtype}, whose own rounding can change a class: "
                "accumulate the mean in float32."
            )


def _validate_removed(k, n: int) -> None:
    if not 0 <= int(k) < n:
        raise ValueError(
            f"k={int(k)} must lie in 0..{n - 1}: of {n} rows at least one has to remain."
        )


def _refuse_small_bounds(g: PyTree, low: PyTree, high: PyTree, name: str) -> None:
    """The mean lies within the bounds of what it is the mean of, up to rounding."""

    def excess(p, low, high):
        over = jnp.maximum(p - high, low - p) - 1e-5 * jnp.abs(p)
        return jnp.max(over, initial=0.0)

    leaves = jax.tree.leaves(jax.tree.map(excess, g, low, high))
    if not all(map(_validate.known, leaves)):
        return
    worst = max(map(float, leaves), default=0.0)
    if worst > 0:
        raise ValueError(
            f"{name} is no bound of the single gradients: their mean exceeds it by {worst:.3g}. "
            "Give a larger one, or clip the gradients to it."
        )


def verify_clip(per_sample_g: PyTree, clip: float) -> None:
    """Raises if a single gradient exceeds the bound that a certificate is to rest on.

    Args:
      per_sample_g: pytree of ``float[n, ...]``.
      clip: the bound of every coordinate of every row.

    Raises:
      ValueError: a larger coordinate, with its row and the excess.

    Example:
      >>> verify_clip(jnp.array([[0.1], [0.5]]), 0.2)
      Traceback (most recent call last):
      ...
      ValueError: clip=0.2 is exceeded by 0.3 (row 1, and 1 of 2 rows in all). ...
    """
    _validate.positive(clip=clip)
    if not jax.tree.leaves(per_sample_g):
        raise ValueError("per_sample_g has no leaves: there is nothing to verify.")
    largest = functools.reduce(
        np.maximum,
        [np.abs(np.asarray(v)).reshape(len(v), -1).max(1) for v in jax.tree.leaves(per_sample_g)],
    )
    if not (largest <= clip).all():  # not a number is no bounded number
        row = int(np.argmax(np.where(np.isnan(largest), np.inf, largest)))
        raise ValueError(
            f"clip={clip!r} is exceeded by {largest[row] - clip:.3g} (row {row}, and "
            f"{int((~(largest <= clip)).sum())} of {largest.size} rows in all). A certificate with "
            "it would not be sound: give a larger bound, or clip the gradients to it."
        )


@functools.partial(jax.jit, static_argnames=("n", "threshold", "denominator"))
def _certificate(g, low, high, k, *, n, threshold, denominator):
    bound = functools.partial(_k_max, n=n, theta=threshold, fixed=denominator == "fixed")
    k_max = jax.tree.map(bound, g, low, high)
    return step_certificate(k_max, k)


def _k_max(g: Array, low: Array, high: Array, *, n: int, theta: float, fixed: bool) -> Array:
    """Most rows that can leave, whichever they are, with the class of ``g`` unchanged."""
    off = 0.0 if fixed else theta
    eps = jnp.finfo(g.dtype).eps
    # What the mean may be off by, and then the few roundings of the lines below.
    slack = 40 * eps * n * (jnp.maximum(jnp.abs(low), jnp.abs(high)) + theta)
    safe = 1 - 16 * eps

    def largest(room, worst, strict):
        """The largest k with ``k worst < room`` (or ``<=``), for ``room >= 0``."""
        room = jnp.where(worst > 0, room - slack, room)
        ratio = safe * room / jnp.where(worst > 0, worst, 1.0)
        most = jnp.ceil(ratio) - 1 if strict else jnp.floor(ratio)
        free = worst <= 0 if not strict else (worst <= 0) & (room > 0)
        return jnp.where(free, n - 1, jnp.clip(most, 0, n - 1))

    up = largest(n * (g - theta), high - off, strict=True)
    down = largest(n * (-g - theta), -low - off, strict=True)
    # A mean above theta needs rows below their share to leave, and the other way round.
    stays_below = largest(n * (theta - g), off - low, strict=False)
    stays_above = largest(n * (theta + g), off + high, strict=False)
    zero = jnp.minimum(stays_below, stays_above)
    k_max = jnp.where(g > theta, up, jnp.where(g < -theta, down, zero))
    return jnp.where(jnp.isfinite(g + low + high), k_max, -1).astype(jnp.int32)


def step_certificate(k_max: PyTree, k: int | Array) -> StepCertificate:
    """The certificate for ``k`` removals from the budgets of the single coordinates.

    Args:
      k_max: ``int32`` pytree, as of :func:`exact_budget`.
      k: rows removed; may be traced.

    Returns:
      A :class:`StepCertificate`.

    Example:
      >>> step_certificate(jnp.array([3, 0, 7]), 3).fraction.item()
      0.6666666865348816
    """
    certified = jax.tree.map(lambda m: k <= m, k_max)
    leaves = jax.tree.leaves(certified)
    count = sum(jnp.sum(leaf, dtype=jnp.float32) for leaf in leaves)
    budget = functools.reduce(jnp.minimum, (m.min() for m in jax.tree.leaves(k_max)))
    fraction = jnp.asarray(count / sum(leaf.size for leaf in leaves), jnp.float32)
    return StepCertificate(k_max, certified, fraction, budget)


def exact_budget(
    per_sample_g: PyTree, *, threshold: float = 0.0, denominator: str = "remaining"
) -> PyTree:
    """The most rows that can leave, whichever they are: exactly, from all single gradients.

    The worst ``k`` rows for a coordinate of class +1 are those with the largest gradients: the
    answer is the number of sorted prefix sums of ``g_i - theta`` below ``n (g - theta)`` before
    the first that is not.

    Args:
      per_sample_g: pytree of ``float[n, ...]``, :func:`~jaxunlearn.primitives.gradients.
        per_sample_gradients`.
      threshold: of the quantizer.
      denominator: as in :func:`removal_certificate`.

    Returns:
      ``int32`` pytree of ``[...]``; what :func:`step_certificate` takes.

    Guarantee: exact; ``k_max + 1`` rows that change a coordinate exist where ``k_max < n - 1``.
    Where sums cancel to a few roundings in float64 either answer is possible.
    Cost: a sort of n numbers for every coordinate, on the host in float64; four copies of
    ``per_sample_g`` there.

    Raises:
      ValueError: fewer than two rows, a negative threshold, gradients that are not finite.

    Example:
      >>> exact_budget(jnp.array([[1.0], [1.0], [-0.5]])).tolist()
      [1]
    """
    _validate.one_of(DENOMINATORS, denominator=denominator)
    _validate.not_negative(threshold=threshold)
    leaves = jax.tree.leaves(per_sample_g)
    if not leaves:
        raise ValueError("per_sample_g has no leaves: there is nothing to certify.")
    _validate.whole(2, **{"rows of per_sample_g": leaves[0].shape[0]})
    check_finite(per_sample_g, name="per_sample_g")
    fixed = denominator == "fixed"
    return jax.tree.map(lambda v: _exact(v, theta=float(threshold), fixed=fixed), per_sample_g)


def _exact(v, *, theta: float, fixed: bool) -> Array:
    v = np.asarray(v, np.float64)
    n, total, off = len(v), v.sum(0), 0.0 if fixed else theta

    def until(excess, room, strict):
        """How many of the first n - 1 prefix sums of the largest hold before one does not."""
        prefix = np.cumsum(-np.sort(-excess, axis=0), axis=0)[:-1]
        holds = prefix < room if strict else prefix <= room
        return np.cumprod(holds, axis=0).sum(0)

    up = until(v - off, total - n * theta, strict=True)
    down = until(-v - off, -total - n * theta, strict=True)
    below = until(off - v, n * theta - total, strict=False)
    above = until(off + v, n * theta + total, strict=False)
    zero = np.minimum(below, above)
    classes = [total > n * theta, total < -n * theta]
    return jnp.asarray(np.select(classes, [up, down], zero), jnp.int32)


def random_flip_probability(
    g: PyTree, sd: PyTree, n: int, k: int | Array, *, threshold: float = 0.0
) -> PyTree:
    """Probability that removing ``k`` rows at random changes a coordinate's class (approximate).

    The mean of the n - k rows left is nearly normal around ``g`` with variance
    ``sd^2 (1 / (n - k) - 1 / n)``, the factor for drawing without replacement included.

    Args:
      g: mean gradient over the n rows, a pytree.
      sd: standard deviation of the single gradients, a pytree like ``g``.
      n: rows in the mean, >= 2.
      k: rows removed at random, in 0..n-1; may be traced.
      threshold: of the quantizer.

    Returns:
      Pytree like ``g``; its mean over coordinates is the share expected to change.

    Guarantee: none; the normal law is a limit, and poor where few rows have any gradient.

    Raises:
      ValueError: n below 2, k outside 0..n-1.

    Example:
      >>> flip = random_flip_probability(jnp.array([0.1]), jnp.array([1.0]), 100, 20)
      >>> round(float(flip[0]), 4)
      0.0228
    """
    _validate.whole(2, n=n)
    if _validate.known(k):
        _validate_removed(k, n)
    ndtr = jax.scipy.special.ndtr

    def flip(g, sd):
        k_ = jnp.asarray(k, jnp.float32)
        s = sd * jnp.sqrt(k_ / n / (n - k_))  # that variance without cancellation
        z = lambda t: jnp.where(s > 0, t / jnp.where(s > 0, s, 1.0), jnp.inf * jnp.sign(t))
        leaves = ndtr(z(threshold - jnp.abs(g)))
        enters = ndtr(z(g - threshold)) + ndtr(z(-g - threshold))
        # Without spread nothing changes, a tie at zero included.
        inside = jnp.where(s > 0, enters, 0.0)
        return jnp.where(jnp.abs(g) > threshold, leaves, inside)

    return jax.tree.map(flip, g, sd)

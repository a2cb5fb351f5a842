"""Removal of rows from a model trained with sampled noise: provable, of the model."""

import math

from scipy import optimize, special

from jaxunlearn import _validate


def gaussian_unlearning_epsilon(
    k: int, *, n: int, clip: float, sigma: float, visits: int, delta: float = 1e-5
) -> float:
    """Epsilon of a model trained with sampled noise, for the removal of ``k`` rows.

    Training by ``w -= lr Q(g + N(0, sigma^2 I))`` with ``g`` the sum of gradients clipped to L2
    norm C, divided by a fixed n, is a Gaussian mechanism and post-processing. In a visit the k rows
    move ``g`` by ``k C / n`` at most, and ``visits`` visits compose to a Gaussian with
    ``mu = sqrt(visits) k C / (n sigma)`` exactly (Dong et al. 2022), whose epsilon solves

        delta = Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu)

    (Balle and Wang 2018, Theorem 8).

    Args:
      k: rows removed, >= 0.
      n: what the clipped sum is divided by: the batch size, not the rows of the data.
      clip: largest L2 norm of one row's gradient.
      sigma: standard deviation of the noise.
      visits: how often each row is used: the epochs.
      delta: in (0, 1).

    Returns:
      Epsilon: the laws of the models trained with and without the k rows are (epsilon, delta)
      indistinguishable. 0 for k = 0.

    Guarantee: provable in exact arithmetic, for the model and every step on the way, with three
    conditions. "Without the rows" means with weight 0 in the same batches and the same n, not a
    training on a smaller file. The order, the initial parameters and the settings do not depend on
    the data. The request is fixed beforehand: one that is chosen by looking at the model is not
    covered. It covers the worst case, all k rows in one batch.

    Raises:
      ValueError: arguments outside their range, by name.

    Example:
      >>> round(gaussian_unlearning_epsilon(1, n=500, clip=1.0, sigma=0.1, visits=120), 2)
      0.8
    """
    _validate.whole(0, k=k)
    _validate.whole(n=n, visits=visits)
    _validate.positive(clip=clip, sigma=sigma)
    _validate.fraction(delta=delta)
    if k == 0:
        return 0.0
    mu = math.sqrt(visits) * k * clip / (n * sigma)
    if mu > 1e6:  # epsilon is above mu^2 / 2: no guarantee in any sense
        return math.inf

    def excess(epsilon: float) -> float:
        log_first = special.log_ndtr(mu / 2 - epsilon / mu)
        log_second = epsilon + special.log_ndtr(-mu / 2 - epsilon / mu)
        return math.exp(log_first) - math.exp(min(log_second, log_first)) - delta

    if excess(0.0) <= 0:
        return 0.0
    top = 1.0
    while excess(top) > 0:
        top *= 2
    return optimize.brentq(excess, 0.0, top, xtol=1e-12)  # pyright: ignore[reportReturnType]


def gaussian_removal_budget(
    epsilon: float, *, n: int, clip: float, sigma: float, visits: int, delta: float = 1e-5
) -> int:
    """The most removals within ``epsilon``: the inverse of :func:`gaussian_unlearning_epsilon`.

    Args:
      epsilon: wanted, > 0.
      n, clip, sigma, visits, delta: as there.

    Returns:
      The largest k whose epsilon is not above it; 0 if not even one row.

    Raises:
      ValueError: arguments outside their range, by name.

    Example:
      >>> gaussian_removal_budget(1.0, n=500, clip=1.0, sigma=0.1, visits=120)
      1
    """
    _validate.positive(epsilon=epsilon)
    spent = lambda k: gaussian_unlearning_epsilon(
        k, n=n, clip=clip, sigma=sigma, visits=visits, delta=delta
    )
    high = 1
    while spent(high) <= epsilon and high < 2**40:
        high *= 2
    low = high // 2
    while high - low > 1:  # spent(low) <= epsilon < spent(high)
        middle = (low + high) // 2
        low, high = (middle, high) if spent(middle) <= epsilon else (low, middle)
    return low

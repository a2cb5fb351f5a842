"""How far apart the outputs of smoothed federated models can be (FFMU).

FFMU's model of a round is ``O(q)(x) = E f(x; Q(G + e))``, ``e ~ N(0, sigma^2 I)``: its output
depends on the aggregated gradient G through the law of ``G + e`` alone. Two gradients then give
two normal laws, and the outputs cannot differ by more than these laws do. For any measurable Q
and f, and outputs in [0, 1],

    |O(G)(x) - O(G')(x)| <= TV = 2 Phi(||G - G'|| / (2 sigma)) - 1
                            <= ||G - G'|| / (sqrt(2 pi) sigma)

for every x. Nothing is asked of Q; it is the global parameters before the round, the step size and
f that have to be the same on both sides. This is about one round: the rounds before it were taken
with the rows of a request.

The paper's own bound, ``(K - 1) C d / (sqrt(2 pi) K sigma)`` (Theorem 4), has the Lipschitz
constant C of the quantizer in it, which is infinite for the quantizer that it uses; with C = 1 it
is the right-hand side above, at its worst.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.types import Array, PyTree

# A bound above this says nothing: outputs in [0, 1] are never further apart than 1.
VACUOUS = 0.99
# Distances are rounded up by this much, far above the rounding of their sums in float32.
SLACK = 1e-5


class GapCertificate(NamedTuple):
    """Bounds of how far outputs in [0, 1] are apart.

    Attributes:
      distance: ``float32[...]``, of the gradients, in L2, rounded up.
      bound: ``float32[...]``, provable: total variation.
      vacuous: ``bool[...]``, ``bound`` says nothing (above .99).
      paper: ``float32[]``, Theorem 4 as stated, for all clients; not proved, see the module.
      paper_vacuous: ``bool[]``, the same of it.

    Example:
      >>> updates, mean = jnp.array([[0.0], [2.0]]), jnp.array([1.0])
      >>> found = client_certificate(updates, mean, 1.0)
      >>> [round(float(b), 3) for b in found.bound], round(float(found.paper), 3)
      ([0.383, 0.383], 0.399)
    """

    distance: Array
    bound: Array
    vacuous: Array
    paper: Array
    paper_vacuous: Array


def function_gap_bound(distance: Array | float, sigma: float) -> Array:
    """The total variation ``2 Phi(distance / (2 sigma)) - 1`` of two shifted normal laws.

    Args:
      distance: ``||G - G'||``, in L2, any shape.
      sigma: standard deviation of the noise.

    Returns:
      Bounds in [0, 1], rounded up.

    Guarantee: provable; see the module.

    Raises:
      ValueError: sigma not above 0; a distance that is negative or not finite.

    Example:
      >>> round(float(function_gap_bound(1.0, 1.0)), 3)
      0.383
    """
    _validate.positive(sigma=sigma)
    return _variation(_checked(distance), sigma)


def linear_gap_bound(distance: Array | float, sigma: float) -> Array:
    """``distance / (sqrt(2 pi) sigma)``: Theorem 3 with C = 1, at least the total variation.

    Args:
      distance: ``||G - G'||``.
      sigma: standard deviation of the noise.

    Raises:
      ValueError: as :func:`function_gap_bound`.

    Example:
      >>> round(float(linear_gap_bound(1.0, 1.0)), 3)
      0.399
    """
    _validate.positive(sigma=sigma)
    up = jnp.asarray(_checked(distance), jnp.float32) * (1 + SLACK)
    return up / (math.sqrt(2 * math.pi) * sigma)


def ffmu_paper_bound(
    clients: int, diameter: Array | float, sigma: float, *, lipschitz: float = 1.0
) -> Array:
    """FFMU's Theorem 4 as stated: ``(K - 1) C d / (sqrt(2 pi) K sigma)``.

    Args:
      clients: K, at least 2.
      diameter: d, the largest distance of two clients' gradients.
      sigma: standard deviation of the noise.
      lipschitz: C of the quantizer. That of the paper jumps, so no finite C is its own.

    Guarantee: with C = 1 and plain averaging it bounds the total variation, since
      ``||G - G_k|| <= (K - 1) d / K``. The paper's proof integrates over three dimensions and
      takes q for G.

    Raises:
      ValueError: fewer than two clients; sigma, C or d outside their range.

    Example:
      >>> round(float(ffmu_paper_bound(100, 1.4, 1.0)), 2)
      0.55
    """
    _validate.whole(clients=clients)
    if clients < 2:
        raise ValueError(f"clients={clients} must be at least 2: the bound is between clients.")
    _validate.positive(sigma=sigma, lipschitz=lipschitz)
    return (clients - 1) / clients * lipschitz * linear_gap_bound(diameter, sigma)


def distances(updates: PyTree, center: PyTree) -> Array:
    """``float32[K]``: L2 distances of stacked updates ``[K, ...]`` to one, rounded up.

    Raises:
      ValueError: leaves of the two that do not fit each other.

    Example:
      >>> [round(float(d), 3) for d in distances(jnp.array([[1.0], [4.0]]), jnp.array([2.0]))]
      [1.0, 2.0]
    """
    shapes = lambda tree, first: [jnp.shape(leaf)[first:] for leaf in jax.tree.leaves(tree)]
    same = jax.tree.structure(updates) == jax.tree.structure(center)
    if not same or shapes(updates, 1) != shapes(center, 0):
        raise ValueError(
            f"one update has leaves of shapes {shapes(updates, 1)}, but what it is compared with "
            f"has {shapes(center, 0)}: both must be gradients of the same parameters."
        )
    wide = lambda u: u.astype(jnp.promote_types(u.dtype, jnp.float32))

    def squares(u, c):
        u, c = jnp.asarray(u), jnp.asarray(c)
        return jnp.sum(jnp.square(wide(u) - wide(c)[None]), axis=tuple(range(1, u.ndim)))

    total = sum(jax.tree.leaves(jax.tree.map(squares, updates, center)))
    # The root of 0 has no derivative: a client at the centre would make all derivatives NaN.
    return jnp.sqrt(jnp.where(total == 0, 1, total)) * (total != 0) * (1 + SLACK)


def diameter(updates: PyTree) -> Array:
    """The largest distance of two of the stacked updates: the paper's d.

    Cost: K times all of them; memory, two of them more.

    Example:
      >>> round(float(diameter(jnp.array([[1.0], [4.0], [2.0]]))), 3)
      3.0
    """
    updates = jax.tree.map(jnp.asarray, updates)
    count = jax.tree.leaves(updates)[0].shape[0]
    from_one = lambda k: distances(updates, jax.tree.map(lambda u: u[k], updates)).max()
    return jax.lax.map(from_one, jnp.arange(count)).max()


def client_certificate(
    updates: PyTree, mean: PyTree, sigma: float, *, lipschitz: float = 1.0
) -> GapCertificate:
    """How far each client's smoothed model can be from the server's, in one round.

    Args:
      updates: the clients' gradients ``G_k``, leaves ``[K, ...]``.
      mean: what the server aggregated, G.
      sigma: standard deviation of the noise.
      lipschitz: C of the paper's bound.

    Returns:
      A :class:`GapCertificate` with one bound for each client.

    Guarantee: ``bound`` is provable for all inputs at once; ``paper`` as stated. An update that is
      not finite has bound 1, and makes ``paper`` NaN, which counts as vacuous.

    Raises:
      ValueError: fewer than two clients; sigma or C not above 0; a mean of another shape.

    Example:
      >>> found = client_certificate(jnp.array([[0.0], [2.0]]), jnp.array([1.0]), 0.1)
      >>> found.vacuous.tolist(), bool(found.paper_vacuous)
      ([True, True], True)
    """
    clients = jax.tree.leaves(updates)[0].shape[0]
    # Linear in d, which is NaN where an update is.
    paper = ffmu_paper_bound(clients, 1.0, sigma, lipschitz=lipschitz) * diameter(updates)
    return _certificate(distances(updates, mean), sigma, paper)


def leaving_certificate(
    certificate: GapCertificate, weights: Array, sigma: float
) -> GapCertificate:
    """How far the server's smoothed model of a round is from the same round without one client.

    Without client k the weighted mean moves by ``w_k (G_k - G) / (W - w_k)`` exactly, so what
    :func:`client_certificate` found is enough, for every client. W is the weight of the clients
    whose updates are finite: the server leaves the others out of G.

    Args:
      certificate: of the round, with G the weighted mean.
      weights: ``float[K]`` of that mean: rows.
      sigma: standard deviation of the noise.

    Returns:
      A :class:`GapCertificate` with one bound for the removal of each client. A client that is
      alone has no mean without it, and one whose update is not finite no distance: bound 1.

    Raises:
      ValueError: weights that are not one number >= 0 for each client; sigma not above 0.

    Example:
      >>> found = client_certificate(jnp.array([[0.0], [2.0]]), jnp.array([1.0]), 1.0)
      >>> leaving_certificate(found, jnp.array([1.0, 1.0]), 1.0).distance.round(3).tolist()
      [1.0, 1.0]
    """
    _validate.positive(sigma=sigma)
    weights = _weights(weights, certificate.distance)
    others = jnp.sum(jnp.where(jnp.isfinite(certificate.distance), weights, 0)) - weights
    share = weights / jnp.where(others > 0, others, 1)
    moved = jnp.where(others > 0, share * certificate.distance, jnp.float32(1e30))
    return _certificate(moved, sigma, certificate.paper)


def removal_certificate(
    before: PyTree, after: PyTree, sigma: float, *, paper: Array | float = math.inf
) -> GapCertificate:
    """How far a round's smoothed model is from that of the same round without some rows.

    Args:
      before: the aggregated gradient with them, G.
      after: the aggregate of the same round, from the same global parameters, without them.
      sigma: standard deviation of the noise.
      paper: Theorem 4 of the round, which is not about removals; passed on.

    Returns:
      A :class:`GapCertificate` with one bound.

    Guarantee: provable for all inputs at once, of this round.

    Raises:
      ValueError: sigma not above 0; gradients of different shapes.

    Example:
      >>> found = removal_certificate(jnp.array([0.3, 0.0]), jnp.array([0.3, 0.1]), 1.0)
      >>> round(float(found.bound), 4), bool(found.vacuous)
      (0.0399, False)
    """
    _validate.positive(sigma=sigma)
    stacked = jax.tree.map(lambda u: jnp.asarray(u)[None], before)
    return _certificate(distances(stacked, after)[0], sigma, jnp.float32(paper))


def _certificate(distance: Array, sigma: float, paper: Array) -> GapCertificate:
    bound = _variation(distance, sigma)
    bound = jnp.where(jnp.isnan(bound), 1.0, bound)  # a gradient that is not finite: no claim
    return GapCertificate(
        distance=jnp.asarray(distance, jnp.float32),
        bound=bound,
        vacuous=bound > VACUOUS,
        paper=jnp.asarray(paper, jnp.float32),
        paper_vacuous=~(jnp.asarray(paper) <= VACUOUS),
    )


def _variation(distance: Array | float, sigma: float) -> Array:
    up = jnp.asarray(distance, jnp.float32) * (1 + SLACK)
    found = jax.scipy.special.erf(up / (2 * math.sqrt(2) * sigma))
    return jnp.minimum(1.0, found * (1 + SLACK))


def _weights(weights: Array, each: Array) -> Array:
    weights = jnp.asarray(weights, jnp.float32)
    if weights.shape != each.shape:
        raise ValueError(
            f"weights has shape {weights.shape}, but must be {each.shape}: one for each client."
        )
    if _validate.known(weights):
        values = np.asarray(weights)
        if not (np.isfinite(values) & (values >= 0)).all():
            raise ValueError(f"weights={values.tolist()} must be finite and >= 0.")
    return weights


def _checked(distance):
    if _validate.known(distance):
        with jax.ensure_compile_time_eval():
            values = jnp.asarray(distance)
            bad = bool(((values < 0) | ~jnp.isfinite(values)).any())
        if bad:
            raise ValueError(f"distance={distance!r} must be finite and >= 0.")
    return distance

"""Membership inference: does the unlearned model still treat forgotten rows as its own?

An attack is trained to tell *members* (retained rows) from *non-members* (test rows) by
one score a row of the unlearned model, and then asked about the *targets* (forgotten
rows). **Efficacy** is the share of targets that it calls non-members, TN / |D_f|. The
value to reach is that of the retrained model, not 1: with an accurate model most rows,
seen or not, look like members. Efficacy means nothing without ``shadow_accuracy``: near
1/2 the attack cannot tell members at all.

Scores come from :mod:`jaxunlearn.audit.scores`, higher = member. The papers use
``confidence``, on which efficacy is close to 1 - forget accuracy (within .03 in 52 of
60 rows of ConMU's tables): it is largely a test of correctness.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.audit import _inputs
from jaxunlearn.audit.roc import share, shares_above
from jaxunlearn.types import Array


class MIA(NamedTuple):
    """Result of :func:`svc_attack`, floats in [0, 1].

    Attributes:
      efficacy: share of targets that are called non-members, TN / |D_f|.
      shadow_accuracy: accuracy on the members and non-members that the attack was
        trained on, in equal numbers; about 1/2 means no power.
      precision: share of targets among all rows that are called members, if equally many
        targets and non-members (those of the training) are asked: recall / (recall + FPR).
        1/2 where both are treated alike; nan if none is called a member.
    """

    efficacy: float
    shadow_accuracy: float
    precision: float

    @property
    def recall(self) -> float:
        """Share of targets that are called members, 1 - efficacy."""
        return 1 - self.efficacy


class ThresholdMIA(NamedTuple):
    """Result of :func:`threshold_attack`, three float scalars.

    Attributes:
      efficacy: share of targets that are called non-members, TN / |D_f|.
      shadow_accuracy: balanced accuracy on members and non-members, in [1/2, 1].
      threshold: rows that score at least this are called members.
    """

    efficacy: Array
    shadow_accuracy: Array
    threshold: Array


def svc_attack(
    members,
    nonmembers,
    targets,
    *,
    C: float = 3.0,
    max_rows: int | None = 2000,
    seed: int | None = None,
) -> MIA:
    """The papers' attack: a support vector classifier on a score (NumPy, on the host).

    scikit-learn's ``SVC(C, kernel="rbf", gamma="auto")``, gamma = 1 / number of features.
    Unlearn-Sparse has C = 3 (the default here) and ConMU C = 10.

    As in the official code, members and non-members are taken in equal number from the
    start of their arrays: k = min(len(members), len(nonmembers), max_rows) of each. Only
    ``max_rows`` is ours, because the fit is O(k^2): .3 s at k = 2,000, 8 s at 10,000;
    None switches it off. If rows are sorted (by class, say), the first k are not a fair sample:
    give a ``seed`` to draw them at random. On one fixed model the draw moved efficacy
    by .012 (standard deviation of 20 draws), as much as another training seed.

    Args:
      members: ``float[n]``, or ``float[n, d]`` for several features: retained rows.
      nonmembers: the same of the test rows.
      targets: the same of the forgotten rows.
      C: inverse regularisation, > 0.
      max_rows: at most so many rows of each group train the attack.
      seed: draw those rows at random by this seed; None takes the first.

    Returns:
      :class:`MIA`; all nan if a score is not finite, as after a training that diverged.

    Raises:
      ValueError: an empty group, shapes that do not match, C <= 0, max_rows < 1.

    Example:
      >>> rng = np.random.default_rng(0)
      >>> seen, unseen = rng.uniform(0.9, 1, 100), rng.uniform(0, 0.5, 100)
      >>> svc_attack(seen, unseen, seen)
      MIA(efficacy=0.0, shadow_accuracy=1.0, precision=1.0)
    """
    from sklearn.svm import SVC  # slow to import, and only needed here

    _validate.positive(C=C)
    if max_rows is not None:
        _validate.whole(max_rows=max_rows)
    members = _features(members, name="members")
    nonmembers = _features(nonmembers, name="nonmembers")
    targets = _features(targets, name="targets")
    if not members.shape[1] == nonmembers.shape[1] == targets.shape[1]:
        raise ValueError(
            f"members, nonmembers and targets have {members.shape[1]}, {nonmembers.shape[1]} and "
            f"{targets.shape[1]} features, but must have the same number."
        )
    if not all(np.isfinite(group).all() for group in (members, nonmembers, targets)):
        return MIA(float("nan"), float("nan"), float("nan"))

    k = min(len(members), len(nonmembers), max_rows or len(members))
    if seed is not None:
        rng = np.random.default_rng(seed)
        members, nonmembers = rng.permutation(members), rng.permutation(nonmembers)
    x = np.concatenate([members[:k], nonmembers[:k]])
    is_member = np.arange(2 * k) < k
    attack = SVC(C=C, kernel="rbf", gamma="auto").fit(x, is_member)
    called = attack.predict(x)
    recall, false_positives = float(attack.predict(targets).mean()), float(called[k:].mean())
    either = recall + false_positives
    return MIA(
        efficacy=1 - recall,
        shadow_accuracy=float((called == is_member).mean()),
        precision=recall / either if either else float("nan"),
    )


def _features(value, *, name: str) -> np.ndarray:
    value = np.asarray(value, np.float64)
    value = value[:, None] if value.ndim == 1 else value
    if value.ndim != 2 or value.size == 0:
        raise ValueError(
            f"{name} has shape {value.shape}, but must be [n] or [n, d] with n >= 1 rows."
        )
    return value


def threshold_attack(
    members: Array,
    nonmembers: Array,
    targets: Array,
    *,
    member_weights: Array | None = None,
    nonmember_weights: Array | None = None,
    target_weights: Array | None = None,
) -> ThresholdMIA:
    """The best single threshold on a score: pure JAX, jittable, O(n log n), exact.

    "Member if score >= t", where t is the observed score with the largest balanced
    accuracy, (TPR + TNR) / 2, and the lowest such score if several tie. So the result
    depends on the order of the scores alone: any increasing function of them gives the
    same. Differs from :func:`svc_attack` in that the SVC may call an interval in the
    middle non-member, and that its C regularises.

    With a shadow accuracy below about .55 the efficacy is noise: many thresholds are about as
    good as the best, anywhere on the scale. In the records of ``make demo`` (shadow
    accuracy .52 to .54) it is .40 with a standard deviation of .24 over 25 retrained models.
    That of the SVC is .07 with .01 there: steadier, but no better founded.

    Weights select rows with static shapes: with ``confidence`` of all training rows as
    both members and targets, give ``~forget`` and ``forget``.

    Args:
      members: ``float[m]`` scores of retained rows, higher = member.
      nonmembers: ``float[n]`` scores of test rows.
      targets: ``float[t]`` scores of forgotten rows.
      member_weights: ``bool[m]`` or ``float[m]``, and so on for the other two.
      nonmember_weights: see there.
      target_weights: see there.

    Returns:
      :class:`ThresholdMIA`; nan where a group that matters has no weight or a NaN.

    Raises:
      ValueError: an empty group, a score array that is no vector, bad weights.

    Example:
      >>> train, test = jnp.array([0.9, 0.95, 0.3]), jnp.array([0.2, 0.4])
      >>> forget = jnp.array([False, False, True])
      >>> result = threshold_attack(
      ...     train, test, train, member_weights=~forget, target_weights=forget)
      >>> float(result.efficacy), float(result.shadow_accuracy)
      (1.0, 1.0)
    """
    members = _inputs.scores(members, name="members")
    nonmembers = _inputs.scores(nonmembers, name="nonmembers")
    targets = _inputs.scores(targets, name="targets")
    wm = _inputs.weights(member_weights, members, name="member_weights")
    wn = _inputs.weights(nonmember_weights, nonmembers, name="nonmember_weights")
    wt = _inputs.weights(target_weights, targets, name="target_weights")

    candidates = jnp.concatenate([members, nonmembers])
    tpr = shares_above(members, wm, candidates, strictly=False)
    fpr = shares_above(nonmembers, wn, candidates, strictly=False)
    accuracy = jnp.where(jnp.concatenate([wm, wn]) > 0, (1 + tpr - fpr) / 2, -jnp.inf)
    best = accuracy.max()
    best = jnp.where(jnp.isneginf(best), jnp.nan, best)  # nobody to learn from
    threshold = jnp.where(accuracy == best, candidates, jnp.inf).min()
    threshold = jnp.where(jnp.isnan(best), jnp.nan, threshold)
    efficacy = share(targets < threshold, targets, threshold, wt)
    return ThresholdMIA(efficacy, best, threshold)

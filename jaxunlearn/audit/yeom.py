"""The attack of Yeom et al. 2018: members are rows of at most the mean training loss."""

from jaxunlearn.audit import _inputs
from jaxunlearn.audit.roc import share
from jaxunlearn.types import Array


def yeom_recall(
    train_losses: Array,
    target_losses: Array,
    *,
    train_weights: Array | None = None,
    target_weights: Array | None = None,
) -> Array:
    """Share of targets that the attack calls members: ``loss <= mean training loss``.

    Yeom et al. (2018), Adversary 1 with the average loss as its threshold; the recall that
    PRUNE reports in its Table IV. It rewards every wrong answer: a row whose loss is made huge is
    called no member, however much it stands out. So look at ``tpr_at_fpr`` of the loss, forgotten
    rows against test rows, beside it.

    Args:
      train_losses: ``float[n]`` losses of the training rows.
      target_losses: ``float[t]`` losses of the forgotten rows.
      train_weights: ``bool[n]`` or ``float[n]``.
      target_weights: ``bool[t]`` or ``float[t]``.

    Returns:
      A float scalar in [0, 1]; nan where a group that matters has no weight or a NaN.

    Raises:
      ValueError: an empty group, losses that are no vector, bad weights.

    Example:
      >>> import jax.numpy as jnp
      >>> float(yeom_recall(jnp.array([0.1, 0.3]), jnp.array([0.1, 0.2, 5.0, 6.0])))
      0.5
    """
    train = _inputs.scores(train_losses, name="train_losses")
    targets = _inputs.scores(target_losses, name="target_losses")
    of_train = _inputs.weights(train_weights, train, name="train_weights")
    of_targets = _inputs.weights(target_weights, targets, name="target_weights")
    threshold = _inputs.weighted_mean(train, of_train)
    return share(targets <= threshold, targets, threshold, of_targets)

"""All that one model's logits tell, in one call: accuracy, loss, membership."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.audit import _inputs, scores
from jaxunlearn.audit.accuracy import accuracy, group_accuracies
from jaxunlearn.audit.mia import threshold_attack
from jaxunlearn.audit.roc import auc, tpr_at_fpr
from jaxunlearn.types import Array


class Evaluation(NamedTuple):
    """What :func:`evaluate` found, float scalars (each with a leading axis under ``vmap``).

    None of them is good or bad by itself: compare with the same numbers of retrained models.

    Attributes:
      acc_test: accuracy on the test rows (TA).
      acc_retain: accuracy on the retained training rows (RA).
      acc_forget: accuracy on the forgotten rows (FA).
      loss_test: mean cross-entropy on the test rows, nats.
      loss_retain: the same on the retained rows.
      loss_forget: the same on the forgotten rows.
      threshold_efficacy: share of forgotten rows that :func:`threshold_attack` calls non-members;
        noise where threshold_shadow_accuracy is below about .55. Not the MIA of the papers'
        tables and of FRM: that is :func:`svc_attack`.
      threshold_shadow_accuracy: balanced accuracy of that attack on retained against test rows.
      auc_forget_vs_test: AUC of forgotten (positive) against test rows.
      tpr_at_1fpr: true-positive rate of the same at 1% false positives.
      auc_retain_vs_test: AUC of retained (positive) against test rows.
    """

    acc_test: Array
    acc_retain: Array
    acc_forget: Array
    loss_test: Array
    loss_retain: Array
    loss_forget: Array
    threshold_efficacy: Array
    threshold_shadow_accuracy: Array
    auc_forget_vs_test: Array
    tpr_at_1fpr: Array
    auc_retain_vs_test: Array


def evaluate(
    logits_train: Array, logits_test: Array, train_y: Array, test_y: Array, forget: Array
) -> Evaluation:
    """Audit one model by its logits: accuracies, losses and a threshold membership attack.

    Pure JAX with static shapes: jit it, and vmap it over K models with
    ``jax.vmap(evaluate, in_axes=(0, 0, None, None, None))``.

    The score of the attacks is the logit confidence, which ranks rows as the confidence
    does but does not round to 1. See :mod:`jaxunlearn.audit.roc` for how to read the
    AUCs: forgotten against test rows is .5 after retraining only if the forgotten rows
    are a random draw, so not for a forgotten class.

    Args:
      logits_train: ``float[n, C]`` of all training rows, forgotten ones included.
      logits_test: ``float[t, C]``.
      train_y: ``int[n]``.
      test_y: ``int[t]``.
      forget: ``bool[n]``, True for the rows to forget.

    Returns:
      :class:`Evaluation`. With an empty request the numbers of forgotten rows are nan; with
      NaN logits the losses and attacks are nan, and such rows count as wrong.

    Cost: O((n + t) (C + log(n + t))).

    Raises:
      ValueError: shapes or dtypes that do not match, labels outside the classes, all rows
        forgotten.

    Example:
      >>> key = jax.random.key(0)
      >>> train_y, test_y = jnp.arange(60) % 3, jnp.arange(30) % 3
      >>> memorised = 9.0 * jax.nn.one_hot(train_y, 3)
      >>> noise = jax.random.normal(key, (30, 3))
      >>> result = evaluate(memorised, noise, train_y, test_y, jnp.arange(60) < 12)
      >>> float(result.acc_forget), float(result.auc_forget_vs_test)
      (1.0, 1.0)
    """
    logits_train = _inputs.logits(logits_train, name="logits_train")
    logits_test = _inputs.logits(logits_test, name="logits_test")
    if logits_train.shape[1] != logits_test.shape[1]:
        raise ValueError(
            f"logits_train has {logits_train.shape[1]} classes and logits_test has "
            f"{logits_test.shape[1]}; they must be outputs of the same model."
        )
    train_y = _inputs.labels(train_y, logits_train.shape, name="train_y")
    test_y = _inputs.labels(test_y, logits_test.shape, name="test_y")
    _validate.forget_mask(forget, logits_train.shape[0])

    return _evaluate(logits_train, logits_test, train_y, test_y, jnp.asarray(forget))


@jax.jit
def _evaluate(logits_train, logits_test, train_y, test_y, forget) -> Evaluation:
    retain_weight = _inputs.weights(~forget, logits_train[:, 0])
    forget_weight = _inputs.weights(forget, logits_train[:, 0])
    groups = group_accuracies(logits_train, train_y, forget)
    train_loss = scores.loss(logits_train, train_y)
    train_score = scores.logit_confidence(logits_train, train_y)
    test_score = scores.logit_confidence(logits_test, test_y)
    attack = threshold_attack(
        train_score,
        test_score,
        train_score,
        member_weights=retain_weight,
        target_weights=forget_weight,
    )
    return Evaluation(
        acc_test=accuracy(logits_test, test_y),
        acc_retain=groups.acc_retain,
        acc_forget=groups.acc_forget,
        loss_test=scores.loss(logits_test, test_y).mean(),
        loss_retain=_inputs.weighted_mean(train_loss, retain_weight),
        loss_forget=_inputs.weighted_mean(train_loss, forget_weight),
        threshold_efficacy=attack.efficacy,
        threshold_shadow_accuracy=attack.shadow_accuracy,
        auc_forget_vs_test=auc(train_score, test_score, positive_weights=forget_weight),
        tpr_at_1fpr=tpr_at_fpr(train_score, test_score, fpr=0.01, positive_weights=forget_weight),
        auc_retain_vs_test=auc(train_score, test_score, positive_weights=retain_weight),
    )

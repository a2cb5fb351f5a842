"""What is measured on one model, be it original, unlearned or retrained."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import audit
from jaxunlearn.data import Splits
from jaxunlearn.types import Array

# Rows predicted at once: at 1,000 a ResNet-18 on a CPU takes 5 GB.
BATCH = 256
# Losses are counted in these bins of log10(loss).
LOSS_BINS = np.linspace(-6.0, 2.0, 41)


def logits(predict: Callable[[Array], Array], x: Array) -> Array:
    """``predict`` over all rows, in batches; traceable."""
    n = x.shape[0]
    batch = min(BATCH, n)
    count = -(-n // batch)
    rows = jnp.minimum(jnp.arange(count * batch), n - 1).reshape(count, batch)
    out = jax.lax.map(lambda index: predict(x[index]), rows)
    return out.reshape(count * batch, -1)[:n]


def scores(train_logits: Array, test_logits: Array, splits: Splits, forget: Array) -> dict:
    """Accuracies, losses and membership attacks of one model, as JSON values.

    Args:
      train_logits: ``float[n, C]`` of all training rows.
      test_logits: ``float[t, C]``.
      splits: the labels to go with them.
      forget: ``bool[n]``.
    """
    found = audit.evaluate(train_logits, test_logits, splits.train.y, splits.test.y, forget)
    values = {name: float(value) for name, value in found._asdict().items()}
    train = np.asarray(audit.confidence(train_logits, splits.train.y))
    test = np.asarray(audit.confidence(test_logits, splits.test.y))
    gone = np.asarray(forget)
    svc = audit.svc_attack(train[~gone], test, train[gone])
    return {
        "acc_test": values["acc_test"],
        "acc_retain": values["acc_retain"],
        "acc_forget": values["acc_forget"],
        "err_test": 1 - values["acc_test"],
        "err_retain": 1 - values["acc_retain"],
        "err_forget": 1 - values["acc_forget"],
        "loss_test": values["loss_test"],
        "loss_retain": values["loss_retain"],
        "loss_forget": values["loss_forget"],
        "mia": {
            "attack": "svc",
            "feature": "confidence",
            "efficacy": svc.efficacy,
            "recall": svc.recall,
            "precision": svc.precision,
            "shadow_acc": svc.shadow_accuracy,
            "threshold_efficacy": values["threshold_efficacy"],
            "threshold_shadow_acc": values["threshold_shadow_accuracy"],
            "auc": values["auc_forget_vs_test"],
            "tpr_at_1fpr": values["tpr_at_1fpr"],
            "auc_retain_vs_test": values["auc_retain_vs_test"],
        },
    }


def loss_histogram(row_logits: Array, y: Array) -> list[int]:
    """Counts of log10(loss) in ``LOSS_BINS``, the outermost bins open."""
    loss = np.log10(np.maximum(np.asarray(audit.loss(row_logits, y), np.float64), 1e-300))
    counts, _ = np.histogram(np.clip(loss, LOSS_BINS[0], LOSS_BINS[-1]), LOSS_BINS)
    return counts.tolist()


def frm_terms(values: dict) -> list[float]:
    """Forget accuracy, retain accuracy and attack efficacy: what FRM compares."""
    return [values["acc_forget"], values["acc_retain"], values["mia"]["efficacy"]]

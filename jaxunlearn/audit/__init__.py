"""Audits of unlearned models: what predictions and parameters tell, and how surely.

Sees logits, scores and parameters only; it imports no method, training or model. Start with
:func:`evaluate` (one model), then compare with several retrained models through
:func:`null_band`, :func:`frm` with :func:`frm_null`, and :func:`jsd_to_references` with
:func:`jsd_null`. No number here is good or bad alone.
"""

from jaxunlearn.audit.accuracy import GroupAccuracies, accuracy, error, group_accuracies
from jaxunlearn.audit.band import Band, null_band
from jaxunlearn.audit.distance import parameter_distance, relative_parameter_distance
from jaxunlearn.audit.divergence import jensen_shannon, jsd_null, jsd_to_references, kl
from jaxunlearn.audit.evaluate import Evaluation, evaluate
from jaxunlearn.audit.frm import frm, frm_null
from jaxunlearn.audit.intervals import (
    Interval,
    PairedDifference,
    bootstrap_interval,
    clopper_pearson,
    holm,
    mean_interval,
    paired_difference,
    wilson,
)
from jaxunlearn.audit.mia import MIA, ThresholdMIA, svc_attack, threshold_attack
from jaxunlearn.audit.roc import auc, tpr_at_fpr
from jaxunlearn.audit.scores import (
    confidence,
    correctness,
    entropy,
    logit_confidence,
    loss,
    modified_entropy,
)
from jaxunlearn.audit.yeom import yeom_recall

__all__ = [
    "MIA",
    "Band",
    "Evaluation",
    "GroupAccuracies",
    "Interval",
    "PairedDifference",
    "ThresholdMIA",
    "accuracy",
    "auc",
    "bootstrap_interval",
    "clopper_pearson",
    "confidence",
    "correctness",
    "entropy",
    "error",
    "evaluate",
    "frm",
    "frm_null",
    "group_accuracies",
    "holm",
    "jensen_shannon",
    "jsd_null",
    "jsd_to_references",
    "kl",
    "logit_confidence",
    "loss",
    "mean_interval",
    "modified_entropy",
    "null_band",
    "paired_difference",
    "parameter_distance",
    "relative_parameter_distance",
    "svc_attack",
    "threshold_attack",
    "tpr_at_fpr",
    "wilson",
    "yeom_recall",
]

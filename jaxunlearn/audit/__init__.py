"""Audits of unlearned models: what predictions and parameters tell, and how surely.

Sees logits, scores and parameters only; it imports no method. Start with :func:`evaluate` (one
model), then compare with several retrained models through :func:`null_band`, :func:`frm` with
:func:`frm_null`, and :func:`jsd_to_references` with :func:`jsd_null`. No number here is good or bad
alone.

The laboratory compares *distributions* of models: :func:`references` trains many without a request,
and :func:`ulira`, :func:`ruli`, :func:`epsilon_report`, :func:`forgetting_quality` and the others
answer with an :class:`AuditReport`, the null of retraining against retraining in it.
"""

from jaxunlearn.audit.accuracy import GroupAccuracies, accuracy, error, group_accuracies
from jaxunlearn.audit.band import Band, null_band
from jaxunlearn.audit.confusion import confusion_report, interclass_error
from jaxunlearn.audit.distance import parameter_distance, relative_parameter_distance
from jaxunlearn.audit.divergence import jensen_shannon, jsd_null, jsd_to_references, kl
from jaxunlearn.audit.epsilon import (
    epsilon_lower_bound,
    epsilon_report,
    example_epsilons,
    forgetting_quality,
    null_epsilon,
)
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
from jaxunlearn.audit.lira import lira, vulnerability
from jaxunlearn.audit.mia import MIA, ThresholdMIA, svc_attack, threshold_attack
from jaxunlearn.audit.paired import compare_with, paired_bootstrap, seeds_needed
from jaxunlearn.audit.population import member_scores, population_attack
from jaxunlearn.audit.privacy import privacy_bounds
from jaxunlearn.audit.references import References, Shadows, references, shadows
from jaxunlearn.audit.relearn import relearn_report, relearn_steps
from jaxunlearn.audit.report import AuditReport
from jaxunlearn.audit.roc import auc, tpr_at_fpr
from jaxunlearn.audit.roc_curve import ROC, roc_curve
from jaxunlearn.audit.scores import (
    confidence,
    correctness,
    entropy,
    logit_confidence,
    loss,
    modified_entropy,
)
from jaxunlearn.audit.ulira import ruli, ulira
from jaxunlearn.audit.yeom import yeom_recall

__all__ = [
    "MIA",
    "ROC",
    "AuditReport",
    "Band",
    "Evaluation",
    "GroupAccuracies",
    "Interval",
    "PairedDifference",
    "References",
    "Shadows",
    "ThresholdMIA",
    "accuracy",
    "auc",
    "bootstrap_interval",
    "clopper_pearson",
    "compare_with",
    "confidence",
    "confusion_report",
    "correctness",
    "entropy",
    "epsilon_lower_bound",
    "epsilon_report",
    "error",
    "evaluate",
    "example_epsilons",
    "forgetting_quality",
    "frm",
    "frm_null",
    "group_accuracies",
    "holm",
    "interclass_error",
    "jensen_shannon",
    "jsd_null",
    "jsd_to_references",
    "kl",
    "lira",
    "logit_confidence",
    "loss",
    "mean_interval",
    "member_scores",
    "modified_entropy",
    "null_band",
    "null_epsilon",
    "paired_bootstrap",
    "paired_difference",
    "parameter_distance",
    "population_attack",
    "privacy_bounds",
    "references",
    "relative_parameter_distance",
    "relearn_report",
    "relearn_steps",
    "roc_curve",
    "ruli",
    "seeds_needed",
    "shadows",
    "svc_attack",
    "threshold_attack",
    "tpr_at_fpr",
    "ulira",
    "vulnerability",
    "wilson",
    "yeom_recall",
]

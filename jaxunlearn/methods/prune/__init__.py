"""PRUNE: patches that make a trained network wrong at the points that asked to be forgotten.

Li et al., PRUNE: A Patching Based Repair Framework for Certifiable Unlearning of Neural
Networks, 2025. The network is left as it is, and a constant is added to its logits in
the linear region of each point (:mod:`jaxunlearn.primitives.patches`). What that is
not: the point's influence on the weights remains, and without the patch everything is
as it was.

Eq. 7 asks for the affine map of least maximum that changes the answer in all of the
region. A constant is always among the optima: whatever the map, some difference of two
logits must change by ``V + margin`` somewhere, hence one of them by half of that, and
the constant ``t = (V + margin) / 2``, added to the target and taken from the rest, does it.
"""

from jaxunlearn.methods.prune.classes import PrunedClass, prune_class
from jaxunlearn.methods.prune.config import MODES, PruneClassConfig, PruneConfig
from jaxunlearn.methods.prune.constants import constant, runner_up
from jaxunlearn.methods.prune.handover import hand_over, patch_file
from jaxunlearn.methods.prune.memory import Memory
from jaxunlearn.methods.prune.multipoint import Multipoint, k_means, multipoint
from jaxunlearn.methods.prune.points import Pruned, prune, prune_rows
from jaxunlearn.methods.prune.unlearners import class_unlearner, unlearner
from jaxunlearn.primitives.outcomes import Outcome

__all__ = [
    "MODES",
    "Memory",
    "Multipoint",
    "Outcome",
    "PruneClassConfig",
    "PruneConfig",
    "Pruned",
    "PrunedClass",
    "class_unlearner",
    "constant",
    "hand_over",
    "k_means",
    "multipoint",
    "patch_file",
    "prune",
    "prune_class",
    "prune_rows",
    "runner_up",
    "unlearner",
]

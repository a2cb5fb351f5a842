"""The rows of the registry.

To add a method: write its file, add its row here. The shared laws in
``tests/conformance`` then apply to it.
"""

import dataclasses
import functools

from jaxunlearn.baselines.amnesiac import AmnesiacConfig
from jaxunlearn.baselines.amnesiac import unlearner as amnesiac
from jaxunlearn.baselines.feature_unlearning import FeatureUnlearningConfig
from jaxunlearn.baselines.feature_unlearning import unlearner as feature_unlearning
from jaxunlearn.baselines.federated.fedavg import FedAvgConfig
from jaxunlearn.baselines.federated.fedavg import unlearner as fedavg
from jaxunlearn.baselines.federated.federaser import FedEraserConfig
from jaxunlearn.baselines.federated.federaser import unlearner as federaser
from jaxunlearn.baselines.federated.reverse_sgd import ReverseSGDConfig
from jaxunlearn.baselines.federated.reverse_sgd import unlearner as reverse_sgd
from jaxunlearn.baselines.finetune import FineTuneConfig
from jaxunlearn.baselines.finetune import unlearner as finetune
from jaxunlearn.baselines.gradient_ascent import GradientAscentConfig
from jaxunlearn.baselines.gradient_ascent import unlearner as gradient_ascent
from jaxunlearn.baselines.influence import InfluenceConfig, WoodFisherConfig, woodfisher_unlearner
from jaxunlearn.baselines.influence import unlearner as influence
from jaxunlearn.baselines.logit_mask import LogitMaskConfig
from jaxunlearn.baselines.logit_mask import unlearner as logit_mask
from jaxunlearn.baselines.noop import NoopConfig
from jaxunlearn.baselines.noop import unlearner as noop
from jaxunlearn.baselines.retrain import RetrainConfig
from jaxunlearn.baselines.retrain import unlearner as retrain
from jaxunlearn.baselines.sisa import SISAConfig
from jaxunlearn.baselines.sisa import unlearner as sisa
from jaxunlearn.methods import ffmu
from jaxunlearn.methods.conmu import OFFICIAL, PAPER, ConMUConfig
from jaxunlearn.methods.conmu import unlearner as conmu
from jaxunlearn.methods.ffmu import FFMUConfig
from jaxunlearn.methods.muter import MuterConfig
from jaxunlearn.methods.muter import adopt as muter_adopt
from jaxunlearn.methods.muter import unlearner as muter
from jaxunlearn.methods.pcmu import PCMUConfig, retrain_unlearner
from jaxunlearn.methods.pcmu import unlearner as pcmu
from jaxunlearn.methods.prune import PruneClassConfig, PruneConfig
from jaxunlearn.methods.prune import class_unlearner as prune_class
from jaxunlearn.methods.prune import unlearner as prune
from jaxunlearn.primitives.solve import CG
from jaxunlearn.registry.method import Method, PrunedConfig, Sharing, checked
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.types import Model, Unlearner

PCMU = "PCMU, Prompt Certified Machine Unlearning, NeurIPS 2022"
LIU = "Liu et al. 2023, Model Sparsity Can Simplify Machine Unlearning (official code)"

METHODS = {
    method.name: method
    for method in (
        Method("noop", noop, NoopConfig(), "none", "the original model, unchanged"),
        Method("retrain", retrain, RetrainConfig(), "exact", "training without the rows"),
        Method("finetune", finetune, FineTuneConfig(), "none", LIU),
        Method("gradient_ascent", gradient_ascent, GradientAscentConfig(), "none", LIU),
        Method(
            "influence",
            influence,
            InfluenceConfig(),
            "none (a first-order estimate for convex losses)",
            "Koh and Liang 2017, with Fisher's matrix by Woodbury's identity",
        ),
        Method("influence_woodfisher", woodfisher_unlearner, WoodFisherConfig(), "none", LIU),
        Method(
            "pcmu",
            pcmu,
            PCMUConfig(),
            "certified: coordinates of one step; in sampled mode (epsilon, delta) of the model",
            PCMU,
            needs="budgets of the coordinates, the mean gradient and its spread",
            ordinary_training=False,
            own_training=True,
        ),
        Method(
            "pcmu_retrain",
            retrain_unlearner,
            PCMUConfig(),
            "exact",
            f"training as {PCMU} without the rows",
            ordinary_training=False,
            own_training=True,
        ),
    )
}


def _pruned(method: Method) -> Method:
    """The method on a magnitude-pruned network, within its mask ("X + Pruning")."""

    def make(model: Model, train: TrainConfig, config: PrunedConfig) -> Unlearner:
        return method.make(model, train, checked(method, config.then), prune=config.pruning)

    return Method(
        name=f"{method.name}+pruning",
        make=make,
        config=PrunedConfig(then=method.config),
        guarantee="none (the mask was chosen with the removed rows)",
        source=f"{method.source}; pruned",
        needs="a pruning mask",
        ordinary_training=False,
        own_training=True,
    )


PRUNABLE = ("noop", "retrain", "finetune", "gradient_ascent", "influence")
METHODS |= {pruned.name: pruned for pruned in (_pruned(METHODS[name]) for name in PRUNABLE)}

PRUNE = "Li et al. 2025, PRUNE: A Patching Based Repair Framework"

METHODS |= {
    method.name: method
    for method in (
        Method(
            "prune",
            prune,
            PruneConfig(),
            "none (the answer at known rows changes; mode region: proved for the region)",
            PRUNE,
            needs="patches; the parameters never change",
            ordinary_training=False,
        ),
        Method(
            "prune_class",
            prune_class,
            PruneClassConfig(),
            "none (the answer at the covered rows changes)",
            PRUNE,
            needs="patches; the parameters never change",
            ordinary_training=False,
        ),
        Method(
            "logit_mask",
            logit_mask,
            LogitMaskConfig(),
            "none (a masked class is never answered)",
            "the comparison for class unlearning by suppression",
            needs="the masked classes; the parameters never change",
            ordinary_training=False,
        ),
        Method(
            "sisa",
            sisa,
            SISAConfig(),
            "exact",
            "Bourtoule et al. 2021, Machine Unlearning",
            needs="a model for each shard and slice",
            ordinary_training=False,
            own_training=True,
        ),
        Method(
            "amnesiac",
            amnesiac,
            AmnesiacConfig(),
            "none",
            "Graves et al. 2021, Amnesiac Machine Learning",
            needs="the change of every step",
            ordinary_training=False,
        ),
        Method(
            "feature_unlearning",
            feature_unlearning,
            FeatureUnlearningConfig(),
            "none",
            "Warnecke et al. 2023, Machine Unlearning of Features and Labels",
        ),
    )
}


CONMU = "Liu et al. 2023, ConMU, Breaking the Trilemma of Privacy, Utility, Efficiency"

METHODS |= {
    method.name: method
    for method in (
        Method("conmu", conmu, ConMUConfig(), "none", CONMU),
        Method("conmu_paper", conmu, PAPER, "none", f"{CONMU}: Table 2"),
        Method(
            "conmu_official",
            conmu,
            OFFICIAL,
            "none",
            f"{CONMU}: official code, with what it does by mistake",
            needs="the initial parameters of the training",
            ordinary_training=False,
        ),
    )
}


def _muter(name: str, source: str, config: MuterConfig, guarantee: str) -> Method:
    """MUter or one of the methods it compares with: the same training, another matrix."""
    return Method(
        name=name,
        make=functools.partial(muter, method=name),
        config=config,
        guarantee=guarantee,
        source=source,
        needs="the matrix, and a perturbation a row",
        ordinary_training=False,
        own_training=True,
        sharing=Sharing("muter", _adversarial, functools.partial(muter_adopt, method=name)),
        varying=True,
    )


def _adversarial(config: MuterConfig) -> MuterConfig:
    """All of it but how requests are answered, and how the matrix is kept."""
    return dataclasses.replace(config, solver=None, terms=1, refresh=0, noise=0.0)


LIU_MUTER = "Liu et al. 2023, MUter: Machine Unlearning on Adversarially Trained Models"

METHODS |= {
    name: _muter(name, f"{LIU_MUTER}{what}", config, guarantee)
    for name, what, config, guarantee in (
        (
            "muter",
            "; with the constrained Hessian",
            MuterConfig(),
            "none (second-order accurate at strict inner maxima)",
        ),
        ("muter_paper", ", Eq. 10 and 16", MuterConfig(), "none"),
        ("muter_newton", ": Newton", MuterConfig(), "none"),
        ("muter_newton_delta", ": Newton-delta", MuterConfig(), "none"),
        # Ten iterations as in the official code: they are what regularises it.
        ("muter_fisher", ": Fisher", MuterConfig(solver=CG(maxiter=10)), "none"),
        ("muter_fisher_delta", ": Fisher-delta", MuterConfig(solver=CG(maxiter=10)), "none"),
        ("muter_influence", ": Influence", MuterConfig(), "none"),
        ("muter_influence_delta", ": Influence-delta", MuterConfig(), "none"),
    )
}

FFMU = "FFMU, Fast Federated Machine Unlearning, ICML 2023"
ROUND = "certified: the smoothed model of the last round; nothing of the trained model"

METHODS |= {
    method.name: method
    for method in (
        Method(
            "ffmu",
            ffmu.unlearner,
            FFMUConfig(),
            ROUND,
            FFMU,
            needs="the parameters before the last round, and its mean gradient",
            ordinary_training=False,
            own_training=True,
        ),
        Method(
            "ffmu_n",
            ffmu.unlearner,
            FFMUConfig(server="fedavg"),
            "none",
            f"{FFMU}: FFMU-N, local models averaged",
            ordinary_training=False,
            own_training=True,
        ),
        Method(
            "ffmu_retrain",
            ffmu.retrain_unlearner,
            FFMUConfig(),
            "exact",
            f"training as {FFMU} without the rows",
            ordinary_training=False,
            own_training=True,
        ),
        Method(
            "fedavg",
            fedavg,
            FedAvgConfig(),
            "exact",
            "McMahan et al. 2017, federated averaging; all rounds again without the rows",
            ordinary_training=False,
            own_training=True,
        ),
        Method(
            "federaser",
            federaser,
            FedEraserConfig(),
            "none",
            "Liu et al. 2021, FedEraser",
            needs="products of the clients' updates with each other, in every round",
            ordinary_training=False,
            own_training=True,
        ),
        Method(
            "un",
            reverse_sgd,
            ReverseSGDConfig(),
            "none",
            "Halimi et al. 2022, Federated Unlearning: How to Efficiently Erase a Client in FL?",
            needs="the last local model of every client",
            ordinary_training=False,
            own_training=True,
        ),
    )
}

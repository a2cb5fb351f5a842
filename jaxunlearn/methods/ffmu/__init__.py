"""FFMU: federated training with smoothed, quantized gradients, and requests answered at once.

Fast Federated Machine Unlearning with Nonlinear Functional Theory (ICML 2023). Clients train by
PCMU, the server averages their gradients, smooths and quantizes the mean, and steps along it. The
paper's claim is that the smoothed server model stays near each client's, so that what PCMU
certifies for those carries over. What is true of it: the models of one round are near each other
by a bound that can be proved without the paper's Lipschitz constant, and that is vacuous at the
paper's sigma. Nothing is proved about the trained model.
"""

from jaxunlearn.methods.ffmu.requests import (
    FFMUCertificate,
    Record,
    retrain_unlearner,
    unlearner,
)
from jaxunlearn.methods.ffmu.smoothed import Smoothed, predict_smoothed
from jaxunlearn.methods.ffmu.training import PAPER, PAPER_TRAIN, FFMUConfig, plan, rule, train

__all__ = [
    "PAPER",
    "PAPER_TRAIN",
    "FFMUCertificate",
    "FFMUConfig",
    "Record",
    "Smoothed",
    "plan",
    "predict_smoothed",
    "retrain_unlearner",
    "rule",
    "train",
    "unlearner",
]

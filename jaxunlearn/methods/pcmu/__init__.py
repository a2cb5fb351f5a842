"""PCMU: training with smoothed, quantized gradients, and requests that are answered at once.

Prompt Certified Machine Unlearning with Randomized Gradient Smoothing and Quantization
(NeurIPS 2022). The paper's idea: if the quantized gradient does not change when rows leave,
neither does the model, so one training answers every request within a budget. What is true of
it: the quantized gradient of one step indeed changes little; the model of the whole training is
not the retrained one. So a request comes back with what is certified about it, as data, and with
``Status.BEYOND_CERTIFICATE`` where that is less than was asked for.
"""

from jaxunlearn.methods.pcmu.requests import (
    PCMUCertificate,
    Record,
    certificate,
    record,
    retrain_unlearner,
    unlearner,
)
from jaxunlearn.methods.pcmu.training import PAPER, PAPER_TRAIN, PCMUConfig, direction, train
from jaxunlearn.methods.pcmu.transform import SampledState, pcmu

__all__ = [
    "PAPER",
    "PAPER_TRAIN",
    "PCMUCertificate",
    "PCMUConfig",
    "Record",
    "SampledState",
    "certificate",
    "direction",
    "pcmu",
    "record",
    "retrain_unlearner",
    "train",
    "unlearner",
]

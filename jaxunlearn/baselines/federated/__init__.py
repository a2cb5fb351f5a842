"""Federated methods that the papers compare with: one method, one file."""

from jaxunlearn.baselines.federated.fedavg import FedAvgConfig, fedavg
from jaxunlearn.baselines.federated.federaser import FedEraserConfig, calibrated
from jaxunlearn.baselines.federated.reverse_sgd import ReverseSGDConfig, climb

__all__ = [
    "FedAvgConfig",
    "FedEraserConfig",
    "ReverseSGDConfig",
    "calibrated",
    "climb",
    "fedavg",
]

"""Machine unlearning as pure JAX functions, audited against retrained models."""

from importlib import metadata

from jaxunlearn import audit, data, models, registry
from jaxunlearn.training import TrainConfig, fit, minimize, train_many
from jaxunlearn.types import Dataset, Model, State, Status, Unlearner

try:
    __version__ = metadata.version("jaxunlearn")
except metadata.PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

__all__ = [
    "Dataset",
    "Model",
    "State",
    "Status",
    "TrainConfig",
    "Unlearner",
    "__version__",
    "audit",
    "data",
    "fit",
    "minimize",
    "models",
    "registry",
    "train_many",
]

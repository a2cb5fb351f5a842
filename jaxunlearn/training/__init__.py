"""Training as one compiled function: one model, or many at once."""

from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import fit, minimize
from jaxunlearn.training.many import train_many
from jaxunlearn.training.pruned import PruningConfig, fit_pruned

__all__ = ["PruningConfig", "TrainConfig", "fit", "fit_pruned", "minimize", "train_many"]

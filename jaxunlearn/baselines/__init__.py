"""The methods that the papers compare against: one method, one file.

Each file has the method as a plain function on the user's own parameters, its
configuration, and ``unlearner(model, train, config)`` that lifts it.
"""

from jaxunlearn.baselines.finetune import FineTuneConfig, finetune
from jaxunlearn.baselines.gradient_ascent import GradientAscentConfig, gradient_ascent
from jaxunlearn.baselines.influence import (
    InfluenceConfig,
    WoodFisherConfig,
    influence,
    influence_woodfisher,
)
from jaxunlearn.baselines.noop import NoopConfig
from jaxunlearn.baselines.retrain import RetrainConfig, retrain

__all__ = [
    "FineTuneConfig",
    "GradientAscentConfig",
    "InfluenceConfig",
    "NoopConfig",
    "RetrainConfig",
    "WoodFisherConfig",
    "finetune",
    "gradient_ascent",
    "influence",
    "influence_woodfisher",
    "retrain",
]

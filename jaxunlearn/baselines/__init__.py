"""The methods that the papers compare against: one method, one file.

Each file has the method as a plain function on the user's own parameters, its
configuration, and ``unlearner(model, train, config)`` that lifts it.
"""

from jaxunlearn.baselines.amnesiac import AmnesiacConfig
from jaxunlearn.baselines.feature_unlearning import FeatureUnlearningConfig, feature_unlearning
from jaxunlearn.baselines.finetune import FineTuneConfig, finetune
from jaxunlearn.baselines.gradient_ascent import GradientAscentConfig, gradient_ascent
from jaxunlearn.baselines.influence import (
    InfluenceConfig,
    WoodFisherConfig,
    influence,
    influence_woodfisher,
)
from jaxunlearn.baselines.logit_mask import LogitMaskConfig, mask_logits
from jaxunlearn.baselines.noop import NoopConfig
from jaxunlearn.baselines.retrain import RetrainConfig, retrain
from jaxunlearn.baselines.sisa import SISAConfig, sisa_logits

__all__ = [
    "AmnesiacConfig",
    "FeatureUnlearningConfig",
    "FineTuneConfig",
    "GradientAscentConfig",
    "InfluenceConfig",
    "LogitMaskConfig",
    "NoopConfig",
    "RetrainConfig",
    "SISAConfig",
    "WoodFisherConfig",
    "feature_unlearning",
    "finetune",
    "gradient_ascent",
    "influence",
    "influence_woodfisher",
    "mask_logits",
    "retrain",
    "sisa_logits",
]

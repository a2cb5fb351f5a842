"""No unlearning at all: the row that every table needs.

Several published methods do not beat it. A method that cannot be told from it has
forgotten nothing.
"""

import dataclasses

from jaxunlearn.posthoc import Update, posthoc
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.pruned import PruningConfig
from jaxunlearn.types import Model, Unlearner


@dataclasses.dataclass(frozen=True)
class NoopConfig:
    """Nothing to configure."""


def unlearner(
    model: Model,
    train: TrainConfig,
    config: NoopConfig = NoopConfig(),
    *,
    prune: PruningConfig | None = None,
) -> Unlearner:
    """Returns the original model. Guarantee: none. Cost: nothing."""

    def update(key, params, data, request, mask):
        return Update(params, grads=0.0)

    return posthoc(model, train, update, prune=prune)

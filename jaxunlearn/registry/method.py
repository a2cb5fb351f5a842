"""What a row of the registry is; :mod:`jaxunlearn.registry.rows` has them."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxunlearn.training.pruned import PruningConfig
from jaxunlearn.types import Unlearner


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the registry: how to make a method, and what it promises.

    Attributes:
      name: as in tables and on the command line.
      make: ``make(model, train, config) -> Unlearner``.
      config: its configuration with default values.
      guarantee: ``exact``, ``certified: ...`` or ``none``.
      source: where the method comes from.
      needs: what ``fit`` keeps beside the parameters.
      ordinary_training: ``fit`` is the plain training, so that methods can share its state.
      own_training: its model is trained by another rule than Retrain's, so that gaps to
        retrained models compare the rules too.

    Example:
      >>> from jaxunlearn.registry import METHODS
      >>> METHODS["finetune"].config.epochs > 0
      True
    """

    name: str
    make: Callable[..., Unlearner]
    config: Any
    guarantee: str
    source: str
    needs: str = "nothing"
    ordinary_training: bool = True
    own_training: bool = False


@dataclasses.dataclass(frozen=True)
class PrunedConfig:
    """A method on a pruned network: how to prune, and the method's own configuration.

    Attributes:
      pruning: how to prune.
      then: the method's own configuration; its defaults if None.

    Example:
      >>> from jaxunlearn.baselines import FineTuneConfig
      >>> PrunedConfig(PruningConfig(rate=0.5), then=FineTuneConfig(epochs=2)).then.epochs
      2
    """

    pruning: PruningConfig = PruningConfig()
    then: Any = None


def checked(method: Method, config: Any) -> Any:
    """``config`` if it is one of this method; its defaults if None."""
    if config is None:
        return method.config
    if type(config) is not type(method.config):
        raise ValueError(
            f"config={config!r} does not configure {method.name!r}: "
            f"give a {type(method.config).__name__}, or None for its defaults."
        )
    return config

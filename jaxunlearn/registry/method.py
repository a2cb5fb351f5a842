"""What a row of the registry is; :mod:`jaxunlearn.registry.rows` has them."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxunlearn.training.pruned import PruningConfig
from jaxunlearn.types import Dataset, Model, State, Unlearner


class Sharing(NamedTuple):
    """How methods that train the same model, and keep something else of it, share a training.

    Attributes:
      trainer: the method whose ``fit`` trains for all.
      decides: what of a configuration decides the training.
      adopt: ``adopt(model, config)(state, data)``: from the trainer's state what this method's
        own ``fit`` would have left.
    """

    trainer: str
    decides: Callable[[Any], Any]
    adopt: Callable[[Model, Any], Callable[[State, Dataset], State]]


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
      sharing: with which methods it shares a training that is not the ordinary one.
      varying: ``fit`` takes as many steps as its data ask for: vmapped, all models wait for the
        slowest, so that one after the other is faster where there is one core a model or less.

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
    sharing: Sharing | None = None
    varying: bool = False

    @property
    def trainer(self) -> str:
        """The name of the method whose ``fit`` trains this one's models: its own, mostly."""
        return self.name if self.sharing is None else self.sharing.trainer

    def adopter(self, model: Model, config: Any) -> Callable[[State, Dataset], State] | None:
        """What makes the trainer's states this method's own; None where they are."""
        if self.sharing is None or self.trainer == self.name:
            return None
        return self.sharing.adopt(model, config)

    def training(self, config: Any) -> str:
        """What decides the models that ``fit`` trains: alike where methods can share them."""
        if self.ordinary_training:
            return "plain"
        if isinstance(config, PrunedConfig):
            return f"pruned-{_short(config.pruning)}"
        if self.sharing is not None:
            return f"{self.sharing.trainer}-{_short(self.sharing.decides(config))}"
        return f"{self.name}-{_short(config)}"


def _short(what: Any) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()[:8]


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

"""The knobs of ConMU, and its two readings: the paper, and the official code."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.primitives.selection import Quantile, Random, Rule, Sigma
from jaxunlearn.primitives.sparsity import SCOPES
from jaxunlearn.training.config import SCHEDULES, TrainConfig
from jaxunlearn.types import Array

COMPAT = ("paper", "official")
NOISES = ("scale", "repeat")


@dataclasses.dataclass(frozen=True)
class ConMUConfig:
    """Three modules, each with the knobs that the paper gives it, and a fine-tuning.

    The defaults are ours, chosen on seeds that no table reports: a tenth of the sample gradients of
    retraining for 30 epochs without 20% of the rows. Their answers on the forgotten rows were a
    little nearer to retrained models than those of the original for a small dense network, and no
    nearer for a small convolutional one with 2,000 rows (docs/papers/conmu.md). Rows of middling
    difficulty served best: the hardest and the easiest are left out, as the paper argues.
    ``PAPER``, ``PAPER_CLASS`` and ``OFFICIAL`` of this package are those of the paper's Tables 2
    and 3 (ResNet-18, CIFAR-10) and of its code.

    Attributes:
      retain: which remaining rows to fine-tune on; the paper's bound z'_1, z'_2 is a ``Sigma``.
      forget: which rows to forget to fine-tune on, in noise; z_1, z_2.
      alpha: amount of noise on the rows to forget.
      mu: mean of the noise.
      sigma: standard deviation of the noise.
      noise: ``scale``, x + alpha N, as equation (5) and the code have it; or ``repeat``, alpha
        additions of noise as the text says, which is x + alpha mu + sqrt(alpha) sigma N.
      proxy_epochs: delta, epochs of the proxy on all remaining rows; 0 leaves it untrained.
      proxy_schedule: of its learning rate; the peak is that of the original's training.
      proxy_batch: rows a step of the proxy; those of the original's training if None. Small
        batches give more steps for the same sample gradients: a proxy of one epoch has few.
      gamma: weight of the divergence from the proxy; 0 does without a proxy.
      temperature: of both outputs in the divergence. The paper has none (1), its code 2.
      epochs, learning_rate, batch_size, momentum, weight_decay, clip: of the fine-tuning.
      prune_rate: fraction of the kernel entries to drop before anything else; 0 for none. The
        paper does not say, its code has .1 and a comment that says 20%.
      prune_scope: ``global`` or ``layer``.
      regrow: let dropped weights grow again, as the code does.
      compat: what cannot be read two ways at once. ``paper``: each row has its own score,
        KL(proxy || model), a proxy with initial parameters of its own. ``official``: as many rows
        as the bounds keep, but at random (scores of a shuffled loader); KL(model || proxy); a
        proxy that starts from the original's initial parameters.

    Raises:
      ValueError: a value outside its range, by name; a temperature of zero.

    Example:
      >>> ConMUConfig(alpha=3.0, retain=Sigma(0.17, 0.3)).retain.high
      0.3
    """

    retain: Rule = Quantile(0.75, 0.9)
    forget: Rule = Random(0.5)
    alpha: float = 1.0
    mu: float = 0.0
    sigma: float = 1.0
    noise: str = "scale"
    proxy_epochs: int = 1
    proxy_schedule: str = "cosine"
    proxy_batch: int | None = 32
    gamma: float = 0.3
    temperature: float = 2.0
    epochs: int = 5
    learning_rate: float = 0.02
    batch_size: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float | None = 1.0
    prune_rate: float = 0.0
    prune_scope: str = "global"
    regrow: bool = False
    compat: str = "paper"

    def __post_init__(self):
        _validate.not_negative(alpha=self.alpha, sigma=self.sigma, gamma=self.gamma)
        _validate.finite(mu=self.mu)
        _validate.one_of(NOISES, noise=self.noise)
        _validate.one_of(SCOPES, prune_scope=self.prune_scope)
        _validate.one_of(COMPAT, compat=self.compat)
        _validate.one_of(SCHEDULES, proxy_schedule=self.proxy_schedule)
        _validate.whole(0, proxy_epochs=self.proxy_epochs)
        if self.proxy_batch is not None:
            _validate.whole(proxy_batch=self.proxy_batch)
        if not (self.temperature > 0 and self.temperature < float("inf")):
            raise ValueError(
                f"temperature={self.temperature!r} with gamma={self.gamma!r}: the divergence from "
                "the proxy divides logits by it, so it must be a finite number > 0 (the paper 1, "
                "its code 2). gamma=0 leaves the divergence out."
            )
        if self.prune_rate:
            _validate.fraction(prune_rate=self.prune_rate)
        for name in ("retain", "forget"):
            if not isinstance(getattr(self, name), Rule):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} must be a Sigma, a Quantile or a Random of "
                    "jaxunlearn.primitives.selection."
                )
        self.finetune()  # checks the values

    def finetune(self) -> TrainConfig:
        """The fine-tuning, as a training."""
        return TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            schedule="constant",
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            clip=self.clip,
        )


class Knobs(NamedTuple):
    """What may differ from one member of a grid to the next: the traced part of a configuration.

    Example:
      >>> knobs_of(ConMUConfig(alpha=3.0)).alpha.item()
      3.0
    """

    retain: Rule
    forget: Rule
    alpha: Array
    mu: Array
    sigma: Array
    proxy_epochs: Array
    gamma: Array
    temperature: Array
    epochs: Array
    learning_rate: Array
    prune_rate: Array


@dataclasses.dataclass(frozen=True)
class Plan:
    """The rest, which a program is compiled for.

    Attributes:
      proxy: how the proxy is trained; epochs and peak rate come from elsewhere.
      finetune: the same of the fine-tuning.
      prunes, proxied: whether there is pruning and whether there is a proxy, at all.
      noise, prune_scope, regrow, compat: as in :class:`ConMUConfig`.

    Example:
      >>> plan_of(ConMUConfig(alpha=3.0)) == plan_of(ConMUConfig(alpha=5.0, epochs=9))
      True
    """

    proxy: TrainConfig
    finetune: TrainConfig
    prunes: bool
    proxied: bool
    noise: str
    prune_scope: str
    regrow: bool
    compat: str


def knobs_of(config: ConMUConfig) -> Knobs:
    """The traced part of a configuration.

    Example:
      >>> knobs_of(ConMUConfig(epochs=3)).epochs.item()
      3
    """
    # NumPy's: a grid has hundreds of them, and each on a device would cost a dispatch.
    numbers: dict[str, Any] = {
        name: (np.int32 if "epochs" in name else np.float32)(getattr(config, name))
        for name in Knobs._fields[2:]
    }
    return Knobs(_arrays(config.retain), _arrays(config.forget), **numbers)


def plan_of(config: ConMUConfig, train: TrainConfig = TrainConfig()) -> Plan:
    """The static part, with ``train`` for the proxy: equal for configurations that share a program.

    Example:
      >>> plan_of(ConMUConfig(prune_rate=0.2)).prunes
      True
    """
    same = {"epochs": 1, "progress": False}
    return Plan(
        proxy=dataclasses.replace(
            train,
            schedule=config.proxy_schedule,
            batch_size=config.proxy_batch or train.batch_size,
            learning_rate=1.0,
            **same,
        ),
        finetune=dataclasses.replace(
            config.finetune(), learning_rate=1.0, microbatch=train.microbatch, **same
        ),
        prunes=config.prune_rate > 0,
        proxied=config.gamma > 0,
        noise=config.noise,
        prune_scope=config.prune_scope,
        regrow=config.regrow,
        compat=config.compat,
    )


def _arrays(rule: Rule) -> Rule:
    return jax.tree.map(np.float32, rule)


# Table 2, ResNet-18 on CIFAR-10; it gives no temperature, no clipping and no rate of pruning.
PAPER = ConMUConfig(
    retain=Sigma(0.17, 0.3),
    forget=Sigma(0.85, 1.0),
    alpha=3.0,
    proxy_schedule="constant",
    proxy_batch=None,
    gamma=0.5,
    temperature=1.0,
    learning_rate=0.01,
    clip=None,
)
# Table 3, the same for half of a class.
PAPER_CLASS = dataclasses.replace(PAPER, retain=Sigma(0.2, 0.3), forget=Sigma(0.8, 1.0), alpha=12.0)
# The code's own example for random requests.
OFFICIAL = ConMUConfig(
    retain=Sigma(0.314, 0.314, strict=True),
    forget=Sigma(0.314, 0.312, strict=True),
    alpha=5.0,
    proxy_epochs=3,
    proxy_schedule="constant",
    proxy_batch=None,
    gamma=1.0,
    temperature=2.0,
    learning_rate=0.01,
    prune_rate=0.1,
    regrow=True,
    compat="official",
)

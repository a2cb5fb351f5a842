"""FedAvg (McMahan et al. 2017), and unlearning by training it again: exact, and the yardstick."""

import dataclasses
import functools

import optax

from jaxunlearn import _validate
from jaxunlearn.federated.federation import Federation, retraining, trained
from jaxunlearn.federated.partition import Partition
from jaxunlearn.federated.rounds import FEDAVG, Rule, Server
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.types import Array, Dataset, Model, Unlearner


@dataclasses.dataclass(frozen=True)
class FedAvgConfig:
    """FedAvg's clients and server. How a client trains is the TrainConfig's.

    Attributes:
      federation: clients, their rows, and rounds.
      server_rate: of the server's step; 1 takes the mean of the models.
      server_momentum: 0 for FedAvg; above it is FedAvgM.
    """

    federation: Federation = Federation()
    server_rate: float = 1.0
    server_momentum: float = 0.0

    def __post_init__(self):
        _validate.positive(server_rate=self.server_rate)
        _validate.not_negative(server_momentum=self.server_momentum)
        if self.server_momentum >= 1:
            raise ValueError(f"server_momentum={self.server_momentum!r} must be below 1.")

    @property
    def rule(self) -> Rule:
        if self.server_momentum == 0 and self.server_rate == 1:
            return FEDAVG
        return Rule(server=_momentum(self.server_momentum), rate=self.server_rate)


# The same object again, so that what was compiled with it is found.
@functools.lru_cache
def _momentum(decay: float) -> optax.GradientTransformation:
    return optax.trace(decay)


def fedavg(
    key: Array,
    model: Model,
    data: Dataset,
    *,
    keep: Array | None = None,
    partition: Partition | None = None,
    config: TrainConfig = TrainConfig(),
    method: FedAvgConfig = FedAvgConfig(),
) -> Server:
    """Federated averaging: ``W <- sum_k (n_k / n) w_k``, ``w_k`` from local SGD (FFMU Eq. 1).

    Args:
      key: ``jax.random.key``.
      model: what to train.
      data: the rows of all clients.
      keep: ``bool[n]``; rows that are False are not read.
      partition: who owns what; that of ``method.federation`` if None.
      config: of a client's training; its epochs are passes of the whole training.
      method: clients and server.

    Returns:
      A :class:`~jaxunlearn.federated.Server` after the last round.

    Guarantee: with ``keep``, exact: rows that are False leave no trace, bit for bit.

    Cost: ``config.epochs`` passes over the rows.

    Raises:
      ValueError: as :func:`jaxunlearn.training.fit`; a partition that does not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxunlearn import models
      >>> data = Dataset(jnp.array([[-1.0], [1.0]] * 5), jnp.array([0, 1] * 5))
      >>> method = FedAvgConfig(Federation(clients=2))
      >>> server = fedavg(jax.random.key(0), models.logistic(2), data, method=method)
      >>> models.logistic(2).apply(server.params, data.x[:2]).argmax(-1).tolist()
      [0, 1]
    """
    return trained(
        key, model, data, method.federation, config, method.rule, partition=partition, keep=keep
    )


def unlearner(
    model: Model,
    train: TrainConfig,
    config: FedAvgConfig = FedAvgConfig(),
    *,
    partition: Partition | None = None,
) -> Unlearner:
    """:func:`fedavg` as an unlearner: a request trains all rounds again without the rows."""
    server = functools.partial(fedavg, partition=partition, config=train, method=config)
    return retraining(model, train, server, config.federation.passes(train))

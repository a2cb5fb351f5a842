"""Who takes part and for how long, as one hashable description: what federated methods share."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.federated import partition as partitions
from jaxunlearn.federated.clients import Clients, gather
from jaxunlearn.federated.partition import Partition
from jaxunlearn.federated.rounds import FederatedConfig, Rule, Server, advance, begin
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import check_model
from jaxunlearn.types import Array, Dataset, Model


@dataclasses.dataclass(frozen=True)
class Federation:
    """The clients of a federated method, and its rounds.

    Attributes:
      clients: K, at least 2.
      partition: how rows are dealt out: ``iid``, ``dirichlet`` or ``class``.
      alpha: of ``dirichlet``.
      classes: of ``class``.
      seed: of the partition.
      local_epochs: of a client in a round.
      rounds: if None as many as make the passes of the training that it is compared with:
        ``TrainConfig.epochs / local_epochs``, rounded up.
      participants: clients in a round; all if None.
      chunk: clients computed at once.

    Example:
      >>> Federation().partition_of(jnp.zeros(20, int)).counts.tolist()
      [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """

    clients: int = 10
    partition: str = "iid"
    alpha: float = 0.5
    classes: int = 2
    seed: int = 0
    local_epochs: int = 2
    rounds: int | None = None
    participants: int | None = None
    chunk: int | None = 4

    def __post_init__(self):
        _validate.whole(clients=self.clients, local_epochs=self.local_epochs)
        if self.clients < 2:
            raise ValueError(
                f"clients={self.clients} has nobody to average with: use 2 or more, or a method "
                "that is not federated."
            )
        _validate.whole(0, seed=self.seed)
        _validate.one_of(partitions.KINDS, partition=self.partition)
        _validate.positive(alpha=self.alpha)
        _validate.whole(classes=self.classes)
        for name in ("rounds", "participants", "chunk"):
            if getattr(self, name) is not None:
                _validate.whole(**{name: getattr(self, name)})

    def partition_of(self, y: Array) -> Partition:
        """The partition of these labels; ``iid`` looks at their number only."""
        return partitions.make(
            self.partition, self.seed, y, self.clients, alpha=self.alpha, classes=self.classes
        )

    def config(self, local: TrainConfig) -> FederatedConfig:
        """The federated training with as many passes as ``local.epochs``.

        Args:
          local: everything else of a client's training.
        """
        rounds = self.rounds or -(-local.epochs // self.local_epochs)
        local = dataclasses.replace(local, epochs=self.local_epochs, progress=False)
        return FederatedConfig(rounds, local, self.participants, self.chunk)


def dealt(
    data: Dataset, federation: Federation, partition: Partition | None, keep: Array | None = None
) -> Clients:
    """The clients' rows, by a given partition or by that of the federation.

    Args:
      data: rows of all.
      federation: gives K, and the partition if none is given.
      partition: who owns what.
      keep: ``bool[n]``; rows that are False have weight 0.

    Raises:
      ValueError: a partition of another number of clients or rows.

    Example:
      >>> data = Dataset(jnp.zeros((5, 1)), jnp.zeros(5, int))
      >>> dealt(data, Federation(clients=2), None).counts.tolist()
      [3.0, 2.0]
    """
    partition = federation.partition_of(data.y) if partition is None else partition
    if len(partition.counts) != federation.clients:
        raise ValueError(
            f"partition has {len(partition.counts)} clients, but the configuration has "
            f"{federation.clients}: make them equal."
        )
    return gather(data, partition, keep=keep)


def trained(
    key: Array, model: Model, data: Dataset, clients: Clients, config: FederatedConfig, rule: Rule
) -> Server:
    """A whole federated training from the model's own initialisation.

    Args:
      key: the first half draws the initial parameters, which do not depend on any row's values,
        the second everything else.
      model: what to train.
      data: rows of all, to check that they fit the model.
      clients: the same rows dealt out.
      config, rule: of the training.

    Raises:
      ValueError: rows or labels that do not fit the model.

    Example:
      >>> from jaxunlearn import models
      >>> from jaxunlearn.federated import FEDAVG
      >>> data = Dataset(jnp.array([[-1.0], [1.0]] * 2), jnp.array([0, 1] * 2))
      >>> clients = dealt(data, Federation(clients=2), None)
      >>> config = FederatedConfig(rounds=2)
      >>> server = trained(
      ...     jax.random.key(0), models.logistic(2), data, clients, config, FEDAVG
      ... )
      >>> int(server.round)
      2
    """
    check_model(key, model, data)
    init_key, train_key = jax.random.split(key)
    params = model.init(init_key, jnp.zeros_like(data.x[:1]))
    server = begin(params, clients.number.shape[0], rule=rule)
    return advance(train_key, cross_entropy(model.apply), server, clients, config=config, rule=rule)

"""Who takes part and for how long, as one hashable description: what federated methods share."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxunlearn import _sharding, _validate
from jaxunlearn.federated import partition as partitions
from jaxunlearn.federated.clients import Clients, gather
from jaxunlearn.federated.partition import Partition
from jaxunlearn.federated.rounds import FederatedConfig, Rule, Server, advance, begin
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.posthoc import Update, posthoc
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import check_model
from jaxunlearn.types import Array, Dataset, Model, Params, Unlearner


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
        if self.participants is not None and self.participants > self.clients:
            raise ValueError(
                f"participants={self.participants} is more than clients={self.clients}: leave it "
                "at None for all of them."
            )

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

    def passes(self, train: TrainConfig) -> float:
        """Passes over all rows of a whole training, up to the choice of clients.

        Args:
          train: gives the epochs, where ``rounds`` is None.

        Example:
          >>> Federation(clients=10, participants=5).passes(TrainConfig(epochs=30))
          15.0
        """
        share = (self.participants or self.clients) / self.clients
        return self.config(train).rounds * self.local_epochs * share


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
    key: Array,
    model: Model,
    data: Dataset,
    federation: Federation,
    local: TrainConfig,
    rule: Rule,
    *,
    partition: Partition | None = None,
    keep: Array | None = None,
) -> Server:
    """A whole federated training from the model's own initialisation.

    Args:
      key: the first half draws the initial parameters, which do not depend on any row's values,
        the second everything else.
      model: what to train.
      data: rows of all.
      federation: clients and rounds.
      local: how a client trains.
      rule: of the training.
      partition, keep: as in :func:`dealt`.

    Raises:
      ValueError: rows or labels that do not fit the model; a partition that does not fit.

    Example:
      >>> from jaxunlearn import models
      >>> from jaxunlearn.federated import FEDAVG
      >>> data = Dataset(jnp.array([[-1.0], [1.0]] * 2), jnp.array([0, 1] * 2))
      >>> server = trained(
      ...     jax.random.key(0), models.logistic(2), data, Federation(2), TrainConfig(4), FEDAVG
      ... )
      >>> int(server.round)
      2
    """
    data = _sharding.automatic(data)
    clients, config = dealt(data, federation, partition, keep), federation.config(local)
    check_model(key, model, data)
    init_key, train_key = jax.random.split(key)
    params = model.init(init_key, jnp.zeros_like(data.x[:1]))
    server = begin(params, clients.number.shape[0], rule=rule)
    return advance(train_key, cross_entropy(model.apply), server, clients, config=config, rule=rule)


def retraining(
    model: Model, train: TrainConfig, server: Callable[..., Server], passes: float
) -> Unlearner:
    """A federated training as an unlearner: a request runs it again without the rows.

    Args:
      model: what is trained.
      train: how.
      server: ``server(key, model, data, keep=None) -> Server``, the training.
      passes: over the rows, of a training.

    Guarantee: exact, if rows that are not kept leave no trace in ``server``.

    Example:
      >>> from jaxunlearn import models
      >>> from jaxunlearn.baselines.federated import fedavg
      >>> method = retraining(models.logistic(2), TrainConfig(), fedavg, passes=30.0)
    """

    def fit_params(key: Array, data: Dataset, keep: Array | None = None) -> Params:
        return server(key, model, data, keep=keep).params

    def update(key, params, data, request, mask):
        del params, mask
        kept = request.retain
        return Update(fit_params(key, data, kept), passes * jnp.sum(kept))

    return posthoc(model, train, update, fit_params=fit_params, passes=passes)

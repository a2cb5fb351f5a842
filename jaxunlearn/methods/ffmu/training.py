"""How FFMU trains: clients by PCMU, a server that smooths and quantizes their mean gradient."""

import dataclasses
import functools

import optax

from jaxunlearn import _validate
from jaxunlearn.federated.federation import Federation, trained
from jaxunlearn.federated.partition import Partition
from jaxunlearn.federated.rounds import FederatedConfig, Rule, Server
from jaxunlearn.methods.pcmu.transform import pcmu
from jaxunlearn.training.config import SCHEDULES, TrainConfig
from jaxunlearn.types import Array, Dataset, Model

LOCAL_RATES = {"hard": 0.003, "soft": 0.02}
# With the server's momentum, as tuned on Fashion-MNIST (100 clients) and digits (10).
SERVER_RATES = {"hard": 0.006, "soft": 0.1, "fedavg": 1.0}


@dataclasses.dataclass(frozen=True)
class FFMUConfig:
    """How to train with FFMU, and what to certify.

    Epochs, batch size and microbatch come from the :class:`~jaxunlearn.TrainConfig`; its rate,
    schedule, momentum, weight decay and clipping do not apply.

    Attributes:
      federation: clients, their rows, and rounds.
      sigma: standard deviation of the smoothing noise.
      lam: width of the zone quantized to 0; ``sigma^2`` if None.
      local: PCMU's mode at the clients: ``hard`` or ``soft``.
      local_rate: .003 (hard) or .02 (soft) if None; .1 in the paper.
      server: what the server descends along: ``hard``, the likeliest class of the quantized
        mean gradient; ``soft``, its mean; ``fedavg``, the mean of the local models instead, the
        paper's ablation FFMU-N.
      server_rate: .006 (hard), .1 (soft) or 1 (fedavg) if None.
      server_momentum: of the server's steps; 0 in the paper, and with ``fedavg``. Signs of a few
        rounds averaged tell directions that persist from noise: four to seven points of accuracy.
      schedule: of both rates, over the rounds, as of TrainConfig.
      samples: 0: answer with the trained model. Otherwise the model of the last round is the
        smoothed ``O(q)(x)``, from so many draws: what the certificate is about.
      lipschitz: C of the paper's bound.

    Example:
      >>> FFMUConfig(server="soft").rates
      (0.003, 0.1)
    """

    federation: Federation = Federation()
    sigma: float = 0.1
    lam: float | None = None
    local: str = "hard"
    local_rate: float | None = None
    server: str = "hard"
    server_rate: float | None = None
    server_momentum: float = 0.7
    schedule: str = "cosine"
    samples: int = 0
    lipschitz: float = 1.0

    def __post_init__(self):
        _validate.one_of(LOCAL_RATES, local=self.local)
        _validate.one_of(SERVER_RATES, server=self.server)
        pcmu(self.sigma, self.lam)  # checks both
        _validate.one_of(SCHEDULES, schedule=self.schedule)
        _validate.whole(0, samples=self.samples)
        _validate.positive(
            local_rate=self.rates[0], server_rate=self.rates[1], lipschitz=self.lipschitz
        )
        _validate.not_negative(server_momentum=self.server_momentum)
        if self.server_momentum >= 1:
            raise ValueError(f"server_momentum={self.server_momentum!r} must be below 1.")
        if self.samples and self.server == "fedavg":
            raise ValueError(
                f"samples={self.samples} does not go with server='fedavg', which smooths nothing."
            )

    @property
    def rates(self) -> tuple[float, float]:
        local = LOCAL_RATES[self.local] if self.local_rate is None else self.local_rate
        return local, SERVER_RATES[self.server] if self.server_rate is None else self.server_rate


# The paper's own setting (Table 16). It has one rate, for clients and server.
PAPER_TRAIN = TrainConfig(
    epochs=400, batch_size=50, learning_rate=0.1, schedule="step", momentum=0.0
)
PAPER = FFMUConfig(
    federation=Federation(clients=100, local_epochs=2, rounds=200),
    local_rate=0.1,
    server_rate=0.1,
    server_momentum=0.0,
    schedule="step",
)


def rule(config: FFMUConfig) -> Rule:
    """FFMU as a rule of federated rounds.

    A client descends along the quantized gradients of its batches (PCMU Eq. 29) and sends the mean
    of the gradients themselves, ``G_k``; the server steps along ``S'(G)`` or ``E Q(G + e)`` of
    their mean G (FFMU Eq. 14 and 15).

    Args:
      config: its rates, modes, sigma and lam.

    Example:
      >>> rule(FFMUConfig()).upload
      'gradient'
    """
    local = pcmu(config.sigma, config.lam, mode=config.local)
    if config.server == "fedavg":
        return Rule(local=local, upload="change", rate=config.rates[1])
    server = _server(config.sigma, config.lam, config.server, config.server_momentum)
    return Rule(local, "gradient", server, config.rates[1], scheduled=True)


# The same object for the same arguments, so that what was compiled with it is found again.
@functools.lru_cache
def _server(sigma, lam, mode, momentum) -> optax.GradientTransformation:
    quantized = pcmu(sigma, lam, mode=mode)
    return optax.chain(quantized, optax.trace(momentum)) if momentum else quantized


def plan(train: TrainConfig, config: FFMUConfig) -> FederatedConfig:
    """FFMU's rounds: passes, batch size and microbatch of ``train``, the rest of ``config``.

    Example:
      >>> plan(TrainConfig(epochs=30), FFMUConfig()).rounds
      15
    """
    return config.federation.config(_local(train, config))


def _local(train: TrainConfig, config: FFMUConfig) -> TrainConfig:
    return TrainConfig(
        epochs=train.epochs,
        batch_size=train.batch_size,
        microbatch=train.microbatch,
        learning_rate=config.rates[0],
        schedule=config.schedule,
        momentum=0.0,
    )


def train(
    key: Array,
    model: Model,
    data: Dataset,
    *,
    keep: Array | None = None,
    partition: Partition | None = None,
    config: TrainConfig = TrainConfig(),
    method: FFMUConfig = FFMUConfig(),
) -> Server:
    """FFMU's training (Eq. 13 to 15).

    Args:
      key: ``jax.random.key``.
      model: what to train.
      data: the rows of all clients.
      keep: ``bool[n]``; rows that are False are not read.
      partition: who owns what; that of ``method.federation`` if None.
      config: passes, batch size, microbatch.
      method: everything else.

    Returns:
      A :class:`~jaxunlearn.federated.Server` after the last round: ``params``, the parameters
      before that round, the mean gradient of it, and whose updates were rejected.

    Guarantee: none for the parameters; see :mod:`jaxunlearn.certify.federated` for a round.

    Deviation: weights by rows where clients differ in size (the paper's mean is plain).

    Cost: as FedAvg; no Monte Carlo is needed, the paper took six times as long.

    Raises:
      ValueError: as :func:`jaxunlearn.training.fit`; a partition that does not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxunlearn import models
      >>> data = Dataset(jnp.array([[-1.0], [1.0]] * 5), jnp.array([0, 1] * 5))
      >>> how = FFMUConfig(federation=Federation(clients=2))
      >>> server = train(jax.random.key(0), models.logistic(2), data, method=how)
      >>> models.logistic(2).apply(server.params, data.x[:2]).argmax(-1).tolist()
      [0, 1]
    """
    local = _local(config, method)
    return trained(
        key, model, data, method.federation, local, rule(method), partition=partition, keep=keep
    )

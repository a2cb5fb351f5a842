"""FedEraser (Liu et al. 2021): short rounds without the rows, as long as the old ones were."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxunlearn import _sharding, _validate
from jaxunlearn.baselines.federated.frame import federated_state, whole
from jaxunlearn.federated.clients import Clients
from jaxunlearn.federated.federation import Federation, dealt
from jaxunlearn.federated.partition import Partition
from jaxunlearn.federated.rounds import FEDAVG, Server, begin, client_updates, round_updates, step
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.posthoc import Request, answering
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import check_model
from jaxunlearn.types import Array, Dataset, Model, Params, PyTree, State, Unlearner

MODES = ("method", "code")


@dataclasses.dataclass(frozen=True)
class FedEraserConfig:
    """FedEraser's rounds.

    Attributes:
      federation: clients, their rows, and rounds.
      interval: Delta t; every so many rounds one is kept.
      ratio: r; a calibrating client trains ``ceil(r local_epochs)`` epochs.
      mode: ``method``: old updates are measured from the model that they started from, as the
        paper says; ``code``: from the one that came out, as the official code does, which makes
        the steps as short as the gap that the removed clients left.
    """

    federation: Federation = Federation()
    interval: int = 1
    ratio: float = 0.5
    mode: str = "method"

    def __post_init__(self):
        _validate.whole(interval=self.interval)
        _validate.positive(ratio=self.ratio)
        if self.ratio > 1:
            raise ValueError(f"ratio={self.ratio!r} must be at most 1: retraining is cheaper then.")
        _validate.one_of(MODES, mode=self.mode)


def _products(updates: PyTree) -> PyTree:
    """``[K, K]`` for each leaf: products of the stacked updates with each other."""
    one = lambda u: u.reshape(u.shape[0], -1).astype(jnp.promote_types(u.dtype, jnp.float32))
    return jax.tree.map(lambda u: one(u) @ one(u).T, updates)


def calibrated(params: Params, update: PyTree, squares: PyTree) -> Params:
    """One step along the new update, in each leaf as long as the old one: ``M - |U| V / |V|``.

    Args:
      params: M, so far.
      update: V, of the short round.
      squares: ``|U|^2`` of the old round, a scalar a leaf.

    Example:
      >>> calibrated(jnp.zeros(2), jnp.array([3.0, 4.0]), jnp.float32(25.0)).tolist()
      [-3.0, -4.0]
    """

    def one(p, v, square):
        wide = v.astype(square.dtype)
        length = jnp.sqrt(jnp.sum(jnp.square(wide)))
        scale = jnp.sqrt(jnp.maximum(square, 0)) / jnp.where(length > 0, length, 1)
        return (p - scale * wide).astype(p.dtype)

    return jax.tree.map(one, params, update, squares)


def unlearner(
    model: Model,
    train: TrainConfig,
    config: FedEraserConfig = FedEraserConfig(),
    *,
    partition: Partition | None = None,
) -> Unlearner:
    """FedEraser as an unlearner.

    Training is FedAvg. A request goes through the kept rounds again from the initial model: the
    remaining rows of each client give a direction by a short training, the old round the length
    of the step in each leaf. Whole clients or some of their rows may be removed: a client takes
    part with what it has left.

    Guarantee: none. Lengths still depend on the removed rows of clients that remain.

    Deviation: it starts from the initial model, not from the mean of the kept clients' first
    models, which may hold removed rows; that is one short round more. Instead of all updates it
    keeps their products ``[rounds, K, K]`` a leaf: lengths of any mean follow from those.

    Cost: about ``ratio / interval`` of a training. Memory: ``K^2`` numbers a round and leaf.
    """
    loss_fn, federated = cross_entropy(model.apply), whole(config.federation, train, "federaser")
    short = dataclasses.replace(
        federated,
        local=dataclasses.replace(
            federated.local, epochs=math.ceil(config.ratio * federated.local.epochs)
        ),
    )
    stored = range(0, federated.rounds, config.interval)

    @jax.jit
    def trained(key, params, clients: Clients):
        def body(server: Server, _):
            updates = round_updates(
                key, loss_fn, server.params, clients, round=server.round, config=federated
            )
            share = clients.counts / jnp.sum(clients.counts)
            mean = _weighted(updates, share)
            return step(server, mean, config=federated, rule=FEDAVG), _products(updates)

        server = begin(params, clients.number.shape[0])
        server, products = jax.lax.scan(body, server, None, length=federated.rounds)
        return server.params, jax.tree.map(lambda g: g[:: config.interval], products)

    @jax.jit
    def erased(key, memory, clients: Clients, everyone):
        start, products = memory
        kept = clients.counts / jnp.sum(clients.counts)
        along = kept if config.mode == "method" else kept - everyone / jnp.sum(everyone)

        def body(params, inputs):
            number, products = inputs
            updates = client_updates(
                key,
                loss_fn,
                params,
                clients,
                round=number,
                config=short,
                fraction=number / federated.rounds,
            )
            squares = jax.tree.map(lambda g: along @ g @ along, products)
            return calibrated(params, _weighted(updates, kept), squares), None

        params, _ = jax.lax.scan(body, start, (jnp.asarray(stored), products))
        return params

    def fit_state(key: Array, data: Dataset) -> State:
        check_model(key, model, data)
        data = _sharding.automatic(data)
        init_key, train_key = jax.random.split(key)
        start = model.init(init_key, jnp.zeros_like(data.x[:1]))
        clients = dealt(data, config.federation, partition)
        params, products = trained(train_key, start, clients)
        passes = federated.rounds * federated.local.epochs
        return federated_state(params, data, (start, products), passes * data.y.shape[0])

    def answer(key: Array, state: State, data: Dataset, request: Request) -> State:
        clients = dealt(data, config.federation, partition, request.retain)
        everyone = dealt(data, config.federation, partition).counts
        params = erased(key, state.memory, clients, everyone)
        passes = len(stored) * short.local.epochs
        return federated_state(params, data, state.memory, passes * jnp.sum(request.retain))

    predict = lambda state, x: model.apply(state.params, x)
    return Unlearner(fit_state, answering(model.apply, answer), predict)


def _weighted(updates: PyTree, share: Array) -> PyTree:
    one = lambda u: jnp.tensordot(share.astype(u.dtype), u, axes=1)
    return jax.tree.map(one, updates)

"""Federated training: a round, and a whole training as one scan over rounds.

A client's work is one pure function of a key, the global parameters and its rows. A round maps it
over the client axis by ``vmap``, a chunk of clients at a time, and adds the updates up as they
come: memory is that of one chunk. With the client axis spread over devices
(:func:`jaxunlearn.federated.spread`) every chunk has clients of each of them, and the same code
runs everywhere. The randomness of client k in round t comes from ``key``, t and k alone, so it is
the same however clients are sampled, chunked, spread, or run by another engine.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import _sharding, _validate, tree
from jaxunlearn.federated.aggregate import Aggregator, add_finite, norms, weighted_mean
from jaxunlearn.federated.clients import Clients, pad
from jaxunlearn.training.config import TrainConfig, described_direction, learning_rate
from jaxunlearn.training.fit import _columns_first, _in_parts, shuffled
from jaxunlearn.types import Array, Dataset, LossFn, Params, PyTree

UPLOADS = ("change", "gradient")
IDENTITY = optax.identity()
# Folded into a round's key to choose its clients; client numbers stay below it.
CHOICE = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class FederatedConfig:
    """How a federated training runs.

    Attributes:
      rounds: of local training and aggregation.
      local: what a client does in a round: its epochs, batch size, rate and optimizer. The
        schedule goes over the rounds; within a round the rate is constant.
      participants: clients that take part in a round, chosen uniformly among those with rows;
        all if None.
      chunk: clients computed at once; all if None. A CPU is fastest with few, an accelerator with
        as many as fit.

    Example:
      >>> FederatedConfig(rounds=10).local.batch_size
      50
    """

    rounds: int = 30
    local: TrainConfig = TrainConfig(
        epochs=2, batch_size=50, learning_rate=0.1, schedule="cosine", momentum=0.0
    )
    participants: int | None = None
    chunk: int | None = 4

    def __post_init__(self):
        _validate.whole(rounds=self.rounds)
        for name in ("participants", "chunk"):
            if getattr(self, name) is not None:
                _validate.whole(**{name: getattr(self, name)})


class Rule(NamedTuple):
    """What tells one federated method from another: three choices.

    Attributes:
      local: optax transformation of a client's batch gradient to the direction that it descends
        along; None for the optimizer of the :class:`FederatedConfig`.
      upload: what a client sends. ``change``: ``W - w_k``, how far it moved (FedAvg); its rate is
        in it. ``gradient``: the mean of its batch gradients along its path (FFMU).
      server: optax transformation of the aggregate to the direction that the server descends
        along; it may have a state, as momentum has.
      rate: of the server's step.
      scheduled: the server's rate follows the schedule of the rounds.
    """

    local: optax.GradientTransformation | None = None
    upload: str = "change"
    server: optax.GradientTransformation = IDENTITY
    rate: float = 1.0
    scheduled: bool = False


FEDAVG = Rule()


class Local(NamedTuple):
    """What a client has after its part of a round.

    Attributes:
      params: its model.
      gradient: the mean of its batch gradients, each where it was taken.
      steps: ``int32``, that it took; 0 if none of its rows counts.
    """

    params: Params
    gradient: PyTree
    steps: Array


class Server(NamedTuple):
    """A federated training between two rounds: all that the next one needs.

    Attributes:
      params: the global model W.
      memory: of the server's optimizer.
      round: ``int32``, rounds done.
      before: W before the last round.
      update: what was aggregated in it.
      rejected: ``int32[K]``, in how many rounds each client's update was left out, not being
        finite.
    """

    params: Params
    memory: Any
    round: Array
    before: Params
    update: PyTree
    rejected: Array


def client_key(key: Array, round: Array | int, number: Array | int) -> Array:
    """The key of client ``number`` in round ``round``: of any engine, in any order.

    Example:
      >>> client_key(jax.random.key(0), 3, 7).shape
      ()
    """
    return jax.random.fold_in(jax.random.fold_in(key, round), number)


def train_locally(
    key: Array,
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    weights: Array,
    *,
    config: TrainConfig,
    direction: optax.GradientTransformation | None = None,
    scale: Array | float = 1.0,
) -> Local:
    """One client's part of a round: ``config.epochs`` passes over its rows of non-zero weight.

    Args:
      key: ``jax.random.key`` for the order of its rows.
      loss_fn: of one unbatched row.
      params: the global model, where it starts.
      data: its rows, ``[M, ...]``.
      weights: ``float[M]``; rows of weight 0 are not read.
      config: its rate is used as it is, times ``scale``; its schedule is not.
      direction: instead of the optimizer of ``config``.
      scale: of the rate.

    Returns:
      A :class:`Local`. A client without rows returns ``params`` and a gradient of 0.

    Cost: ``config.epochs`` times M sample gradients. For use under ``jit`` and ``vmap``.

    Example:
      >>> data = Dataset(jnp.array([[1.0], [3.0], [9.0]]), jnp.zeros(3, int))
      >>> distance = lambda params, row: jnp.sum((params - row.x) ** 2)
      >>> config = TrainConfig(epochs=1, batch_size=2, learning_rate=0.1, momentum=0.0)
      >>> weights = jnp.array([1.0, 1.0, 0.0])
      >>> out = train_locally(
      ...     jax.random.key(0), distance, jnp.zeros(1), data, weights, config=config
      ... )
      >>> float(out.params[0]), float(out.gradient[0]), int(out.steps)
      (0.4000000059604645, -4.0, 1)
    """
    m = data.y.shape[0]
    batch = min(config.batch_size, m)
    steps = -(-m // batch)
    used = -(-jnp.sum(weights > 0) // batch)
    removed, kept = weights == 0, jnp.argmax(weights)
    transform = described_direction(config) if direction is None else direction

    def loss(params, rows, w):
        examples = jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), data)
        params = jax.tree.map(_columns_first, params)
        return jnp.vdot(w, jax.vmap(loss_fn, in_axes=(None, 0))(params, examples))

    def step(carry, inputs):
        params, memory, total = carry
        index, rows, present = inputs
        w = jnp.take(weights, rows, mode="clip") * present
        rows = jnp.where(w > 0, rows, kept)
        w = w / jnp.maximum(jnp.sum(w), jnp.finfo(w.dtype).tiny)
        gradient = _in_parts(jax.grad(loss), params, rows, w, config.microbatch)
        updates, after = transform.update(gradient, memory, params)
        moved = tree.add_scaled(params, -config.learning_rate * scale, updates)
        total_after = tree.add_scaled(total, 1.0, gradient)
        new, old = (moved, after, total_after), (params, memory, total)
        # A step without rows leaves everything as it was, whatever it computed.
        return jax.tree.map(lambda a, b: jnp.where(index < used, a, b), new, old), None

    def epoch(carry, number):
        order = shuffled(jax.random.fold_in(key, number), m, last=removed)
        order = jnp.pad(order, (0, steps * batch - m)).reshape(steps, batch)
        present = (jnp.arange(steps * batch) < m).reshape(steps, batch)
        return jax.lax.scan(step, carry, (jnp.arange(steps), order, present))

    wide = lambda p: jnp.zeros(p.shape, jnp.promote_types(p.dtype, jnp.float32))
    carry = params, transform.init(params), jax.tree.map(wide, params)
    (after, _, total), _ = jax.lax.scan(epoch, carry, jnp.arange(config.epochs))
    taken = config.epochs * used
    mean = lambda t, p: (t / jnp.maximum(taken, 1).astype(t.dtype)).astype(p.dtype)
    return Local(after, jax.tree.map(mean, total, params), taken.astype(jnp.int32))


def client_updates(
    key: Array,
    loss_fn: LossFn,
    params: Params,
    clients: Clients,
    *,
    round: Array | int,
    config: FederatedConfig,
    rule: Rule = FEDAVG,
    fraction: Array | float = 0.0,
) -> PyTree:
    """What some clients send in a round, all at once: leaves ``[c, ...]``.

    Args:
      key: of the training.
      loss_fn: of one unbatched row.
      params: the global model.
      clients: c of them.
      round: number of the round.
      config: of the training.
      rule: what to send.
      fraction: of the training that is done, for the schedule.

    Example:
      >>> from jaxunlearn import federated
      >>> data = Dataset(jnp.array([[1.0], [3.0]]), jnp.zeros(2, int))
      >>> clients = federated.gather(data, federated.partition.of_lists([[0], [1]]))
      >>> distance = lambda params, row: jnp.sum((params - row.x) ** 2)
      >>> rule = Rule(upload="gradient", local=optax.set_to_zero())
      >>> client_updates(
      ...     jax.random.key(0), distance, jnp.zeros(1), clients, round=0,
      ...     config=FederatedConfig(), rule=rule,
      ... ).tolist()
      [[-2.0], [-6.0]]
    """
    _validate.one_of(UPLOADS, upload=rule.upload)
    scale = learning_rate(config.local, jnp.asarray(fraction)) / config.local.learning_rate

    def one(number, data, weights):
        found = train_locally(
            client_key(key, round, number),
            loss_fn,
            params,
            data,
            weights,
            config=config.local,
            direction=rule.local,
            scale=scale,
        )
        if rule.upload == "gradient":
            return found.gradient
        return jax.tree.map(jnp.subtract, params, found.params)

    return jax.vmap(one)(clients.number, clients.data, clients.weights)


def step(server: Server, update: PyTree, *, config: FederatedConfig, rule: Rule) -> Server:
    """The server's part of a round, whoever collected the update.

    Args:
      server: before the round.
      update: the aggregate of what the clients sent.
      config, rule: of the training.

    Example:
      >>> after = step(
      ...     begin(jnp.ones(1), 2), jnp.array([0.25]), config=FederatedConfig(), rule=FEDAVG
      ... )
      >>> float(after.params[0]), int(after.round)
      (0.75, 1)
    """
    like = jax.tree.map(lambda u, p: u.astype(p.dtype), update, server.params)
    direction, memory = rule.server.update(like, server.memory, server.params)
    rate = jnp.asarray(rule.rate, float)
    if rule.scheduled:
        fraction = server.round / config.rounds
        rate = rate * learning_rate(config.local, fraction) / config.local.learning_rate
    return Server(
        params=tree.add_scaled(server.params, -rate, direction),
        memory=memory,
        round=server.round + 1,
        before=server.params,
        update=like,
        rejected=server.rejected,
    )


def begin(params: Params, clients: int, *, rule: Rule = FEDAVG) -> Server:
    """A training before its first round.

    Args:
      params: the initial global model.
      clients: K.
      rule: of the training.

    Example:
      >>> int(begin(jnp.zeros(2), 5).round)
      0
    """
    zeros = jax.tree.map(jnp.zeros_like, params)
    nobody = jnp.zeros(clients, jnp.int32)
    return Server(params, rule.server.init(params), jnp.int32(0), params, zeros, nobody)


def advance(
    key: Array,
    loss_fn: LossFn,
    server: Server,
    clients: Clients,
    *,
    config: FederatedConfig,
    rule: Rule = FEDAVG,
    aggregator: Aggregator | None = None,
    rounds: int | None = None,
) -> Server:
    """Runs rounds: the next ``rounds``, or all that are left. One compiled function.

    Args:
      key: of the training, the same in every call.
      loss_fn: of one unbatched row. Pass the same function object again to reuse what was compiled.
      server: from :func:`begin`, or from an earlier call: a training that is kept with
        :mod:`jaxunlearn.checkpoint` goes on as if it had never stopped.
      clients: from :func:`~jaxunlearn.federated.gather`, and
        :func:`~jaxunlearn.federated.spread` for several devices.
      config: of the training.
      rule: of the method.
      aggregator: :func:`~jaxunlearn.federated.aggregate.weighted_mean` if None.
      rounds: how many to run.

    Returns:
      The server afterwards. A client whose update is not finite is left out of the round, and
      counted in ``rejected``.

    Cost: rounds times participants times ``config.local.epochs`` passes over their rows. Memory:
    parameters, gradients and updates of ``config.chunk`` clients. Clients with fewer rows than
    others cost what the largest costs.

    Raises:
      ValueError: no client with any row; more rounds than are left; a server of another rule.

    Example:
      >>> from jaxunlearn import federated
      >>> data = Dataset(jnp.array([[1.0], [3.0]]), jnp.zeros(2, int))
      >>> clients = federated.gather(data, federated.partition.of_lists([[0], [1]]))
      >>> distance = lambda params, row: jnp.sum((params - row.x) ** 2)
      >>> server = begin(jnp.zeros(1), 2)
      >>> out = advance(jax.random.key(0), distance, server, clients, config=FederatedConfig())
      >>> round(float(out.params[0]), 2)
      2.0
    """
    _validate.one_of(UPLOADS, upload=rule.upload)
    left = config.rounds
    if _validate.known(server.round):
        left -= int(server.round)
    rounds = left if rounds is None else rounds
    _validate.whole(0, rounds=rounds)
    if rounds > left:
        raise ValueError(f"rounds={rounds} is more than the {left} that are left.")
    memory = jax.eval_shape(rule.server.init, server.params)
    if jax.tree.structure(memory) != jax.tree.structure(server.memory):
        raise ValueError(
            "server was begun under another rule: make it with begin(params, clients, rule=rule)."
        )
    weights = clients.weights
    if _validate.known(weights) and weights.is_fully_addressable and not (weights > 0).any():
        raise ValueError("clients have no row of non-zero weight: nothing remains to train on.")
    sharding = getattr(weights, "sharding", None) if _validate.known(weights) else None
    interleave = sharding is not None and not sharding.is_fully_replicated
    return _advance(
        key,
        server,
        _sharding.automatic(clients),
        loss_fn=loss_fn,
        config=config,
        rule=rule,
        aggregator=aggregator or weighted_mean(),
        rounds=rounds,
        interleave=interleave,
    )


@functools.partial(
    jax.jit, static_argnames=("loss_fn", "config", "rule", "aggregator", "rounds", "interleave")
)
def _advance(key, server, clients, *, loss_fn, config, rule, aggregator, rounds, interleave):
    total = clients.number.shape[0]
    joining = min(config.participants or total, total)
    chunk = min(config.chunk or joining, joining)

    def in_chunks(clients: Clients) -> Clients:
        """Leaves ``[chunks, chunk, ...]``; if spread, each chunk has clients of every device."""
        clients = pad(clients, chunk)
        if not interleave:
            return jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), clients)
        cut = lambda x: jnp.moveaxis(x.reshape(chunk, -1, *x.shape[1:]), 1, 0)
        return jax.tree.map(cut, clients)

    def one_round(server: Server, chunks: Clients) -> Server:
        def some(carry, part: Clients):
            sums, rejected = carry
            updates = client_updates(
                key,
                loss_fn,
                server.params,
                part,
                round=server.round,
                config=config,
                rule=rule,
                fraction=server.round / config.rounds,
            )
            sums, good = add_finite(aggregator, sums, updates, part.counts)
            bad = jnp.where(good, 0, 1)
            # Clients that fill up a chunk have numbers beyond the last; mode drop.
            return (sums, rejected.at[part.number].add(bad, mode="drop")), None

        many = chunks.number.size
        carry = aggregator.start(server.params, many), server.rejected
        (sums, rejected), _ = jax.lax.scan(some, carry, chunks)
        server = server._replace(rejected=rejected)
        return step(server, aggregator.finish(sums), config=config, rule=rule)

    everyone = in_chunks(clients) if joining == total else None

    def body(server, _):
        if everyone is not None:
            return one_round(server, everyone), None
        draw = jax.random.fold_in(jax.random.fold_in(key, server.round), CHOICE)
        chosen = shuffled(draw, total, last=clients.counts == 0)[:joining]
        return one_round(server, in_chunks(jax.tree.map(lambda x: x[chosen], clients))), None

    server, _ = jax.lax.scan(body, server, None, length=rounds)
    return server


def round_updates(
    key: Array,
    loss_fn: LossFn,
    params: Params,
    clients: Clients,
    *,
    round: Array | int,
    config: FederatedConfig,
    rule: Rule = FEDAVG,
) -> PyTree:
    """What every client would send in a round: leaves ``[K, ...]``, computed in chunks.

    Args:
      key, loss_fn, clients, config, rule: as in :func:`advance`.
      params: the global model before the round.
      round: number of the round.

    Memory: K updates, and the work of one chunk. For certificates and methods that keep updates.

    Example:
      >>> from jaxunlearn import federated
      >>> data = Dataset(jnp.array([[1.0], [3.0]]), jnp.zeros(2, int))
      >>> clients = federated.gather(data, federated.partition.of_lists([[0], [1]]))
      >>> distance = lambda params, row: jnp.sum((params - row.x) ** 2)
      >>> config = FederatedConfig()
      >>> round_updates(
      ...     jax.random.key(0), distance, jnp.zeros(1), clients, round=0, config=config
      ... ).shape
      (2, 1)
    """
    return _round_updates(key, params, clients, round, loss_fn=loss_fn, config=config, rule=rule)


@functools.partial(jax.jit, static_argnames=("loss_fn", "config", "rule"))
def _round_updates(key, params, clients, round, *, loss_fn, config, rule):
    total = clients.number.shape[0]
    chunk = min(config.chunk or total, total)

    def some(part):
        return client_updates(
            key,
            loss_fn,
            params,
            part,
            round=round,
            config=config,
            rule=rule,
            fraction=round / config.rounds,
        )

    parts = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), pad(clients, chunk))
    sent = jax.lax.map(some, parts)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:total], sent)


def client_norms(updates: PyTree, center: PyTree) -> Array:
    """``float[K]``: L2 distances of stacked updates to one.

    Example:
      >>> client_norms(jnp.array([[1.0], [4.0]]), jnp.array([2.0])).tolist()
      [1.0, 2.0]
    """
    return norms(jax.tree.map(lambda u, c: u - c[None], updates, center))

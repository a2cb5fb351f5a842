"""UN (Halimi et al. 2022): the leaver climbs its own loss near the others' model; they repair."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from jaxunlearn import _sharding, _validate, tree
from jaxunlearn.baselines.federated.frame import federated_state, whole
from jaxunlearn.federated.federation import Federation, dealt
from jaxunlearn.federated.partition import Partition
from jaxunlearn.federated.rounds import FederatedConfig, advance, begin, round_updates
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.posthoc import Request, answering
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import check_model, shuffled
from jaxunlearn.types import Array, Dataset, LossFn, Model, Params, PyTree, State, Unlearner


@dataclasses.dataclass(frozen=True)
class ReverseSGDConfig:
    """Defaults of the authors' code (MNIST, a small CNN, five clients).

    Attributes:
      federation: clients, their rows, and rounds.
      learning_rate, momentum, clip, batch_size, epochs: of the ascent.
      inits: random initial models whose mean squared distance, divided by 3, is the squared
        radius of the ball to stay in.
      stop: the ascent ends once its squared distance to the leaver's last model is larger; a
        constant of their model. None to go through all epochs.
      repair: rounds of FedAvg on the remaining rows afterwards.
    """

    federation: Federation = Federation()
    learning_rate: float = 0.01
    momentum: float = 0.9
    clip: float = 5.0
    batch_size: int = 128
    epochs: int = 5
    inits: int = 10
    stop: float | None = 2.2
    repair: int = 10

    def __post_init__(self):
        _validate.positive(learning_rate=self.learning_rate, clip=self.clip)
        _validate.not_negative(momentum=self.momentum)
        _validate.whole(batch_size=self.batch_size, epochs=self.epochs, inits=self.inits)
        _validate.whole(0, repair=self.repair)
        if self.stop is not None:
            _validate.positive(stop=self.stop)


def squared_distance(a: Params, b: Params) -> Array:
    """``|a - b|^2`` over all leaves, in float32 or wider.

    Example:
      >>> float(squared_distance(jnp.array([3.0]), jnp.array([1.0])))
      4.0
    """

    def one(u, v):
        wide = jnp.promote_types(u.dtype, jnp.float32)
        return jnp.sum(jnp.square(u.astype(wide) - v.astype(wide)))

    return jnp.stack(jax.tree.leaves(jax.tree.map(one, a, b))).sum()


def projected(params: Params, center: Params, square: Array) -> Params:
    """The nearest point of the ball of squared radius ``square`` around ``center``.

    Example:
      >>> projected(jnp.array([5.0]), jnp.array([1.0]), jnp.float32(4.0)).tolist()
      [3.0]
    """
    distance = squared_distance(params, center)
    scale = jnp.sqrt(jnp.minimum(1.0, square / jnp.where(distance > 0, distance, square)))
    one = lambda p, c: (c + scale.astype(p.dtype) * (p - c)).astype(p.dtype)
    return jax.tree.map(one, params, center)


def climb(
    key: Array,
    loss_fn: LossFn,
    center: Params,
    leaver: Params,
    data: Dataset,
    forget: Array,
    *,
    square: Array,
    config: ReverseSGDConfig = ReverseSGDConfig(),
) -> Params:
    """Projected gradient ascent of the loss of the rows to forget, from ``center``.

    Args:
      key: ``jax.random.key`` for the order of the rows.
      loss_fn: of one unbatched row.
      center: of the ball, the reference model of the others.
      leaver: the model that the ascent is not to go too far from.
      data: all rows; those not in ``forget`` are not looked at.
      forget: ``bool[n]``.
      square: the squared radius.
      config: of the ascent.

    Returns:
      The parameters, within the ball.

    Example:
      >>> data = Dataset(jnp.array([[1.0], [3.0]]), jnp.array([0, 0]))
      >>> loss_fn = lambda params, row: jnp.sum((params - row.x) ** 2)
      >>> forget, two = jnp.array([True, False]), jnp.array([2.0])
      >>> out = climb(jax.random.key(0), loss_fn, two, two, data, forget, square=jnp.float32(1e-4))
      >>> round(float(out[0]), 3)
      2.01
    """
    n = data.y.shape[0]
    batch = min(config.batch_size, n)
    steps = -(-n // batch)
    used = -(-jnp.sum(forget) // batch)
    kept = jnp.argmax(forget)
    ascent = optax.chain(optax.clip_by_global_norm(config.clip), optax.trace(config.momentum))

    def loss(params, rows, w):
        examples = jax.tree.map(lambda leaf: leaf[rows], data)
        return -jnp.vdot(w, jax.vmap(loss_fn, in_axes=(None, 0))(params, examples))

    def step(carry, rows, present):
        params, memory, _ = carry
        w = (forget[rows] & present).astype(jnp.float32)
        rows = jnp.where(w > 0, rows, kept)
        gradient = jax.grad(loss)(params, rows, w / jnp.maximum(jnp.sum(w), 1))
        updates, memory = ascent.update(gradient, memory, params)
        params = projected(tree.add_scaled(params, -config.learning_rate, updates), center, square)
        far = jnp.array(False)
        if config.stop is not None:
            far = squared_distance(params, leaver) > config.stop
        return params, memory, far

    def epoch(carry, number):
        order = shuffled(jax.random.fold_in(key, number), n, last=~forget)
        order = jnp.pad(order, (0, steps * batch - n)).reshape(steps, batch)
        present = (jnp.arange(steps * batch) < n).reshape(steps, batch)

        def body(carry, inputs):
            index, rows, here = inputs
            go = (index < used) & ~carry[2]
            return jax.lax.cond(go, lambda c: step(c, rows, here), lambda c: c, carry), None

        return jax.lax.scan(body, carry, (jnp.arange(steps), order, present))

    carry = center, ascent.init(center), jnp.array(False)
    (params, _, _), _ = jax.lax.scan(epoch, carry, jnp.arange(config.epochs))
    return params


def unlearner(
    model: Model,
    train: TrainConfig,
    config: ReverseSGDConfig = ReverseSGDConfig(),
    *,
    partition: Partition | None = None,
) -> Unlearner:
    """UN as an unlearner: FedAvg, then :func:`climb` and rounds of repair for a request.

    The others' reference model is the mean of the last local models of the clients that no row of
    the request belongs to; the global model if the request has rows of every client.

    Guarantee: none.

    Deviation: several leavers, or some rows of clients, climb together as one.

    Cost: ``epochs`` passes over the rows to forget and ``repair`` rounds. Memory: the last local
    model of every client.
    """
    loss_fn = cross_entropy(model.apply)
    federated = whole(config.federation, train, "un")
    constant = dataclasses.replace(federated.local, schedule="constant")
    mending = FederatedConfig(max(1, config.repair), constant, None, federated.chunk)

    @jax.jit
    def climbed(key, params, memory, data, forget, hit, counts):
        before, changes = memory
        reference = _mean(before, changes, counts * ~hit, otherwise=params)
        leaver = _mean(before, changes, counts * hit, otherwise=params)
        square = _radius(key, model, reference, data, config.inits)
        return climb(key, loss_fn, reference, leaver, data, forget, square=square, config=config)

    def fit_state(key: Array, data: Dataset) -> State:
        check_model(key, model, data)
        data = _sharding.automatic(data)
        init_key, train_key = jax.random.split(key)
        params = model.init(init_key, jnp.zeros_like(data.x[:1]))
        clients = dealt(data, config.federation, partition)
        server = advance(
            train_key, loss_fn, begin(params, config.federation.clients), clients, config=federated
        )
        changes = round_updates(
            train_key,
            loss_fn,
            server.before,
            clients,
            round=federated.rounds - 1,
            config=federated,
        )
        passes = federated.rounds * federated.local.epochs
        memory = server.before, changes
        return federated_state(server.params, data, memory, passes * data.y.shape[0])

    def answer(key: Array, state: State, data: Dataset, request: Request) -> State:
        climb_key, mend_key = jax.random.split(key)
        clients = dealt(data, config.federation, partition, request.retain)
        everyone = dealt(data, config.federation, partition)
        hit = clients.counts < everyone.counts
        params = climbed(
            climb_key,
            state.params,
            state.memory,
            data,
            request.forget,
            hit,
            everyone.counts,
        )
        if config.repair:
            server = begin(params, config.federation.clients)
            params = advance(mend_key, loss_fn, server, clients, config=mending).params
        grads = config.epochs * jnp.sum(request.forget)
        grads += config.repair * mending.local.epochs * jnp.sum(request.retain)
        return federated_state(params, data, state.memory, grads)

    predict = lambda state, x: model.apply(state.params, x)
    return Unlearner(fit_state, answering(model.apply, answer), predict)


def _mean(before: Params, changes: PyTree, weights: Array, *, otherwise: Params) -> Params:
    """The weighted mean of the local models ``before - change``; ``otherwise`` without weight."""
    total = jnp.sum(weights)
    share = weights / jnp.where(total > 0, total, 1)

    def one(b, c, o):
        mean = (b - jnp.tensordot(share.astype(c.dtype), c, axes=1)).astype(b.dtype)
        return jnp.where(total > 0, mean, o)

    return jax.tree.map(one, before, changes, otherwise)


def _radius(key: Array, model: Model, reference: Params, data: Dataset, inits: int) -> Array:
    one = lambda k: squared_distance(reference, model.init(k, jnp.zeros_like(data.x[:1])))
    return jax.lax.map(one, jax.random.split(key, inits)).mean() / 3

"""FFMU's answer to a request: the same model, and what is certified about its last round."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxunlearn import _sharding, tree
from jaxunlearn.certify import federated as certify
from jaxunlearn.certify.federated import GapCertificate
from jaxunlearn.federated.aggregate import add_finite, weighted_mean
from jaxunlearn.federated.clients import Clients
from jaxunlearn.federated.federation import dealt, retraining
from jaxunlearn.federated.partition import Partition
from jaxunlearn.federated.rounds import Server, round_updates
from jaxunlearn.methods.ffmu.smoothed import Smoothed, predict_smoothed
from jaxunlearn.methods.ffmu.training import FFMUConfig, plan, rule, train
from jaxunlearn.methods.pcmu.transform import pcmu
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.posthoc import Request, Update, answering, posthoc
from jaxunlearn.training.config import TrainConfig, learning_rate
from jaxunlearn.types import Array, Dataset, Model, Params, PyTree, State, Status, Unlearner


class FFMUCertificate(NamedTuple):
    """What is certified about the last round.

    Attributes:
      clients: :class:`~jaxunlearn.certify.federated.GapCertificate` ``[K]``: each client's
        smoothed model against the server's (the paper's claim), provable and as stated.
      leaving: ``[K]``: the server's model against that of the round without the client.
      removal: ``[]``: against that of the round without the rows removed so far.
      covers: ``bool[]``, the answers are those of the smoothed model that this is about.
    """

    clients: GapCertificate
    leaving: GapCertificate
    removal: GapCertificate
    covers: Array


class Record(NamedTuple):
    """What ``fit`` keeps to answer requests.

    Attributes:
      before: the global parameters before the last round, which its clients start from.
      smoothed: the round's model: where its step begins, momentum included, the mean gradient G
        of the clients, and the rate.
      key: ``uint32``, data of the key of the training.
    """

    before: Params
    smoothed: Smoothed
    key: Array


def unlearner(
    model: Model,
    train_config: TrainConfig,
    config: FFMUConfig = FFMUConfig(),
    *,
    partition: Partition | None = None,
) -> Unlearner:
    """FFMU as an unlearner: a request changes nothing, and says what is certified about that.

    Args:
      model: what to train.
      train_config: passes, batch size, microbatch.
      config: the rest.
      partition: who owns what; that of ``config.federation`` if None.
        :mod:`jaxunlearn.federated.requests` makes requests of clients from it.

    With ``server="fedavg"`` (FFMU-N) nothing is certified.

    Returns:
      An :class:`~jaxunlearn.Unlearner`. ``unlearn`` leaves the parameters as they are; its status
      is ``BEYOND_CERTIFICATE`` where the bound of the request is vacuous, or where the answers are
      not those of the smoothed model (``config.samples = 0``, the default).

    Guarantee: of the last round alone: outputs of its smoothed model differ by at most
    ``certificate.removal.bound`` from those of the same round without the rows. The rounds
    before it were taken with them.

    Cost: of a request, one round, for the certificate.

    Example:
      >>> from jaxunlearn import models
      >>> from jaxunlearn.federated.federation import Federation
      >>> data = Dataset(jnp.array([[-1.0], [1.0]] * 5), jnp.array([0, 1] * 5))
      >>> config = FFMUConfig(federation=Federation(clients=2), sigma=1.0, samples=20)
      >>> method = unlearner(models.logistic(2), TrainConfig(epochs=2), config)
      >>> state = method.fit(jax.random.key(0), data)
      >>> state = method.unlearn(jax.random.key(1), state, data, jnp.arange(10) == 3)
      >>> Status(int(state.status)).name, bool(state.certificate.removal.bound < 0.2)
      ('OK', True)
    """
    training = functools.partial(train, partition=partition, config=train_config, method=config)
    if config.server == "fedavg":
        return _averaged(model, train_config, config, training)
    loss_fn, federated, how = cross_entropy(model.apply), plan(train_config, config), rule(config)
    quantized = pcmu(config.sigma, config.lam, mode=config.server)
    last = federated.rounds - 1

    def gradients(record: Record, clients: Clients) -> PyTree:
        return round_updates(
            jax.random.wrap_key_data(record.key),
            loss_fn,
            record.before,
            clients,
            round=last,
            config=federated,
            rule=how,
        )

    def mean(updates: PyTree, clients: Clients) -> PyTree:
        rows = clients.number.shape[0]
        how = weighted_mean()
        sums, _ = add_finite(
            how,
            how.start(jax.tree.map(lambda u: u[0], updates), rows),
            updates,
            clients.counts,
        )
        return how.finish(sums)

    def fit_state(key: Array, data: Dataset) -> State:
        data = _sharding.automatic(data)
        server: Server = training(key, model, data)
        clients = dealt(data, config.federation, partition)
        rate = learning_rate(federated.local, jnp.asarray(last / federated.rounds))
        rate = how.rate * rate / federated.local.learning_rate
        # Where the round's step began: at `before`, moved on by the server's momentum.
        step, _ = quantized.update(server.update, quantized.init(server.params))
        smoothed = Smoothed(tree.add_scaled(server.params, rate, step), server.update, rate)
        raw = jax.random.key_data(jax.random.split(key)[1])
        record = Record(server.before, smoothed, raw)
        updates = gradients(record, clients)
        if config.federation.participants is not None:
            # What was aggregated is of some clients; the certificate is about a round of all.
            smoothed = smoothed._replace(gradient=_like(mean(updates, clients), server.params))
            record = record._replace(smoothed=smoothed)
        g = smoothed.gradient
        each = certify.client_certificate(updates, g, config.sigma, lipschitz=config.lipschitz)
        leaving = certify.leaving_certificate(each, clients.counts, config.sigma)
        nothing = certify.removal_certificate(g, g, config.sigma, paper=each.paper)
        n = data.y.shape[0]
        finite = tree.all_finite(server.params)
        return State(
            params=server.params,
            removed=jnp.zeros(n, bool),
            memory=record,
            grads=jnp.float32(config.federation.passes(train_config) * n),
            status=jnp.where(finite, Status.OK, Status.NOT_FINITE).astype(jnp.int32),
            certificate=FFMUCertificate(each, leaving, nothing, jnp.asarray(config.samples > 0)),
        )

    def answer(key: Array, state: State, data: Dataset, request: Request) -> State:
        del key
        clients = dealt(data, config.federation, partition, request.retain)
        without = mean(gradients(state.memory, clients), clients)
        removal = certify.removal_certificate(
            state.memory.smoothed.gradient,
            without,
            config.sigma,
            paper=state.certificate.clients.paper,
        )
        covered = state.certificate.covers & ~removal.vacuous
        status = jnp.where(covered, Status.OK, Status.BEYOND_CERTIFICATE)
        status = jnp.where(tree.all_finite(state.params), status, Status.NOT_FINITE)
        return state._replace(
            grads=federated.local.epochs * jnp.sum(request.retain).astype(jnp.float32),
            status=status.astype(jnp.int32),
            certificate=state.certificate._replace(removal=removal),
        )

    def predict(state: State, x: Array) -> Array:
        if not config.samples:
            return model.apply(state.params, x)
        found = predict_smoothed(
            jax.random.key(0),
            model.apply,
            state.memory.smoothed,
            x,
            sigma=config.sigma,
            lam=config.lam,
            samples=config.samples,
        )
        return jnp.log(jnp.maximum(found, jnp.finfo(found.dtype).tiny))

    return Unlearner(fit_state, answering(model.apply, answer), predict)


def _averaged(model, train_config, config, training) -> Unlearner:
    """FFMU-N: nothing is smoothed, so nothing is certified."""
    fit_params = lambda key, data: training(key, model, data).params
    same = lambda key, params, data, request, mask: Update(params, grads=0.0)
    passes = config.federation.passes(train_config)
    return posthoc(model, train_config, same, fit_params=fit_params, passes=passes)


def retrain_unlearner(
    model: Model,
    train_config: TrainConfig,
    config: FFMUConfig = FFMUConfig(),
    *,
    partition: Partition | None = None,
) -> Unlearner:
    """FFMU's training again without the rows: exact, and what :func:`unlearner` is measured by.

    Args:
      model: what to train.
      train_config: passes, batch size, microbatch.
      config: the rest.
      partition: who owns what.

    Returns:
      An :class:`~jaxunlearn.Unlearner`. Cost of a request: a training.

    Example:
      >>> from jaxunlearn import models
      >>> from jaxunlearn.federated.federation import Federation
      >>> data = Dataset(jnp.array([[-1.0], [1.0]] * 5), jnp.array([0, 1] * 5))
      >>> config = FFMUConfig(federation=Federation(clients=2))
      >>> method = retrain_unlearner(models.logistic(2), TrainConfig(epochs=2), config)
      >>> state = method.fit(jax.random.key(0), data)
      >>> float(method.unlearn(jax.random.key(1), state, data, jnp.arange(10) == 3).grads)
      18.0
    """
    server = functools.partial(train, partition=partition, config=train_config, method=config)
    return retraining(model, train_config, server, config.federation.passes(train_config))


def _like(update: PyTree, params: Params) -> PyTree:
    return jax.tree.map(lambda u, p: u.astype(p.dtype), update, params)

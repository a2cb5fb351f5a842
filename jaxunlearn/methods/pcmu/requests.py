"""PCMU's answer to a request: the same model, and what is certified about it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import tree
from jaxunlearn.certify import budget
from jaxunlearn.methods.pcmu.training import PCMUConfig, train
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.posthoc import Request, Update, answering, posthoc
from jaxunlearn.primitives.gradients import gradient_range
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.types import (
    Array,
    Dataset,
    Model,
    Params,
    PyTree,
    State,
    Status,
    Unlearner,
)


class PCMUCertificate(NamedTuple):
    """What is certified about the requests so far.

    Attributes:
      k: ``int32``, rows removed.
      budget: ``int32``, the most rows the certificate covers. Hard mode: with any so many rows
        gone, no coordinate of the quantized full-data gradient at the final parameters changes.
        Sampled mode: so many cost no more than the configured epsilon. Soft mode: 0.
      excess: ``int32``, by how much ``k`` exceeds it; 0 if it does not.
      fraction: ``float32``, share of the coordinates of that gradient that no ``k`` removals
        change. Not defined (NaN) in sampled mode.
      random_fraction: ``float32``, share expected to stay if the k rows were drawn at random.
      epsilon: ``float32``, the model is (epsilon, delta) indistinguishable from one trained with
        weight 0 for the rows, under the conditions of
        :func:`~jaxunlearn.certify.budget.gaussian_unlearning_epsilon` (rounded up for more than 64
        rows); infinite in hard and soft mode, where nothing is proved about the model.
      delta: ``float32``.
    """

    k: Array
    budget: Array
    excess: Array
    fraction: Array
    random_fraction: Array
    epsilon: Array
    delta: Array


class Record(NamedTuple):
    """What ``fit`` keeps in hard and soft mode to answer requests.

    Attributes:
      k_max: ``int32`` pytree, removals that each coordinate of the final quantized gradient
        survives, whichever rows they are.
      gradient: pytree, that gradient before quantization.
      sd: pytree, its spread over the rows.
    """

    k_max: PyTree
    gradient: PyTree
    sd: PyTree


def record(
    model: Model,
    params: Params,
    data: Dataset,
    *,
    method: PCMUConfig = PCMUConfig(),
    chunk: int | None = 64,
) -> Record:
    """What one full-data step at ``params`` survives: extremes of the rows' gradients in one pass.

    Args:
      model: of the parameters.
      params: where the step would start.
      data: the rows that requests are about.
      method: hard or soft mode; in soft mode no coordinate survives anything.
      chunk: rows whose gradients are held at once.

    Returns:
      A :class:`Record`. With ``relative`` the threshold is that of the gradient's own scale.

    Cost: n sample gradients; memory, ``chunk`` gradients and five more.

    Example:
      >>> from jaxunlearn import models
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [1.5]]), jnp.array([0, 1, 1]))
      >>> model = models.logistic(2)
      >>> params = model.init(jax.random.key(0), data.x)
      >>> int(record(model, params, data).k_max["Dense_0"]["kernel"].max())
      2
    """
    n = data.y.shape[0]
    found = gradient_range(cross_entropy(model.apply), params, data, chunk=chunk)
    if method.mode != "hard":
        k_max = jax.tree.map(lambda g: jnp.zeros(g.shape, jnp.int32), found.mean)
        return Record(k_max, found.mean, found.sd)
    theta = method.threshold
    if method.relative is not None and theta > 0:
        # The scale moves with the rows too, which the certificate does not cover.
        k_max = jax.tree.map(lambda g: jnp.zeros(g.shape, jnp.int32), found.mean)
    else:
        k_max = budget.removal_certificate(
            found.mean, n, 1, clip=(found.low, found.high), threshold=theta
        ).k_max
    return Record(k_max, found.mean, found.sd)


def unlearner(
    model: Model,
    train_config: TrainConfig,
    config: PCMUConfig = PCMUConfig(),
) -> Unlearner:
    """PCMU as an unlearner: a request costs nothing, and says what is certified about it.

    Args:
      model: what to train.
      train_config: epochs, batch size, microbatch and progress.
      config: the rest.

    Returns:
      An :class:`~jaxunlearn.Unlearner`. ``unlearn`` leaves the parameters as they are, and sets the
      status ``BEYOND_CERTIFICATE`` where the request exceeds ``certificate.budget``.

    Example:
      >>> from jaxunlearn import models
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [1.5]]), jnp.array([0, 1, 1]))
      >>> method = unlearner(models.logistic(2), TrainConfig(epochs=2))
      >>> state = method.fit(jax.random.key(0), data)
      >>> state = method.unlearn(jax.random.key(1), state, data, jnp.array([True, False, False]))
      >>> Status(int(state.status)).name, int(state.certificate.excess)
      ('BEYOND_CERTIFICATE', 1)
    """

    def fit_state(key: Array, data: Dataset) -> State:
        n = data.y.shape[0]
        params = train(key, model, data, config=train_config, method=config)
        sampled = config.mode == "sampled"
        memory = () if sampled else record(model, params, data, method=config)
        state = State(
            params=params,
            removed=jnp.zeros(n, bool),
            memory=memory,
            grads=jnp.float32((train_config.epochs + (not sampled)) * n),
            status=jnp.int32(0),
            certificate=(),
        )
        return _certified(state)

    def answer(key: Array, state: State, data: Dataset, request: Request) -> State:
        del key, data
        removed = state.removed | request.forget
        return _certified(state._replace(removed=removed, grads=jnp.float32(0)))

    def _certified(state: State) -> State:
        found = certificate(state, train_config, config)
        status = jnp.where(found.excess > 0, Status.BEYOND_CERTIFICATE, Status.OK)
        status = jnp.where(tree.all_finite(state.params), status, Status.NOT_FINITE)
        return state._replace(status=status.astype(jnp.int32), certificate=found)

    predict = lambda state, x: model.apply(state.params, x)
    return Unlearner(fit_state, answering(model.apply, answer), predict)


def certificate(state: State, train_config: TrainConfig, config: PCMUConfig) -> PCMUCertificate:
    """What is certified about the rows that ``state`` has removed.

    Args:
      state: of a PCMU unlearner with the same configurations.
      train_config: gives the batch size and the visits of each row.
      config: gives mode, noise and clip.

    Returns:
      A :class:`PCMUCertificate`; the fractions are of one step, epsilon is of the model.

    Cost: one pass over the budgets of the coordinates; no gradients.

    Example:
      >>> from jaxunlearn import models
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [1.5]]), jnp.array([0, 1, 1]))
      >>> config, how = TrainConfig(epochs=5), PCMUConfig()
      >>> method = unlearner(models.logistic(2), config, how)
      >>> state = method.fit(jax.random.key(0), data)
      >>> int(certificate(state, config, how).k)
      0
    """
    n = state.removed.shape[0]
    k = state.removed.sum(dtype=jnp.int32)
    if config.mode == "sampled":
        batch, visits = min(train_config.batch_size, n), train_config.epochs
        table = _epsilon_table(n, batch, visits, config)
        allowed = budget.gaussian_removal_budget(
            config.epsilon,
            n=batch,
            clip=config.clip,
            sigma=config.sigma,
            visits=visits,
            delta=config.delta,
        )
        share = random_share = jnp.float32(jnp.nan)
        epsilon = jnp.asarray(table, jnp.float32)[k]
        most = jnp.int32(min(allowed, n))
    else:
        step = budget.step_certificate(state.memory.k_max, k)
        share, most = step.fraction, step.budget
        random_share = _random_share(state.memory, n, k, config)
        epsilon = jnp.float32(jnp.inf)
    return PCMUCertificate(
        k=k,
        budget=most,
        excess=jnp.maximum(k - most, 0),
        fraction=share,
        random_fraction=random_share,
        epsilon=epsilon,
        delta=jnp.float32(config.delta),
    )


def _random_share(memory: Record, n: int, k: Array, config: PCMUConfig) -> Array:
    if config.mode != "hard":
        return jnp.float32(0)
    theta, relative = config.threshold, config.relative

    def share(g, sd):
        rms = jnp.sqrt(jnp.mean(jnp.square(g))) if relative else 1.0
        scale = jnp.where(rms > 0, rms, 1.0)
        flip = budget.random_flip_probability(g / scale, sd / scale, n, k, threshold=theta)
        return jnp.sum(1 - flip)

    sums = map(share, jax.tree.leaves(memory.gradient), jax.tree.leaves(memory.sd))
    return jnp.asarray(sum(sums) / tree.size(memory.gradient), jnp.float32)


@functools.lru_cache
def _epsilon_table(n: int, batch: int, visits: int, config: PCMUConfig) -> np.ndarray:
    """Epsilon for 0 to n removals, so that a traced count can look it up."""
    spent = lambda k: budget.gaussian_unlearning_epsilon(
        k, n=batch, clip=config.clip, sigma=config.sigma, visits=visits, delta=config.delta
    )
    # Epsilon grows about as k^2: computed at a few hundred counts, and rounded up to the next.
    counts = np.unique(np.r_[np.arange(min(n, 64) + 1), np.geomspace(1, n, 200).round()]).astype(
        int
    )
    values = np.array([spent(int(k)) for k in counts])
    return values[np.searchsorted(counts, np.arange(n + 1))]


def retrain_unlearner(
    model: Model, train_config: TrainConfig, config: PCMUConfig = PCMUConfig()
) -> Unlearner:
    """PCMU's training again without the rows: exact, and what :func:`unlearner` is measured by.

    Args:
      model: what to train.
      train_config: epochs, batch size, microbatch and progress.
      config: the rest.

    Returns:
      An :class:`~jaxunlearn.Unlearner`. Cost of a request: a training.

    Example:
      >>> from jaxunlearn import models
      >>> data = Dataset(jnp.array([[-1.0], [1.0], [1.5]]), jnp.array([0, 1, 1]))
      >>> method = retrain_unlearner(models.logistic(2), TrainConfig(epochs=2))
      >>> state = method.fit(jax.random.key(0), data)
      >>> forget = jnp.array([True, False, False])
      >>> float(method.unlearn(jax.random.key(1), state, data, forget).grads)
      4.0
    """

    def fit_params(key: Array, data: Dataset) -> Params:
        return train(key, model, data, config=train_config, method=config)

    def update(key, params, data, request, mask):
        del params, mask
        keep = request.retain
        params = train(key, model, data, weights=keep, config=train_config, method=config)
        # With sampled noise rows of weight 0 are computed too, to keep their places.
        rows = keep.shape[0] if config.mode == "sampled" else jnp.sum(keep)
        return Update(params, grads=train_config.epochs * rows)

    return posthoc(model, train_config, update, fit_params=fit_params)

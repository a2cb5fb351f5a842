"""SISA (Bourtoule et al. 2021): shards trained apart, so that few have to be trained again."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.posthoc import Request, answering
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.fit import check_model, minimize
from jaxunlearn.types import Array, Dataset, Model, Params, State, Status, Unlearner

AGGREGATES = ("vote", "mean")
# Breaks ties of votes, and keeps the loss of a class without votes finite.
SOFT = 1e-3


@dataclasses.dataclass(frozen=True)
class SISAConfig:
    """How the data are cut.

    Attributes:
      shards: S models, each of its own random n / S rows.
      slices: R; the model of a shard is stored before each slice is added to its training.
      aggregate: ``vote``: the share of models that answer a class (with a thousandth of the
        mean probability, which decides ties). ``mean``: the mean probability.
    """

    shards: int = 5
    slices: int = 1
    aggregate: str = "vote"

    def __post_init__(self):
        _validate.whole(shards=self.shards, slices=self.slices)
        _validate.one_of(AGGREGATES, aggregate=self.aggregate)


class Memory(NamedTuple):
    """What SISA keeps.

    Attributes:
      rows: ``int32[S, ceil(n / S)]``, the rows of each shard, slice after slice.
      checkpoints: leaves ``[S, R + 1, ...]``: before the first slice, and after each.
    """

    rows: Array
    checkpoints: Params


def slice_epochs(epochs: int, slices: int) -> list[int]:
    """Epochs after each slice is added: ``floor((j + 1) e) - floor(j e)``, ``e = 2 E / (R + 1)``.

    So many that a row is seen as often as in E epochs of all; at least one each.

    Example:
      >>> slice_epochs(10, 4)
      [4, 4, 4, 4]
    """
    each = 2 * epochs / (slices + 1)
    return [max(1, int((j + 1) * each) - int(j * each)) for j in range(slices)]


def places(n: int, shards: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers ``[S, ceil(n / S)]`` below n, as many to each shard up to one, and which are real.

    A shard with a row less is filled up with one that another has.

    Example:
      >>> at, real = places(4, 3)
      >>> [row[ok].tolist() for row, ok in zip(at, real, strict=True)]
      [[0], [1], [2, 3]]
    """
    ends = np.arange(shards + 1) * n // shards
    at = ends[:-1, None] + np.arange(-(-n // shards))[None]
    return np.minimum(at, n - 1), at < ends[1:, None]


def sisa_logits(model: Model, params: Params, x: Array, *, aggregate: str = "vote") -> Array:
    """The answer of all shards: ``log`` of the share of votes, or of the mean probability.

    Args:
      model: what each shard trained.
      params: leaves ``[S, ...]``.
      x: ``float[B, ...]``.
      aggregate: as in :class:`SISAConfig`.

    Returns:
      ``float[B, C]``.

    Example:
      >>> model = Model(init=lambda key, x: x, apply=lambda p, x: x + p[None])
      >>> votes = jnp.array([[9.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
      >>> sisa_logits(model, votes, jnp.zeros((1, 2))).argmax(-1).tolist()
      [1]
    """
    logits = jax.vmap(model.apply, in_axes=(0, None))(params, x)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    share = jax.nn.softmax(logits).mean(0)
    if aggregate == "vote":
        votes = jax.nn.one_hot(logits.argmax(-1), logits.shape[-1], dtype=share.dtype).mean(0)
        share = (1 - SOFT) * votes + SOFT * share
    return jnp.log(jnp.maximum(share, jnp.finfo(share.dtype).tiny))


def unlearner(model: Model, train: TrainConfig, config: SISAConfig = SISAConfig()) -> Unlearner:
    """SISA as an unlearner: a request trains the shards that it hits, from their first hit slice.

    Guarantee: exact for the parameters, given that requests do not depend on them: each
    checkpoint has the distribution of one that never saw the removed rows.

    Deviation: rows are shuffled in every epoch (not in the official code), and the optimizer
    starts afresh with every slice (there too).

    Cost: of ``fit``, the epochs of ``train`` whatever S; of a request, those of the hit shards:
    all of them as soon as there are some times S random rows. Memory: ``S (R + 1)`` models.
    """
    loss_fn = cross_entropy(model.apply)
    epochs = slice_epochs(train.epochs, config.slices)
    configs = [dataclasses.replace(train, epochs=count) for count in epochs]

    @jax.jit
    def trained(key, data, keep, rows, checkpoints, first):
        """Every shard from slice ``first[s]`` on; R for those that stay as they are."""
        per = rows.shape[1]
        place = jnp.arange(per) * config.slices // per  # the slice of each row of a shard

        def shard(inputs):
            number, rows, stored, first = inputs
            own = Dataset(data.x[rows], data.y[rows])
            real = jnp.asarray(places(data.y.shape[0], config.shards)[1])[number]
            out = [jax.tree.map(lambda leaf: leaf[0], stored)]
            for j, how in enumerate(configs):
                after = jax.tree.map(lambda leaf, j=j: leaf[j + 1], stored)
                weights = real & keep[rows] & (place <= j)

                def again(start=out[-1], weights=weights, how=how, j=j):
                    some = jax.random.fold_in(jax.random.fold_in(key, number), j)
                    return minimize(some, loss_fn, start, own, weights=weights, config=how)

                out.append(jax.lax.cond(j >= first, again, lambda after=after: after))
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *out)

        # One after the other, so that a shard that is not hit costs nothing.
        return jax.lax.map(shard, (jnp.arange(config.shards), rows, checkpoints, first))

    def spent(keep, rows, first) -> Array:
        per = rows.shape[1]
        place = jnp.arange(per) * config.slices // per
        real = places(keep.shape[0], config.shards)[1]
        used = jnp.float32(0)
        for j, count in enumerate(epochs):
            seen = keep[rows] & real & (place <= j)[None] & (j >= first)[:, None]
            used += count * seen.sum()
        return used

    def fit_state(key: Array, data: Dataset) -> State:
        check_model(key, model, data)
        n = data.y.shape[0]
        if config.shards > n:
            raise ValueError(f"shards={config.shards} is more than the {n} training rows.")
        order_key, init_key, train_key = jax.random.split(key, 3)
        order = jax.random.permutation(order_key, n).astype(jnp.int32)
        rows = order[places(n, config.shards)[0]]
        start = jax.vmap(lambda key: model.init(key, data.x[:1]))(
            jax.random.split(init_key, config.shards)
        )
        stored = jax.tree.map(
            lambda leaf: jnp.repeat(leaf[:, None], config.slices + 1, axis=1), start
        )
        first, keep = jnp.zeros(config.shards, jnp.int32), jnp.ones(n, bool)
        stored = trained(train_key, data, keep, rows, stored, first)
        return _state(stored, rows, jnp.zeros(n, bool), spent(keep, rows, first))

    def answer(key: Array, state: State, data: Dataset, request: Request) -> State:
        rows, stored = state.memory
        per = rows.shape[1]
        real = places(data.y.shape[0], config.shards)[1]
        hit = request.forget[rows] & real
        place = jnp.arange(per) * config.slices // per
        first = jnp.where(hit, place[None], config.slices).min(1)
        stored = trained(key, data, request.retain, rows, stored, first)
        return _state(stored, rows, state.removed, spent(request.retain, rows, first))

    def predict(state: State, x: Array) -> Array:
        return sisa_logits(model, state.params, x, aggregate=config.aggregate)

    return Unlearner(fit_state, answering(_first(model), answer), predict)


def _first(model: Model):
    """The answer of the first shard alone, for what only its shape is asked."""
    return lambda params, x: model.apply(jax.tree.map(lambda leaf: leaf[0], params), x)


def _state(stored, rows, removed, grads) -> State:
    params = jax.tree.map(lambda leaf: leaf[:, -1], stored)
    finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]).all()
    status = jnp.where(finite, Status.OK, Status.NOT_FINITE).astype(jnp.int32)
    return State(params, removed, Memory(rows, stored), grads, status, ())

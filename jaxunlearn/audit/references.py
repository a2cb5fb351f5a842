"""The reference of every audit: many retrained models, trained once and kept on disk.

Models are trained in blocks by :func:`~jaxunlearn.training.train_many`, and each block is a file
that appears once it is whole: killed and called again, the work goes on with the first block that
is missing. The folder's name is a hash of everything that decides the models (rows, request,
model, configuration, key), so what was trained for one request is never taken for another.
"""

import dataclasses
import hashlib
import io
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxunlearn import _progress, _validate
from jaxunlearn._files import atomic_write
from jaxunlearn.audit.report import enough
from jaxunlearn.training import TrainConfig, train_many
from jaxunlearn.types import Array, Dataset, Model, Params

# Models a file, and a block of one compiled training.
BLOCK = 16


class References(NamedTuple):
    """M models retrained without a request, and on request M originals that share their keys.

    Attributes:
      params: leaves ``[M, ...]``, retrained without the rows.
      originals: the same of models trained on all rows, model m from the key of ``params`` m; None
        if they were not asked for.
      keys: ``key[M]``, of both.
      forget: ``bool[n]``, the request.
    """

    params: Params
    originals: Params | None
    keys: Array
    forget: Array

    def check(self, forget: Array) -> None:
        """Raises ValueError if these models were retrained without other rows than ``forget``."""
        mine, theirs = np.asarray(self.forget), np.asarray(forget)
        if mine.shape != theirs.shape or (mine != theirs).any():
            gone = int((mine != theirs).sum()) if mine.shape == theirs.shape else "all"
            raise ValueError(
                f"forget is not the request that these references were retrained without: "
                f"{gone} of {theirs.size} rows differ. Call references with this request."
            )


class Shadows(NamedTuple):
    """M models trained on random halves of the rows.

    Attributes:
      params: leaves ``[M, ...]``.
      member: ``bool[M, n]``, the rows each was trained on.
    """

    params: Params
    member: Array


def references(
    key: Array,
    model: Model,
    data: Dataset,
    forget: Array,
    *,
    count: int = 128,
    config: TrainConfig = TrainConfig(),
    originals: bool = False,
    cache: str | os.PathLike[str] | None = None,
    block: int = BLOCK,
) -> References:
    """Many models retrained without the request: the distribution to be audited against.

    Model m is ``fit(fold_in(key, m), model, data, weights=~forget)``, whatever ``count`` and
    ``block``; so more of them may be asked for later, and those that are there are read.

    Args:
      key: ``jax.random.key``.
      model: see :class:`jaxunlearn.Model`.
      data: all training rows.
      forget: ``bool[n]``, True for the rows to forget.
      count: M, models; 64 at the least for epsilons (see :mod:`jaxunlearn.audit.epsilon`).
      config: how to train; ``progress`` shows a bar.
      originals: train those on all rows too.
      cache: a folder for the models; None keeps nothing.
      block: models trained at once and kept in one file. With several devices a block is spread
        over them: give a multiple of their number.

    Returns:
      :class:`References`.

    Cost: ``count`` trainings (twice with ``originals``). Memory: ``block`` trainings, and the
    result.

    Raises:
      ValueError: fewer than 8 models, a bad request, shapes that do not match.

    Example:
      >>> from jaxunlearn import data, models
      >>> train = data.load("digits").train
      >>> rows = Dataset(train.x[:64], train.y[:64])
      >>> found = references(jax.random.key(0), models.logistic(10), rows, jnp.arange(64) < 8,
      ...                    count=8, config=TrainConfig(epochs=1))
      >>> jax.tree.leaves(found.params)[0].shape[0], found.originals
      (8, None)
    """
    n = data.y.shape[0]
    _validate.forget_mask(forget, n, some=True)
    _validate.whole(count=count)
    enough(count)
    forget = jnp.asarray(forget)
    keys = _keys(key, count)

    def trained(keep: np.ndarray, title: str) -> Params:
        weights = lambda rows: np.broadcast_to(keep, (len(rows), n))
        return _trained(
            keys, weights, keep.tobytes(), title, model, data,
            config=config, cache=cache, block=block, key=key,
        )  # fmt: skip

    retrained = trained(~np.asarray(forget), "retraining")
    before = trained(np.ones(n, bool), "training originals") if originals else None
    return References(retrained, before, keys, forget)


def shadows(
    key: Array,
    model: Model,
    data: Dataset,
    *,
    count: int = 64,
    config: TrainConfig = TrainConfig(),
    cache: str | os.PathLike[str] | None = None,
    block: int = BLOCK,
) -> Shadows:
    """Models trained on random halves, each row in half of them: what LiRA needs.

    Every model has n / 2 rows and every row is in M / 2 models; apart from that memberships are
    random (:func:`balanced_halves`). They depend on ``count``, so another one trains all anew.

    Args:
      key, model, data, config, cache, block: as for :func:`references`.
      count: even, at least 8.

    Raises:
      ValueError: as :func:`references`; an odd count.

    Example:
      >>> from jaxunlearn import data, models
      >>> train = data.load("digits").train
      >>> rows = Dataset(train.x[:64], train.y[:64])
      >>> found = shadows(jax.random.key(0), models.logistic(10), rows, count=8,
      ...                 config=TrainConfig(epochs=1))
      >>> set(found.member.sum(0).tolist())
      {4}
    """
    n = data.y.shape[0]
    _validate.whole(count=count)
    enough(count)
    if count % 2:
        raise ValueError(
            f"count={count!r} must be even: models are trained on complementary halves."
        )
    half_key, train_key = jax.random.split(key)
    seed = np.asarray(jax.random.key_data(half_key))
    member = balanced_halves(np.random.default_rng(seed), count, n)
    params = _trained(
        _keys(train_key, count), lambda rows: member[rows], member.tobytes(), "training shadows",
        model, data, config=config, cache=cache, block=block, key=key,
    )  # fmt: skip

    return Shadows(params, jnp.asarray(member))


def balanced_halves(rng: np.random.Generator, models: int, rows: int) -> np.ndarray:
    """``bool[models, rows]``, half of each column and of each row True, else as random as can be.

    Not complementary pairs of models: there one model of a pair would tell of the other, and an
    attack that leaves one out would see it again in its twin. Random trades between two models, of
    rows that only one of them has, keep all counts (Strona et al. 2014).

    Args:
      rng: NumPy's.
      models: even.
      rows: of which a model gets ``rows // 2`` or one more.

    Example:
      >>> half = balanced_halves(np.random.default_rng(0), 8, 10)
      >>> set(half.sum(0).tolist()), set(half.sum(1).tolist())
      ({4}, {5})
    """
    member = (np.arange(rows)[None] + np.arange(models)[:, None]) % 2 == 0
    for _ in range(10 * models):
        a, b = rng.choice(models, 2, replace=False)
        only = np.flatnonzero(member[a] != member[b])
        gets = rng.permutation(len(only)) < member[a, only].sum()
        member[a, only], member[b, only] = gets, ~gets
    return member


def _keys(key: Array, count: int) -> Array:
    return jax.vmap(lambda m: jax.random.fold_in(key, m))(jnp.arange(count))


def _trained(
    keys: Array,
    weights: Callable[[np.ndarray], np.ndarray],
    what: bytes,
    title: str,
    model: Model,
    data: Dataset,
    *,
    config: TrainConfig,
    cache: str | os.PathLike[str] | None,
    block: int,
    key: Array,
) -> Params:
    """Stacked parameters of all keys, block by block; ``weights(rows)`` are those models'."""
    _validate.whole(block=block)
    count = keys.shape[0]
    quiet = dataclasses.replace(config, progress=False)
    folder = None
    if cache is not None:
        folder = pathlib.Path(cache) / content_hash(model, data, quiet, key, what)
    like = jax.eval_shape(model.init, keys[0], data.x[:1])
    parts = []
    for start in _progress.track(range(0, count, block), title, enabled=config.progress):
        rows = np.arange(start, min(start + block, count))
        path = None if folder is None else folder / f"models-{start:05}-{start + len(rows):05}.npz"
        found = _read(path, like, len(rows)) if path is not None else None
        if found is None:
            found = jax.device_get(_train_block(keys, rows, weights, model, data, quiet, block))
            if path is not None:
                _write(path, found)
        parts.append(found)
    return jax.tree.map(lambda *leaves: jnp.asarray(np.concatenate(leaves)), *parts)


def _train_block(keys, rows, weights, model, data, config, block) -> Params:
    """One block, spread over the devices if they divide it."""
    devices = jax.devices()
    padded = np.minimum(rows[0] + np.arange(block), rows[-1])  # one shape, one compilation
    some, keep = keys[padded], jnp.asarray(weights(padded))
    if len(devices) > 1 and block % len(devices) == 0:
        mesh = Mesh(np.array(devices), ("models",))
        over_models = NamedSharding(mesh, PartitionSpec("models"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        some, keep = jax.device_put((some, keep), over_models)
        data = jax.device_put(data, everywhere)
    out = train_many(some, keep, model, data, config=config, chunk=block)
    return jax.tree.map(lambda leaf: leaf[: len(rows)], out)


def content_hash(model: Model, data: Dataset, config: Any, key: Array, what: bytes) -> str:
    """A name for all that decides trained models: 24 hexadecimal digits of SHA-256.

    A model is what it computes: the program of ``apply`` on one row with the constants that it
    holds, its derivative if it has a rule of its own, and the parameters of ``init`` for one key.
    """
    one = jax.ShapeDtypeStruct((1, *data.x.shape[1:]), data.x.dtype)
    start = model.init(jax.random.key(0), jnp.zeros(one.shape, one.dtype))
    program = jax.make_jaxpr(model.apply)(start, one)
    constants = list(_constants(program.jaxpr, program.consts))
    if "custom_vjp_call" in str(program.jaxpr):  # which shows the rule's name only
        total = lambda params, x: model.apply(params, x).sum()
        derivative = jax.make_jaxpr(jax.grad(total))(start, one)
        what += str(derivative.jaxpr).encode()
        constants += _constants(derivative.jaxpr, derivative.consts)
    digest = hashlib.sha256()

    def add(array) -> None:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())

    digest.update(repr((config, what, str(program.jaxpr), jax.__version__)).encode())
    for array in [*constants, *jax.tree.leaves(start), data.x, data.y]:
        add(array)
    digest.update(str(jax.tree.structure(start)).encode())
    add(jax.random.key_data(key))
    return digest.hexdigest()[:24]


def _constants(jaxpr: Jaxpr, own) -> Iterator[Any]:
    """What a program holds, those within it (an inner ``jit``, say) included: not in its text."""
    yield from own
    inner = lambda value: isinstance(value, ClosedJaxpr | Jaxpr)
    for equation in jaxpr.eqns:
        for value in jax.tree.leaves(equation.params, is_leaf=inner):
            if isinstance(value, ClosedJaxpr):
                yield from _constants(value.jaxpr, value.consts)
            elif isinstance(value, Jaxpr):
                yield from _constants(value, ())


def _write(path: pathlib.Path, params: Params) -> None:
    with atomic_write(path) as file:
        np.savez(file, **{f"{i}": leaf for i, leaf in enumerate(jax.tree.leaves(params))})


def _read(path: pathlib.Path, like: Params, count: int) -> Params | None:
    """The models of a file; None if there is none, or it is damaged and has to be made again."""
    if not path.exists():
        return None
    shapes, structure = jax.tree.flatten(like)
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            leaves = [file[f"{i}"] for i in range(len(shapes))]
    except Exception:  # NumPy and zipfile have an exception for each way to be broken
        return None
    wanted = [((count, *leaf.shape), leaf.dtype) for leaf in shapes]
    if [(leaf.shape, leaf.dtype) for leaf in leaves] != wanted:
        return None
    return jax.tree.unflatten(structure, leaves)

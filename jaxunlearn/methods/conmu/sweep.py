"""A grid of ConMU's knobs on several seeds: what members share is computed once.

Scores, noise and proxies do not depend on most of the knobs, and of the one that proxies depend on
(delta) there are few values. So they are made for each seed, and for each delta, and the
fine-tunings alone run for every setting, many at once. Number for number it is :func:`conmu` for
each setting and seed.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _grid, _validate
from jaxunlearn._grid import Form, Swept
from jaxunlearn.methods.conmu.config import ConMUConfig, Plan, knobs_of, plan_of
from jaxunlearn.methods.conmu.pipeline import (
    Unlearned,
    enough_rows,
    finetune,
    initial_proxy,
    keys_of,
    prepare,
    train_proxy,
)
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.types import Array, Dataset, Model, Params


def sweep(
    keys: Array,
    model: Model,
    params: Params,
    data: Dataset,
    forget: Array,
    configs: Sequence[ConMUConfig],
    *,
    train: TrainConfig = TrainConfig(),
    chunk: int | None = None,
) -> Iterator[Swept]:
    """ConMU under every configuration on every seed, by vmap in chunks of bounded memory.

    Settings come in the order of their length, so that members of a chunk end together. One
    program serves all chunks.

    Args:
      keys: ``key[S]``, one for each seed.
      model: what the parameters are of.
      params: the originals, leaves ``[S, ...]``.
      data: all rows, the same for all seeds.
      forget: ``bool[S, n]``.
      configs: the settings. They may differ in numbers, not in what a program is compiled for
        (kinds of rules, ``compat``, batch sizes and so on).
      train: how the originals were trained.
      chunk: settings at once; by default as many as 256 MiB hold, and 32 members on a CPU.

    Yields:
      Settings (numbers in ``configs``), parameters ``[settings, S, ...]``, sample gradients,
      status and kept fractions; every setting once. The gradients are those that the setting
      alone would cost.

    Cost: scores and noise once a seed, a proxy for each seed and different delta, and the
    fine-tunings. Memory: noise for each seed (S times the data), ``chunk * S`` models.

    Raises:
      ValueError: no settings; settings that need different programs; the official compat, whose
        proxies start from initial parameters that are not here; keys, parameters or masks that
        are not of the same seeds; bad rows or masks; fewer than two rows for a ``Sigma``. Bounds
        that select nothing give the status ``EMPTY_SELECTION``.

    Example:
      >>> from jaxunlearn import data, models
      >>> from jaxunlearn.training import train_many
      >>> rows, model = data.load("digits").train, models.mlp(10, hidden=(8,))
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> originals = train_many(keys, jnp.ones((2, rows.y.shape[0])), model, rows)
      >>> forget = jax.vmap(lambda key: data.forget_random(key, rows.y, 0.2))(keys)
      >>> settings = [ConMUConfig(alpha=alpha) for alpha in (0.0, 1.0, 3.0)]
      >>> {part.grads.shape for part in sweep(keys, model, originals, rows, forget, settings)}
      {(3, 2)}
    """
    plan = plan_for(configs, train)
    forget = jnp.asarray(forget)
    _of_the_same_seeds(keys, params, forget)
    for one in forget:
        _validate.forget_mask(one, data.y.shape[0], some=True)
    for config in configs:
        enough_rows(config, ~forget, forget)
    if chunk is not None:
        _validate.whole(chunk=chunk)
    grid = _grid.grid([knobs_of(config) for config in configs])
    one = jax.tree.map(lambda leaf: leaf[0], params)
    logits = jax.eval_shape(model.apply, one, jax.ShapeDtypeStruct(data.x.shape, data.x.dtype))
    _validate.dataset(data, num_classes=logits.shape[-1])
    if chunk is None:
        chunk = _grid.chunk_size(len(configs), params, logits.size)
    deltas = sorted({config.proxy_epochs for config in configs})
    proxies = [
        train_proxies(keys, data, forget, delta, train.learning_rate, model=model, plan=plan)
        for delta in map(jnp.int32, deltas)
    ]
    proxies = jax.tree.map(lambda *leaves: jnp.stack(leaves, 1), *proxies)
    which = np.array([deltas.index(config.proxy_epochs) for config in configs])
    order = np.argsort([_length(config) for config in configs], kind="stable").tolist()
    for settings, filled in _grid.chunks(order, min(chunk, len(order))):
        done = finetune_all(
            keys, params, data, forget, proxies, which[filled],
            tuple(column[filled] for column in grid.differ), grid.same,
            model=model, plan=plan, form=grid.form,
        )  # fmt: skip
        done = jax.block_until_ready(_grid.first(len(settings))(done))
        kept = {"kept_retain": done.kept_retain, "kept_forget": done.kept_forget}
        yield Swept(settings, done.params, done.grads, done.status, kept)


def _of_the_same_seeds(keys: Array, params: Params, forget: Array) -> None:
    leading = lambda leaf: jnp.shape(leaf)[:1]
    found = {leading(leaf) for leaf in jax.tree.leaves(params)}
    if found != {leading(keys)} or forget.ndim != 2 or leading(forget) != leading(keys):
        raise ValueError(
            f"keys has shape {keys.shape}, the leaves of params begin with {sorted(found)}, and "
            f"forget has shape {forget.shape}: all must begin with one axis of seeds."
        )


def plan_for(configs: Sequence[ConMUConfig], train: TrainConfig) -> Plan:
    """The one plan of a grid, some of whose members may do without pruning or a proxy.

    Example:
      >>> plan_for([ConMUConfig(gamma=0.0), ConMUConfig()], TrainConfig()).proxied
      True
    """
    if not configs:
        raise ValueError("configs is empty: give at least one setting.")
    if any(config.compat == "official" for config in configs):
        raise ValueError(
            "compat='official' cannot be swept: its proxy starts from the initial parameters of "
            "each original. Use conmu(..., initial=...) for single settings."
        )
    plans = [plan_of(config, train) for config in configs]
    prunes, proxied = any(p.prunes for p in plans), any(p.proxied for p in plans)
    plans = {dataclasses.replace(p, prunes=prunes, proxied=proxied) for p in plans}
    kinds = {jax.tree.structure(knobs_of(config)) for config in configs}
    if len(plans) > 1 or len(kinds) > 1:
        raise ValueError(
            "configs differ in more than numbers (kinds of rules, compat, noise, schedule, scope, "
            "batch size, momentum, weight decay or clip): sweep those that share a program."
        )
    return plans.pop()


def _length(config: ConMUConfig) -> float:
    """How long the fine-tuning is, as far as a configuration tells."""
    share = {"Sigma": lambda r: r.low + r.high, "Quantile": lambda r: r.high - r.low}
    size = lambda rule: share.get(type(rule).__name__, lambda r: r.fraction)(rule)
    return config.epochs * (size(config.retain) + size(config.forget))


@functools.partial(jax.jit, static_argnames=("model", "plan"))
def train_proxies(
    keys: Array, data: Dataset, forget: Array, epochs: Array, rate: Array | float, *, model: Model,
    plan: Plan,
) -> Params:  # fmt: skip
    """The proxy of every seed after ``epochs`` epochs, leaves ``[S, ...]``."""

    def one(key, forget):
        keys = keys_of(key)
        initial = initial_proxy(keys, data, None, model)
        return train_proxy(keys, initial, data, ~forget, epochs, rate, model=model, plan=plan)

    return jax.vmap(one)(keys, forget)


@functools.partial(jax.jit, static_argnames=("model", "plan", "form"))
def finetune_all(
    keys: Array, params: Params, data: Dataset, forget: Array, proxies: Params, which: Array,
    differ: tuple[Array, ...], same: tuple[Array, ...], *, model: Model, plan: Plan, form: Form,
) -> Unlearned:  # fmt: skip
    """A chunk of settings on all seeds, leaves ``[settings, S, ...]``."""

    def seed(key, params, forget, proxies):
        keys = keys_of(key)

        def setting(which, differ):
            knobs = form.joined(differ, same)
            start = prepare(params, data, forget, ~forget, knobs, None, model=model, plan=plan)
            proxy = jax.tree.map(lambda leaf: leaf[which], proxies)
            done = finetune(
                keys, start, data, forget, ~forget, knobs, proxy,
                trained=True, model=model, plan=plan,
            )  # fmt: skip
            return done._replace(proxy=(), selected=())

        return jax.vmap(setting)(which, differ)

    done = jax.vmap(seed)(keys, params, forget, proxies)
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), done)

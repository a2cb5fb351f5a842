"""Fine-tuning under a grid of its own knobs: what ConMU's control is compared with."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import _grid, tree
from jaxunlearn._grid import Form, Swept
from jaxunlearn.baselines.finetune import FineTuneConfig
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.dynamic import descend
from jaxunlearn.types import Array, Dataset, Model, Params, Status


class Knobs(NamedTuple):
    """What the paper varies: the number of epochs and the learning rate."""

    epochs: Any
    learning_rate: Any


def sweep(
    keys: Array,
    model: Model,
    params: Params,
    data: Dataset,
    forget: Array,
    configs: Sequence[FineTuneConfig],
    *,
    train: TrainConfig = TrainConfig(),
    chunk: int | None = None,
) -> Iterator[Swept]:
    """Fine-tuning under every configuration on every seed, by vmap in chunks.

    Arguments, results and errors as :func:`jaxunlearn.methods.conmu.sweep`; the settings may
    differ in their epochs and learning rates.

    Cost: ``epochs`` times the remaining rows for each setting and seed, in sample gradients.
    """
    if not configs:
        raise ValueError("configs is empty: give at least one setting.")
    plans = {dataclasses.replace(c, epochs=1, learning_rate=1.0).train_config() for c in configs}
    if len(plans) > 1:
        raise ValueError(
            "configs differ in more than epochs and learning_rate: sweep those that share the rest."
        )
    plan = dataclasses.replace(plans.pop(), microbatch=train.microbatch)
    grid = _grid.grid([Knobs(np.int32(c.epochs), np.float32(c.learning_rate)) for c in configs])
    if chunk is None:
        chunk = _grid.chunk_size(len(configs), params, 0)
    order = np.argsort([config.epochs for config in configs], kind="stable").tolist()
    for settings, filled in _grid.chunks(order, min(chunk, len(order))):
        members = tuple(column[filled] for column in grid.differ)
        done, grads, status = finetune_all(
            keys,
            params,
            data,
            forget,
            members,
            grid.same,
            model=model,
            plan=plan,
            form=grid.form,
            count=len(filled),
        )
        done, grads, status = jax.block_until_ready(
            _grid.first(len(settings))((done, grads, status))
        )
        yield Swept(settings, done, grads, status, {})


@functools.partial(jax.jit, static_argnames=("model", "plan", "form", "count"))
def finetune_all(
    keys: Array, params: Params, data: Dataset, forget: Array, differ: tuple[Array, ...],
    same: tuple[Array, ...], *, model: Model, plan: TrainConfig, form: Form,
    count: int,
) -> tuple[Params, Array, Array]:  # fmt: skip
    """A chunk of settings on all seeds: parameters, sample gradients, status."""

    def losses(params, rows):
        logits = model.apply(params, data.x[rows])
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return optax.softmax_cross_entropy_with_integer_labels(logits, data.y[rows])

    def seed(key, params, forget):
        def setting(differ):
            knobs = form.joined(differ, same)
            after = descend(
                key, losses, params, ~forget,
                epochs=knobs.epochs, rate=knobs.learning_rate, config=plan,
            )  # fmt: skip
            grads = (knobs.epochs * (~forget).sum()).astype(jnp.float32)
            status = jnp.where(tree.all_finite(after), Status.OK, Status.NOT_FINITE)
            return after, grads, status.astype(jnp.int32)

        return jax.vmap(setting, axis_size=count)(differ)

    done = jax.vmap(seed)(keys, params, forget)
    return jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), done)

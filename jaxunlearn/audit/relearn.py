"""Relearn time: how many steps bring the forgotten rows back."""

import functools

import jax
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.audit.accuracy import accuracy
from jaxunlearn.audit.intervals import mean_interval
from jaxunlearn.audit.report import AuditReport, per_model
from jaxunlearn.types import ApplyFn, Array, Dataset, Params


@functools.partial(jax.jit, static_argnames=("apply_fn", "steps", "learning_rate"))
def _relearn(params, rows, target, *, apply_fn, steps, learning_rate):
    def loss(params):
        log_p = jax.nn.log_softmax(apply_fn(params, rows.x))
        return -jnp.take_along_axis(log_p, rows.y[:, None], axis=-1).mean()

    def step(carry, number):
        params, velocity, found = carry
        there = accuracy(apply_fn(params, rows.x), rows.y) >= target
        found = jnp.where((found > number) & there, number, found)
        gradient = jax.grad(loss)(params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, gradient)
        params = jax.tree.map(lambda p, v: p - learning_rate * v, params, velocity)
        return (params, velocity, found), None

    start = (params, jax.tree.map(jnp.zeros_like, params), jnp.int32(steps))
    (_, _, found), _ = jax.lax.scan(step, start, jnp.arange(steps, dtype=jnp.int32))
    return found


def relearn_steps(
    apply_fn: ApplyFn,
    params: Params,
    rows: Dataset,
    *,
    target: float,
    steps: int = 50,
    learning_rate: float = 0.05,
) -> Array:
    """Full-batch steps on the forgotten rows until their accuracy is at least ``target``.

    Gradient descent with momentum .9. A model that only hides what it knows relearns faster than
    a retrained one; the number means something only beside that (Golatkar et al. 2020).

    Args:
      apply_fn: ``apply_fn(params, x[B, ...]) -> logits[B, C]``; the same object again reuses what
        was compiled.
      params: of one model, or stacked ``[M, ...]`` under ``jax.vmap``.
      rows: the forgotten rows alone.
      target: accuracy to reach, in (0, 1]; that of the original model, say.
      steps: the cap.
      learning_rate: > 0.

    Returns:
      ``int32`` scalar: 0 if it is there already, ``steps`` if it never gets there.

    Cost: ``steps`` gradients of all rows.

    Raises:
      ValueError: target, steps or rate out of range, bad rows.

    Example:
      >>> from jaxunlearn import models
      >>> model, rows = models.logistic(2), Dataset(jnp.array([[-1.0], [1.0]]), jnp.array([0, 1]))
      >>> params = model.init(jax.random.key(0), rows.x)
      >>> int(relearn_steps(model.apply, params, rows, target=1.0))
      1
    """
    _validate.whole(steps=steps)
    _validate.positive(learning_rate=learning_rate)
    _validate.dataset(rows, name="rows")
    if not 0 < target <= 1:
        raise ValueError(f"target={target!r} must lie in (0, 1]: an accuracy.")
    return _relearn(
        params, rows, target, apply_fn=apply_fn, steps=steps, learning_rate=learning_rate
    )


def relearn_report(unlearned, retrained, *, null, steps: int) -> AuditReport:
    """Mean relearn time of M unlearned models, against that of M retrained ones.

    Args:
      unlearned: ``int[M]`` from :func:`relearn_steps`.
      retrained: ``int[M]``.
      null: ``int[M]`` of M further retrained models.
      steps: the cap that was used.

    Returns:
      :class:`AuditReport`: the mean number of steps, capped, with a t interval; ``null`` is
      the same of the further retrained models. ``detail``: ``at_cap`` and ``null_at_cap``, shares
      that never got there (a mean of those at the cap says nothing), and ``retrained``, the mean of
      ``retrained``.

    Raises:
      ValueError: fewer than 8 models, unequal sizes, counts that do not lie in 0..steps.

    Example:
      >>> report = relearn_report([3] * 8, [9] * 8, null=[9] * 8, steps=50)
      >>> report.value, report.null.estimate
      (3.0, 9.0)
    """
    _validate.whole(steps=steps)
    found, reference, nothing = per_model(
        0, steps, unlearned=unlearned, retrained=retrained, null=null
    )
    interval = mean_interval(found)
    return AuditReport(
        name="relearn time, steps",
        value=interval.estimate,
        interval=interval,
        null=mean_interval(nothing),
        n_models=len(found),
        detail={
            "at_cap": float((found >= steps).mean()),
            "null_at_cap": float((nothing >= steps).mean()),
            "retrained": float(reference.mean()),
        },
    )

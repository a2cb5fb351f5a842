"""Unlearning of features and labels (Warnecke et al. 2023): one Newton step by a Neumann series."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxunlearn import _sharding, _validate, tree
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.posthoc import Update, posthoc
from jaxunlearn.primitives.gradients import gradient_sum
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.pruned import PruningConfig
from jaxunlearn.types import Array, Dataset, LossFn, Model, Params, PyTree, Status, Unlearner

CORRECTIONS = ("remove", "relabel")
# Rows whose activations are held at once.
CHUNK = 256


@dataclasses.dataclass(frozen=True)
class FeatureUnlearningConfig:
    """The step of :func:`feature_unlearning`.

    Attributes:
      correction: ``remove``: the rows go. ``relabel``: they stay with a random wrong label, as
        where the method corrects labels. The tables that compare with it do not say which.
      order: 2 with curvature; 1 without, then ``step`` is the length.
      scale: s of the series, above the largest eigenvalue of the Hessian.
      damping: d; the system solved is ``(H + d s I)``.
      iterations: terms of the series.
      batch: rows of a Hessian product.
      step: tau of the first order, for the sum of the rows' gradients.
    """

    correction: str = "remove"
    order: int = 2
    scale: float = 100.0
    damping: float = 1e-3
    iterations: int = 100
    batch: int = 1024
    step: float = 2e-5

    def __post_init__(self):
        _validate.one_of(CORRECTIONS, correction=self.correction)
        if self.order not in (1, 2):
            raise ValueError(f"order={self.order!r} must be 1 or 2.")
        _validate.positive(scale=self.scale, step=self.step)
        _validate.fraction(damping=self.damping)
        _validate.whole(iterations=self.iterations, batch=self.batch)


def feature_unlearning(
    key: Array,
    loss_fn: LossFn,
    params: Params,
    data: Dataset,
    forget: Array,
    *,
    num_classes: int | None = None,
    retain: Array | None = None,
    config: FeatureUnlearningConfig = FeatureUnlearningConfig(),
    mask: PyTree | None = None,
) -> Params:
    """Adds ``H^-1 sum (grad l(z) - grad l(z')) / n`` to the parameters, H by LiSSA.

    The second-order update of Warnecke et al. (2023), Eq. 9: z are the rows to forget, z' what
    they are corrected to; ``grad l(z') = 0`` for rows that go. The inverse is the series
    ``u <- v + (1 - d) u - H u / s``, whose limit over s is ``(H + d s I)^-1 v``, with a batch
    of remaining rows for every product.

    Deviations: the official code takes the last six weight tensors only, stops the series when
    its terms grow for 20 terms, and sums means of batches, so that the step depends on how the
    data are cut. Here are all parameters, and a series that diverges is reported.

    Guarantee: none beyond convex losses.

    Args:
      key: ``jax.random.key``, for batches and wrong labels.
      loss_fn: ``loss_fn(params, example) -> scalar`` for one unbatched row.
      params: the trained parameters; not modified.
      data: all rows.
      forget: ``bool[n]``, at least one.
      num_classes: for ``relabel``; the largest label and one more if None.
      retain: ``bool[n]``, rows still in training; ``~forget`` by default.
      config: the step.
      mask: pruning mask to stay within.

    Returns:
      The new parameters.

    Cost: twice the rows to forget and ``4 iterations batch``, in sample gradients.

    Raises:
      ValueError: a mask of another length or dtype, or one that forgets no rows or all; no
        ``num_classes`` for ``relabel`` with labels that are traced.

    Example:
      >>> data = Dataset(jnp.array([[1.0], [1.0], [5.0]]), jnp.array([0, 0, 0]))
      >>> loss_fn = lambda params, row: 0.5 * jnp.sum((params - row.x) ** 2)
      >>> forget = jnp.array([False, False, True])
      >>> config = FeatureUnlearningConfig(scale=2.0)
      >>> at_optimum = jnp.array([7.0 / 3])
      >>> params = feature_unlearning(
      ...     jax.random.key(0), loss_fn, at_optimum, data, forget, config=config
      ... )
      >>> bool(params[0] < at_optimum[0])  # away from 5, towards 1
      True
    """
    n = data.y.shape[0]
    data = _sharding.automatic(data)
    _validate.rows(data)
    _validate.forget_mask(forget, n, some=True)
    retain = ~jnp.asarray(forget) if retain is None else retain
    _validate.keep_mask(retain, n)
    if num_classes is None:
        if config.correction == "relabel" and not _validate.known(data.y):
            raise ValueError(
                "num_classes=None, and data.y is traced: relabel cannot count the classes. Give it."
            )
        num_classes = int(data.y.max()) + 1 if _validate.known(data.y) else 2
    given = key, params, data, forget, retain, mask
    return _step(*given, loss_fn=loss_fn, classes=num_classes, config=config).params


@functools.partial(jax.jit, static_argnames=("loss_fn", "classes", "config"))
def _step(key, params, data, forget, retain, mask, *, loss_fn, classes, config) -> Update:
    n = data.y.shape[0]
    label_key, batch_key = jax.random.split(key)
    within = lambda t: t if mask is None else jax.tree.map(jnp.multiply, t, mask)
    add = lambda rows, scale: gradient_sum(
        loss_fn, params, rows, weights=forget * scale, chunk=CHUNK
    )
    v = add(data, 1 / n)
    if config.correction == "relabel":
        shift = jax.random.randint(label_key, (n,), 1, max(2, classes))
        other = ((data.y + shift) % classes).astype(data.y.dtype)
        v = tree.add_scaled(v, -1.0, add(Dataset(data.x, other), 1 / n))
    v = within(v)
    asked = forget.sum()
    if config.order == 1:
        return Update(tree.add_scaled(params, config.step * n, v), grads=asked)

    count = min(config.batch, n)

    def product(key, u):
        # Remaining rows at random; with fewer than a batch of them, the rest counts zero.
        rows = jnp.argsort(jnp.where(retain, jax.random.uniform(key, (n,)), 2.0))[:count]
        w = retain[rows].astype(jnp.float32)
        some = Dataset(data.x[rows], data.y[rows])
        mean = lambda p: jnp.vdot(w / w.sum(), jax.vmap(loss_fn, in_axes=(None, 0))(p, some))
        return within(jax.jvp(jax.grad(mean), (params,), (u,))[1])

    def term(number, u):
        hu = product(jax.random.fold_in(batch_key, number), u)
        step = lambda v, u, h: (v + (1 - config.damping) * u - h / config.scale).astype(u.dtype)
        return jax.tree.map(step, v, u, hu)

    u = jax.lax.fori_loop(0, config.iterations, term, v)
    # The series converges if it contracts: more than its first term in every direction is no sum.
    norm = lambda t: jnp.sqrt(sum(jnp.vdot(leaf, leaf).real for leaf in jax.tree.leaves(t)))
    summed = norm(u) <= 1.01 * (config.iterations + 1) * norm(v)
    status = jnp.where(summed, Status.OK, Status.NOT_CONVERGED)
    twice = 2 if config.correction == "relabel" else 1
    grads = twice * asked + 4 * config.iterations * count
    return Update(tree.add_scaled(params, 1 / config.scale, u), grads, status)


def unlearner(
    model: Model,
    train: TrainConfig,
    config: FeatureUnlearningConfig = FeatureUnlearningConfig(),
    *,
    prune: PruningConfig | None = None,
) -> Unlearner:
    """:func:`feature_unlearning` as an unlearner."""
    loss_fn = cross_entropy(model.apply)

    def update(key, params, data, request, mask):
        classes = jax.eval_shape(model.apply, params, data.x[:1]).shape[-1]
        given = key, params, data, request.forget, request.retain, mask
        return _step(*given, loss_fn=loss_fn, classes=classes, config=config)

    return posthoc(model, train, update, prune=prune)

"""ConMU: select, blur, train a proxy, and fine-tune towards it, as one compiled program."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxunlearn import _sharding, _validate, tree
from jaxunlearn.methods.conmu.config import ConMUConfig, Knobs, Plan, knobs_of, plan_of
from jaxunlearn.primitives.divergence import kl
from jaxunlearn.primitives.selection import Random, Rule, Sigma, by_rows, el2n, kept, numbered
from jaxunlearn.primitives.sparsity import one_shot
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.training.dynamic import descend
from jaxunlearn.types import Array, Dataset, Model, Params, PyTree, Status

# Rows of one forward pass, where nothing else bounds it.
CHUNK = 128


class Unlearned(NamedTuple):
    """What :func:`conmu` returns.

    Attributes:
      params: the unlearned parameters.
      proxy: parameters of the proxy that they were pulled to.
      selected: ``bool[n]``, D_new: the rows that the fine-tuning saw.
      kept_retain: fraction of the remaining rows that were selected.
      kept_forget: fraction of the rows to forget that were.
      grads: sample gradients spent (one forward pass over one row is 1/3).
      status: ``int32``, a :class:`~jaxunlearn.Status`.

    Example:
      >>> Unlearned(*range(7)).grads
      5
    """

    params: Params
    proxy: Params
    selected: Array
    kept_retain: Array
    kept_forget: Array
    grads: Array
    status: Array


def conmu(
    key: Array,
    model: Model,
    params: Params,
    data: Dataset,
    forget: Array,
    *,
    retain: Array | None = None,
    config: ConMUConfig = ConMUConfig(),
    train: TrainConfig = TrainConfig(),
    proxy: Params | None = None,
    initial: Params | None = None,
    mask: PyTree | None = None,
) -> Unlearned:
    """ConMU on your own parameters: an approximate, cheap step towards a retrained model.

    1. *Important data selection.* EL2N scores ``||softmax(f(x)) - onehot(y)||_2`` of the original
       (equation 1); ``config.retain`` picks D'_r among the remaining rows and ``config.forget``
       D'_f among those to forget (equations 3, 4, 7).
    2. *Progressive Gaussian mechanism.* D''_f = D'_f + alpha N (equation 5), drawn once.
    3. *Unlearning proxy.* ``config.proxy_epochs`` epochs from scratch on all remaining rows; its
       logits on D_new = D''_f and D'_r are computed once, since D_new does not change.

    Then the fine-tuning on D_new with ``CE + gamma KL(proxy || model)`` (equation 8).

    Guarantee: none. It brings the accuracy on the forgotten rows nearer to Retrain's, which does
    not mean that they are forgotten: its answers to them need be no nearer to those of retrained
    models than the original's (docs/papers/conmu.md). Rows to forget are read, and trained on in
    noise.

    Args:
      key: ``jax.random.key``.
      model: what the parameters are of; its ``init`` gives the proxy's initial parameters.
      params: the trained parameters; not modified.
      data: all rows.
      forget: ``bool[n]``, True for the rows to forget.
      retain: ``bool[n]``, rows that remain, none of them to forget; ``~forget`` by default. Give it
        when other rows were removed before.
      config: the knobs. Other values of the same kinds of rules compile nothing again.
      train: how the original was trained; the proxy is trained so too.
      proxy: parameters of a proxy of your own instead; ``config.proxy_epochs`` is then not spent.
      initial: the proxy's initial parameters. The official code takes those of the original.
      mask: pruning mask to stay within.

    Returns:
      :class:`Unlearned`. Under ``jax.jit``, where nothing can be raised, bounds that select
      nothing come back with the status ``EMPTY_SELECTION``.

    Cost: in sample gradients, with n_r and n_f rows remaining and to forget, of which m are
    selected: ``(n_r + n_f) / 3`` for the scores (for those groups that a rule needs them of),
    ``delta n_r`` for the proxy, ``(epochs + 1/3) m``. Memory: noise of the size of the data, two
    sets of parameters and one batch.

    Derivatives: forward-mode (``jax.jvp``) in ``params``, ``data.x``, ``proxy`` and ``initial``,
    with the selection held as it is. Not reverse-mode: trip counts are dynamic.

    Raises:
      ValueError: bounds that select nothing, with the kept fractions; a proxy or initial
        parameters or a pruning mask of another architecture; fewer than two rows for a ``Sigma``;
        ``retain`` that is empty or has rows to forget in it; bad rows or masks.

    Example:
      >>> import jax
      >>> from jaxunlearn import data, fit, models
      >>> rows, model = data.load("digits").train, models.mlp(10)
      >>> params = fit(jax.random.key(0), model, rows)
      >>> forget = data.forget_random(jax.random.key(1), rows.y, 0.2)
      >>> done = conmu(jax.random.key(2), model, params, rows, forget)
      >>> bool(done.kept_forget == 0.5), bool(done.grads < 0.1 * 30 * (~forget).sum())
      (False, True)
    """
    data = _sharding.automatic(data)
    n = data.y.shape[0]
    one_row = jax.ShapeDtypeStruct((1, *data.x.shape[1:]), data.x.dtype)
    logits = jax.eval_shape(model.apply, params, one_row)
    _validate.dataset(data, num_classes=logits.shape[-1])
    _validate.forget_mask(forget, n, some=True)
    forget = jnp.asarray(forget)
    retain = ~forget if retain is None else jnp.asarray(retain)
    _validate.keep_mask(retain, n)
    _apart(forget, retain)
    for name, given in (("proxy", proxy), ("initial", initial), ("mask", mask)):
        _same_architecture(name, given, params)
    enough_rows(config, retain, forget)
    done = run(
        key, params, data, forget, retain, knobs_of(config), train.learning_rate,
        proxy, initial, mask, model=model, plan=plan_of(config, train),
    )  # fmt: skip
    refuse_empty(done, config)
    return done


@functools.partial(jax.jit, static_argnames=("model", "plan"))
def run(
    key: Array,
    params: Params,
    data: Dataset,
    forget: Array,
    retain: Array,
    knobs: Knobs,
    proxy_rate: Array | float,
    proxy: Params | None,
    initial: Params | None,
    mask: PyTree | None,
    *,
    model: Model,
    plan: Plan,
) -> Unlearned:
    """:func:`conmu` without its checks, to be vmapped over keys, parameters, masks and knobs."""
    keys = keys_of(key)
    start = prepare(params, data, forget, retain, knobs, mask, model=model, plan=plan)
    trained = proxy is None and plan.proxied
    if proxy is None:
        proxy = initial_proxy(keys, data, initial, model)
        if plan.proxied:
            proxy = train_proxy(
                keys, proxy, data, retain, knobs.proxy_epochs, proxy_rate, model=model, plan=plan
            )
    return finetune(
        keys, start, data, forget, retain, knobs, proxy, trained=trained, model=model, plan=plan
    )


class Keys(NamedTuple):
    """One key for each random part, so that parts can be computed apart and shared."""

    select: Array
    noise: Array
    initial: Array
    proxy: Array
    finetune: Array


def keys_of(key: Array) -> Keys:
    """The keys of the parts."""
    return Keys(*jax.random.split(key, len(Keys._fields)))


class Start(NamedTuple):
    """What the fine-tuning starts from: parameters, pruned or not, their mask, and scores."""

    params: Params
    mask: PyTree | None
    scores: Array


def prepare(params, data, forget, retain, knobs: Knobs, mask, *, model: Model, plan: Plan) -> Start:
    """Prunes, and scores the rows that a rule asks scores of."""
    if plan.prunes:
        params, own = one_shot(params, knobs.prune_rate, scope=plan.prune_scope, regrow=plan.regrow)
        if own is not None:
            mask = own if mask is None else jax.tree.map(jnp.multiply, mask, own)
    scored = (retain & _scores(knobs.retain)) | (forget & _scores(knobs.forget))
    return Start(params, mask, el2n(model.apply, params, data, among=scored, chunk=CHUNK))


def initial_proxy(keys: Keys, data: Dataset, initial: Params | None, model: Model) -> Params:
    """Where the proxy starts."""
    return model.init(keys.initial, data.x[:1]) if initial is None else initial


def train_proxy(
    keys: Keys, initial: Params, data: Dataset, retain, epochs, rate, *, model: Model, plan: Plan
) -> Params:
    """The unlearning proxy: ``epochs`` of the ordinary training on the remaining rows."""

    def losses(params, rows):
        return _cross_entropy(model.apply(params, data.x[rows]), data.y[rows])

    return descend(keys.proxy, losses, initial, retain, epochs=epochs, rate=rate, config=plan.proxy)


def finetune(
    keys: Keys,
    start: Start,
    data: Dataset,
    forget: Array,
    retain: Array,
    knobs: Knobs,
    proxy: Params,
    *,
    trained: bool,
    model: Model,
    plan: Plan,
) -> Unlearned:
    """Selection and noise, then the fine-tuning towards the proxy; ``trained`` if it cost."""
    pick = functools.partial(_selected, start.scores, plan=plan)
    retain_key, forget_key = jax.random.split(keys.select)
    ours, theirs = pick(knobs.retain, retain, retain_key), pick(knobs.forget, forget, forget_key)
    selected = ours | theirs
    noise = _noise(keys.noise, data.x, forget)
    times = jnp.sqrt(knobs.alpha) if plan.noise == "repeat" else knobs.alpha

    def inputs(rows):  # D_new, equation (5)
        blur = times * knobs.sigma * noise[rows] + knobs.alpha * knobs.mu
        there = forget[rows].reshape(-1, *(1,) * (data.x.ndim - 1))
        return jnp.where(there, (data.x[rows] + blur).astype(data.x.dtype), data.x[rows])

    if plan.proxied:  # once: neither the proxy nor D_new changes
        chunk = min(CHUNK, data.y.shape[0])
        towards = by_rows(
            lambda rows: _wide(model.apply(proxy, inputs(rows))), numbered(selected), chunk=chunk
        )

    def losses(params, rows):  # equation (8)
        logits = _wide(model.apply(params, inputs(rows)))
        loss = _cross_entropy(logits, data.y[rows])
        if not plan.proxied:
            return loss
        pair = (logits, towards[rows]) if plan.compat == "official" else (towards[rows], logits)
        return loss + knobs.gamma * kl(*pair, temperature=knobs.temperature)

    params = descend(
        keys.finetune, losses, start.params, selected,
        epochs=knobs.epochs, rate=knobs.learning_rate, config=plan.finetune, mask=start.mask,
    )  # fmt: skip
    count = lambda rows: rows.sum(dtype=jnp.float32)
    scored = _scores(knobs.retain) * count(retain) + _scores(knobs.forget) * count(forget)
    guided = (knobs.gamma > 0) & plan.proxied
    through = guided * (trained * knobs.proxy_epochs * count(retain) + count(selected) / 3)
    status = jnp.where(tree.all_finite(params), Status.OK, Status.NOT_FINITE)
    empty = ~ours.any() | ~theirs.any()
    return Unlearned(
        params=params,
        proxy=proxy,
        selected=selected,
        kept_retain=count(ours) / count(retain),
        kept_forget=count(theirs) / count(forget),
        grads=scored / 3 + through + knobs.epochs * count(selected),
        status=jnp.where(empty, Status.EMPTY_SELECTION, status).astype(jnp.int32),
    )


def _noise(key: Array, x: Array, forget: Array) -> Array:
    """Standard normal for the rows to forget, each row from a key of its own; zeros elsewhere.

    For all of them, selected or not, so that it is the same for all settings of a sweep.
    """
    draw = jax.vmap(
        lambda row: jax.random.normal(jax.random.fold_in(key, row), x.shape[1:], x.dtype)
    )
    return by_rows(draw, numbered(forget), chunk=min(CHUNK, x.shape[0]))


def _selected(scores: Array, rule: Rule, among: Array, key: Array, *, plan: Plan) -> Array:
    """What a rule keeps; in the official code as many rows, but any."""
    rows = kept(scores, rule, among=among, key=key)
    if plan.compat == "official" and not isinstance(rule, Random):
        share = rows.sum() / jnp.maximum(among.sum(), 1)
        rows = kept(scores, Random(share), among=among, key=key)
    return rows


def _scores(rule: Rule) -> bool:
    return not isinstance(rule, Random)


def _wide(logits: Array) -> Array:
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def _cross_entropy(logits: Array, y: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(_wide(logits), y)


def enough_rows(config: ConMUConfig, retain: Array, forget: Array) -> None:
    """A bound by a standard deviation needs two rows: a class may have fewer.

    Args:
      config: has the bounds.
      retain, forget: ``bool[..., n]``.
    """
    for name, rule, group in (("retain", config.retain, retain), ("forget", config.forget, forget)):
        if not isinstance(rule, Sigma) or not _validate.known(group):
            continue
        size = int(np.asarray(group).sum(-1).min())
        if size < 2:
            raise ValueError(
                f"{name}={rule!r} bounds scores by their standard deviation, but there "
                f"{'is 1 row' if size == 1 else 'are no rows'} to {name}: ask for more of a class, "
                "or take a Quantile."
            )


def _apart(forget: Array, retain: Array) -> None:
    """A row to forget among those that remain would train the proxy."""
    if not (_validate.known(forget) and _validate.known(retain)):
        return
    kept, gone = np.asarray(retain), np.asarray(forget)
    if not kept.any():
        raise ValueError("retain names no rows: nothing remains to train on.")
    if both := int((kept & gone).sum()):
        raise ValueError(
            f"retain and forget have {both} rows in common: a row cannot remain and be forgotten. "
            "Give retain=~forget without the rows that were removed before."
        )


def refuse_empty(done: Unlearned, config: ConMUConfig) -> None:
    """Raises if a rule selected nothing; known values only."""
    if not _validate.known(done.status) or int(done.status) != Status.EMPTY_SELECTION:
        return
    for name, rule, share in (
        ("retain", config.retain, done.kept_retain),
        ("forget", config.forget, done.kept_forget),
    ):
        if share == 0:
            raise ValueError(
                f"{name}={rule!r} selects none of the rows to {name} (kept of those to retain: "
                f"{float(done.kept_retain):.1%}, of those to forget: {float(done.kept_forget):.1%})"
                ". Widen the bounds, or take a Quantile, which keeps the fraction it is given."
            )


def _same_architecture(name: str, given: PyTree | None, params: Params) -> None:
    if given is None:
        return
    shapes = lambda value: jax.tree.map(jnp.shape, value)
    if jax.tree.structure(given) != jax.tree.structure(params) or shapes(given) != shapes(params):
        raise ValueError(
            f"{name} has another architecture than params ({_described(given)}, not "
            f"{_described(params)}): it must be of the same model."
        )


def _described(params: Params) -> str:
    leaves = jax.tree.leaves(params)
    shapes = ", ".join(str(jnp.shape(leaf)) for leaf in leaves[:4])
    return f"{len(leaves)} leaves: {shapes}{', ...' if len(leaves) > 4 else ''}"

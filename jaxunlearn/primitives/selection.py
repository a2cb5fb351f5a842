"""Which rows matter: EL2N scores, and rules that pick rows by them.

A selection never changes a shape: it is a mask over all rows, or row numbers padded to the length
of all rows beside their count. So how many rows are selected can be an argument, not a shape, and
another size compiles nothing.

The numbers in a rule may be traced, so that one program serves a grid of them under ``jax.vmap``;
the kind of a rule is static.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _sharding, _validate
from jaxunlearn.types import ApplyFn, Array, Dataset, Params


def _plain(*values) -> bool:
    """Whether these are Python numbers: arrays and tracers are not looked at."""
    return all(isinstance(value, int | float) for value in values)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["low", "high"], meta_fields=["strict"]
)
@dataclasses.dataclass(frozen=True)
class Sigma:
    """Rows whose score lies within ``[mean - low * std, mean + high * std]``, ConMU equation (3).

    Mean and (population) standard deviation are those of the rows to choose among. This is no
    quantile: scores of a model that knows its rows are skewed, most of them near 0, and the
    paper's (.17, .3) kept 11% of a memorised set (docs/papers/conmu.md). Look at the count.

    Attributes:
      low: the paper's z_1, >= 0 by use though any number is taken.
      high: z_2.
      strict: leave out the bounds themselves, as the official code does.

    Example:
      >>> scores = jnp.array([0.0, 1.0, 2.0, 3.0, 4.0])  # mean 2, deviation 1.41
      >>> kept(scores, Sigma(0.8, 0.8)).tolist()
      [False, True, True, True, False]
    """

    low: Array | float = 0.5
    high: Array | float = 0.5
    strict: bool = False

    def __post_init__(self):
        if _plain(self.low, self.high) and not self.low + self.high >= 0:
            raise ValueError(
                f"low={self.low!r} and high={self.high!r} bound nothing: mean - low * std must not "
                "exceed mean + high * std, so low + high must be >= 0."
            )


@functools.partial(jax.tree_util.register_dataclass, data_fields=["low", "high"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Quantile:
    """Rows ranked from ``low`` to ``high`` by score, as fractions; exact, equal scores by number.

    ``round(high * m) - round(low * m)`` of m rows, but at least one if high > low: (0, .25) are
    the quarter with the smallest scores, (.75, 1) the quarter with the largest, (0, 1) all.

    Attributes:
      low: fraction of the rows to leave out below, in [0, 1].
      high: fraction of the rows up to which to keep, in [low, 1].

    Example:
      >>> kept(jnp.array([0.3, 0.1, 0.4, 0.2]), Quantile(0.25, 0.75)).tolist()
      [True, False, False, True]
    """

    low: Array | float = 0.0
    high: Array | float = 1.0

    def __post_init__(self):
        if _plain(self.low, self.high) and not 0 <= self.low <= self.high <= 1:
            raise ValueError(
                f"low={self.low!r} and high={self.high!r} must be fractions with "
                "0 <= low <= high <= 1."
            )


@functools.partial(jax.tree_util.register_dataclass, data_fields=["fraction"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Random:
    """``round(fraction * m)`` of m rows, at least one, all such sets equally likely.

    The control that every rule has to beat; also what the official code of ConMU does, which
    gives each score to another row (at the count that its bounds keep).

    Attributes:
      fraction: in [0, 1]; 0 selects nothing.

    Example:
      >>> int(kept(jnp.zeros(8), Random(0.25), key=jax.random.key(0)).sum())
      2
    """

    fraction: Array | float = 1.0

    def __post_init__(self):
        if _plain(self.fraction) and not 0 <= self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction!r} must lie in [0, 1].")


Rule = Sigma | Quantile | Random


class Selection(NamedTuple):
    """Rows by number, in a shape that does not depend on how many they are.

    Attributes:
      rows: ``int32[n]``, the selected rows in ascending order, then n, which
        ``x.at[rows].set(...)`` drops.
      count: ``int32``, how many of them are rows.

    Example:
      >>> chosen = select(jnp.array([0.3, 0.1, 0.4, 0.2]), Quantile(0.5, 1.0))
      >>> chosen.rows.tolist(), int(chosen.count)
      ([0, 2, 4, 4], 2)
    """

    rows: Array
    count: Array


def el2n(
    apply_fn: ApplyFn,
    params: Params,
    data: Dataset,
    *,
    among: Array | None = None,
    chunk: int = 256,
) -> Array:
    """EL2N score of every row, ``||softmax(f(x)) - onehot(y)||_2``, ConMU equation (1).

    Paul et al. 2021 average it over networks early in training; ConMU, as here, takes the
    trained network once. Its official code computes just this, but from a shuffled loader, so
    that row i gets the score of another row.

    Args:
      apply_fn: ``apply_fn(params, x[B, ...]) -> logits[B, C]``.
      params: its parameters.
      data: rows.
      among: ``bool[n]``, the rows to score; the others cost nothing and get nan. All by default.
      chunk: rows computed at once.

    Returns:
      ``float32[n]`` (or wider) in [0, sqrt 2].

    Cost: one forward pass, 1 / 3 of a sample gradient for each row. Memory: the activations of
    ``chunk`` rows.

    Raises:
      ValueError: rows that do not match, ``chunk`` below 1, a mask of another length.

    Example:
      >>> data = Dataset(jnp.array([[0.0, 0.0], [100.0, 0.0]]), jnp.array([0, 0]))
      >>> [round(float(s), 3) for s in el2n(lambda params, x: x, None, data)]
      [0.707, 0.0]
    """
    data = _sharding.automatic(data)
    _validate.rows(data)
    _validate.whole(chunk=chunk)
    n = data.y.shape[0]
    if among is None:
        among = jnp.ones(n, bool)
    _validate.keep_mask(among, n, name="among")
    return _el2n(params, data, among, apply_fn=apply_fn, chunk=min(chunk, n))


@functools.partial(jax.jit, static_argnames=("apply_fn", "chunk"))
def _el2n(params: Params, data: Dataset, among: Array, *, apply_fn: ApplyFn, chunk: int) -> Array:
    def score(rows):
        logits = apply_fn(params, data.x[rows])
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        target = jax.nn.one_hot(data.y[rows], logits.shape[-1], dtype=logits.dtype)
        return jnp.linalg.norm(jax.nn.softmax(logits) - target, axis=-1)

    return by_rows(score, numbered(among), chunk=chunk, fill=jnp.nan)


def by_rows(
    function: Callable[[Array], Array], chosen: Selection, *, chunk: int, fill: float = 0.0
) -> Array:
    """``function(rows: int[chunk]) -> [chunk, ...]`` of selected rows, chunk by chunk.

    Costs what the selected rows cost, rounded up to a chunk: their number is the bound of a loop,
    not a shape.

    Args:
      function: of row numbers, all of them valid.
      chosen: the rows; they index the result.
      chunk: rows at once.
      fill: for the rows that are not selected.

    Returns:
      ``[n, ...]``.

    Example:
      >>> squares = lambda rows: jnp.square(rows).astype(float)
      >>> by_rows(squares, numbered(jnp.array([False, True, True])), chunk=2).tolist()
      [0.0, 1.0, 4.0]
    """
    n = chosen.rows.shape[0]
    parts = -(-n // chunk)
    rows = jnp.pad(chosen.rows, (0, parts * chunk - n), constant_values=n).reshape(parts, chunk)
    shape = jax.eval_shape(function, rows[0])
    out = jnp.full((n, *shape.shape[1:]), fill, shape.dtype)

    def add(part, out):
        some = rows[part]
        return out.at[some].set(function(jnp.minimum(some, n - 1)), mode="drop")

    return jax.lax.fori_loop(0, -(-chosen.count // chunk), add, out)


def kept(
    scores: Array, rule: Rule, *, among: Array | None = None, key: Array | None = None
) -> Array:
    """The rows that a rule selects, as a mask.

    Args:
      scores: ``float[n]``; nan is never within bounds, and ranks last.
      rule: :class:`Sigma`, :class:`Quantile` or :class:`Random`.
      among: ``bool[n]``, the rows to choose among; all by default. Mean, deviation and ranks are
        theirs.
      key: ``jax.random.key``, for :class:`Random` only.

    Returns:
      ``bool[n]``, True for selected rows.

    Cost: O(n log n) for ranks, O(n) for :class:`Sigma`.

    Raises:
      ValueError: shapes that do not match; a random rule without a key; deviations of fewer than
        two rows. What selects nothing is no error here: look at the count.

    Example:
      >>> kept(jnp.array([5.0, 1.0, 2.0]), Quantile(0, 0.5), among=jnp.array([False, True, True]))
      Array([False,  True, False], dtype=bool)
    """
    scores = jnp.asarray(scores)
    if scores.ndim != 1 or scores.shape[0] == 0:
        raise ValueError(f"scores has shape {scores.shape}, but must be [n]: one for each row.")
    if among is None:
        among = jnp.ones(scores.shape, bool)
    _validate.keep_mask(among, scores.shape[0], name="among")
    if isinstance(rule, Random):
        if key is None:
            raise ValueError("key is None, but a random selection needs a jax.random.key.")
        m = among.sum()
        count = jnp.where(rule.fraction > 0, jnp.maximum(jnp.round(rule.fraction * m), 1), 0)
        return (random_order(key, among) < count) & among
    if isinstance(rule, Quantile):
        rank, m = _rank(scores, among), among.sum()
        low = jnp.minimum(jnp.round(rule.low * m), m - 1)
        high = jnp.where(rule.high > rule.low, jnp.maximum(jnp.round(rule.high * m), low + 1), 0)
        return (rank >= low) & (rank < high) & among
    if not isinstance(rule, Sigma):
        raise ValueError(f"rule={rule!r} must be a Sigma, a Quantile or a Random.")
    if _validate.known(among) and int(np.asarray(among).sum()) < 2:
        raise ValueError(
            f"among names {int(np.asarray(among).sum())} rows, but a mean and a standard deviation "
            "of scores need two: take a Quantile, or more rows."
        )
    wide = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    mean, std = jnp.mean(wide, where=among), jnp.std(wide, where=among)
    low, high = mean - rule.low * std, mean + rule.high * std
    within = (low < wide) & (wide < high) if rule.strict else (low <= wide) & (wide <= high)
    return within & among


def select(
    scores: Array, rule: Rule, *, among: Array | None = None, key: Array | None = None
) -> Selection:
    """The rows that a rule selects, as padded row numbers and their count.

    Args, cost and errors as :func:`kept`.

    Example:
      >>> chosen = select(jnp.array([3.0, 1.0, 2.0]), Quantile(0, 0.7))
      >>> x = jnp.array([10.0, 20.0, 30.0])
      >>> x[chosen.rows[: int(chosen.count)]].tolist()
      [20.0, 30.0]
    """
    return numbered(kept(scores, rule, among=among, key=key))


def numbered(mask: Array) -> Selection:
    """A mask as a :class:`Selection`.

    Example:
      >>> numbered(jnp.array([False, True, True])).rows.tolist()
      [1, 2, 3]
    """
    n = mask.shape[0]
    (rows,) = jnp.nonzero(mask, size=n, fill_value=n)
    return Selection(rows.astype(jnp.int32), mask.sum().astype(jnp.int32))


def random_order(key: Array, among: Array) -> Array:
    """``int32[n]``: a random rank for each row of ``among``, 0 first; the others rank behind.

    Example:
      >>> order = random_order(jax.random.key(0), jnp.array([True, False, True]))
      >>> sorted(order.tolist()), int(order[1])
      ([0, 1, 2], 2)
    """
    return _rank(jax.random.permutation(key, among.shape[0]), among)


def _rank(values: Array, among: Array) -> Array:
    """Rank of each row of ``among`` by value, equal values by number; the others behind."""
    order = jnp.lexsort((values, ~among))
    n = values.shape[0]
    return jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32))

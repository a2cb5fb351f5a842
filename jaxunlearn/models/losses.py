"""Loss functions of one unbatched example, made from a model's ``apply``."""

import functools

import jax.numpy as jnp
import optax

from jaxunlearn.types import ApplyFn, Array, Dataset, LossFn, Params


def cross_entropy(apply_fn: ApplyFn) -> LossFn:
    """Softmax cross-entropy of one example, ``-log softmax(f(x))_y``.

    Args:
      apply_fn: ``apply_fn(params, x[B, ...]) -> logits[B, C]``.

    Returns:
      ``loss_fn(params, example) -> scalar`` in nats, for ONE unbatched
      ``Dataset`` row (``x[...]``, ``y[]``). Logits below float32 are first
      widened to it. The same ``apply_fn`` gives the same ``loss_fn``, so that
      functions jitted with it as a static argument compile once.

    Raises:
      ValueError: ``apply_fn`` cannot be hashed, as an equinox module cannot.

    Example:
      >>> loss_fn = cross_entropy(lambda params, x: x @ params)
      >>> example = Dataset(jnp.ones(3), jnp.array(1))
      >>> f"{loss_fn(jnp.zeros((3, 2)), example):.4f}"  # log 2
      '0.6931'
    """
    try:
        hash(apply_fn)
    except TypeError as error:
        raise ValueError(
            f"apply_fn is a {type(apply_fn).__name__} that cannot be hashed ({error}): "
            "wrap it in a function, and keep that one to reuse what was compiled for it."
        ) from None
    return _cross_entropy(apply_fn)


@functools.lru_cache
def _cross_entropy(apply_fn: ApplyFn) -> LossFn:
    def loss_fn(params: Params, example: Dataset) -> Array:
        logits = apply_fn(params, example.x[None])[0]
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return optax.softmax_cross_entropy_with_integer_labels(logits, example.y)

    return loss_fn

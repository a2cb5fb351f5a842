"""Classifiers as pairs of pure functions, and the loss to train them with.

Every constructor returns a :class:`~jaxunlearn.Model`, the same object for the same
arguments. Parameters are a plain dict of dicts of arrays, without flax's outer
``{"params": ...}``, in the dtype of the ``x`` given to ``init``. Any other library
works as well: all that is asked for is ``init(key, x) -> params`` and
``apply(params, x[B, ...]) -> logits[B, C]``.
"""

from collections.abc import Callable

from jaxunlearn import _validate
from jaxunlearn.models.conv import Conv, conv
from jaxunlearn.models.deep import resnet18, vgg16
from jaxunlearn.models.dense import logistic, mlp
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.models.pooling import avg_pool, max_pool
from jaxunlearn.models.small import cnn, lenet
from jaxunlearn.types import Model

__all__ = [
    "MODELS",
    "Conv",
    "avg_pool",
    "cnn",
    "conv",
    "cross_entropy",
    "get",
    "lenet",
    "logistic",
    "max_pool",
    "mlp",
    "resnet18",
    "vgg16",
]

MODELS: dict[str, Callable[[int], Model]] = {
    "logistic": logistic,
    "mlp": mlp,
    "cnn": cnn,
    "lenet": lenet,
    "resnet18": resnet18,
    "vgg16": vgg16,
}


def get(name: str, num_classes: int) -> Model:
    """The model called ``name``, one of ``MODELS``, with its default options.

    Args:
      name: a key of ``MODELS``.
      num_classes: C, at least 2.

    Raises:
      ValueError: an unknown name (the nearest ones are given), ``num_classes`` < 2.

    Example:
      >>> get("mlp", 10) is mlp(10)
      True
    """
    _validate.one_of(MODELS, model=name)
    return MODELS[name](num_classes)

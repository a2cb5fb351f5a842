"""Small convolutional networks, without normalisation."""

import flax.linen as nn

from jaxunlearn import _validate
from jaxunlearn.models._linen import flatten, linen_model
from jaxunlearn.models.conv import Conv
from jaxunlearn.models.pooling import avg_pool
from jaxunlearn.types import Model


def cnn(num_classes: int) -> Model:
    """Three 3 x 3 convolutions with stride 2, then two dense layers.

    16, 32 and 64 channels, padding 1 (28 -> 14 -> 7 -> 4 pixels), dense 64, ReLU
    everywhere: 89,546 parameters for 28 x 28 x 1 images and 10 classes.

    Args:
      num_classes: C, at least 2.

    Returns:
      A :class:`~jaxunlearn.Model` for images ``float[B, height, width, channels]``
      of at least 8 x 8; the image size is fixed by ``init``.

    Cost: 615 thousand multiplications for the logits of an image of 28 x 28.

    Raises:
      ValueError: ``num_classes`` below 2; inputs that are no floats, no images, or
        too small.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxunlearn import tree
      >>> tree.size(cnn(10).init(jax.random.key(0), jnp.ones((1, 28, 28, 1))))
      89546
    """
    _validate.whole(2, num_classes=num_classes)
    return linen_model("cnn", _CNN, num_classes)


def lenet(num_classes: int) -> Model:
    """LeNet-5 of LeCun et al., 1998, Gradient-based learning applied to document recognition.

    Two 5 x 5 convolutions (6 channels with padding 2, 16 without), each followed
    by tanh and 2 x 2 average pooling, then dense 120, 84 and C: 61,706 parameters
    for 28 x 28 x 1 images and 10 classes. tanh and averages make it smooth, so
    Hessians exist everywhere, which ReLU and max pooling do not give.

    It differs from the paper as most later versions do: full connections between
    the two convolutions, averages without weights, and a linear softmax layer
    for the radial basis functions.

    Args:
      num_classes: C, at least 2.

    Returns:
      A :class:`~jaxunlearn.Model` for images ``float[B, height, width, channels]``
      of at least 12 x 12; the image size is fixed by ``init``.

    Cost: 417 thousand multiplications for the logits of an image of 28 x 28.

    Raises:
      ValueError: ``num_classes`` below 2; inputs that are no floats, no images, or
        too small.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxunlearn import tree
      >>> tree.size(lenet(10).init(jax.random.key(0), jnp.ones((1, 28, 28, 1))))
      61706
    """
    _validate.whole(2, num_classes=num_classes)
    return linen_model("lenet", _LeNet, num_classes)


class _CNN(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        for channels in (16, 32, 64):
            x = nn.relu(Conv(channels, (3, 3), strides=2, padding=((1, 1), (1, 1)))(x))
        x = nn.relu(nn.Dense(64)(flatten(x)))
        return nn.Dense(self.num_classes)(x)


class _LeNet(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = avg_pool(nn.tanh(Conv(6, (5, 5), padding="SAME")(x)))
        x = avg_pool(nn.tanh(Conv(16, (5, 5), padding="VALID")(x)))
        x = flatten(x)
        for width in (120, 84):
            x = nn.tanh(nn.Dense(width)(x))
        return nn.Dense(self.num_classes)(x)

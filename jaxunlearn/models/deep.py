"""ResNet-18 and VGG-16 for small images, normalised over groups of channels.

Batch normalisation is replaced by group normalisation (Wu & He, 2018) in both. It
normalises each image by itself, so the logits of a row depend on that row alone:
a per-sample gradient is well defined, an unlearned row leaves nothing behind in
running statistics, and training and prediction are the same function.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxunlearn import _validate
from jaxunlearn.models._linen import linen_model
from jaxunlearn.models.conv import Conv
from jaxunlearn.models.pooling import max_pool
from jaxunlearn.types import Model

_PAD = ((1, 1), (1, 1))


def resnet18(num_classes: int) -> Model:
    """ResNet-18 (He et al., 2016) with the stem for small images and GroupNorm.

    A 3 x 3 stem without pooling, four stages of two basic blocks (64, 128, 256, 512
    channels; the last three halve the image), global average, one dense layer.
    GroupNorm with 32 groups stands for batch normalisation, because per-sample
    gradients and unlearning need a network without batch statistics. 11,173,962
    parameters for 3 input channels and 10 classes, as with batch normalisation.

    Args:
      num_classes: C, at least 2.

    Returns:
      A :class:`~jaxunlearn.Model` for images ``float[B, height, width, channels]``
      of at least 8 x 8; parameters do not depend on the image size.

    Cost: 555 million multiplications for the logits of an image of 32 x 32. On CPU each
    3 x 3 layer keeps its input 9 times for the backward pass, or 9 times the pixels of
    its output if it halves the image (:func:`~jaxunlearn.models.conv.conv`): by their
    shapes 17 MB of float32 for such an image.

    Raises:
      ValueError: ``num_classes`` below 2; inputs that are no floats, no images, or
        too small.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = resnet18(10)
      >>> x = jnp.ones((2, 32, 32, 3))
      >>> params = jax.eval_shape(model.init, jax.random.key(0), x)
      >>> jax.eval_shape(model.apply, params, x).shape
      (2, 10)
    """
    _validate.whole(2, num_classes=num_classes)
    return linen_model("resnet18", _ResNet18, num_classes)


def vgg16(num_classes: int) -> Model:
    """VGG-16 (Simonyan & Zisserman, 2015) for small images, with GroupNorm.

    Thirteen 3 x 3 convolutions in five blocks (64, 128, 256, 512, 512 channels), 2 x 2
    max pooling after the first four, and the maximum over all that is left after
    the fifth: the usual last pooling for 32 x 32 images, and none at all for 28 x 28,
    which are a single pixel by then. One dense layer follows. GroupNorm with 32
    groups after every convolution stands for batch normalisation, because
    per-sample gradients and unlearning need a network without batch statistics.
    14,728,266 parameters for 3 input channels and 10 classes.

    Args:
      num_classes: C, at least 2.

    Returns:
      A :class:`~jaxunlearn.Model` for images ``float[B, height, width, channels]``
      of at least 16 x 16; parameters do not depend on the image size.

    Cost: 313 million multiplications for the logits of an image of 32 x 32. On CPU each
    layer keeps 9 copies of its input for the backward pass
    (:func:`~jaxunlearn.models.conv.conv`): by their shapes 6.7 MB of float32 for such
    an image.

    Raises:
      ValueError: ``num_classes`` below 2; inputs that are no floats, no images, or
        too small.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> model = vgg16(10)
      >>> x = jnp.ones((2, 28, 28, 1))
      >>> params = jax.eval_shape(model.init, jax.random.key(0), x)
      >>> jax.eval_shape(model.apply, params, x).shape
      (2, 10)
    """
    _validate.whole(2, num_classes=num_classes)
    return linen_model("vgg16", _VGG16, num_classes)


def _norm():
    # PyTorch's epsilon: flax's 1e-6 lets a nearly constant image blow up ten times more.
    return nn.GroupNorm(num_groups=32, epsilon=1e-5)


class _BasicBlock(nn.Module):
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x):
        y = Conv(self.channels, (3, 3), strides=self.stride, padding=_PAD, use_bias=False)(x)
        y = nn.relu(_norm()(y))
        y = Conv(self.channels, (3, 3), padding=_PAD, use_bias=False)(y)
        y = _norm()(y)
        if x.shape != y.shape:
            x = Conv(self.channels, (1, 1), strides=self.stride, use_bias=False)(x)
            x = _norm()(x)
        return nn.relu(x + y)


class _ResNet18(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(_norm()(Conv(64, (3, 3), padding=_PAD, use_bias=False)(x)))
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            x = _BasicBlock(channels, stride)(x)
            x = _BasicBlock(channels, 1)(x)
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


class _VGG16(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, x):
        for block, (channels, layers) in enumerate(
            ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
        ):
            if block:
                x = max_pool(x)
            for _ in range(layers):
                x = nn.relu(_norm()(Conv(channels, (3, 3), padding=_PAD)(x)))
        return nn.Dense(self.num_classes)(jnp.max(x, axis=(1, 2)))

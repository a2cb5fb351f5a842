"""Where training data comes from: embedded in a dependency, or prepared by TFDS."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxunlearn import _validate
from jaxunlearn.data import prepared
from jaxunlearn.types import Array, Dataset


class Splits(NamedTuple):
    """Training and test rows of one dataset.

    Attributes:
      train: what models are trained on; requests are masks over its rows.
      test: rows that no model may see.
      num_classes: labels lie in ``[0, num_classes)``.
      name: as it was given to :func:`load`.

    Example:
      >>> load("breast_cancer").test.x.shape
      (143, 30)
    """

    train: Dataset
    test: Dataset
    num_classes: int
    name: str


def load(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Splits:
    """Loads a dataset as float32 inputs and int32 labels, whole, on the default device.

    ``digits``: 1,797 handwritten digits, ``x: [n, 8, 8, 1]`` in [0, 1], ten classes
    (1,347 train, 450 test). ``breast_cancer``: 569 patients, ``x: [n, 30]`` with mean 0
    and standard deviation 1 over the training rows, two classes (426 train, 143 test).
    Both are real data that come with scikit-learn; a quarter is the test split, drawn
    once and for all with seed 0 and the class proportions kept.

    Any other name is a TFDS image-classification set, ``name[/config][:version]``, with
    a ``train`` and a ``test`` split, images of one size in 8 bits, prepared in the
    ``array_record`` format under ``data_dir``: ``x: [n, height, width, channels]`` in
    [0, 1] (divided by 255). Rows keep the order of TFDS. Nothing is ever downloaded.

    Args:
      name: of the dataset.
      data_dir: the folder with prepared TFDS sets; without it the one of TFDS, that is
        the environment variable ``TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.

    Cost: the first load of a TFDS set decodes its images one by one, and keeps them as
    8-bit ``.npy`` files: beside the data if that folder can be written to, else in
    ``$XDG_CACHE_HOME/jaxunlearn`` (``~/.cache/jaxunlearn``). Later loads map
    those files into memory. ``x`` is made from them in one pass on the device, so the
    peak is the float32 array (188 MB for 60,000 images of 28 x 28) plus half as much.

    Raises:
      ValueError: the name is unknown (the error offers the nearest ones), or the set is
        no image classification, has no such splits or another file format.
      FileNotFoundError: TFDS knows the set, but it is not prepared under ``data_dir``; the
        error says what to prepare, where to, and with which command.

    Example:
      >>> splits = load("digits")
      >>> splits.train.x.shape, splits.test.y.shape, splits.num_classes
      ((1347, 8, 8, 1), (450,), 10)
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name={name!r} must be the name of a dataset, such as 'digits'.")
    if name in _EMBEDDED:
        train, test, num_classes = _EMBEDDED[name]()
    else:
        folder = prepared.find(name, data_dir, embedded=DATASETS)
        train_rows, test_rows, num_classes = prepared.read(folder)
        train, test = _scaled(train_rows), _scaled(test_rows)
    for split, data in (("train", train), ("test", test)):
        _validate.dataset(data, num_classes=num_classes, name=f"{name} ({split})")
    return Splits(train, test, num_classes, name)


def _scaled(rows: np.ndarray) -> Dataset:
    # The 256 levels are divided here and looked up on the device. A quarter of the bytes
    # travels there, half the memory is needed, and every backend gives the same bits:
    # compiled divisions by 255 differ in the last one.
    levels = np.arange(256, dtype=np.float32) / np.float32(255)
    return Dataset(_look_up(levels, rows["image"]), jnp.asarray(rows["label"], jnp.int32))


@jax.jit
def _look_up(levels: Array, pixels: Array) -> Array:
    return levels.at[pixels].get(mode="promise_in_bounds")


def _digits() -> tuple[Dataset, Dataset, int]:
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    x, x_test, y, y_test = _split(data.images[..., None] / 16, data.target)  # ink in 0..16
    return _dataset(x, y), _dataset(x_test, y_test), 10


def _breast_cancer() -> tuple[Dataset, Dataset, int]:
    from sklearn.datasets import load_breast_cancer

    data: Any = load_breast_cancer()
    x, x_test, y, y_test = _split(data.data, data.target)
    # Of the training rows alone: the test rows must not reach the model in any way.
    mean, scale = x.mean(0, keepdims=True), x.std(0, keepdims=True)
    return _dataset((x - mean) / scale, y), _dataset((x_test - mean) / scale, y_test), 2


def _split(x: np.ndarray, y: np.ndarray) -> Any:
    from sklearn.model_selection import train_test_split

    return train_test_split(x, y, test_size=0.25, random_state=0, stratify=y)


def _dataset(x: np.ndarray, y: np.ndarray) -> Dataset:
    return Dataset(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32))


_EMBEDDED: dict[str, Callable[[], tuple[Dataset, Dataset, int]]] = {
    "digits": _digits,
    "breast_cancer": _breast_cancer,
}
# The names that need neither a network nor prepared data.
DATASETS = tuple(_EMBEDDED)

"""Embedded data against scikit-learn's arrays; MNIST against what is known of it."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy.spatial import KDTree
from sklearn.datasets import load_breast_cancer, load_digits

from jaxunlearn import data
from jaxunlearn.data import prepared
from jaxunlearn.data.sources import _scaled

REAL = Path(
    os.environ.get("JAXUNLEARN_TFDS") or Path(__file__).parents[2].parent / "shared" / "tfds"
)


def needs(name):
    return pytest.mark.skipif(
        not (REAL / name).is_dir(), reason=f"{name} is not prepared in {REAL} (JAXUNLEARN_TFDS)"
    )


def unit_range(x):
    """Columns moved to [0, 1], which undoes any scaling of them."""
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    span = np.ptp(x, 0, keepdims=True)
    return (x - x.min(0, keepdims=True)) / np.where(span > 0, span, 1)


@pytest.mark.parametrize(
    ("name", "source", "shape"),
    [("digits", load_digits, (8, 8, 1)), ("breast_cancer", load_breast_cancer, (30,))],
)
def test_embedded_data_is_the_original_split_by_class(name, source, shape):
    x, y = source(return_X_y=True)
    splits = data.load(name)
    assert isinstance(splits, data.Splits) and splits.name == name
    assert splits.num_classes == len(np.unique(y))
    for part in splits[:2]:
        assert isinstance(part.x, jax.Array)
        assert part.x.shape[1:] == shape and part.x.dtype == np.float32
        assert part.y.dtype == np.int32
        # The proportions of the classes are kept, to within one row.
        counts = np.bincount(part.y)
        assert np.abs(counts - np.bincount(y) * len(part.y) / len(y)).max() <= 1
    assert len(splits.test.y) == int(np.ceil(len(y) / 4))
    # Together they are the original rows with their labels, none lost, none twice.
    both_x, both_y = (np.concatenate(parts) for parts in zip(*splits[:2], strict=True))
    distances, rows = KDTree(unit_range(both_x)).query(unit_range(x))
    assert distances.max() < 1e-5
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(y)))
    np.testing.assert_array_equal(both_y[rows], y)


def test_digits_are_scaled_by_the_full_ink():
    x = data.load("digits").train.x
    assert set(np.unique(x * 16).tolist()) == set(range(17))


def test_breast_cancer_is_standardised_by_training_rows_alone():
    train, test = data.load("breast_cancer")[:2]
    x = np.asarray(train.x, np.float64)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(x.std(0), 1, atol=1e-6)
    # Were all rows used, their mean would be zero instead.
    assert np.abs(np.concatenate([train.x, test.x]).mean(0)).max() > 1e-3


def test_embedded_splits_never_change():
    # Records name only the dataset: another split would make old ones incomparable.
    hashes = {name: data.split_hash(data.load(name).train.y > 0) for name in data.DATASETS}
    assert hashes == {"digits": "d64d8ae74a5eeb90", "breast_cancer": "a44fadd380f33f14"}


def test_all_256_levels_are_divided_exactly():
    rows = np.zeros(1, [("image", "u1", (16, 16, 1)), ("label", "<i4")])
    rows["image"] = np.arange(256).reshape(1, 16, 16, 1)
    exact = (np.arange(256) / 255).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(_scaled(rows).x).ravel(), exact)


@needs("mnist")
def test_real_mnist_test_images():
    builder = tfds.builder_from_directory(prepared.find("mnist", REAL, ()))
    rows = np.empty(10_000, [("image", "u1", (28, 28, 1)), ("label", "<i4")])
    prepared._decode(builder, "test", ("image", "label"), rows)
    counts = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(rows["label"]).tolist() == counts
    assert (rows["image"].min(), rows["image"].max()) == (0, 255)
    assert abs(rows["image"].mean() / 255 - 0.1325) < 5e-5


@pytest.mark.slow
@needs("mnist")
def test_real_mnist(monkeypatch):
    first = data.load("mnist", data_dir=REAL)
    assert first.train.x.shape == (60_000, 28, 28, 1) and first.test.x.shape[0] == 10_000
    assert first.num_classes == 10
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(first.train.y).tolist() == counts
    # The mean and deviation that every MNIST tutorial normalises with.
    x = np.asarray(first.train.x)
    assert (x.min(), x.max()) == (0, 1)
    assert abs(x.mean(dtype=np.float64) - 0.1307) < 5e-5
    assert abs(x.std(dtype=np.float64) - 0.3081) < 5e-5
    monkeypatch.delattr(prepared, "_decode")
    second = data.load("mnist", data_dir=REAL)
    np.testing.assert_array_equal(second.train.x, x)


@pytest.mark.slow
@needs("fashion_mnist")
def test_real_fashion_mnist():
    splits = data.load("fashion_mnist", data_dir=REAL)
    for part in splits[:2]:
        assert part.x.shape[1:] == (28, 28, 1)
        assert (float(part.x.min()), float(part.x.max())) == (0, 1)
        counts = np.bincount(part.y, minlength=10)
        assert len(counts) == 10
    assert len(splits.test.y) == 10_000 and len(splits.train.y) in (50_000, 60_000)
    both = np.bincount(splits.train.y) + np.bincount(splits.test.y)
    assert (both == both[0]).all()

"""Partitions: every row has one owner, skews follow their laws, files hold what was drawn."""

import numpy as np
import pytest
from scipy import stats

from jaxunlearn.federated import partition
from jaxunlearn.federated.partition import Partition

Y = np.random.default_rng(0).integers(0, 5, 203)

MAKERS = {
    "iid": lambda seed: partition.iid(seed, Y.size, 7),
    "dirichlet": lambda seed: partition.dirichlet(seed, Y, 7, alpha=0.4),
    "class": lambda seed: partition.by_class(seed, Y, 7, classes=2),
}


@pytest.mark.parametrize("name", MAKERS)
def test_every_row_has_one_owner(name):
    part = MAKERS[name](3)
    owned = part.rows[part.present]
    assert sorted(owned) == list(range(Y.size))
    assert part.counts.min() >= 1 and part.n == Y.size
    for own, count in zip(*part, strict=True):  # padding repeats rows of the same client
        assert set(own) == set(own[:count])


@pytest.mark.parametrize("name", MAKERS)
def test_the_seed_decides(name):
    digest = [partition.partition_hash(MAKERS[name](seed)) for seed in (3, 3, 4)]
    assert digest[0] == digest[1] != digest[2]


def test_iid_is_equal_sizes_and_a_random_order():
    assert set(partition.iid(0, 203, 7).counts) == {29}
    # The client of row 0 over many seeds is uniform, and a sorted deal is not.
    owners = [int(np.argwhere(partition.iid(seed, 12, 4).rows == 0)[0, 0]) for seed in range(400)]
    assert stats.chisquare(np.bincount(owners, minlength=4)).pvalue > 1e-3
    assert stats.chisquare(np.bincount([0] * 400, minlength=4)).pvalue < 1e-3


def test_dirichlet_shares_have_their_variance():
    """Shares have variance m (1 - m) / (K alpha + 1), m = 1/K; those of another alpha do not."""
    y, clients, alpha = np.zeros(20_000, int), 4, 2.0
    shares = np.stack(
        [partition.dirichlet(seed, y, clients, alpha=alpha).counts for seed in range(300)]
    )
    shares = shares / y.size
    m = 1 / clients
    assert np.allclose(shares.mean(0), m, atol=4 * np.sqrt(m * (1 - m) / 9 / 300))
    variance = lambda a: m * (1 - m) / (clients * a + 1)
    found = shares.var(axis=0).mean()
    assert abs(found / variance(alpha) - 1) < 0.15 < abs(found / variance(1.5) - 1)


def test_small_alpha_skews_labels_and_large_does_not():
    spread = lambda alpha: np.mean(
        [
            np.bincount(Y[own[:c]], minlength=5).max() / c
            for own, c in zip(*partition.dirichlet(1, Y, 6, alpha=alpha), strict=True)
        ]
    )
    assert spread(0.05) > 0.7 and spread(100.0) < 0.45


def test_by_class_has_few_classes_a_client():
    part = partition.by_class(0, np.repeat(np.arange(5), 40), 10, classes=2)
    kinds = [np.unique(np.repeat(np.arange(5), 40)[own]).size for own in part.rows]
    assert max(kinds) <= 2


def test_files_hold_what_was_drawn(tmp_path):
    path = tmp_path / "deep" / "clients.npz"
    part = MAKERS["dirichlet"](0)
    name = partition.save_partition(path, part)
    again = partition.load_partition(path)
    assert partition.partition_hash(again) == name == partition.save_partition(path, part)
    np.testing.assert_array_equal(again.rows, part.rows)
    with pytest.raises(ValueError, match="holds the partition"):
        partition.save_partition(path, MAKERS["dirichlet"](1))
    whole = path.read_bytes()
    for damaged in (whole[:-40], b"", b"text"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="corrupted or no saved partition"):
            partition.load_partition(path)
    np.savez(path, rows=part.rows, counts=part.counts + 1, hash=np.array(name))
    with pytest.raises(ValueError, match="corrupted"):
        partition.load_partition(path)
    with pytest.raises(FileNotFoundError):
        partition.load_partition(tmp_path / "none.npz")


BAD = {
    "empty client": (lambda: partition.of_lists([[0, 1], []]), r"clients \[1\] of 2 have no rows"),
    "no client": (lambda: partition.of_lists([]), "has no clients"),
    "floats": (lambda: partition.of_lists([[0], [1.5]]), r"lists\[1\] has .* dtype float64"),
    "a mask": (lambda: partition.of_lists([[True], [False]]), "dtype bool"),
    "a number": (lambda: partition.of_lists([[0], 1]), r"lists\[1\] has shape \(\)"),
    "owned twice": (lambda: partition.of_lists([[0, 1], [1]]), "must name each of 0..2 once"),
    "more clients": (lambda: partition.iid(0, 3, 4), "clients=4 is more than the 3 rows"),
    "pieces": (lambda: partition.by_class(0, [0, 1, 1], 2), "clients \\* classes=4 is more than"),
    "alpha": (lambda: partition.dirichlet(0, Y, 4, alpha=0.0), "alpha=0.0 must be"),
    "too skewed": (
        lambda: partition.dirichlet(0, np.zeros(40, int), 20, alpha=0.001),
        "left one of 20 clients without rows",
    ),
    "seed": (lambda: partition.iid(-1, 3, 2), "seed=-1"),
    "kind": (lambda: partition.make("idd", 0, Y, 2), "kind='idd' is unknown. Did you mean 'iid'"),
    "labels": (lambda: partition.dirichlet(0, Y[None], 4), "y has shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_labels_that_are_traced_are_refused():
    import jax

    with pytest.raises(ValueError, match="make the partition outside of jit"):
        jax.eval_shape(lambda y: partition.make("dirichlet", 0, y, 3).counts, Y)
    assert isinstance(partition.make("class", 0, Y, 3, classes=1), Partition)

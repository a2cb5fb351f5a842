"""Requests: exact counts, uniform choice, files that notice damage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxunlearn import Dataset, data
from jaxunlearn.data import (
    forget_class,
    forget_indices,
    forget_random,
    load_split,
    save_split,
    split_hash,
)

KEY = jax.random.key(7)


def bernoulli(key, n, fraction):
    """The nearby wrong law: every row independently, so the count is random."""
    return jax.random.bernoulli(key, fraction, (n,))


@pytest.mark.parametrize(("n", "fraction"), [(1347, 0.2), (3, 0.9), (5, 0.5)])
def test_random_forgets_exactly_the_rounded_fraction(n, fraction):
    y = jnp.zeros(n, int)
    if round(fraction * n) == n:
        with pytest.raises(ValueError, match="fraction=0.9 of 3 rows is all of them"):
            forget_random(KEY, y, fraction)
        return
    masks = jax.vmap(lambda key: forget_random(key, y, fraction))(jax.random.split(KEY, 50))
    assert masks.dtype == bool and masks.shape == (50, n)
    assert set(masks.sum(1).tolist()) == {round(fraction * n)}
    wrong = jax.vmap(lambda key: bernoulli(key, n, fraction))(jax.random.split(KEY, 50))
    assert len(set(wrong.sum(1).tolist())) > 1


def test_random_draws_all_subsets_equally_often():
    # All 10 pairs out of 5 rows: a chi-square test at level 1e-3 on 4,000 draws, both ways.
    y = jnp.zeros(5, int)
    keys = jax.random.split(KEY, 4000)
    weights = 2 ** np.arange(5)

    def p_value(masks):
        masks = np.asarray(masks)
        codes = masks[masks.sum(1) == 2] @ weights
        pairs = [a + b for i, a in enumerate(weights) for b in weights[:i]]
        return stats.chisquare([np.sum(codes == pair) for pair in pairs]).pvalue

    assert p_value(jax.vmap(lambda key: forget_random(key, y, 0.4))(keys)) > 1e-3
    # A tilted law that still forgets two rows each time: row 0 is 1.3 times as likely.
    scores = jax.vmap(lambda key: jax.random.gumbel(key, (5,)))(keys)
    tilted = scores + jnp.log(jnp.array([[1.3, 1.0, 1.0, 1.0, 1.0]]))
    assert p_value(jax.vmap(lambda s: s >= jnp.sort(s)[-2])(tilted)) < 1e-3


def test_random_includes_each_row_with_the_fraction():
    # Counts of a row over independent keys are binomial(2000, 0.3).
    masks = jax.vmap(lambda key: forget_random(key, jnp.zeros(40, int), 0.3))(
        jax.random.split(KEY, 2000)
    )
    counts = np.asarray(masks.sum(0))
    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], 2000, 0.3)
    assert ((counts >= low) & (counts <= high)).all()


def test_same_key_same_request_and_other_key_another():
    y = jnp.arange(100) % 3
    for draw in (lambda k: forget_random(k, y, 0.3), lambda k: forget_class(k, y, 1, 0.5)):
        assert (draw(KEY) == draw(jax.random.key(7))).all()
        assert (draw(KEY) != draw(jax.random.key(8))).any()


def test_random_is_the_same_under_jit():
    y = jnp.zeros(30, int)
    jitted = jax.jit(lambda key, y: forget_random(key, y, 0.4))
    assert (jitted(KEY, y) == forget_random(KEY, y, 0.4)).all()


def test_class_takes_the_whole_class_or_a_uniform_part_of_it():
    y = jnp.arange(60) % 3
    assert (forget_class(KEY, y, 2) == (y == 2)).all()
    masks = np.stack([forget_class(key, y, 1, 0.3) for key in jax.random.split(KEY, 200)])
    assert masks.dtype == bool
    assert (masks.sum(1) == 6).all() and not masks[:, np.asarray(y) != 1].any()
    counts = masks[:, np.asarray(y) == 1].sum(0)
    low, high = stats.binom.ppf([1e-5, 1 - 1e-5], 200, 0.3)
    assert ((counts >= low) & (counts <= high)).all()


def test_indices_mark_their_rows_and_no_other():
    mask = forget_indices(np.array([4, 0], np.uint8), 6)
    assert isinstance(mask, jax.Array) and mask.tolist() == [True, False, False, False, True, False]
    assert forget_indices([], 3).tolist() == [False] * 3


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_fractions_outside_the_unit_interval(fraction):
    with pytest.raises(ValueError, match=f"fraction={fraction}"):
        forget_random(KEY, jnp.zeros(5, int), fraction)
    if fraction != 1:
        with pytest.raises(ValueError, match=f"fraction={fraction}"):
            forget_class(KEY, jnp.arange(5) % 2, 0, fraction)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: forget_random(KEY, jnp.zeros(9, int), 0.01), "is no row"),
        (lambda: forget_random(KEY, jnp.zeros((9, 2), int), 0.5), r"y has shape \(9, 2\)"),
        (lambda: forget_random(KEY, jnp.zeros(0, int), 0.5), r"y has shape \(0,\)"),
        (lambda: forget_class(KEY, jnp.arange(4) % 2, 2), r"label=2 has no rows. Labels: \[0, 1\]"),
        (lambda: forget_class(KEY, jnp.arange(4) % 2, -1), "label=-1 must be an integer"),
        (lambda: forget_class(KEY, jnp.arange(4) % 2, 1.0), "label=1.0 must be an integer"),
        (lambda: forget_class(KEY, jnp.arange(4) % 2, 1, 0.1), "is no row"),
        (lambda: forget_class(KEY, jnp.zeros(4, int), 0), "none of the 4 training rows"),
        (lambda: forget_indices([0, 4], 4), r"indices=\[4\] do not lie in 0..3"),
        (lambda: forget_indices([-1], 4), r"indices=\[-1\] do not lie"),
        (lambda: forget_indices([1, 2, 1], 4), r"indices=\[1\] occur more than once"),
        (lambda: forget_indices([1.0], 4), "dtype float64"),
        (lambda: forget_indices([True, False], 2), "dtype bool"),
        (lambda: forget_indices([[1]], 4), r"shape \(1, 1\)"),
        (lambda: forget_indices([0, 1], 2), "none of the 2 training rows"),
        (lambda: forget_indices([0], 0), "n=0 must be"),
        (lambda: split_hash(jnp.zeros(3)), "dtype float32"),
        (lambda: split_hash(jnp.zeros((3, 1), bool)), r"shape \(3, 1\)"),
    ],
)
def test_bad_requests(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_hash_tells_requests_apart_and_is_the_same_everywhere():
    # 7 and 8 rows pack into the same byte: the number of rows has to count.
    masks = [np.zeros(7, bool), np.zeros(8, bool)]
    masks += [np.arange(8) == i for i in range(8)]
    assert len({split_hash(jnp.asarray(mask)) for mask in masks}) == len(masks)
    assert split_hash(forget_indices([2, 0], 4)) == "5f326b674d450ace"


def test_saved_request_comes_back(tmp_path):
    mask = forget_random(KEY, jnp.zeros(1001, int), 0.2)
    path = tmp_path / "new" / "split"
    assert save_split(path, mask) == split_hash(mask)
    assert (load_split(str(path)) == mask).all()
    assert save_split(path, mask) == split_hash(mask)
    assert [p.name for p in path.parent.iterdir()] == ["split"]
    with np.load(path, allow_pickle=False) as file:
        assert (file["forget"] == np.asarray(mask)).all()


def test_another_request_is_not_overwritten(tmp_path):
    save_split(tmp_path / "split.npz", forget_indices([0], 4))
    with pytest.raises(ValueError, match="Choose another path"):
        save_split(tmp_path / "split.npz", forget_indices([1], 4))
    assert load_split(tmp_path / "split.npz").tolist() == [True, False, False, False]


def test_every_damage_is_noticed(tmp_path):
    path = tmp_path / "split.npz"
    save_split(path, forget_random(KEY, jnp.zeros(300, int), 0.2))
    whole = path.read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="corrupted"):
            load_split(path)
    # A mask exchanged for another of the same size, in a file that is otherwise sound.
    np.savez(path, forget=np.arange(300) < 60, hash=np.array("0123456789abcdef"))
    with pytest.raises(ValueError, match="corrupted"):
        load_split(path)
    with pytest.raises(ValueError, match="corrupted"):
        save_split(path, forget_indices([0], 300))


def test_flipped_bits_never_change_the_request(tmp_path):
    path = tmp_path / "split.npz"
    mask = forget_random(KEY, jnp.zeros(64, int), 0.5)
    save_split(path, mask)
    whole = bytearray(path.read_bytes())
    noticed = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        path.write_bytes(damaged)
        try:
            assert (load_split(path) == mask).all()  # a bit that nobody reads
        except ValueError as error:
            assert "corrupted" in str(error)
            noticed += 1
    assert noticed > len(whole) / 2


def test_pickles_and_other_files_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", forget=np.array([print], object), hash=np.array("x"))
    np.savez(tmp_path / "b.npz", rows=np.arange(3))
    np.save(tmp_path / "c.npy", np.zeros(3, bool))
    for name in ("a.npz", "b.npz", "c.npy"):
        with pytest.raises(ValueError, match="no saved split"):
            load_split(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_split(tmp_path / "absent.npz")


class TestConfuseClasses:
    ROWS = Dataset(jnp.zeros((40, 2)), jnp.arange(40) % 4)

    def test_swaps_the_labels_of_the_rows_it_names_and_no_other(self):
        confused, forget = data.confuse_classes(jax.random.key(0), self.ROWS, (1, 3), 0.4)
        gone, before, after = np.asarray(forget), np.asarray(self.ROWS.y), np.asarray(confused.y)
        assert (before[gone] == 1).sum() == (before[gone] == 3).sum() == 4 == gone.sum() / 2
        assert (after[gone] == 4 - before[gone]).all() and (after[~gone] == before[~gone]).all()

    @pytest.mark.parametrize(
        "classes, fraction, message",
        [((1, 1), 0.4, "two different ones"), ((1, 9), 0.4, "label=9 has no rows"),
         ((1, 3), 1.0, "fraction=1.0"), ((1, 3), 0.01, "no row")],
    )  # fmt: skip
    def test_bad_input(self, classes, fraction, message):
        with pytest.raises(ValueError, match=message):
            data.confuse_classes(jax.random.key(0), self.ROWS, classes, fraction)

"""Every registered method obeys the same laws. A new row in the registry is tested here at once."""

import dataclasses
import functools
import json
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, Status, TrainConfig, Unlearner, checkpoint, data, models, registry
from jaxunlearn.baselines import (
    FeatureUnlearningConfig,
    FineTuneConfig,
    GradientAscentConfig,
    InfluenceConfig,
    LogitMaskConfig,
    SISAConfig,
    WoodFisherConfig,
)
from jaxunlearn.baselines.federated import FedAvgConfig, FedEraserConfig, ReverseSGDConfig
from jaxunlearn.experiments.compare import certificate_numbers
from jaxunlearn.federated.federation import Federation
from jaxunlearn.methods.conmu import OFFICIAL, PAPER, ConMUConfig
from jaxunlearn.methods.ffmu import FFMUConfig
from jaxunlearn.methods.muter import MuterConfig
from jaxunlearn.methods.pcmu import PCMUConfig
from jaxunlearn.primitives.adversarial import PGDConfig
from jaxunlearn.primitives.balls import L2Ball
from jaxunlearn.primitives.selection import Sigma
from jaxunlearn.primitives.solve import Cholesky
from jaxunlearn.registry import PrunedConfig
from jaxunlearn.training import PruningConfig
from jaxunlearn.types import State

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

ROWS = 60
MODEL = models.mlp(10, hidden=(8,))
TRAIN = TrainConfig(epochs=2, batch_size=16)
KEY = jax.random.key(1)
# Much regularisation and damping: the paper's matrix and Fisher's are definite with them alone.
MUTER = MuterConfig(
    ball=L2Ball(0.05),
    l2=0.1,
    attack=PGDConfig(steps=3, refine=2),
    newton_steps=10,
    tolerance=2e-5,
    solver=Cholesky(damping=20.0),
)
FEDERATION = Federation(clients=3, local_epochs=1, chunk=2)
# Small enough for a test, and large enough to move the parameters.
SMALL = {
    "finetune": FineTuneConfig(epochs=2, batch_size=16),
    "gradient_ascent": GradientAscentConfig(epochs=2, batch_size=4, learning_rate=0.01),
    "influence": InfluenceConfig(samples=32),
    "influence_woodfisher": WoodFisherConfig(terms=20),
    "pcmu": PCMUConfig(learning_rate=0.01),
    "pcmu_retrain": PCMUConfig(learning_rate=0.01),
    "logit_mask": LogitMaskConfig(share=0.0),
    "sisa": SISAConfig(shards=3, slices=2),
    "feature_unlearning": FeatureUnlearningConfig(iterations=10, batch=16),
    "conmu": ConMUConfig(epochs=2, batch_size=16),
    # Bounds of so few rows as there are here are wide, or they select nothing.
    "conmu_paper": dataclasses.replace(PAPER, retain=Sigma(5, 5), forget=Sigma(5, 5)),
    "conmu_official": dataclasses.replace(OFFICIAL, retain=Sigma(5, 5), forget=Sigma(5, 5)),
    "ffmu": FFMUConfig(FEDERATION),
    "ffmu_n": FFMUConfig(FEDERATION, server="fedavg"),
    "ffmu_retrain": FFMUConfig(FEDERATION),
    "fedavg": FedAvgConfig(FEDERATION),
    "federaser": FedEraserConfig(FEDERATION),
    "un": ReverseSGDConfig(FEDERATION, epochs=2, batch_size=4, inits=2, repair=1),
    **{name: MUTER for name in registry.METHODS if name.startswith("muter")},
}
# Methods that answer a request with the same outputs, and say what is certified about them.
UNMOVED = ("noop", "pcmu", "ffmu", "ffmu_n")
# Methods that take no gradients for a request.
FREE = ("noop", "pcmu", "ffmu_n", "logit_mask")
# Two floats apart by the order of a sum, over a training of a few steps.
CLOSE = {"rtol": 1e-3, "atol": 1e-5}


def make(name: str, model=MODEL) -> Unlearner:
    base, _, pruned = name.partition("+")
    config = SMALL.get(base)
    if pruned:
        config = PrunedConfig(PruningConfig(rate=0.5, rewind=0.5), config)
    return registry.make(name, model, train=TRAIN, config=config)


@functools.cache
def rows() -> Dataset:
    train = data.load("digits").train
    return Dataset(train.x[:ROWS], train.y[:ROWS])


def request(*numbers: int) -> jax.Array:
    return data.forget_indices(numbers, ROWS)


FORGET = request(0, 1, 2, 3, 30, 59)
EMPTY = request()


class Case(NamedTuple):
    name: str
    unlearner: Unlearner
    jitted: Unlearner
    state: State  # after fit
    once: State  # after the request FORGET, eagerly


# What MUter is compared with differs from it in one matrix only, ConMU's readings in settings,
# FFMU-N and FFMU trained again in the rule from FedAvg, whose rounds FedEraser and UN take too.
ALIKE = ("muter_", "conmu_", "ffmu_", "federaser", "un")
ALL = [
    pytest.param(name, marks=pytest.mark.slow) if name.startswith(ALIKE) else name
    for name in registry.METHODS
]


@pytest.fixture(scope="module", params=ALL)
def case(request) -> Case:
    unlearner = make(request.param)
    jitted = Unlearner(*map(jax.jit, unlearner))
    state = unlearner.fit(jax.random.key(0), rows())
    once = unlearner.unlearn(KEY, state, rows(), FORGET)
    return Case(request.param, unlearner, jitted, state, once)


def allowed(case) -> set[Status]:
    """A method with a certificate may say that a request is beyond it."""
    certified = registry.get(case.name).guarantee.startswith("certified")
    if case.name == "muter_paper":
        return {Status.OK, Status.INDEFINITE}  # the paper's matrix often is, and it says so
    return {Status.OK, Status.BEYOND_CERTIFICATE} if certified else {Status.OK}


def test_state_after_fit(case):
    state = case.state
    assert not state.removed.any()
    assert state.grads > 0
    assert state.status == Status.OK
    chex.assert_tree_all_finite(state.params)


def test_state_after_a_request(case):
    np.testing.assert_array_equal(case.once.removed, FORGET)
    chex.assert_trees_all_equal_shapes_and_dtypes(case.once, case.state)
    chex.assert_shape([case.once.grads, case.once.status], ())
    chex.assert_type([case.once.grads, case.once.status], [jnp.float32, jnp.int32])
    assert int(case.once.status) in allowed(case)
    # Figures of a failure may be infinite, and an epsilon; what is left of the model may not.
    failed = case.once.status == Status.INDEFINITE
    chex.assert_tree_all_finite(case.once.params if failed else case.once._replace(certificate=()))
    name = case.name.partition("+")[0]
    assert (case.once.grads == 0) == (name in FREE)
    if name in UNMOVED:
        chex.assert_trees_all_equal(case.once.params, case.state.params)
    else:  # in what it answers: patches leave the parameters alone
        before, after = (case.unlearner.predict(s, rows().x) for s in (case.state, case.once))
        assert jnp.abs(after - before).max() > 1e-4


def test_training_is_shared_where_the_registry_says_so(case):
    """`compare` trains one original for all methods of one kind of training."""
    shared = "noop" if registry.get(case.name).ordinary_training else "noop+pruning"
    if registry.get(case.name).ordinary_training or case.name.endswith("+pruning"):
        chex.assert_trees_all_equal(make(shared).fit(jax.random.key(0), rows()), case.state)


def test_jit_equals_eager(case):
    jitted = case.jitted.unlearn(KEY, case.state, rows(), FORGET)
    chex.assert_trees_all_close(jitted, case.once, **CLOSE)
    shared = registry.get(case.name).ordinary_training or case.name.endswith("+pruning")
    shared |= case.name.startswith("muter_")  # with muter
    if case.name in ("noop", "noop+pruning") or not shared:  # see the test above
        fitted = case.jitted.fit(jax.random.key(0), rows())
        chex.assert_trees_all_close(fitted, case.state, **CLOSE)


def test_same_key_same_result(case):
    chex.assert_trees_all_equal(case.unlearner.fit(jax.random.key(0), rows()), case.state)
    chex.assert_trees_all_equal(case.unlearner.unlearn(KEY, case.state, rows(), FORGET), case.once)


def test_inputs_are_untouched(case):
    inputs = (case.state, rows(), FORGET)
    before = jax.tree.map(lambda leaf: np.array(leaf, copy=True), inputs)
    case.unlearner.unlearn(KEY, *inputs)
    case.jitted.unlearn(KEY, *inputs)
    chex.assert_trees_all_equal(inputs, before)  # fails too if a buffer was given away


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_dtype_is_kept(case, dtype):
    with jax.enable_x64(dtype == "float64"):
        x = jax.ShapeDtypeStruct(rows().x.shape, dtype)
        typed = Dataset(x, jax.ShapeDtypeStruct((ROWS,), jnp.int32))
        forget = jax.ShapeDtypeStruct((ROWS,), bool)
        state = jax.eval_shape(case.unlearner.fit, KEY, typed)
        after = jax.eval_shape(case.unlearner.unlearn, KEY, state, typed, forget)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(after.params)} == {dtype}
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


def test_empty_request_changes_nothing(case):
    for unlearner in (case.unlearner, case.jitted):
        for state in (case.state, case.once):
            chex.assert_trees_all_equal(unlearner.unlearn(KEY, state, rows(), EMPTY), state)


def test_repeated_request_changes_nothing_more(case):
    other_key = jax.random.key(2)
    for unlearner in (case.unlearner, case.jitted):
        for again in (FORGET, request(1, 30)):
            after = unlearner.unlearn(other_key, case.once, rows(), again)
            chex.assert_trees_all_equal(after, case.once)


def test_requests_accumulate(case):
    second = request(3, 4, 5)  # row 3 is removed already
    eager, jitted = (
        unlearner.unlearn(jax.random.key(2), case.once, rows(), second)
        for unlearner in (case.unlearner, case.jitted)
    )
    np.testing.assert_array_equal(eager.removed, FORGET | second)
    assert int(eager.status) in allowed(case)
    chex.assert_trees_all_close(jitted, eager, **CLOSE)


def test_survives_the_disk(case, tmp_path):
    checkpoint.save(tmp_path / "state", case.once)
    like = jax.eval_shape(case.unlearner.fit, KEY, rows())
    restored = checkpoint.restore(tmp_path / "state", like)
    chex.assert_trees_all_equal(restored, case.once)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, case.once)


def test_its_certificate_can_be_recorded(case):
    """Numbers by name; where something is certified there are some."""
    found = certificate_numbers(case.once.certificate)
    json.dumps(found)
    assert bool(found) == registry.get(case.name).guarantee.startswith("certified")
    if case.name == "ffmu":
        gap = case.once.certificate.removal.bound
        assert found["removal.bound"] == float(gap) > 0 and "clients.bound" not in found


def test_predict_takes_any_batch_and_sees_each_row_alone(case):
    x = rows().x
    logits = case.unlearner.predict(case.once, x)
    assert logits.shape == (ROWS, 10)
    for batch in (x[:1], x[:3], x[::-1]):
        some = case.jitted.predict(case.once, batch)
        expected = logits[::-1] if batch.shape == x.shape else logits[: len(batch)]
        np.testing.assert_allclose(some, expected, rtol=1e-5, atol=1e-5)


# Made as others of the list are made, with the same few lines around them.
REPEATED = ("sisa", "prune_class", "amnesiac", "feature_unlearning", "ffmu")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name in REPEATED or name.startswith(ALIKE)
        else name
        for name in registry.METHODS
    ],
    indirect=True,
)
def test_vmap_over_keys_and_requests(case):
    keys = jax.random.split(jax.random.key(3), 3)
    masks = jnp.stack([FORGET, request(7, 8), EMPTY])
    # The data is closed over, so that its checks meet known values inside a trace.
    many = jax.vmap(lambda key, forget: case.unlearner.unlearn(key, case.state, rows(), forget))
    batched = many(keys, masks)
    for m, (key, forget) in enumerate(zip(keys, masks, strict=True)):
        alone = case.jitted.unlearn(key, case.state, rows(), forget)
        row = jax.tree.map(lambda leaf, m=m: leaf[m], batched)
        chex.assert_trees_all_close(row, alone, **CLOSE)


EXACT = [
    pytest.param(name, marks=pytest.mark.slow) if name.startswith(ALIKE) else name
    for name, method in registry.METHODS.items()
    if method.guarantee == "exact"
]


@pytest.mark.parametrize("case", EXACT, indirect=True)
def test_exact_means_that_the_removed_rows_leave_no_trace(case):
    """Two histories that differ in the removed rows alone end in the same bits."""
    for value in (0.5, 3e38):  # the second overflows in the network
        other = Dataset(rows().x.at[:4].set(value), rows().y.at[:4].set(9))
        state = case.unlearner.fit(jax.random.key(0), other)
        trained_alike = jax.tree.map(
            lambda a, b: bool((a == b).all()), state.params, case.state.params
        )
        assert not jax.tree.all(trained_alike)
        after = case.unlearner.unlearn(KEY, state, other, FORGET)
        chex.assert_trees_all_equal(after.params, case.once.params)


def test_something_is_exact_and_a_method_that_is_not_leaves_a_trace():
    assert "retrain" in EXACT and "retrain+pruning" not in EXACT
    other = Dataset(rows().x.at[:4].set(0.5), rows().y)
    noop = make("noop")
    after = [noop.unlearn(KEY, noop.fit(KEY, d), d, FORGET).params for d in (rows(), other)]
    with pytest.raises(AssertionError):
        chex.assert_trees_all_equal(*after)


@pytest.mark.parametrize("name", ["retrain", "finetune", "influence"])
def test_other_key_other_result(name):
    unlearner = make(name)
    state = unlearner.fit(jax.random.key(0), rows())
    a, b = (unlearner.unlearn(jax.random.key(k), state, rows(), FORGET) for k in (1, 2))
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(a.params, b.params, rtol=1e-6, atol=1e-7)


BAD_MASKS = {
    "too short": (lambda: FORGET[:-1], r"forget has shape \(59,\).*must be \(60,\)"),
    "too long": (lambda: jnp.concatenate([FORGET, FORGET]), r"forget has shape \(120,\)"),
    "a batch": (lambda: FORGET[None], r"forget has shape \(1, 60\)"),
    "row numbers": (lambda: jnp.array([0, 1]), r"forget has dtype int32.*forget_indices"),
    "zeros and ones": (lambda: FORGET.astype(jnp.float32), r"forget has dtype float32"),
    "all rows": (lambda: jnp.ones(ROWS, bool), r"forget leaves none of the 60 training rows"),
    "the other rows": (lambda: ~FORGET, r"forget leaves none of the 60 training rows"),
}


@pytest.mark.parametrize("mask", BAD_MASKS)
def test_bad_request(case, mask):
    forget, message = BAD_MASKS[mask]
    with pytest.raises(ValueError, match=message):
        case.unlearner.unlearn(KEY, case.once, rows(), forget())
    if mask not in ("all rows", "the other rows"):  # shapes and dtypes are known under jit
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(case.unlearner.unlearn, KEY, case.once, rows(), forget())


def test_bad_data(case):
    broken = Dataset(rows().x.at[7].set(jnp.nan), rows().y)
    with pytest.raises(ValueError, match=r"data.x has NaN or infinite values in 1 rows.*\[7\]"):
        case.unlearner.fit(KEY, broken)
    with pytest.raises(ValueError, match="data.x has NaN"):
        case.unlearner.unlearn(KEY, case.state, broken, FORGET)
    with pytest.raises(ValueError, match=r"data.y has labels from 0 to 10.*0\.\.9"):
        case.unlearner.fit(KEY, rows()._replace(y=rows().y.at[0].set(10)))
    with pytest.raises(ValueError, match=r"data.y has labels from 0 to 10.*0\.\.9"):
        case.unlearner.unlearn(KEY, case.state, rows()._replace(y=rows().y.at[0].set(10)), FORGET)


@pytest.mark.parametrize("name", ["finetune", "influence"])
def test_gradients_flow_through_unlearning(name):
    """Derivative in the trained parameters against central differences, in float64."""
    with jax.enable_x64(True):
        wide = Dataset(rows().x.astype(jnp.float64), rows().y)
        unlearner = make(name, models.logistic(10))  # smooth, so that differences converge
        start = unlearner.fit(jax.random.key(0), wide)
        leaves, structure = jax.tree.flatten(start.params)
        keys = jax.random.split(jax.random.key(4), 2 * len(leaves))
        normal = lambda some: jax.tree.unflatten(
            structure,
            [
                jax.random.normal(k, leaf.shape, leaf.dtype)
                for k, leaf in zip(some, leaves, strict=True)
            ],
        )
        along, probe = normal(keys[: len(leaves)]), normal(keys[len(leaves) :])

        @jax.jit
        @jax.value_and_grad
        def value(t):
            params = jax.tree.map(lambda p, u: p + t * u, start.params, along)
            after = unlearner.unlearn(KEY, start._replace(params=params), wide, FORGET).params
            return sum(map(jnp.vdot, jax.tree.leaves(after), jax.tree.leaves(probe)))

        derivative, h = value(0.0)[1], 1e-4
        difference = (value(h)[0] - value(-h)[0]) / (2 * h)
        assert abs(derivative) > 0.1
        np.testing.assert_allclose(derivative, difference, rtol=1e-5)

"""References are the trainings they claim to be, survive a kill, and are never mixed up."""

import ast
import os
import pathlib
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset, Model, TrainConfig, audit, data, fit, models
from jaxunlearn.audit import references as _function
from jaxunlearn.audit.references import (
    _train_block,
    balanced_halves,
    content_hash,
    references,
    shadows,
)

pytestmark = pytest.mark.usefixtures("compiled_in_haste")
MODULE = sys.modules["jaxunlearn.audit.references"]

N, KEY = 40, jax.random.key(3)
MODEL = models.logistic(10)
CONFIG = TrainConfig(epochs=2, batch_size=10)
FORGET = jnp.arange(N) % 5 == 0
OPTIONS = {"count": 10, "config": CONFIG, "block": 4}


@pytest.fixture(scope="module")
def rows():
    train = data.load("digits").train
    return Dataset(train.x[:N], train.y[:N])


@pytest.fixture(scope="module")
def found(rows):
    return references(KEY, MODEL, rows, FORGET, originals=True, **OPTIONS)


@pytest.fixture
def counted(monkeypatch):
    """Which models were trained, block by block."""
    blocks = []

    def count(keys, rows, *rest):
        blocks.append(rows.tolist())
        return _train_block(keys, rows, *rest)

    monkeypatch.setattr(MODULE, "_train_block", count)
    return blocks


def test_each_is_a_training_without_the_rows(rows, found):
    for m in (0, 3, 9):
        key = jax.random.fold_in(KEY, m)
        for weights, stack in ((~FORGET, found.params), (jnp.ones(N), found.originals)):
            one = fit(key, MODEL, rows, weights=weights, config=CONFIG)
            chex.assert_trees_all_close(jax.tree.map(lambda p, m=m: p[m], stack), one, atol=1e-5)
    with pytest.raises(AssertionError):  # and not with them
        chex.assert_trees_all_close(found.params, found.originals, atol=1e-4)
    assert _function is references and found.params["Dense_0"]["kernel"].shape[0] == 10


def test_read_back_bit_for_bit_and_grown(rows, found, counted, tmp_path):
    call = lambda **more: references(KEY, MODEL, rows, FORGET, cache=tmp_path, **(OPTIONS | more))
    first = call()
    assert counted == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    chex.assert_trees_all_equal(first.params, call().params)
    chex.assert_trees_all_close(first.params, found.params, atol=1e-6)
    assert len(counted) == 3
    more = call(count=12)
    assert counted[3:] == [[8, 9, 10, 11]]
    chex.assert_trees_all_close(
        jax.tree.map(lambda p: p[:10], more.params), first.params, atol=1e-6
    )


def test_what_decides_the_models_decides_the_folder(rows, counted, tmp_path):
    options = {**OPTIONS, "count": 8, "block": 8, "cache": tmp_path}
    other = Dataset(rows.x.at[0, 0].add(0.5), rows.y)
    variants = [
        (KEY, MODEL, rows, FORGET, {}),
        (jax.random.key(4), MODEL, rows, FORGET, {}),
        (KEY, models.mlp(10, hidden=(3,)), rows, FORGET, {}),
        (KEY, MODEL, other, FORGET, {}),
        (KEY, MODEL, rows, jnp.arange(N) % 5 == 1, {}),
        (KEY, MODEL, rows, FORGET, {"config": TrainConfig(epochs=1, batch_size=10)}),
    ]
    for _ in range(2):
        for *args, more in variants:
            references(*args, **(options | more))
    assert len(list(tmp_path.iterdir())) == len(counted) == len(variants)
    # A bar is no other training.
    shown = TrainConfig(epochs=2, batch_size=10, progress=True)
    references(KEY, MODEL, rows, FORGET, **(options | {"config": shown}))
    assert len(counted) == len(variants)


def constant_in_a_jit(value):
    held = jnp.full((1, 64), value)
    inner = jax.jit(lambda x: jax.lax.cond(True, lambda x: x + held, lambda x: x, x))
    return lambda w, x: inner(x.reshape(len(x), -1)) @ w


def rule_of_its_own(value):
    @jax.custom_vjp
    def rounded(x):
        return jnp.round(x)

    rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (value * g,))
    return lambda w, x: rounded(x.reshape(len(x), -1) @ w)


def rule_with_a_constant(value):
    return rule_of_its_own(jnp.full((1, 10), value))


@pytest.mark.parametrize("make", [constant_in_a_jit, rule_of_its_own, rule_with_a_constant])
def test_what_the_text_of_a_program_hides(rows, make):
    init = lambda key, x: jnp.zeros((64, 10))
    a, again, b = (
        content_hash(Model(init, make(value)), rows, CONFIG, KEY, b"") for value in (1.0, 1.0, 2.0)
    )
    assert a == again != b


def test_a_damaged_file_is_made_again(rows, counted, tmp_path):
    options = OPTIONS | {"count": 8, "cache": tmp_path}
    first = references(KEY, MODEL, rows, FORGET, **options)
    damaged = sorted(tmp_path.rglob("*.npz"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-50])
    again = references(KEY, MODEL, rows, FORGET, **options)
    assert counted[2:] == [[4, 5, 6, 7]]
    chex.assert_trees_all_equal(first.params, again.params)


SCRIPT = """
import sys, time, jax, jax.numpy as jnp
from jaxunlearn import Dataset, TrainConfig, data, models
from jaxunlearn.audit import references
jax.config.update("jax_disable_most_optimizations", True)
train = data.load("digits").train
rows = Dataset(train.x[:40], train.y[:40])
references(
    jax.random.key(3), models.logistic(10), rows, jnp.arange(40) % 5 == 0, count=4000,
    config=TrainConfig(epochs=2, batch_size=10), block=4, cache=sys.argv[1],
)
"""


def test_killed_by_the_system(rows, found, counted, tmp_path):
    path = os.pathsep.join(entry for entry in sys.path if entry)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], env=os.environ | {"PYTHONPATH": path}
    )
    deadline = time.monotonic() + 300
    while len(list(tmp_path.rglob("models-*.npz"))) < 3:
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = len(list(tmp_path.rglob("models-*.npz")))
    count = 4 * (there + 1)
    resumed = references(KEY, MODEL, rows, FORGET, cache=tmp_path, **(OPTIONS | {"count": count}))
    assert counted == [list(range(count - 4, count))]
    chex.assert_trees_all_close(
        jax.tree.map(lambda p: p[:10], resumed.params), found.params, atol=1e-6
    )


DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jaxunlearn import Dataset, TrainConfig, data, models
from jaxunlearn.audit import references
assert jax.device_count() == 4
train = data.load("digits").train
rows = Dataset(train.x[:40], train.y[:40])
run = lambda block: references(
    jax.random.key(3), models.logistic(10), rows, jnp.arange(40) % 5 == 0, count=8,
    config=TrainConfig(epochs=2, batch_size=10), block=block,
)
import sys
module = sys.modules["jaxunlearn.audit.references"]
seen, plain = [], module.train_many
def note(keys, *args, **options):
    seen.append(len(keys.sharding.device_set))
    return plain(keys, *args, **options)
module.train_many = note
spread, alone = run(8), run(2)  # two models are not spread over four devices
assert seen == [4, 1, 1, 1, 1], seen
for a, b in zip(jax.tree.leaves(spread.params), jax.tree.leaves(alone.params), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
"""


def test_spread_over_devices():
    path = os.pathsep.join(entry for entry in sys.path if entry)
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    env = os.environ | {"PYTHONPATH": path, "XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", DEVICES], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_references_of_another_request_are_refused(found):
    found.check(FORGET)
    with pytest.raises(ValueError, match="16 of 40 rows differ"):
        found.check(jnp.arange(N) % 5 == 1)


def test_more_shadows_are_not_the_stored_ones_of_other_halves(rows, tmp_path):
    call = lambda count, **more: shadows(
        KEY, MODEL, rows, count=count, config=CONFIG, block=8, **more
    )
    stored, again = call(8, cache=tmp_path), call(8, cache=tmp_path)
    chex.assert_trees_all_equal(stored, again)
    chex.assert_trees_all_close(call(16, cache=tmp_path), call(16), atol=1e-6)


def test_shadows(rows):
    made = shadows(KEY, MODEL, rows, count=8, config=CONFIG)
    member = np.asarray(made.member)
    assert (member.sum(0) == 4).all() and (member.sum(1) == N // 2).all()
    assert len({m.tobytes() for m in member}) == 8
    train_key = jax.random.split(KEY)[1]
    one = fit(jax.random.fold_in(train_key, 5), MODEL, rows, weights=made.member[5], config=CONFIG)
    chex.assert_trees_all_close(jax.tree.map(lambda p: p[5], made.params), one, atol=1e-5)
    with pytest.raises(ValueError, match="count=9 must be even"):
        shadows(KEY, MODEL, rows, count=9, config=CONFIG)


@pytest.mark.parametrize(
    "forget, options, message",
    [
        (FORGET, {"count": 4}, "4 models in each arm.*retraining against itself would have"),
        (FORGET, {"block": 0}, "block=0 must be an integer >= 1"),
        (jnp.zeros(N, bool), {}, "forget names none of the 40"),
        (FORGET[:-1], {}, r"forget has shape \(39,\)"),
    ],
)
def test_bad_input(rows, forget, options, message):
    with pytest.raises(ValueError, match=message):
        references(KEY, MODEL, rows, forget, **(OPTIONS | options))


def test_audit_imports_no_method():
    folder = pathlib.Path(audit.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{a.name}" for a in node.names]
            for name in names:
                assert not any(
                    part in name for part in ("methods", "baselines", "registry", "experiments")
                ), (path.name, name)


def test_halves_know_nothing_of_each_other():
    rng = np.random.default_rng(0)
    half = balanced_halves(rng, 32, 201)
    assert (half.sum(0) == 16).all() and set(half.sum(1)) <= {100, 101}
    signs = 2.0 * half - 1
    overlap = (signs @ signs.T / 201)[np.triu_indices(32, 1)]
    # Exact halves of 32 models: -1 / 31 on average, and the spread of independent ones.
    assert abs(overlap.mean() + 1 / 31) < 0.01
    assert abs(overlap.std() * np.sqrt(201) - 1) < 0.15
    regular = (np.arange(201)[None] + np.arange(32)[:, None]) % 2 == 0  # where the trades begin
    assert np.abs((signs @ (2.0 * regular - 1).T) / 201).max() < 0.4

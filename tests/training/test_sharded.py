"""Training with data and models spread over eight devices, in a process of its own.

The number of devices is settled when JAX starts, so all checks share one subprocess.
"""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxunlearn import Dataset, TrainConfig, data, fit, models, train_many

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_disable_most_optimizations", True)
assert jax.device_count() == 8
mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
spread, copied = NamedSharding(mesh, P("devices")), NamedSharding(mesh, P())
train = data.load("digits").train
rows = Dataset(train.x[:64], train.y[:64])
over_rows = jax.device_put(rows, spread)
model, key = models.mlp(10, hidden=(8,)), jax.random.key(0)
keep = jnp.arange(64) >= 9
keys = jax.random.split(key, 8)
keeps = jnp.arange(64)[None] != jnp.arange(8)[:, None]
gaps = {}


def compare(name, run):
    plain, sharded = run(False), run(True)
    pairs = zip(jax.tree.leaves(plain), jax.tree.leaves(sharded), strict=True)
    gaps[name] = max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


config = TrainConfig(epochs=3, batch_size=20)  # which eight devices do not divide
compare("fit", lambda s: fit(key, model, over_rows if s else rows, weights=keep, config=config))
compare(
    "train_many over rows",
    lambda s: train_many(keys, keeps, model, over_rows if s else rows, config=config),
)
put = lambda leaf: jax.device_put(leaf, spread)
compare(
    "train_many over models",
    lambda s: train_many(
        *((put(keys), put(keeps)) if s else (keys, keeps)),
        model,
        jax.device_put(rows, copied) if s else rows,
        config=config,
    ),
)
explicit = NamedSharding(jax.make_mesh((8,), ("devices",)), P("devices"))
compare(
    "fit, explicit mesh",
    lambda s: fit(
        key,
        model,
        jax.device_put(rows, explicit) if s else rows,
        weights=jax.device_put(keep, explicit) if s else keep,
        config=config,
    ),
)
over_models = lambda leaf: jax.device_put(leaf, explicit)
compare(
    "train_many, explicit mesh",
    lambda s: train_many(
        *((over_models(keys), over_models(keeps)) if s else (keys, keeps)),
        model,
        over_models(rows) if s else rows,
        config=config,
    ),
)
from jaxunlearn import registry
for name in ("influence", "finetune"):
    unlearner = registry.make(name, model, train=config)
    compare(
        f"{name}, explicit mesh",
        lambda s, u=unlearner: u.unlearn(
            key,
            u.fit(key, over_models(rows) if s else rows),
            over_models(rows) if s else rows,
            ~keep,
        ).params,
    )
print(json.dumps(gaps))
"""


@pytest.fixture(scope="module")
def gaps() -> dict[str, float]:
    """Largest difference of any parameter between sharded and not."""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


NAMES = [
    "fit",
    "train_many over rows",
    "train_many over models",
    "fit, explicit mesh",
    "train_many, explicit mesh",
    "influence, explicit mesh",
    "finetune, explicit mesh",
]


@pytest.mark.parametrize("name", NAMES)
def test_sharded_equals_unsharded(gaps, name):
    assert gaps[name] < 1e-5

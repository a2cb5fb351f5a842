"""The client axis over eight devices, and over two processes, ends with the same parameters.

The number of devices and processes is settled when JAX starts, so each runs in its own.
"""

import json
import os
import socket
import subprocess
import sys

import pytest

COMMON = """
import json, sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
PROCESSES, RANK, PORT = map(int, sys.argv[1:4])
if PROCESSES > 1:
    jax.distributed.initialize(f"127.0.0.1:{PORT}", PROCESSES, RANK)
from jaxunlearn import Dataset, TrainConfig, data, models
from jaxunlearn.federated import FEDAVG, FederatedConfig, advance, begin, gather, partition, spread
from jaxunlearn.methods import ffmu
from jaxunlearn.models import cross_entropy

train = data.load("digits").train
rows = Dataset(train.x[:90], train.y[:90])
part = partition.dirichlet(1, np.asarray(rows.y), 11, alpha=1.0)  # no multiple of anything
model, key = models.mlp(10, hidden=(8,)), jax.random.key(0)
loss_fn = cross_entropy(model.apply)
keep = jnp.arange(90) % 7 > 0
clients = gather(rows, part, keep=keep)
local = TrainConfig(epochs=2, batch_size=4, learning_rate=0.02, momentum=0.0)
SOFT = ffmu.rule(ffmu.FFMUConfig(local="soft", server="soft"))
params = model.init(key, rows.x[:1])


def run(clients, rule, **how):
    config = FederatedConfig(rounds=2, local=local, **how)
    server = begin(params, clients.number.shape[0], rule=rule)
    return advance(key, loss_fn, server, clients, config=config, rule=rule)


def gap(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    host = lambda leaf: np.asarray(leaf.addressable_data(0))
    assert all(x.is_fully_replicated for x in jax.tree.leaves(b))
    return max(float(np.abs(host(x) - host(y)).max()) for x, y in pairs)


CASES = {"ffmu, chunks": (SOFT, {"chunk": 8})}
if PROCESSES == 1:
    CASES["fedavg, chosen"] = FEDAVG, {"participants": 5, "chunk": None}
mesh = jax.make_mesh((jax.device_count(),), ("clients",))
over = spread(clients, mesh)
assert not over.weights.is_fully_replicated
found = {}
for name, (rule, how) in CASES.items():
    if name == "fedavg, chosen":  # the draw depends on how many clients there are
        alone = jax.tree.map(lambda x: jnp.asarray(x), clients)
        from jaxunlearn.federated.clients import pad
        alone = pad(alone, jax.device_count())
    else:
        alone = clients
    with jax.default_device(jax.local_devices()[0]):
        one = run(alone, rule, **how).params
    many = run(over, rule, **how).params
    moved = gap(params, one)
    assert moved > 1e-3, (name, moved)
    found[name] = gap(one, many)
if RANK == 0:
    print(json.dumps({"devices": jax.device_count(), "processes": jax.process_count(), **found}))
"""


def started(processes: int, rank: int, port: int, devices: int) -> subprocess.Popen:
    flags = f"--xla_force_host_platform_device_count={devices} " + os.environ.get("XLA_FLAGS", "")
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    words = [sys.executable, "-c", COMMON, *map(str, (processes, rank, port))]
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finished(processes: list[subprocess.Popen]) -> dict[str, float]:
    try:
        ends = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, ends, strict=True):
        assert process.returncode == 0, errors[-3000:]
    return json.loads(ends[0][0].splitlines()[-1])


@pytest.fixture(scope="module")
def devices() -> dict[str, float]:
    return finished([started(1, 0, 0, 8)])


@pytest.fixture(scope="module")
def processes() -> dict[str, float]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return finished([started(2, rank, port, 1) for rank in range(2)])


@pytest.mark.parametrize("name", ["ffmu, chunks", "fedavg, chosen"])
def test_eight_devices_equal_one(devices, name):
    assert devices["devices"] == 8 and devices[name] < 1e-5


def test_two_processes_equal_one(processes):
    assert processes["processes"] == 2 == processes["devices"]
    assert processes["ffmu, chunks"] < 1e-5

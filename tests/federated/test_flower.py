"""Flower: the same parameters as one process, whatever clients do; and a real deployment."""

import functools
import importlib.util
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

flwr = pytest.importorskip("flwr", reason="the extra `federated` is not installed")

from flwr.app import Context, Error, Message, RecordDict  # noqa: E402
from flwr.serverapp import Grid  # noqa: E402
from flwr.supercore.task_identity import TaskIdentity  # noqa: E402

from jaxunlearn import Dataset, TrainConfig, data, models  # noqa: E402
from jaxunlearn.federated import FederatedConfig, advance, begin, flower, gather, partition  # noqa: E402
from jaxunlearn.federated.flower import Task, client_app  # noqa: E402
from jaxunlearn.methods import ffmu  # noqa: E402
from jaxunlearn.models import cross_entropy  # noqa: E402

_beside = pathlib.Path(__file__).with_name("flower_deployment.py")
_spec = importlib.util.spec_from_file_location("flower_deployment", _beside)
deployment = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(deployment)

pytestmark = pytest.mark.usefixtures("compiled_in_haste")

N, K, SEED = 60, 3, 5


@pytest.fixture(autouse=True)
def identity(monkeypatch):
    """Who the server is, which Flower tells its processes when it starts them."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


PART = partition.dirichlet(0, np.asarray(data.load("digits").train.y[:N]), K, alpha=2.0)
ALL = Dataset(*(jnp.asarray(part[:N]) for part in data.load("digits").train))
MODEL = models.logistic(10)
CONFIG = FederatedConfig(
    rounds=2, local=TrainConfig(epochs=1, batch_size=8, learning_rate=0.02, momentum=0.0)
)
# Soft: at a sign a rounding shows as a whole step.
RULE = ffmu.rule(ffmu.FFMUConfig(local="soft", server="soft"))


def rows(client: int) -> Dataset:
    own = PART.rows[client, : PART.counts[client]]
    return Dataset(ALL.x[own], ALL.y[own])


@functools.cache  # Flower's client compiles once for each
def task(**changes) -> Task:
    given = {"config": CONFIG, "rule": RULE, "seed": SEED, **changes}
    return Task(MODEL, rows, clients=K, size=PART.rows.shape[1], shape=(8, 8, 1), **given)


class InProcess(Grid):
    """A grid whose nodes are calls, and may misbehave: ``bad[round][node]`` changes a reply."""

    def __init__(self, task: Task, bad=()):
        self.app, self.bad, self.round = client_app(task), dict(bad), -1
        self.run_, self.sent = None, []

    def set_run(self, run):
        self.run_ = run

    @property
    def run(self):
        return self.run_

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        raise NotImplementedError

    def push_messages(self, messages):
        raise NotImplementedError

    def pull_messages(self, message_ids):
        raise NotImplementedError

    def get_node_ids(self):
        return [70 + k for k in reversed(range(K))]

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)
        self.sent.append([m.metadata.dst_node_id for m in messages])
        if messages and messages[0].metadata.message_type == "train":
            self.round += 1
        for message in messages:
            node = message.metadata.dst_node_id
            message.metadata.__dict__["_message_id"] = f"{self.round}/{node}"
            context = Context(1, node, {"partition-id": node - 70}, RecordDict(), {})
            change = self.bad.get(self.round, {}).get(node, lambda reply: reply)
            reply = change(self.app(message, context))
            if reply is not None:
                yield reply


def run(task: Task, bad=()) -> flower.Rounds:
    grid, strategy = InProcess(task, bad), flower.Rounds(task, patience=0)
    first = flower._record(strategy.server.params)
    strategy.start(grid, first, num_rounds=task.config.rounds)
    strategy.sent = grid.sent
    return strategy


def in_one_process(config=CONFIG, rule=RULE, without=(), part=PART) -> list[np.ndarray]:
    """The same rounds by `advance`; ``without[t]`` are the clients that miss round t."""
    key, loss_fn = task().keys[1], cross_entropy(MODEL.apply)
    clients = gather(ALL, part)
    server = begin(task().start(), len(part.counts), rule=rule)
    for t in range(config.rounds):
        gone = list(without[t]) if t < len(without) else []
        some = clients._replace(weights=clients.weights.at[jnp.array(gone, int)].set(0))
        server = advance(key, loss_fn, server, some, config=config, rule=rule, rounds=1)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(server.params)]


def assert_close(params, expected):
    for a, b in zip(jax.tree.leaves(params), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_parameters_are_those_of_one_process():
    found = run(task())
    assert not found.faults
    assert_close(found.server.params, in_one_process())
    moved = max(
        np.abs(b - a).max()
        for a, b in zip(jax.tree.leaves(task().start()), in_one_process(), strict=True)
    )
    assert moved > 1e-3


def test_chosen_clients_are_those_of_one_process():
    config = FederatedConfig(rounds=3, local=CONFIG.local, participants=2)
    found = run(task(config=config))
    assert not found.faults
    assert_close(found.server.params, in_one_process(config))
    asked, *trained = [set(nodes) for nodes in found.sent if nodes]
    assert asked == {70, 71, 72} and [len(nodes) for nodes in trained] == [2, 2, 2]


def poisoned(reply):
    arrays = reply.content["arrays"].to_numpy_ndarrays()
    arrays[0] = arrays[0].copy()
    arrays[0].flat[3] = np.nan
    return rewritten(reply, arrays)


def rewritten(reply, arrays, **metrics):
    reply.content["arrays"] = flower.ArrayRecord(list(arrays))
    for name, value in metrics.items():
        reply.content["metrics"][name] = value
    return reply


def arrays(reply):
    return reply.content["arrays"].to_numpy_ndarrays()


def failed(reply):
    message = Message(RecordDict(), dst_node_id=71, message_type="train")
    message.metadata.__dict__["_message_id"] = "x"
    return Message(Error(code=2, reason="the process ended"), reply_to=message)


BAD = {
    "died": (lambda reply: None, "no answer in time"),
    "failed": (failed, "the process ended"),
    "NaN": (poisoned, r"\['Dense_0'\]\['bias'\] has 1 values of 10 that are NaN"),
    "shape": (
        lambda r: rewritten(r, [a[:5] for a in arrays(r)]),
        r"has shape \(5,\), but must be \(10,\)",
    ),
    "dtype": (
        lambda r: rewritten(r, [a.astype(np.float64) for a in arrays(r)]),
        "has dtype float64, but must be float32",
    ),
    "leaves": (lambda r: rewritten(r, arrays(r)[:1]), "it has 1 arrays, but must have 2"),
    "rows": (lambda r: rewritten(r, arrays(r), **{"num-examples": -4.0}), "must be a number > 0"),
    "many rows": (lambda r: rewritten(r, arrays(r), **{"num-examples": 1e9}), "at most"),
    "stranger": (lambda r: rewritten(r, arrays(r), client=9), "there is no client 9"),
    "empty": (lambda r: Message(RecordDict(), reply_to=_asked(r)), "metrics"),
}


def _asked(reply):
    message = Message(RecordDict(), dst_node_id=71, message_type="train")
    message.metadata.__dict__["_message_id"] = "x"
    return message


@pytest.mark.parametrize("name", BAD)
def test_a_bad_client_costs_its_round_its_update_and_nothing_else(name):
    change, message = BAD[name]
    found = run(task(), bad={0: {71: change}})
    (fault,) = found.faults
    assert (fault.round, fault.node) == (0, 71)
    assert re.search(message, fault.what)
    assert_close(found.server.params, in_one_process(without=[[1]]))


def test_the_names_of_clients_are_known_once_they_have_spoken():
    found = run(task(), bad={1: {71: BAD["died"][0], 70: BAD["NaN"][0]}})
    assert {(f.round, f.client) for f in found.faults} == {(1, 0), (1, 1)}
    assert_close(found.server.params, in_one_process(without=[[], [0, 1]]))


def impostor(reply):
    return rewritten(reply, arrays(reply), client=2)


def test_two_that_say_they_are_one_client():
    found = run(task(), bad={0: {71: impostor}})
    assert {(f.round, f.node) for f in found.faults} == {(0, 72), (0, 71)}
    assert all("client 2 answers from 2 nodes" in f.what for f in found.faults)
    assert_close(found.server.params, in_one_process(without=[[1, 2]]))
    found = run(task(), bad={1: {71: impostor}})  # by then it has a name
    (fault,) = found.faults
    assert fault.client == 1 and "it was client 1" in fault.what
    assert_close(found.server.params, in_one_process(without=[[], [1]]))


def test_a_round_without_any_update_leaves_the_model():
    dead = dict.fromkeys((70, 71, 72), BAD["died"][0])
    found = run(task(), bad={0: dead, 1: dead})
    assert len(found.faults) == 6 and int(found.server.round) == 2
    assert_close(found.server.params, [np.asarray(x) for x in jax.tree.leaves(task().start())])


def test_bad_tasks_and_clients():
    with pytest.raises(ValueError, match="clients=1 must be at least 2"):
        Task(MODEL, rows, clients=1, size=3, shape=(8, 8, 1))
    with pytest.raises(ValueError, match="size=0"):
        Task(MODEL, rows, clients=2, size=0, shape=(8, 8, 1))
    small = Task(MODEL, rows, clients=K, size=3, shape=(8, 8, 1))
    with pytest.raises(ValueError, match="client 0 has .* rows, but size=3"):
        flower._alone(0, small)
    nobody = Task(
        MODEL, lambda k: Dataset(ALL.x[:0], ALL.y[:0]), clients=K, size=3, shape=(8, 8, 1)
    )
    with pytest.raises(ValueError, match="client 1 has no rows|client 1.*no rows"):
        flower._alone(1, nobody)
    for number in (None, "0", 3, -1):
        context = Context(1, 7, {"partition-id": number}, RecordDict(), {})
        with pytest.raises(ValueError, match="partition-id"):
            flower._number(context, task())


def test_a_deployment_on_loopback_ends_with_the_parameters_of_one_process(tmp_path):
    part = partition.dirichlet(0, np.asarray(ALL.y), 2, alpha=2.0)
    with deployment.Deployment(tmp_path, clients=2) as processes:
        params, faults = processes.run()
    assert faults == []
    assert_close(params, in_one_process(part=part))


DIES = """if client == 1 and os.environ.get("FEDAPP_OUT"):
        os.kill(os.getpid(), 9)"""


@pytest.mark.slow
def test_a_client_that_dies_in_mid_round(tmp_path):
    with deployment.Deployment(tmp_path, rounds=1, timeout=150, trouble=DIES) as processes:
        params, faults = processes.run()
    (fault,) = faults
    assert fault.round == 0 and fault.client is None
    one = FederatedConfig(rounds=1, local=CONFIG.local)
    assert_close(params, in_one_process(one, without=[[1]]))


SLOW = """if client == 2:
        import time
        time.sleep(600)"""


@pytest.mark.slow
def test_a_straggler_is_left_behind(tmp_path):
    with deployment.Deployment(tmp_path, rounds=1, timeout=150, trouble=SLOW) as processes:
        params, faults = processes.run()
    (fault,) = faults
    assert fault.what.startswith("no answer in time")
    one = FederatedConfig(rounds=1, local=CONFIG.local)
    assert_close(params, in_one_process(one, without=[[2]]))


MALFORMED = """if client == 0:
        bad = np.full((64, 10), np.nan, np.float32)
        update = {"Dense_0": {"kernel": bad, "bias": bad[0]}}
        flower._update = lambda *args, **options: update"""


@pytest.mark.slow
def test_an_update_that_is_not_finite(tmp_path):
    with deployment.Deployment(tmp_path, rounds=1, timeout=150, trouble=MALFORMED) as processes:
        params, faults = processes.run()
    (fault,) = faults
    assert fault.client == 0 and "NaN or infinite" in fault.what
    one = FederatedConfig(rounds=1, local=CONFIG.local)
    assert_close(params, in_one_process(one, without=[[0]]))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_the_simulation_ends_with_the_parameters_of_one_process(monkeypatch, tmp_path):
    pytest.importorskip("ray", reason="Flower's simulation needs ray")
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    from flwr.simulation import run_simulation

    found = []
    server = flower.server_app(task(), done=lambda server, faults: found.append((server, faults)))
    run_simulation(server, client_app(task()), num_supernodes=K)
    ((after, faults),) = found
    assert not faults
    assert_close(after.params, in_one_process())

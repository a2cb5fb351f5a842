"""A deployment of Flower on loopback: SuperLink, SuperNodes and apps are processes of their own."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np

from jaxunlearn.federated import flower

PYPROJECT = """
[project]
name = "fedapp"
version = "1.0.0"
description = "FFMU on digits"
license = "Apache-2.0"
dependencies = []
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.flwr.app]
publisher = "local"
[tool.flwr.app.components]
serverapp = "fedapp.app:server"
clientapp = "fedapp.app:client"
"""
APP = """
import json
import os

import jax
import numpy as np
from jaxunlearn import Dataset, TrainConfig, data, models
from jaxunlearn.federated import FederatedConfig, flower, partition
from jaxunlearn.methods import ffmu

N, K = 60, {clients}
digits = data.load("digits").train
part = partition.dirichlet(0, np.asarray(digits.y[:N]), K, alpha=2.0)


def rows(client):
    {trouble}
    own = part.rows[client, : part.counts[client]]
    return Dataset(digits.x[own], digits.y[own])


local = TrainConfig(epochs=1, batch_size=8, learning_rate=0.02, momentum=0.0)
task = flower.Task(
    models.logistic(10),
    rows,
    clients=K,
    size=part.rows.shape[1],
    shape=(8, 8, 1),
    config=FederatedConfig(rounds={rounds}, local=local),
    rule=ffmu.rule(ffmu.FFMUConfig(local="soft", server="soft")),
    seed=5,
)


def done(server, faults):
    leaves = map(np.asarray, jax.tree.leaves(server.params))
    np.savez(os.environ["FEDAPP_OUT"], *leaves, faults=json.dumps(faults))


server = flower.server_app(task, done=done, timeout={timeout})
client = flower.client_app(task)
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Deployment:
    """SuperLink and K SuperNodes on loopback, in a folder of their own; ended by their ids."""

    def __init__(self, folder, *, clients=3, rounds=2, timeout=300, trouble="pass"):
        self.folder, self.out, self.clients = folder, folder / "out.npz", clients
        app = folder / "app" / "fedapp"
        app.mkdir(parents=True)
        (app.parent / "pyproject.toml").write_text(PYPROJECT)
        (app / "__init__.py").touch()
        text = APP.format(clients=clients, rounds=rounds, timeout=timeout, trouble=trouble)
        (app / "app.py").write_text(text)
        self.link_port, *self.ports = free_ports(clients + 1)
        home = folder / "home"
        home.mkdir()
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "local"\n[superlink.local]\n'
            f'address = "127.0.0.1:{self.link_port}"\ninsecure = true\n'
        )
        bin_ = str(pathlib.Path(sys.executable).parent)
        self.environment = os.environ | {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_HOME": str(home),
            "FEDAPP_OUT": str(self.out),
            "JAX_PLATFORMS": "cpu",
            "PATH": os.pathsep.join([bin_, os.environ["PATH"]]),
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
            # Small programs: compiling them well takes longer than running them.
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        }
        self.processes = {}

    def start(self, name, *command) -> subprocess.Popen:
        log = open(self.folder / f"{name}.log", "wb")
        with log:
            self.processes[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                cwd=self.folder / "app",
                start_new_session=True,
            )
        return self.processes[name]

    def __enter__(self):
        flags = ("--insecure", "--port")
        off = "--disable-runtime-dependency-installation"
        self.start("link", "flower-superlink", *flags, str(self.link_port), off)
        for k, port in enumerate(self.ports):
            where = ("--superlink", f"127.0.0.1:{self.link_port}")
            node = ("--node-config", f"partition-id={k} num-partitions={self.clients}")
            self.start(f"node{k}", "flower-supernode", *flags, str(port), *where, *node)
        return self

    def __exit__(self, *error):
        for process in self.processes.values():
            self.end(process, signal.SIGTERM)
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                self.end(process, signal.SIGKILL)
                process.wait()

    @staticmethod
    def end(process, how) -> None:
        """The process and those that it started, which are a session of their own."""
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            pass

    def run(self, limit=600):
        """The final parameters and the faults."""
        time.sleep(1)
        for _ in range(60):  # until the SuperLink listens
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.link_port)) == 0:
                    break
            time.sleep(0.5)
        self.start("run", "flwr", "run", ".", "local", "--stream")
        end = time.monotonic() + limit
        while not self.out.exists() and time.monotonic() < end:
            assert self.processes["link"].poll() is None, self.logs()
            time.sleep(0.2)
        assert self.out.exists(), self.logs()
        time.sleep(0.3)
        with np.load(self.out) as file:
            faults = [flower.Fault(*fault) for fault in json.loads(str(file["faults"]))]
            return [file[f"arr_{i}"] for i in range(len(file.files) - 1)], faults

    def logs(self) -> str:
        text = (path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.log"))
        return "\n".join(text)

"""A federated training between real clients and a real server, with Flower.

The extra ``federated`` installs it: ``pip install "jaxunlearn[federated]"``. A :class:`Task` says
what is trained; :func:`client_app` and :func:`server_app` make Flower's two programs of it, which
run in Flower's simulation or in a deployment, one process a client, and which end with the
parameters that :func:`jaxunlearn.federated.advance` computes in one process.

A client that dies, that answers too late or that sends something malformed is left out of the
round and named in the server's log; the round goes on with the others, and the training with the
next round. Only updates travel: rows stay where they are.
"""

import dataclasses
import functools
import logging
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

try:
    with warnings.catch_warnings():
        # Flower's command line uses names that its own libraries are about to drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
        from flwr.clientapp import ClientApp
        from flwr.serverapp import Grid, ServerApp
        from flwr.serverapp.strategy import Strategy
except ImportError as error:
    raise ImportError(f'{error}: pip install "jaxunlearn[federated]" installs Flower.') from None

from jaxunlearn import _validate
from jaxunlearn.federated import rounds
from jaxunlearn.federated.aggregate import Aggregator, add_finite, fault, weighted_mean
from jaxunlearn.federated.clients import Clients
from jaxunlearn.federated.rounds import CHOICE, FEDAVG, FederatedConfig, Rule, Server
from jaxunlearn.models.losses import cross_entropy
from jaxunlearn.training.fit import shuffled
from jaxunlearn.types import Array, Dataset, Model, Params, PyTree

LOG = logging.getLogger("jaxunlearn.federated")


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What a federation trains. Client and server make it from the same code.

    Attributes:
      model: to train.
      rows: ``rows(k) -> Dataset``, the rows of client k; called at that client alone.
      clients: K.
      size: rows of the largest client: all are padded to it, so that their orders are those of
        one process.
      shape: of one input, which the initial parameters need.
      config: rounds and local training.
      rule: of the method, :func:`jaxunlearn.methods.ffmu.rule` for FFMU.
      seed: of the key of the training.
      aggregator: of the server; the weighted mean if None.
    """

    model: Model
    rows: Callable[[int], Dataset]
    clients: int
    size: int
    shape: tuple[int, ...]
    config: FederatedConfig = FederatedConfig()
    rule: Rule = FEDAVG
    seed: int = 0
    aggregator: Aggregator | None = None

    def __post_init__(self):
        _validate.whole(clients=self.clients, size=self.size)
        _validate.whole(0, seed=self.seed)
        if self.clients < 2:
            raise ValueError(f"clients={self.clients} must be at least 2.")

    @property
    def keys(self) -> tuple[Array, Array]:
        """For the initial parameters, and for everything else."""
        init, train = jax.random.split(jax.random.key(self.seed))
        return init, train

    def start(self) -> Params:
        return self.model.init(self.keys[0], jnp.zeros((1, *self.shape)))


class Fault(NamedTuple):
    """Why a round had to do without a client.

    Attributes:
      round: from 0.
      client: its number; None if it never said.
      node: Flower's id of it.
      what: in words.
    """

    round: int
    client: int | None
    node: int
    what: str


def client_app(task: Task) -> ClientApp:
    """Flower's client program: trains on its rows, sends its update.

    Which client it is comes from ``partition-id`` of the SuperNode's ``--node-config``.

    Args:
      task: what is trained.

    Raises:
      ValueError: in the client, and reported to the server: a partition-id that does not exist, a
        client without rows or with more than ``task.size``.

    Example:
      >>> from jaxunlearn import models
      >>> rows = lambda k: Dataset(jnp.ones((2, 3)), jnp.array([0, 1]))
      >>> app = client_app(Task(models.logistic(2), rows, clients=2, size=2, shape=(3,)))
    """
    app = ClientApp()
    structure = jax.tree.structure(jax.eval_shape(task.start))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = _number(context, task)
        config: Any = message.content["config"]
        leaves: Any = message.content["arrays"]
        params = jax.tree.unflatten(structure, map(jnp.asarray, leaves.to_numpy_ndarrays()))
        clients = _alone(number, task)
        update = _update(params, clients, jnp.int32(config["round"]), task=task)
        counts = float(clients.counts[0])
        return _reply(message, update, {"client": number, "num-examples": counts})

    @app.query()
    def who(message: Message, context: Context) -> Message:
        return _reply(message, None, {"client": _number(context, task)})

    return app


def _number(context: Context, task: Task) -> int:
    number = context.node_config.get("partition-id")
    if not isinstance(number, int) or not 0 <= number < task.clients:
        raise ValueError(
            f"partition-id={number!r} must be an integer in 0..{task.clients - 1}: give each "
            "SuperNode its own with --node-config."
        )
    return number


def _alone(number: int, task: Task) -> Clients:
    """The rows of one client, padded as :func:`jaxunlearn.federated.gather` pads them."""
    rows = task.rows(number)
    _validate.dataset(rows, name=f"client {number}")
    count = rows.y.shape[0]
    if count > task.size:
        raise ValueError(f"client {number} has {count} rows, but size={task.size}: raise it.")
    places = np.where(np.arange(task.size) < count, np.arange(task.size), 0)
    data = jax.tree.map(lambda leaf: jnp.asarray(leaf)[places][None], rows)
    weights = jnp.asarray(np.arange(task.size) < count, jnp.float32)[None]
    return Clients(data, weights, jnp.array([number], jnp.int32))


@functools.partial(jax.jit, static_argnames=("task",))
def _update(params, clients, round, *, task: Task) -> PyTree:
    sent = rounds.client_updates(
        task.keys[1],
        cross_entropy(task.model.apply),
        params,
        clients,
        round=round,
        config=task.config,
        rule=task.rule,
        fraction=round / task.config.rounds,
    )
    return jax.tree.map(lambda leaf: leaf[0], sent)


def _reply(message: Message, update: PyTree | None, metrics: dict[str, Any]) -> Message:
    content: dict[str, Any] = {"metrics": MetricRecord(metrics)}
    if update is not None:
        content["arrays"] = _record(update)
    return Message(RecordDict(content), reply_to=message)


def _record(tree: PyTree) -> ArrayRecord:
    return ArrayRecord([np.asarray(leaf) for leaf in jax.tree.leaves(tree)])


def _claimed(reply: Message) -> int | None:
    """The client that a reply says it is from, if it says so at all."""
    try:
        metrics: Any = reply.content["metrics"]
        return int(metrics["client"])
    except Exception:
        return None


_step = jax.jit(rounds.step, static_argnames=("config", "rule"))


class Rounds(Strategy):
    """Our aggregation as a strategy of Flower.

    Args:
      task: what is trained.
      patience: seconds to wait for the clients to connect before the first round; it starts with
        those that are there.

    Attributes:
      server: the training so far.
      faults: every :class:`Fault` so far.
    """

    def __init__(self, task: Task, *, patience: float = 60.0):
        _validate.not_negative(patience=patience)
        self.task, self.patience = task, patience
        self.server: Server = rounds.begin(task.start(), task.clients, rule=task.rule)
        self.faults: list[Fault] = []
        self._numbers: dict[int, int] = {}  # of nodes that have said who they are
        self._asked: set[int] = set()

    def summary(self) -> None:
        """Logs what will be run."""
        LOG.info("%d rounds of up to %d clients", self.task.config.rounds, self.task.clients)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The messages of a round, to all nodes or to those that were chosen."""
        del arrays  # those of the server
        number = int(self.server.round)
        nodes = self._nodes(grid, wait=server_round == 1)
        if self.task.config.participants is not None:
            nodes = self._chosen(nodes, grid)
        self._asked = set(nodes)
        content = RecordDict(
            {
                "arrays": _record(self.server.params),
                "config": ConfigRecord({**config, "round": number}),
            }
        )
        return [Message(content, dst_node_id=node, message_type="train") for node in nodes]

    def _nodes(self, grid: Grid, *, wait: bool) -> list[int]:
        end = time.monotonic() + (self.patience if wait else 0.0)
        while True:
            nodes = sorted(grid.get_node_ids())
            if len(nodes) >= self.task.clients or time.monotonic() >= end:
                return nodes
            time.sleep(0.2)

    def _chosen(self, nodes: list[int], grid: Grid) -> list[int]:
        """The nodes of the clients that one process would choose for this round."""
        new = [node for node in nodes if node not in self._numbers]
        ask = [Message(RecordDict(), dst_node_id=node, message_type="query") for node in new]
        for reply in grid.send_and_receive(ask, timeout=self.patience) if ask else ():
            metrics: Any = None if reply.has_error() else reply.content["metrics"]
            if metrics is not None:
                self._numbers[reply.metadata.src_node_id] = int(metrics["client"])
        draw = jax.random.fold_in(self.task.keys[1], self.server.round)
        order = shuffled(jax.random.fold_in(draw, CHOICE), self.task.clients)
        chosen = set(np.asarray(order)[: self.task.config.participants].tolist())
        return [node for node in nodes if self._numbers.get(node) in chosen]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The server's step with what came in time and in order; the rest is a fault."""
        del server_round
        round, before = int(self.server.round), len(self.faults)
        claims: dict[int, list[tuple[int, PyTree, float]]] = {}
        silent = set(self._asked)
        for reply in replies:
            node = reply.metadata.src_node_id
            silent.discard(node)
            try:
                number, update, weight = self._read(reply)
                claims.setdefault(number, []).append((node, update, weight))
            except Exception as error:  # whatever a client sends, the round goes on
                self._fault(round, node, str(error), _claimed(reply))
        updates: dict[int, list[Any]] = {}  # the update, and its rows
        for number, answers in claims.items():
            if len(answers) == 1:
                node, *updates[number] = answers[0]
                self._numbers[node] = number
            for node, *_ in answers if len(answers) > 1 else ():  # nobody can tell who it is
                self._fault(round, node, f"client {number} answers from {len(answers)} nodes")
        for node in sorted(silent):
            self._fault(round, node, "no answer in time: it died, or is too slow")
        self.server = self._stepped(updates)
        counts = {"accepted": len(updates), "faults": len(self.faults) - before}
        return _record(self.server.params), MetricRecord(counts)  # pyright: ignore

    def _read(self, reply: Message) -> tuple[int, PyTree, float]:
        if reply.has_error():
            raise ValueError(f"error {reply.error.code}: {reply.error.reason}")
        metrics: Any = reply.content["metrics"]
        leaves: Any = reply.content["arrays"]
        number, weight = int(metrics["client"]), float(metrics["num-examples"])
        if not 0 <= number < self.task.clients:
            raise ValueError(f"there is no client {number}")
        known = self._numbers.get(reply.metadata.src_node_id, number)
        if known != number:
            raise ValueError(f"it was client {known}, and says now that it is client {number}")
        arrays, like = leaves.to_numpy_ndarrays(), self.server.params
        structure = jax.tree.structure(like)
        if len(arrays) != structure.num_leaves:
            raise ValueError(f"it has {len(arrays)} arrays, but must have {structure.num_leaves}")
        update = jax.tree.unflatten(structure, arrays)
        if wrong := fault(update, like, weight):
            raise ValueError(wrong)
        if weight > self.task.size:
            raise ValueError(f"its number of rows is {weight}, but at most {self.task.size}")
        return number, update, weight

    def _fault(self, round: int, node: int, what: str, claimed: int | None = None) -> None:
        found = Fault(round, self._numbers.get(node, claimed), node, what)
        self.faults.append(found)
        LOG.warning(
            "round %d goes on without client %s (node %d): %s", round, found.client, node, what
        )

    def _stepped(self, updates: dict[int, list[Any]]) -> Server:
        aggregator = self.task.aggregator or weighted_mean()
        sums = aggregator.start(self.server.params, max(1, len(updates)))
        for number in sorted(updates):  # one order, whoever was first
            update, weight = updates[number]
            stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], update)
            sums, _ = add_finite(aggregator, sums, stacked, jnp.array([weight], jnp.float32))
        if not updates:
            LOG.warning("round %d had no update: the model stays", int(self.server.round))
            return self.server._replace(round=self.server.round + 1)
        update = aggregator.finish(sums)
        return _step(self.server, update, config=self.task.config, rule=self.task.rule)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: the audit evaluates."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing."""
        return None


def server_app(
    task: Task,
    *,
    done: Callable[[Server, list[Fault]], None],
    timeout: float = 600.0,
    patience: float = 60.0,
) -> ServerApp:
    """Flower's server program: all rounds of the task.

    Args:
      task: what is trained.
      done: called at the end with the training and the faults; to save them, say.
      timeout: seconds that a round waits for its clients.
      patience: see :class:`Rounds`.

    Example:
      >>> from jaxunlearn import models
      >>> rows = lambda k: Dataset(jnp.ones((2, 3)), jnp.array([0, 1]))
      >>> task = Task(models.logistic(2), rows, clients=2, size=2, shape=(3,))
      >>> app = server_app(task, done=lambda server, faults: print(len(faults)))
    """
    _validate.positive(timeout=timeout)
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        strategy = Rounds(task, patience=patience)
        strategy.start(
            grid=grid,
            initial_arrays=_record(strategy.server.params),
            num_rounds=task.config.rounds,
            timeout=timeout,
        )
        done(strategy.server, strategy.faults)

    return app


__all__ = ["Fault", "Rounds", "Task", "client_app", "server_app"]

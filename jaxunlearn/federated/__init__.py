"""Federated training: clients as an axis, rounds as a scan; on one device, many, or an engine.

- :mod:`~jaxunlearn.federated.partition`: who owns which rows;
- :mod:`~jaxunlearn.federated.requests`: requests to forget as clients make them;
- :mod:`~jaxunlearn.federated.aggregate`: one update of many;
- :mod:`~jaxunlearn.federated.local`: what a client does; :mod:`~jaxunlearn.federated.rounds`:
  rounds and whole trainings;
- :mod:`~jaxunlearn.federated.flower`: the same between real processes (extra ``federated``).
"""

from jaxunlearn.federated import aggregate as aggregate
from jaxunlearn.federated import partition as partition
from jaxunlearn.federated.clients import Clients, gather, spread
from jaxunlearn.federated.local import train_locally
from jaxunlearn.federated.partition import Partition, load_partition, save_partition
from jaxunlearn.federated.requests import forget_class, forget_client, forget_rows
from jaxunlearn.federated.rounds import (
    FEDAVG,
    FederatedConfig,
    Rule,
    Server,
    advance,
    begin,
    client_updates,
    round_updates,
)

__all__ = [
    "FEDAVG",
    "Clients",
    "FederatedConfig",
    "Partition",
    "Rule",
    "Server",
    "advance",
    "aggregate",
    "begin",
    "client_updates",
    "forget_class",
    "forget_client",
    "forget_rows",
    "gather",
    "load_partition",
    "partition",
    "round_updates",
    "save_partition",
    "spread",
    "train_locally",
]

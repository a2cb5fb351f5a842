"""What federated baselines share: a state, and a refusal."""

import jax.numpy as jnp

from jaxunlearn import tree
from jaxunlearn.federated.federation import Federation
from jaxunlearn.federated.rounds import FederatedConfig
from jaxunlearn.training.config import TrainConfig
from jaxunlearn.types import Dataset, Params, PyTree, State, Status


def whole(federation: Federation, train: TrainConfig, method: str) -> FederatedConfig:
    """The federated training of a method that needs every client in every round."""
    if federation.participants is not None:
        raise ValueError(
            f"participants={federation.participants} does not go with {method}, which keeps an "
            "update of every client: leave it at None."
        )
    return federation.config(train)


def federated_state(params: Params, data: Dataset, memory: PyTree, grads) -> State:
    """A state with nobody removed and nothing certified."""
    status = jnp.where(tree.all_finite(params), Status.OK, Status.NOT_FINITE)
    nobody = jnp.zeros(data.y.shape[0], bool)
    grads = jnp.asarray(grads, jnp.float32)
    return State(params, nobody, memory, grads, status.astype(jnp.int32), ())

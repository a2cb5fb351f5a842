"""Clients as an axis, and what they may ask to be forgotten."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxunlearn import Dataset
from jaxunlearn.federated import (
    forget_class,
    forget_client,
    forget_rows,
    gather,
    partition,
    spread,
)
from jaxunlearn.federated.clients import pad

PART = partition.of_lists([[4, 0], [1, 2, 5], [3]])
Y = np.array([7, 7, 1, 1, 7, 1])
DATA = Dataset(jnp.arange(6.0)[:, None], jnp.asarray(Y))


def test_gather_pads_and_counts():
    keep = jnp.array([True, True, False, True, True, True])
    clients = gather(DATA, PART, keep=keep)
    assert clients.counts.tolist() == [2, 2, 1] and clients.number.tolist() == [0, 1, 2]
    for k, own in enumerate([[4, 0], [1, 5], [3]]):
        some = np.asarray(clients.weights[k]) > 0
        assert np.asarray(clients.data.x[k, :, 0])[some].tolist() == own
        assert clients.data.y[k].tolist() == Y[np.asarray(clients.data.x[k, :, 0], int)].tolist()


def test_padding_clients_have_no_rows():
    padded = pad(gather(DATA, PART), 4)
    assert padded.counts.tolist() == [2, 3, 1, 0] and padded.number.tolist() == [0, 1, 2, 3]
    mesh = jax.make_mesh((1,), ("clients",))
    assert spread(padded, mesh).counts.tolist() == [2, 3, 1, 0]


def test_requests_are_the_rows_of_those_who_ask():
    named = lambda mask: np.flatnonzero(np.asarray(mask)).tolist()
    assert named(forget_client(PART, 1)) == [1, 2, 5]
    assert named(forget_client(PART, 2, 0)) == [0, 3, 4]
    assert named(forget_rows(PART, 1, [5, 1])) == [1, 5]
    assert named(forget_rows(PART, 1, [])) == []
    assert named(forget_class(PART, Y, 7, clients=1)) == [1]
    assert named(forget_class(PART, Y, 7)) == [0, 1, 4]
    assert named(forget_class(PART, Y, 7, clients=[1, 2])) == [1]


BAD = {
    "not its own": (lambda: forget_rows(PART, 0, [4, 3]), r"rows \[3\], which it does not own"),
    "no such client": (lambda: forget_client(PART, 3), "client=3 does not exist: there are 3"),
    "all": (lambda: forget_client(PART, 0, 1, 2), "leaves none of the 6 training rows"),
    "floats": (lambda: forget_rows(PART, 0, [0.5]), "must be int"),
    "no such class": (lambda: forget_class(PART, Y, 3), "label=3 has no rows"),
    "class of others": (lambda: forget_class(PART, Y, 7, clients=[2]), "no rows at these 1"),
    "class of nobody": (lambda: forget_class(PART, Y, 7, clients=[]), "names no client"),
    "labels": (lambda: forget_class(PART, Y[:3], 7), "y has shape"),
    "other data": (
        lambda: gather(Dataset(DATA.x[:5], DATA.y[:5]), PART),
        "partition has 6 rows, but data has 5",
    ),
    "keep": (lambda: gather(DATA, PART, keep=jnp.ones(5, bool)), "keep has shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_mesh_of_two_axes_is_refused():
    mesh = jax.make_mesh((1, 1), ("a", "b"))
    with pytest.raises(ValueError, match="must have one"):
        spread(gather(DATA, PART), mesh)

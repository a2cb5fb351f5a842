"""Settings that every test runs under."""

import gc

import jax
import pytest

# Shapes that broadcast by accident are the commonest silent error in this kind of code.
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def key():
    """A fixed key; split it for more."""
    return jax.random.key(0)


@pytest.fixture(scope="module")
def float64():
    """A module in float64, its fixtures included."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def compiled_in_haste():
    """No LLVM optimisation: half the compile time, for modules that compile much and run little."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def nothing_kept():
    """Programs of a file go with it.

    Linux lets a process map 65,530 pieces of memory, a compiled program takes several, and XLA
    crashes where there are no more.
    """
    yield
    jax.clear_caches()
    gc.collect()

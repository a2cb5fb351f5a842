"""Kernels for accelerators, lowered without one."""

import warnings

import jax
import pytest


@pytest.fixture(params=["gpu", "tpu"])
def platform(request):
    return request.param


@pytest.fixture
def lowered(platform):
    """What a function becomes on the platform; no device is needed for that, nor is it run."""
    device = {
        "gpu": jax.sharding.AbstractDevice("NVIDIA H100", 132, "gpu"),
        "tpu": jax.sharding.AbstractDevice("TPU v5e", 1, "tpu"),
    }[platform]
    mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
    name = {"gpu": "cuda", "tpu": "tpu"}[platform]

    def lower(function, *arguments) -> str:
        with jax.sharding.use_abstract_mesh(mesh), warnings.catch_warnings():
            # jax 0.12 announces that this way to a GPU will end one day.
            warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated")
            traced = jax.jit(function).trace(*arguments)
            return traced.lower(lowering_platforms=(name,)).as_text()

    return lower


@pytest.fixture
def accelerator():
    if jax.default_backend() == "cpu":
        pytest.skip("a compiled Pallas kernel needs a GPU or a TPU")

"""The `cnn` of jaxunlearn in PyTorch: its training loop and two ways to per-sample gradients.

Import it through `harness.peer("benchmarks.torch_cnn")`: None where torch is not installed.
"""

# Peers are not installed where types are checked.
# pyright: reportMissingImports=false, reportCallIssue=false, reportAttributeAccessIssue=false

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from jaxunlearn.types import Dataset, Params

# What is usually tried to make a small network on a CPU fast.
SETTINGS = {
    f"{'channels last' if last else 'contiguous'}, {'fused' if fused else 'default'} SGD": (
        torch.channels_last if last else torch.contiguous_format,
        fused,
    )
    for last, fused in itertools.product((False, True), (False, True))
}


def network(params: Params) -> nn.Sequential:
    """The same function as ``models.cnn(10).apply`` with ``params`` (images 28 x 28 x 1)."""
    layers: list[nn.Module] = []
    for i, (c_in, c_out) in enumerate(((1, 16), (16, 32), (32, 64))):
        layers += [nn.Conv2d(c_in, c_out, 3, stride=2, padding=1), nn.ReLU()]
        _copy(
            layers[-2],
            np.transpose(params[f"Conv_{i}"]["kernel"], (3, 2, 0, 1)),
            params[f"Conv_{i}"],
        )
    layers += [nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(), nn.Linear(64, 10)]
    # We flatten height, width, channels; torch flattens channels, height, width.
    first = np.reshape(params["Dense_0"]["kernel"], (4, 4, 64, 64))
    _copy(layers[-3], np.transpose(first, (3, 2, 0, 1)).reshape(64, 1024), params["Dense_0"])
    _copy(layers[-1], np.transpose(params["Dense_1"]["kernel"]), params["Dense_1"])
    return nn.Sequential(*layers)


def _copy(layer: Any, weight: np.ndarray, params: Params) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(np.ascontiguousarray(weight)))
        layer.bias.copy_(torch.tensor(np.array(params["bias"])))


def tensors(rows: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Images ``[n, channels, height, width]`` and labels.

    NumPy transposes, since torch's ``permute`` of one channel is taken for channels last by the
    convolutions that follow, on which Opacus 1.6.0 gives wrong gradients.
    """
    x = np.ascontiguousarray(np.transpose(rows.x, (0, 3, 1, 2)))
    return torch.tensor(x), torch.tensor(np.array(rows.y)).long()


def logits(net: nn.Module, rows: Dataset) -> np.ndarray:
    with torch.no_grad():
        return net(tensors(rows)[0]).numpy()


def trainer(
    params: Params,
    rows: Dataset,
    *,
    setting: str,
    batch: int,
    learning_rate: float,
    momentum: float,
) -> tuple[nn.Module, Callable[[], None]]:
    """The network, and a function that trains it for one epoch."""
    memory_format, fused = SETTINGS[setting]
    net = network(params).to(memory_format=memory_format)
    x, y = tensors(rows)
    x = x.to(memory_format=memory_format)
    options: dict[str, Any] = {"fused": True} if fused else {}
    optimizer = torch.optim.SGD(net.parameters(), learning_rate, momentum=momentum, **options)

    def epoch() -> None:
        for index in torch.randperm(len(y)).split(batch):
            loss = cross_entropy(net(x[index]), y[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return net, epoch


def func_gradients(params: Params, rows: Dataset) -> Callable[[], dict[str, torch.Tensor]]:
    """Per-sample gradients by ``torch.func``."""
    net, (x, y) = network(params), tensors(rows)
    weights = {name: value.detach() for name, value in net.named_parameters()}

    def loss(weights, x, y):
        return cross_entropy(functional_call(net, weights, (x[None],)), y[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    return lambda: each(weights, x, y)


def opacus_gradients(params: Params, rows: Dataset) -> Callable[[], dict[str, torch.Tensor]]:
    """Per-sample gradients by Opacus. Raises ImportError where it is not installed."""
    from opacus import GradSampleModule

    net, (x, y) = GradSampleModule(network(params), loss_reduction="sum"), tensors(rows)

    def gradients():
        net.zero_grad(set_to_none=True)
        with warnings.catch_warnings():  # of its hook on a module whose input needs no gradient
            warnings.simplefilter("ignore", UserWarning)
            cross_entropy(net(x), y, reduction="sum").backward()
        return {name: value.grad_sample for name, value in net.named_parameters()}

    return gradients


def norms(gradients: dict[str, torch.Tensor]) -> np.ndarray:
    """The norm of every row's gradient, to compare with other ways."""
    squares: Iterator[torch.Tensor] = (g.flatten(1).square().sum(1) for g in gradients.values())
    return torch.stack(list(squares)).sum(0).sqrt().numpy()

"""The picture of the inner maximum: how it moves with the parameters, and how the paper has it.

A linear model in two dimensions, an L2 ball. Contours of the loss are straight lines, it grows
without end, and its maximum lies on the circle.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from jaxunlearn import Dataset
from jaxunlearn.primitives.balls import L2Ball, LInfBox
from jaxunlearn.primitives.inner import follow
from jaxunlearn.primitives.solve import CG


def loss_fn(w, row):
    return jax.nn.softplus(w @ row.x)


def draw(path: pathlib.Path) -> None:
    """Writes the picture."""
    with jax.enable_x64(True):
        w, turn, ball = jnp.array([2.0, 0.6]), jnp.array([-0.45, 0.8]), L2Ball(1.0)
        row = Dataset(jnp.zeros(2), jnp.array(0))
        delta = ball.extreme(row.x, w)
        yes = jnp.array(True)
        moved = lambda w: follow(loss_fn, w, row, delta, yes, ball, CG(tol=1e-12))
        ours = jax.jvp(moved, (w,), (turn,))[1]
        value = lambda w, d: loss_fn(w, row._replace(x=row.x + d))
        bend = jax.hessian(value, 1)(w, delta)
        cross = jax.jvp(lambda w: jax.grad(value, 1)(w, delta), (w,), (turn,))[1]
        series = sum(jnp.linalg.matrix_power(jnp.eye(2) - bend, j) for j in range(3))
        theirs = -series @ cross  # the derivative of an unconstrained maximum, three terms
        truth = ball.extreme(row.x, w + turn)
        figure, axes = plt.subplots(1, 2, figsize=(8.4, 4.1))
        _sphere(axes[0], w, delta, truth, ours, theirs)
        _box(axes[1])
        figure.tight_layout()
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _sphere(axis, w, delta, truth, ours, theirs) -> None:
    tip = np.asarray(delta + theirs)
    left, right, low, high = -1.3, max(1.5, tip[0] + 0.3), min(-1.3, tip[1] - 0.3), 1.5
    x, y = np.meshgrid(np.linspace(left, right, 200), np.linspace(low, high, 200))
    axis.contour(x, y, np.log1p(np.exp(w[0] * x + w[1] * y)), 12, colors="0.8", linewidths=0.8)
    angle = np.linspace(0, 2 * np.pi, 200)
    axis.plot(np.cos(angle), np.sin(angle), color="0.3", linewidth=1.2)
    arrow = {"length_includes_head": True, "head_width": 0.14, "width": 0.025, "zorder": 3}
    for step, color, name in (
        (ours, "C0", "constrained (ours)"),
        (theirs, "C3", "unconstrained (paper)"),
    ):
        axis.arrow(*np.asarray(delta), *np.asarray(step), color=color, label=name, **arrow)
    axis.plot(*np.asarray(delta), "ko", markersize=6, label=r"$\delta(w)$", zorder=4)
    axis.plot(*np.asarray(truth), "k*", markersize=11, label=r"$\delta(w + dw)$", zorder=4)
    axis.set_title("The maximum lies on the sphere and slides along it", fontsize=10)
    axis.legend(loc="lower left", fontsize=8, framealpha=1)
    axis.set(aspect="equal", xlim=(left, right), ylim=(low, high), xticks=[], yticks=[])
    axis.set_xlabel(r"$\delta_1$")
    axis.set_ylabel(r"$\delta_2$")


def _box(axis) -> None:
    """The robust loss of a box in one weight: the kink at 0 that holds most weights."""
    w = jnp.linspace(-1.5, 1.5, 301)
    x = jnp.array([0.7, -0.5, 0.45, -0.35])
    box = LInfBox(0.4, None)
    for radius, color, name in ((0.0, "0.6", "clean"), (box.radius, "C0", "worst case in the box")):
        loss = jnp.mean(jax.nn.softplus(-(w[:, None] * x[None]) + radius * jnp.abs(w)[:, None]), 1)
        axis.plot(w, loss, color=color, label=name)
    axis.axvline(0, color="0.85", linewidth=1, zorder=0)
    axis.set_title("In a box the loss has a kink at every weight 0", fontsize=10)
    axis.set_xlabel(r"weight $w_j$")
    axis.set_ylabel("mean loss")
    axis.legend(loc="upper center", fontsize=8)

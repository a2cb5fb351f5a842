"""Draws docs/images/pcmu.png: what smoothing does to the quantizer, and how far both radii reach.

Run from the root of a checkout: python docs/figures/pcmu.py
"""

import pathlib

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from jaxunlearn.primitives.smoothing import class_probabilities, smooth_quantize

OUT = pathlib.Path(__file__).parents[1] / "images" / "pcmu.png"
COLOURS = {"same sign": "#2b6cb0", "zero": "#718096", "other sign": "#c05621"}


def probabilities(axis, lam: float, title: str) -> None:
    a = np.linspace(0, 4, 400)
    for (name, colour), p in zip(
        COLOURS.items(), class_probabilities(jnp.asarray(a), 1.0, lam), strict=True
    ):
        axis.plot(a, p, color=colour, label=name)
    q = np.asarray(smooth_quantize(jnp.asarray(a, jnp.float32), 1.0, lam).q)
    edge = a[np.argmax(q > 0)]
    if edge > 0.05:
        axis.axvline(edge, color="black", linewidth=0.8, linestyle=":")
        axis.annotate(f"zero wins below {edge:.2f} σ", (edge, 0.45), (1.75, 0.45), fontsize=9)
    else:
        axis.annotate("zero never wins: S′(g) = sign(g)", (0.6, 0.04), (1.3, 0.3), fontsize=9)
    axis.set(title=title, xlabel="|g| / σ", ylim=(0, 1.02), xlim=(0, 4))


def radii(axis) -> None:
    a = np.linspace(0, 6, 600)
    for lam, colour in ((0.1, "#2b6cb0"), (1.0, "#2f855a"), (3.0, "#c05621")):
        found = smooth_quantize(jnp.asarray(a, jnp.float32), 1.0, lam)
        axis.plot(a, found.radius_exact, color=colour, linewidth=3, alpha=0.3)
        axis.plot(a, found.radius, color=colour, linewidth=1, label=f"λ = {lam:g} σ")
    axis.set(
        title="Radius: exact (broad), Cohen's (thin)",
        xlabel="|g| / σ",
        ylabel="radius / σ",
        xlim=(0, 6),
        ylim=(0, 6),
    )
    axis.legend(frameon=False, fontsize=9)


def main() -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    probabilities(axes[0], 0.1, "The paper's setting: λ = 0.1 σ")
    probabilities(axes[1], 2.0, "A wide zone: λ = 2 σ")
    axes[0].set_ylabel("probability of the class")
    axes[0].legend(frameon=False, fontsize=9, loc="center right")
    radii(axes[2])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(OUT, dpi=110)


if __name__ == "__main__":
    main()

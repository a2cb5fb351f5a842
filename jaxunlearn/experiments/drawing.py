"""How the report's pictures are drawn: style, axes, labels that do not collide, SVG.

Colours are CSS variables of the page, so that one picture serves a light and a dark
page; text is text, so that it can be searched, copied and read out.
"""

import html
import io
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

# Colours that stand for a CSS variable until the picture is put into the page.
NAMES = ("ink", "muted", "line", "band", "method", "noop", "retrain", "paper")
COLOURS = {name: f"#0000{number:02x}" for number, name in enumerate(NAMES, start=1)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jaxunlearn",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.titlesize": 9.5,
    "figure.titleweight": "bold",
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "figure.constrained_layout.use": True,
}


def drawable(value: float) -> bool:
    """Whether a value has a place on an axis that may be logarithmic."""
    return math.isfinite(value) and value > 0


def title_at_left(figure: Figure, title: str) -> None:
    """A title flush with the picture, where pictures next to each other line up."""
    figure.suptitle(title, x=0.01, ha="left")


def scale(axes: Axes, name: str, values: Sequence[float]) -> None:
    """A linear axis for values of one magnitude, else a logarithmic one; with ticks to read."""
    values = [value for value in values if drawable(value)] or [1.0]
    low, high = min(values), max(values)
    axis = axes.xaxis if name == "x" else axes.yaxis
    set_limits = axes.set_xlim if name == "x" else axes.set_ylim
    if high < 6 * low:
        margin = 0.12 * (high - low) or 0.1 * high
        set_limits(max(low - margin, 0), high + margin)
        axis.set_major_locator(MaxNLocator(6))
        return
    (axes.set_xscale if name == "x" else axes.set_yscale)("log")
    margin = (high / low) ** 0.11
    low, high = low / margin, high * margin
    set_limits(low, high)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) <= 8:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def place_labels(
    axes: Axes, xs: Sequence[float], ys: Sequence[float], sizes: Sequence[float], names: list[str]
) -> None:
    """Puts each name next to its point, where it covers no other name and no point.

    Greedy: most crowded points first, nearest place first; names that end up away from
    their point get a line to it.
    """
    if not names:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # fixes the layout, and with it where points lie
    renderer = canvas.get_renderer()
    unit = figure.dpi / 72
    points = axes.transData.transform(np.column_stack([xs, ys]))
    radii = np.sqrt(np.array(sizes)) / 2 * unit
    taken = [
        Bbox.from_extents(x - r, y - r, x + r, y + r)
        for (x, y), r in zip(points, radii, strict=True)
    ]
    frame = axes.get_window_extent(renderer)
    inverse = axes.transData.inverted()
    near = [np.sum(np.linalg.norm(points - point, axis=1) < 60 * unit) for point in points]
    for i in sorted(range(len(names)), key=lambda i: -near[i]):
        text = axes.text(0, 0, names[i], fontsize=8, zorder=5, va="center", ha="center")
        box = text.get_window_extent(renderer)
        width, height = box.width + 4 * unit, box.height
        best, least = None, math.inf
        for distance in (3, 9, 16, 26, 38, 52, 70, 90):
            for angle in np.deg2rad([0, 180, 90, 270, 45, 135, 315, 225, 22, 158, 338, 202]):
                reach = radii[i] + distance * unit
                x = points[i][0] + math.cos(angle) * (reach + width / 2)
                y = points[i][1] + math.sin(angle) * (reach + height / 2)
                box = Bbox.from_bounds(x - width / 2, y - height / 2, width, height)
                cover = sum(_overlap(box, other) for other in taken)
                cover += width * height - _overlap(box, frame)
                if cover < least - 1e-6:
                    best, least = (x, y, distance, box), cover
            if least <= 1e-6:
                break
        assert best is not None
        x, y, distance, box = best
        taken.append(box)
        text.set_position(tuple(inverse.transform((x, y))))
        if distance > 9:
            end = np.clip(points[i], [box.x0, box.y0], [box.x1, box.y1])
            (x0, y0), (x1, y1) = inverse.transform(points[i]), inverse.transform(end)
            axes.plot([x0, x1], [y0, y1], color=COLOURS["muted"], linewidth=0.6, zorder=2)


def _overlap(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(width, 0) * max(height, 0)


def svg(figure: Figure, name: str, alt: str) -> str:
    """The picture as an ``<svg>`` element: own ids, no links, the page's colours and font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.S)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href", "href")
    prefix = re.sub(r"\W", lambda found: f"-{ord(found[0]):x}-", name)
    text = re.sub(r'\bid="', f'id="{prefix}.', text)
    text = re.sub(r'href="#', f'href="#{prefix}.', text)
    text = re.sub(r"url\(#", f"url(#{prefix}.", text)
    for colour, value in COLOURS.items():
        text = text.replace(value, f"var(--{colour})")
    text = re.sub(r"'DejaVu Sans'(, [^;\"]*)?(?=[;\"])", "system-ui, sans-serif", text)
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1).strip()

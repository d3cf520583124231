"""Pictures of figures, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from attrs import frozen
from PIL import Image


@frozen
class Curve:
    """Places and heights of a curve's points; one that goes nowhere is shown as a dot."""

    name: str
    across: tuple[float, ...]
    up: tuple[float, ...]


def draw_panels(
    panels: Sequence[tuple[str, Sequence[Curve]]],
    *,
    up: str,
    title: str,
    marked: tuple[float, float] | None = None,
    floor: float | None = None,
) -> Image.Image:
    """The same heights over several things, a panel each: what it is over, and its curves.

    Args:
        up: what the heights are called.
        marked: the best point. floor: a dashed line.
    """
    # not pyplot: it looks for a display, and keeps every figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 4.5 * len(panels), 4.0), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (across, curves) in zip(all_axes, panels, strict=True):
        for curve in curves:
            places = sorted(zip(curve.across, curve.up, strict=True))
            axes.plot(*zip(*places, strict=True), marker="o", markersize=4, label=curve.name or None)
        if marked is not None:
            best = f"best: {marked[1]:.4g}"
            axes.plot(*marked, marker="*", markersize=15, color="black", linestyle="none", label=best)
        if floor is not None:
            label = f"floor (real images): {floor:.4g}"
            axes.axhline(floor, color="grey", linestyle="--", linewidth=1, label=label)
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    canvas.draw()
    return Image.fromarray(numpy.array(canvas.buffer_rgba())).convert("RGB")

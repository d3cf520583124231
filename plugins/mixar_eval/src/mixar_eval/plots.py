"""Pictures of figures, drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy
from PIL import Image

#: by a curve's name, its points: place and height. A single one is shown as a dot.
Curves: TypeAlias = dict[str, list[tuple[float, float]]]


def draw_panels(
    panels: Mapping[str, Curves],
    *,
    up: str,
    title: str,
    marked: tuple[float, float] | None = None,
    floor: float | None = None,
) -> Image.Image:
    """The same heights over several things, a panel each, by what it is over.

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
    for axes, (across, curves) in zip(all_axes, panels.items(), strict=True):
        for name, points in curves.items():
            axes.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, label=name or None)
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

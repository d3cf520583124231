"""Pictures of figures, drawn without a display."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from mixar_core.storage import write_whole


@frozen
class Curve:
    """Places and heights of a curve's points; one that goes nowhere is shown as a dot."""

    name: str
    across: tuple[float, ...]
    up: tuple[float, ...]


def draw_curves(
    path: Path,
    curves: Sequence[Curve],
    *,
    across: str,
    up: str,
    title: str,
    marked: tuple[float, float] | None = None,
    floor: float | None = None,
) -> None:
    """Curves in one picture.

    Args:
        across, up: what the axes are called.
        marked: the best point. floor: a dashed line.

    Raises:
        UserError: it cannot be written.
    """
    figure = _figure(1)
    _panel(figure.subplots(), curves, across=across, up=up, marked=marked, floor=floor)
    figure.suptitle(title, fontsize=10)
    write_whole(path, lambda unfinished: figure.savefig(unfinished, format="png"))


def draw_panels(
    path: Path, panels: Sequence[tuple[str, Sequence[Curve]]], *, up: str, title: str, floor: float | None = None
) -> None:
    """The same heights over several things, a panel each: what it is over, and its curves.

    Raises:
        UserError: it cannot be written.
    """
    figure = _figure(len(panels))
    for axes, (across, curves) in zip(
        figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
    ):
        _panel(axes, curves, across=across, up=up, floor=floor)
    figure.suptitle(title, fontsize=10)
    write_whole(path, lambda unfinished: figure.savefig(unfinished, format="png"))


def _figure(panels: int) -> Any:
    # not pyplot: it looks for a display, and keeps every figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.5 + 4.5 * panels, 4.0), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _panel(
    axes: Any,
    curves: Sequence[Curve],
    *,
    across: str,
    up: str,
    marked: tuple[float, float] | None = None,
    floor: float | None = None,
) -> None:
    for curve in curves:
        places = sorted(zip(curve.across, curve.up, strict=True))
        axes.plot(*zip(*places, strict=True), marker="o", markersize=4, label=curve.name or None)
    if marked is not None:
        axes.plot(*marked, marker="*", markersize=15, color="black", linestyle="none", label=f"best: {marked[1]:.4g}")
    if floor is not None:
        axes.axhline(floor, color="grey", linestyle="--", linewidth=1, label=f"floor (real images): {floor:.4g}")
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)

"""A grid over guidance scale, temperature and steps: which setting draws the best images of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from attrs import frozen

from mixar.model import Model
from mixar_core.errors import UserError
from mixar_core.model import SamplingConfig
from mixar_eval.markdown import distance_names, facts, number, table
from mixar_eval.plots import Curve, draw_curves
from mixar_eval.points import Measured, figures

AXES = ("cfg", "temperature", "steps")
By = Literal["frechet", "kernel"]


@frozen
class Setting:
    """One point of the grid: its value on each of AXES (None: as the prior says), and what is drawn with."""

    values: tuple[float | None, ...]
    sampling: SamplingConfig

    @property
    def name(self) -> str:
        """Names the point's folder."""
        return "_".join(f"{axis}-{_short(value)}" for axis, value in zip(AXES, self.values, strict=True))


@frozen
class SweepPoint:
    """A setting and what was measured there."""

    setting: Setting
    measured: Measured

    def score(self, by: By) -> float:
        """What is compared, lower is better.

        Raises:
            UserError: it was not measured.
        """
        scores = self.measured.scores
        value = scores.frechet if by == "frechet" else scores.kernel
        if value is None:
            raise UserError("--by kernel: needs a reference with images, these are statistics alone")
        return value

    def row(self) -> dict[str, Any]:
        """As the CSV file has it."""
        there = dict(zip(AXES, self.setting.values, strict=True))
        return {**there, "images": self.measured.scores.count, **figures(self.measured)}


def grid(model: Model, cfg: Sequence[float], temperature: Sequence[float], steps: Sequence[int]) -> tuple[Setting, ...]:
    """Every combination of the values; an axis without any stays as the recipe has it.

    Raises:
        UserError: a value is not allowed.
    """
    found: dict[Setting, None] = {}  # without repetitions, in order
    axes: tuple[Sequence[Any], ...] = (steps or [None], temperature or [None], cfg or [None])
    for some_steps, some_temperature, some_cfg in product(*axes):
        sampling = model.settings(cfg=some_cfg, temperature=some_temperature, steps=some_steps)
        found[Setting(tuple(model.given(sampling)[axis] for axis in AXES), sampling)] = None
    return tuple(found)


def best_of(points: Sequence[SweepPoint], by: By) -> SweepPoint:
    """The point with the lowest score."""
    return min(points, key=lambda point: point.score(by))


def plot_sweep(points: Sequence[SweepPoint], path: Path, *, by: By, gives_fid: bool, floor: float | None) -> None:
    """The score over the axis with most values, a curve for every combination of the others; the best point marked.

    Raises:
        UserError: it cannot be written.
    """
    across = max(range(len(AXES)), key=lambda axis: len({point.setting.values[axis] for point in points}))
    curves: dict[str, list[SweepPoint]] = {}
    varied = [axis for axis in range(len(AXES)) if len({point.setting.values[axis] for point in points}) > 1]
    for point in points:
        others = [f"{AXES[axis]} {_short(point.setting.values[axis])}" for axis in varied if axis != across]
        curves.setdefault(", ".join(others), []).append(point)
    best = best_of(points, by)
    draw_curves(
        path,
        [
            Curve(
                name,
                tuple(_place(point, across) for point in some),
                tuple(point.score(by) for point in some),
            )
            for name, some in curves.items()
        ],
        across=AXES[across],
        up=distance_names(gives_fid)[by == "kernel"],
        title=f"{best.measured.scores.count:,} images a point",
        marked=(_place(best, across), best.score(by)),
        floor=floor,
    )


def sweep_text(
    points: Sequence[SweepPoint], shared: Mapping[str, Any], *, title: str, by: By, gives_fid: bool, picture: str
) -> str:
    """The report of a sweep as Markdown."""
    best, names = best_of(points, by), distance_names(gives_fid)
    rows = [
        (
            *(_short(value) for value in point.setting.values),
            number(point.measured.scores.frechet),
            number(point.measured.scores.kernel),
            number(point.measured.scores.precision, 3),
            number(point.measured.scores.recall, 3),
            number(point.measured.seconds_per_image, 3),
            "best" if point is best else "",
        )
        for point in points
    ]
    columns = (*AXES, *names, "precision", "recall", "s/image", "")
    told = ", ".join(f"{axis} {_short(value)}" for axis, value in zip(AXES, best.setting.values, strict=True))
    return "\n".join(
        [
            f"# {title}\n",
            f"**Best {names[by == 'kernel']}: {number(best.score(by))} at {told}.** "
            f"Floor: {number(shared[_FLOOR[by]]) or 'not known'} ({shared['floor']}).\n",
            "Points compare with each other, for all have the same number of images, seed, extractor and reference, "
            "and with nothing else. What is best at few images need not be at 50,000: measure the best few again.\n",
            table(columns, rows, right=tuple(range(len(columns) - 1))),
            f"![Scores over the settings]({picture})\n",
            "## What all points share\n",
            facts(shared),
        ]
    )


_FLOOR = {"frechet": "floor's Frechet distance", "kernel": "floor's kernel distance"}


def floor_value(shared: Mapping[str, Any], by: By) -> float | None:
    """The floor of the score that is compared, of what all points share."""
    value: float | None = shared[_FLOOR[by]]
    return value


def _place(point: SweepPoint, axis: int) -> float:
    value = point.setting.values[axis]
    return 0.0 if value is None else float(value)


def _short(value: float | None) -> str:
    return "default" if value is None else f"{value:g}"

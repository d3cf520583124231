"""A grid over guidance scale, temperature and steps: which setting draws the best images of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

from attrs import evolve
from PIL import Image

from mixar.model import Model
from mixar.sampling import Plan
from mixar_core.errors import UserError
from mixar_eval.context import EvalContext
from mixar_eval.points import AXES, Curves, Point, draw_panels, measure_points, setting_of, short
from mixar_eval.references import Reference
from mixar_eval.report import Report, Section, number, readable, score_names

TABLE, PICTURE = "sweep.csv", "sweep.png"
By = Literal["frechet", "kernel"]
_OF_PRIOR = "the cfg of a prior is 1 + its own scale s, in c + s (c - u), so that 1 is no guidance, as of a MixAR"
_NO_KERNEL = "--by kernel: needs a reference with images, these are statistics alone"


def grid(
    model: Model, plan: Plan, cfg: Sequence[float], temperature: Sequence[float], steps: Sequence[int]
) -> dict[str, Plan]:
    """A plan for every combination of the values, by name; an axis without any stays as the recipe has it."""
    found: dict[str, Plan] = {}  # without repetitions, in order
    axes: tuple[Sequence[Any], ...] = (steps or [None], temperature or [None], cfg or [None])
    for some_steps, some_temperature, some_cfg in product(*axes):
        settings = model.settings(cfg=some_cfg, temperature=some_temperature, steps=some_steps)
        changed = evolve(plan, settings=settings)
        found["_".join(f"{axis}-{short(value)}" for axis, value in setting_of(model, changed).items())] = changed
    return found


def sweep(
    model: Model,
    plans: Mapping[str, Plan],
    folder: Path,
    reference: Reference,
    context: EvalContext,
    *,
    by: By = "frechet",
    title: str = "Sweep",
) -> Report:
    """Draw and measure every plan, and report which is best; every process calls this."""
    if by == "kernel" and reference.features_AF is None:
        raise UserError(_NO_KERNEL)
    jobs = {name: (model.recipe.name, model, plan) for name, plan in plans.items()}
    found = measure_points(jobs, folder, reference, context)
    points, gives_fid = found.points, context.extractor.gives_fid
    floor = None if found.floor is None else getattr(found.floor.scores, by)
    best, rows = best_of(points, by).row(), [point.row() for point in points]
    drawn = [row | {"drawn": point.drawn} for row, point in zip(rows, points, strict=True)]
    return found.report(
        context,
        title=title,
        figures=best,
        plain={"best": best, "by": by, "points": drawn},
        section=sweep_section(points, by=by, gives_fid=gives_fid, floor=floor, floor_is=found.shared["floor"]),
        of_all="What all points share",
        notes=[*reference.notes, *([_OF_PRIOR] if model.system.model is None else [])],
        pictures={PICTURE: plot_sweep(points, by=by, gives_fid=gives_fid, floor=floor)},
        rows=(TABLE, rows),
    )


def score(point: Point, by: By) -> float:
    """What is compared, lower is better."""
    value: float | None = getattr(point.scores, by)
    if value is None:
        raise UserError(_NO_KERNEL)
    return value


def best_of(points: Sequence[Point], by: By) -> Point:
    """The point with the lowest score."""
    return min(points, key=lambda point: score(point, by))


def sweep_section(points: Sequence[Point], *, by: By, gives_fid: bool, floor: float | None, floor_is: str) -> Section:
    """The best point, and the table of all."""
    best = best_of(points, by)
    told = ", ".join(f"{axis} {short(value)}" for axis, value in best.setting.items())
    rows = [readable(point.row(), gives_fid) | {"": "best" if point is best else ""} for point in points]
    lines = [
        f"**Best {score_names(gives_fid)[by == 'kernel']}: {number(score(best, by))} at {told}.** "
        f"Floor: {number(floor) or 'not known'} ({floor_is}).",
        "Points compare with each other, for all have the same number of images, seed, extractor and reference, "
        "and with nothing else. What is best at few images need not be at 50,000: measure the best few again.",
    ]
    return Section(lines=lines, rows=rows)


def plot_sweep(points: Sequence[Point], *, by: By, gives_fid: bool, floor: float | None) -> Image.Image:
    """The score over the axis with most values, a curve for every combination of the others; the best point marked."""

    def place(point: Point) -> tuple[float, float]:
        return point.setting[across] or 0.0, score(point, by)

    values = {axis: len({point.setting[axis] for point in points}) for axis in AXES}
    across = max(AXES, key=values.__getitem__)
    others = [axis for axis in AXES if values[axis] > 1 and axis != across]
    curves: Curves = {}
    for point in points:
        name = ", ".join(f"{axis} {short(point.setting[axis])}" for axis in others)
        curves.setdefault(name, []).append(place(point))
    best = best_of(points, by)
    return draw_panels(
        {across: curves},
        up=score_names(gives_fid)[by == "kernel"],
        title=f"{best.scores.count:,} images a point",
        marked=place(best),
        floor=floor,
    )

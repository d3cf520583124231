"""A grid over guidance scale, temperature and steps: which setting draws the best images of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal

import attrs
from PIL import Image

from mixar.model import Model
from mixar.sampling import Plan
from mixar_core.errors import UserError
from mixar_eval.context import EvalContext
from mixar_eval.plots import Curve, draw_panels
from mixar_eval.points import AXES, Point, circumstances, measure_point, setting_of, short, why_not
from mixar_eval.protocol import PROTOCOL
from mixar_eval.references import Reference
from mixar_eval.report import Report, Section, distance_names, facts, number
from mixar_eval.scores import floor_at

TABLE, PICTURE = "sweep.csv", "sweep.png"
By = Literal["frechet", "kernel"]
_PRIOR_CFG = "The cfg of a prior is 1 + its own scale s, in c + s (c - u): 1 is no guidance, as of a MixAR."


def grid(
    model: Model, plan: Plan, cfg: Sequence[float], temperature: Sequence[float], steps: Sequence[int]
) -> dict[str, Plan]:
    """A plan for every combination of the values, by name; an axis without any stays as the recipe has it.

    Raises:
        UserError: a value is not allowed.
    """
    found: dict[str, Plan] = {}  # without repetitions, in order
    axes: tuple[Sequence[Any], ...] = (steps or [None], temperature or [None], cfg or [None])
    for some_steps, some_temperature, some_cfg in product(*axes):
        settings = model.settings(cfg=some_cfg, temperature=some_temperature, steps=some_steps)
        changed = attrs.evolve(plan, settings=settings)
        values = setting_of(model, changed)
        found["_".join(f"{axis}-{short(value)}" for axis, value in zip(AXES, values, strict=True))] = changed
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
    """Draw and measure every plan, and report which is best; every process calls this.

    Raises:
        UserError: see `draw_samples`; or there is no kernel distance to compare by.
        Stopped: a signal came.
    """
    if by == "kernel" and reference.features_AF is None:
        raise UserError("--by kernel: needs a reference with images, these are statistics alone")
    plan = next(iter(plans.values()))
    floor = floor_at(plan.count, reference, context)
    points = []
    for index, (name, some) in enumerate(plans.items(), start=1):
        what = f"point {index} of {len(plans)}"
        point, images = measure_point(model.recipe.name, model, some, folder / name, reference, context, what=what)
        points.append(point)
    best = best_of(points, by)
    shared = circumstances(plan, points, reference, floor, context)
    lowest = None if floor is None else getattr(floor.scores, by)
    names = distance_names(context.extractor.gives_fid)
    rows = [point.row() for point in points]
    return Report(
        title=title,
        protocol=PROTOCOL,
        reasons=why_not(images, reference, context),
        figures={**best.figures(), **dict(zip(AXES, best.setting, strict=True))},
        plain={
            "best": best.row(),
            "by": by,
            "points": [row | {"drawn": point.drawn} for row, point in zip(rows, points, strict=True)],
            **shared,
        },
        sections=[
            sweep_section(points, by=by, names=names, floor=lowest, floor_is=shared["floor"]),
            Section("What all points share", columns=("what", "value"), rows=facts(shared)),
        ],
        made=context.made(),
        notes=reference.notes if model.system.model is not None else (*reference.notes, _PRIOR_CFG.rstrip(".")),
        pictures={PICTURE: plot_sweep(points, by=by, gives_fid=context.extractor.gives_fid, floor=lowest)},
        rows=(TABLE, rows),
    )


def score(point: Point, by: By) -> float:
    """What is compared, lower is better.

    Raises:
        UserError: it was not measured.
    """
    value: float | None = getattr(point.scores, by)
    if value is None:
        raise UserError("--by kernel: needs a reference with images, these are statistics alone")
    return value


def best_of(points: Sequence[Point], by: By) -> Point:
    """The point with the lowest score."""
    return min(points, key=lambda point: score(point, by))


def sweep_section(
    points: Sequence[Point], *, by: By, names: tuple[str, str], floor: float | None, floor_is: str
) -> Section:
    """The best point, and the table of all."""
    best = best_of(points, by)
    told = ", ".join(f"{axis} {short(value)}" for axis, value in zip(AXES, best.setting, strict=True))
    return Section(
        lines=[
            f"**Best {names[by == 'kernel']}: {number(score(best, by))} at {told}.** "
            f"Floor: {number(floor) or 'not known'} ({floor_is}).",
            "Points compare with each other, for all have the same number of images, seed, extractor and reference, "
            "and with nothing else. What is best at few images need not be at 50,000: measure the best few again.",
        ],
        columns=(*AXES, *names, "precision", "recall", "s/image", ""),
        rows=[
            (
                *(short(value) for value in point.setting),
                number(point.scores.frechet),
                number(point.scores.kernel),
                number(point.scores.precision, 3),
                number(point.scores.recall, 3),
                number(point.seconds_per_image, 3),
                "best" if point is best else "",
            )
            for point in points
        ],
    )


def plot_sweep(points: Sequence[Point], *, by: By, gives_fid: bool, floor: float | None) -> Image.Image:
    """The score over the axis with most values, a curve for every combination of the others; the best point marked."""

    def place(point: Point) -> float:
        return float(point.setting[across] or 0.0)

    values = [len({point.setting[axis] for point in points}) for axis in range(len(AXES))]
    across = max(range(len(AXES)), key=values.__getitem__)
    curves: dict[str, list[Point]] = {}
    for point in points:
        others = [axis for axis in range(len(AXES)) if values[axis] > 1 and axis != across]
        curves.setdefault(", ".join(f"{AXES[axis]} {short(point.setting[axis])}" for axis in others), []).append(point)
    best = best_of(points, by)
    drawn = [
        Curve(name, tuple(map(place, some)), tuple(score(point, by) for point in some)) for name, some in curves.items()
    ]
    return draw_panels(
        [(AXES[across], drawn)],
        up=distance_names(gives_fid)[by == "kernel"],
        title=f"{best.scores.count:,} images a point",
        marked=(place(best), score(best, by)),
        floor=floor,
    )

"""Models under settings, each drawn and measured: the points of a sweep, the rows of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy
from attrs import frozen
from PIL import Image

from mixar.model import Model
from mixar.sampling import Plan
from mixar_core.errors import UserError
from mixar_eval.context import EvalContext
from mixar_eval.features import features_of
from mixar_eval.generation import FEATURES, SAMPLES, draw_samples
from mixar_eval.protocol import PROTOCOL, reasons_against
from mixar_eval.references import Reference
from mixar_eval.report import Report, Section, facts
from mixar_eval.scores import Floor, Scores, floor_at, scores_of
from mixar_eval.tables import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: where a call keeps the samples and features of its points
POINTS = "points"
#: fewer images say nothing, whatever they are measured by
FEWEST = 50
#: what a point is drawn with, as `mixar sample` takes it: a cfg of 1 is no guidance, of a MixAR and of a prior alike
AXES = ("cfg", "temperature", "steps")
#: names of the scores in a CSV file
_COLUMNS = {"frechet": "frechet_distance", "kernel": "kernel_distance", "inception": "inception_score"}

#: by a curve's name, its points: place and height. A single one is shown as a dot.
Curves: TypeAlias = dict[str, list[tuple[float, float]]]


@frozen
class Point:
    """A model under a setting: what was given on each of AXES (None: as the part says), drawn how, and the scores."""

    model: str
    setting: Mapping[str, float | None]
    drawn: Mapping[str, Any]
    scores: Scores

    def row(self) -> dict[str, Any]:
        """As the CSV file has it; the seconds are those of one process."""
        scores = {_COLUMNS.get(name, name): value for name, value in figures(self.scores).items()}
        seconds = self.drawn["seconds_per_image_and_process"]
        return {**self.setting, "images": self.scores.count, **scores, "seconds_per_image": seconds}


@frozen(eq=False)
class Measured:
    """All points of a call, what they share, as a report tells it, and why they do not compare with published ones."""

    points: Sequence[Point]
    floor: Floor | None
    shared: Mapping[str, Any]
    reasons: Sequence[str]

    def report(
        self,
        context: EvalContext,
        *,
        of_all: str,
        section: Section,
        plain: Mapping[str, Any],
        notes: Sequence[str],
        **more: Any,
    ) -> Report:
        """The report of these points.

        Args:
            of_all: heading over what they share. section: the figures. notes: to which the floor's come. more: of the
                Report.
        """
        return Report(
            protocol=PROTOCOL,
            reasons=self.reasons,
            plain={**plain, **self.shared},
            sections=[section, Section(of_all, facts(self.shared))],
            made=context.made(),
            notes=[*notes, *(self.floor.notes if self.floor else ())],
            **more,
        )


def setting_of(model: Model, plan: Plan) -> dict[str, float | None]:
    """What the plan draws with, on each of AXES."""
    given = model.given(plan.settings)
    return {axis: given[axis] for axis in AXES}


def short(value: float | None) -> str:
    """A value of one of AXES, in words."""
    return "default" if value is None else f"{value:g}"


def images_per_point(budget: int, points: int, classes: int) -> int:
    """How many images each point gets of a budget, as many of every class where there are enough; refuses too few."""
    each = budget // points
    if each < FEWEST:
        raise UserError(
            f"--budget {budget:,}: {each} images for each of {points} points; at least {FEWEST} are needed, "
            f"{FEWEST * points:,} in all"
        )
    return each - each % classes if each >= classes > 0 else each


def measure_points(
    jobs: Mapping[str, tuple[str, Model, Plan]], folder: Path, reference: Reference, context: EvalContext
) -> Measured:
    """Draw and measure, going on with what an earlier call left in `folder`; every process calls this.

    Args:
        jobs: of each point by its folder's name, the model's name, the model and the plan; all of as many images.
    """
    plan = next(iter(jobs.values()))[2]
    floor = floor_at(plan.count, reference, context)
    points: list[Point] = []
    reasons: dict[str, None] = {}  # without repetitions, in order
    for label, (name, model, some) in jobs.items():
        images = draw_samples(model, some, folder / label / SAMPLES, context, f"sampling {label}")
        found = features_of(images, context, f"features of {label}", cache=folder / label / FEATURES)
        assert images.drawn is not None
        scores = context.processes.on_main(partial(scores_of, found, reference))
        points.append(Point(name, setting_of(model, some), images.drawn, scores))
        reasons |= dict.fromkeys(reasons_against(images, reference, context.extractor))
    return Measured(points, floor, _shared(plan, points, reference, floor, context), list(reasons))


def _shared(
    plan: Plan, points: Sequence[Point], reference: Reference, floor: Floor | None, context: EvalContext
) -> dict[str, Any]:
    """What the points share; of a setting that differs, that it does."""
    drawn = [
        {key: point.drawn["model"][key] for key in ("weights", "precision")} | point.drawn["plan"]["settings"]
        for point in points
    ]
    settings = {
        key.replace("_", " "): ("as the part says" if value is None else value)
        if all(some[key] == value for some in drawn)
        else "differs from row to row"
        for key, value in drawn[0].items()
    }
    digests: dict[str, str] = {}
    for point in points:
        for key, digest in point.drawn["model"]["sha256"].items():
            digests.setdefault(digest, f"sha256 of {point.model}'s {key}")
    return {
        "images of a point": plan.count,
        "seed": plan.seed,
        "images of a batch": plan.batch,
        "classes": plan.in_words,
        **settings,
        **{name: digest for digest, name in digests.items()},
        "extractor": context.extractor.identity,
        "reference": reference.description,
        "floor": "none: no reference images at hand" if floor is None else floor.what,
        "floor's Frechet distance": None if floor is None else floor.scores.frechet,
        "floor's kernel distance": None if floor is None else floor.scores.kernel,
    }


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
    figure = new_figure(1.5 + 4.5 * len(panels), 4.0, title)
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
    return drawn(figure)


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure, in inches. Not pyplot's: that looks for a display, and keeps every figure."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    return figure


def drawn(figure: Figure) -> Image.Image:
    """A figure as a picture."""
    figure.canvas.draw()
    return Image.fromarray(numpy.array(figure.canvas.buffer_rgba())).convert("RGB")  # type: ignore[attr-defined]

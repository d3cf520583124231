"""One model under one setting, drawn and measured: a point of a sweep, a row of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from mixar.model import Model
from mixar.sampling import Plan
from mixar_core.errors import UserError
from mixar_eval.context import EvalContext
from mixar_eval.features import features_of
from mixar_eval.generation import FEATURES, SAMPLES, draw_samples, figures, reasons_for
from mixar_eval.images import ImageSet
from mixar_eval.protocol import count_classes
from mixar_eval.references import Reference
from mixar_eval.scores import Floor, Scores, scores_of

#: where a call keeps the samples and features of its points
POINTS = "points"
#: fewer images say nothing, whatever they are measured by
FEWEST = 50
#: what a point is drawn with, as `mixar sample` takes it: a cfg of 1 is no guidance, of a MixAR and of a prior alike
AXES = ("cfg", "temperature", "steps")
#: names of the scores in a CSV file
_COLUMNS = {"frechet": "frechet_distance", "kernel": "kernel_distance", "inception": "inception_score"}


@frozen
class Point:
    """A model under a setting: what was given on each of AXES (None: as the part says), drawn how, and the scores."""

    model: str
    setting: tuple[float | None, ...]
    drawn: Mapping[str, Any]
    scores: Scores

    @property
    def seconds_per_image(self) -> float | None:
        """Of one process."""
        seconds: float | None = self.drawn["seconds_per_image_and_process"]
        return seconds

    def figures(self) -> dict[str, float | None]:
        """The scores by the names that a CSV file has for them, and the seconds."""
        scores = {_COLUMNS.get(name, name): value for name, value in figures(self.scores).items()}
        return {**scores, "seconds_per_image": self.seconds_per_image}

    def row(self) -> dict[str, Any]:
        """As the CSV file has it."""
        return {**dict(zip(AXES, self.setting, strict=True)), "images": self.scores.count, **self.figures()}


def setting_of(model: Model, plan: Plan) -> tuple[float | None, ...]:
    """What the plan draws with, on each of AXES."""
    given = model.given(plan.settings)
    return tuple(given[axis] for axis in AXES)


def short(value: float | None) -> str:
    """A value of one of AXES, in words."""
    return "default" if value is None else f"{value:g}"


def images_per_point(budget: int, points: int, classes: int) -> int:
    """How many images each point gets of a budget, the same number of every class where there are enough.

    Raises:
        UserError: they are too few to say anything.
    """
    each = budget // points
    if each < FEWEST:
        raise UserError(
            f"--budget {budget:,}: {each} images for each of {points} points; at least {FEWEST} are needed, "
            f"{FEWEST * points:,} in all"
        )
    return each - each % classes if each >= classes > 0 else each


def measure_point(
    name: str, model: Model, plan: Plan, folder: Path, reference: Reference, context: EvalContext, *, what: str
) -> tuple[Point, ImageSet]:
    """Draw and measure, going on with what an earlier call left in `folder`; every process calls this.

    Raises:
        UserError: see `draw_samples`. Stopped: a signal came.
    """
    images = draw_samples(model, plan, folder / SAMPLES, context, what)
    found = features_of(images, context, f"features of {what}", cache=folder / FEATURES)
    assert images.drawn is not None
    return Point(name, setting_of(model, plan), images.drawn, scores_of(found, reference)), images


def why_not(images: ImageSet, reference: Reference, context: EvalContext) -> list[str]:
    """Why a point's distance is not comparable with FIDs by ADM's protocol; empty where it is."""
    classes = count_classes(images.labels, len(images.class_names))
    return reasons_for(images, reference, context.extractor, classes)


def circumstances(
    plan: Plan, points: Sequence[Point], reference: Reference, floor: Floor | None, context: EvalContext
) -> dict[str, Any]:
    """What the points of a call share, as a report tells it; of a setting that differs, that it does."""
    drawn = [
        {key: point.drawn["model"][key] for key in ("weights", "precision")} | point.drawn["plan"]["settings"]
        for point in points
    ]
    settings = {}
    for key, value in drawn[0].items():
        same = all(some[key] == value for some in drawn)
        told = "as the part says" if value is None else value
        settings[key.replace("_", " ")] = told if same else "differs from row to row"
    digests: dict[str, str] = {}
    for point in points:
        for key, digest in point.drawn["model"]["sha256"].items():
            if digest not in digests.values():
                digests[f"sha256 of {point.model}'s {key}"] = digest
    return {
        "images of a point": plan.count,
        "seed": plan.seed,
        "images of a batch": plan.batch,
        "classes": f"{len(plan.classes)}, {'exactly' if plan.balanced else 'about'} balanced",
        **settings,
        **digests,
        "extractor": context.extractor.identity,
        "reference": reference.description,
        "floor": "none: no reference images at hand" if floor is None else floor.what,
        "floor's Frechet distance": None if floor is None else floor.scores.frechet,
        "floor's kernel distance": None if floor is None else floor.scores.kernel,
    }

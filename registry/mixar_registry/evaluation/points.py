"""One model under one setting, drawn and measured: a point of a sweep, a row of a comparison."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from mixar_core.errors import UserError
from mixar_registry.evaluation.generation import FEATURES, SAMPLES, Means, draw_samples, measure_samples
from mixar_registry.evaluation.measuring import Floor, Scores, scores_of
from mixar_registry.evaluation.protocol import comparable, count_classes, reasons_against
from mixar_registry.evaluation.sampling import Plan, timing_of
from mixar_registry.pipeline import Model

#: where a call keeps the samples and features of its points
POINTS = "points"
#: fewer images say nothing, whatever they are measured by
FEWEST = 50
#: columns of scores in a CSV file, as `figures` gives them
FIGURES = (
    "frechet_distance",
    "kernel_distance",
    "inception_score",
    "precision",
    "recall",
    "seconds_per_image",
)


@frozen
class Measured:
    """A point's scores and the seconds that one process took for an image of it."""

    scores: Scores
    seconds_per_image: float | None


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


def measure_point(model: Model, plan: Plan, folder: Path, means: Means, *, what: str) -> Measured | None:
    """Draw and measure, going on with what an earlier call left in `folder`; the result is the main process's.

    Raises:
        UserError: see `draw_samples`. Stopped: a signal came.
    """
    samples = draw_samples(model, plan, folder / SAMPLES, means, source=model.recipe.name, what=what)
    found = measure_samples(samples, folder / FEATURES, means, what=f"features of {what}")
    if found is None:
        return None
    return Measured(scores_of(found, means.reference), timing_of(folder / SAMPLES).seconds_per_image)


def figures(measured: Measured) -> dict[str, float | None]:
    """The scores by FIGURES' names."""
    scores = measured.scores
    inception = None if scores.inception is None else scores.inception.mean
    values = scores.frechet, scores.kernel, inception, scores.precision, scores.recall, measured.seconds_per_image
    return dict(zip(FIGURES, values, strict=True))


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with equal keys as CSV; None is an empty cell."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def circumstances(means: Means, plan: Plan, size: int, floor: Floor | None) -> dict[str, Any]:
    """What all points of a call share, as a report tells it."""
    extractor, reference = means.extractor, means.reference
    reasons = reasons_against(
        is_inception=extractor.is_inception,
        published_weights=extractor.has_published_weights,
        adm_reference=reference.adm_imagenet,
        count=plan.count,
        height=size,
        width=size,
        classes=count_classes(plan.labels_N().tolist(), len(plan.classes)),
    )
    return {
        "comparable with ADM-protocol FID": comparable(reasons),
        "images of a point": plan.count,
        "seed": plan.seed,
        "images of a batch": plan.batch,
        "classes": f"{len(plan.classes)}, {'exactly' if plan.balanced else 'about'} balanced",
        "extractor": extractor.identity,
        "reference": reference.description,
        "floor": "none: no reference images at hand" if floor is None else floor.what,
        "floor's Frechet distance": None if floor is None else floor.scores.frechet,
        "floor's kernel distance": None if floor is None else floor.scores.kernel,
    }

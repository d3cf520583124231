"""One model under one setting, drawn and measured: a point of a sweep, a row of a comparison."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from mixar.model import Model
from mixar.sampling import Plan
from mixar_core.errors import UserError
from mixar_eval.generation import (
    FEATURES,
    SAMPLES,
    Means,
    draw_samples,
    draws_real_codes,
    measure_samples,
)
from mixar_eval.measuring import Floor, Scores, scores_of
from mixar_eval.protocol import comparable, count_classes, reasons_against

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
    """A point's scores and how its images were drawn (see `Samples`)."""

    scores: Scores
    drawn: Mapping[str, Any]

    @property
    def seconds_per_image(self) -> float | None:
        """Of one process."""
        seconds: float | None = self.drawn["seconds_per_image_and_process"]
        return seconds

    @property
    def settings(self) -> dict[str, Any]:
        """How an image was drawn: SamplingConfig as plain values."""
        return dict(self.drawn["plan"]["settings"])


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
    assert samples.drawn is not None
    return Measured(scores_of(found, means.reference), samples.drawn)


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


def circumstances(
    means: Means, plan: Plan, size: int, floor: Floor | None, points: Sequence[tuple[str, Measured]]
) -> dict[str, Any]:
    """What the points of a call share, as a report tells it; of a setting that differs, that it does.

    Args:
        points: each with its model's name.
    """
    extractor, reference = means.extractor, means.reference
    reasons = reasons_against(
        is_inception=extractor.is_inception,
        published_weights=extractor.has_published_weights,
        adm_reference=reference.adm_imagenet,
        count=plan.count,
        height=size,
        width=size,
        classes=count_classes(plan.labels_N().tolist(), len(plan.classes)),
        real_codes=any(draws_real_codes(point.drawn) for _, point in points),
    )
    drawn = [
        {key: point.drawn["model"][key] for key in ("weights", "precision")} | point.settings for _, point in points
    ]
    settings = {}
    for key, value in drawn[0].items():
        same = all(some[key] == value for some in drawn)
        told = "as the part says" if value is None else value
        settings[key.replace("_", " ")] = told if same else "differs from row to row"
    digests: dict[str, str] = {}
    for name, point in points:
        for key, digest in point.drawn["model"]["sha256"].items():
            if digest not in digests.values():
                digests[f"sha256 of {name}'s {key}"] = digest
    return {
        "comparable with ADM-protocol FID": comparable(reasons),
        "images of a point": plan.count,
        "seed": plan.seed,
        "images of a batch": plan.batch,
        "classes": f"{len(plan.classes)}, {'exactly' if plan.balanced else 'about'} balanced",
        **settings,
        **digests,
        "extractor": extractor.identity,
        "reference": reference.description,
        "floor": "none: no reference images at hand" if floor is None else floor.what,
        "floor's Frechet distance": None if floor is None else floor.scores.frechet,
        "floor's kernel distance": None if floor is None else floor.scores.kernel,
    }

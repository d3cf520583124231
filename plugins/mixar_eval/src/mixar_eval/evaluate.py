"""`mixar.evaluate`: from images and a reference, in whatever form they are at hand, to a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mixar.generation import Generation
from mixar.labels import checked_number
from mixar.plugins import registry_without
from mixar.recipe import Recipe, load_recipe
from mixar_core.distributed import PATIENT, join_processes, naming_lost_processes
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.storage import user_path
from mixar_core.types import ImageSize
from mixar_eval.extractors import DEFAULT
from mixar_eval.generation import measure
from mixar_eval.images import Images, checked_size, open_images
from mixar_eval.judge import Extractors, contexts, recipes_that_drew, with_warning
from mixar_eval.references import open_reference
from mixar_eval.report import Report
from mixar_eval.views import Drawn


def evaluate(
    samples: Images,
    reference: Images,
    *,
    extractor: Extractors = DEFAULT,
    recipe: Recipe | str | Path | None = None,
    image_size: ImageSize | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str | None = None,
    cache: str | Path | None = None,
    without_plugins: Sequence[str] = (),
) -> Report:
    """Measure images against a reference: Frechet and kernel distance, Inception Score, precision, recall, the floor.

    `mixar.evaluate(model.generate(labels), "digits:validation").figures["frechet"]`. The same figures as `mixar eval
    generation` has. Under `torchrun` every process makes the same call, and they share the work.

    Args:
        samples: uint8 images (N, 3, H, W), a tensor or an array; what `Model.generate` gives; an ImageDataset; a folder
            of PNGs or an `.npz`, by path; `PART:SPLIT,setting=value` or, with `recipe`, `data:train`.
        reference: the same; or an `.npz` of statistics (`mu`, `sigma`).
        extractor: what images are seen through: `NAME` or `NAME:setting=value`, or an extractor. FID is `inception`'s.
            Of several the first judges, the others stand beside it and in FDr-k.
        recipe: whose data `data:...` are: a recipe, or its name or path; of what `Model.generate` gives, the model's.
            Where a loss of this recipe's, or of the shipped model that a folder or `.npz` says it was drawn by, has
            seen the extractor, the report says so.
        image_size: side of the samples, or (height, width); needed where they are `PART:SPLIT`, without a recipe.
        batch_size: images at a time; figures of another one differ in their last digits.
        cache: a folder where features are kept, for another call.
        without_plugins: names of installed plugins to leave out.

    Raises:
        UserError: the images or the reference cannot be read, do not fit each other, or are too few.
    """
    registry = registry_without(None, without_plugins)
    given = [extractor] if isinstance(extractor, str | FeatureExtractor) else extractor
    several = isinstance(given, list | tuple) and bool(given)
    if not several or not all(isinstance(each, str | FeatureExtractor) for each in given):
        what = type(extractor).__name__
        raise UserError(f"extractor: {what}; allowed: a part's name with its settings, an extractor, a list of them")
    if recipe is None and isinstance(samples, Generation):
        recipe = samples.recipe
    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe, registry=registry)
    elif not (recipe is None or isinstance(recipe, Recipe)):
        raise UserError(f"recipe: {type(recipe).__name__}; allowed: a Recipe, or the name or path of one")
    drew = recipes_that_drew(samples, registry) if isinstance(samples, str | Path) else []
    processes = join_processes(device, timeout=PATIENT)
    with naming_lost_processes(processes):
        context = contexts(
            given,
            recipes=[*([] if recipe is None else [recipe]), *drew],
            registry=registry,
            processes=processes,
            batch_size=checked_number(batch_size, "batch_size", low=1, whole=True, needed=True),
            workers=checked_number(workers, "workers", low=0, whole=True, needed=True),
        )
        size = checked_size(image_size, "image_size")
        images = open_images(samples, registry, recipe=recipe, image_size=size, option="samples")
        kept = None if cache is None else user_path(cache)
        known: dict[str, Any] = {"recipe": recipe, "image_size": images.image_size, "option": "reference"}
        known |= {"cache": kept}
        encoders = [(seeing, open_reference(reference, seeing, **known)) for seeing in (context, *context.beside)]
        report = measure([Drawn(images)], encoders, cache=kept)
    processes.leave()
    return with_warning(report, context)

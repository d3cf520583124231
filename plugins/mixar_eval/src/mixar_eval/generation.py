"""How good a model's images are: drawn, or taken as they are, measured against a reference, and told with all that a
number depends on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen

from mixar.generation import grid_picture, label_name
from mixar.model import Model
from mixar.plugins import Registry
from mixar.recipe import Recipe
from mixar.sampling import (
    MANIFEST,
    REAL,
    SHOWN,
    Plan,
    claim,
    describe,
    draw_chunks,
    grid_columns,
    manifest_beside,
    plan_of,
    read_manifest,
    with_timing,
)
from mixar.stores import PNGStore, images_crc32, write_png
from mixar_core.distributed import Processes, StopSignals
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.storage import write_text, writing
from mixar_eval.distances import KERNEL_SUBSET_SIZE, KERNEL_SUBSETS, SEED
from mixar_eval.features import Features
from mixar_eval.images import ImageSet, NpzImages, open_images, other_split
from mixar_eval.measuring import (
    NEIGHBOURS,
    SPLITS,
    Floor,
    Show,
    Stopped,
    features_of,
    floor_of,
    scores_of,
)
from mixar_eval.protocol import comparable, count_classes, reasons_against
from mixar_eval.references import Reference, measure

#: what the folder of a report holds
SAMPLES, FEATURES, REPORT, PICTURE = "samples", "features", "report", "samples.png"


@frozen(eq=False)
class Samples:
    """What is measured.

    Args:
        source: where it came from, in words.
        drawn: how they were drawn, as `describe` says it, with `seconds_per_image_and_process`; None: not known.
        class_names: empty where they are not known. classes: number of classes there should be, 0: not known.
    """

    images: ImageSet
    source: str
    drawn: Mapping[str, Any] | None = None
    class_names: tuple[str, ...] = ()
    classes: int = 0


@frozen(eq=False)
class Means:
    """What every measurement of one call shares."""

    registry: Registry
    processes: Processes
    signals: StopSignals
    show: Show
    extractor: FeatureExtractor
    reference: Reference
    reference_text: str
    batch: int
    workers: int


def draw_samples(model: Model, plan: Plan, folder: Path, means: Means, *, source: str, what: str) -> Samples:
    """Draw what is missing of a model's samples, as PNG files; every process calls this.

    Raises:
        UserError: the folder holds other samples, or cannot be written.
        Stopped: a signal came.
    """
    manifest = means.processes.on_main(lambda: claim(folder, describe(model, plan)))
    names = tuple(manifest["class_names"])
    store = PNGStore(folder, plan, names)
    if not draw_chunks(model, plan, store, means.processes, signals=means.signals, report=means.show(what)):
        raise Stopped
    images = open_images(str(folder), means.registry, image_size=model.recipe.image_size)
    return Samples(images, source, with_timing(manifest, folder), names, model.recipe.num_classes)


def draws_real_codes(manifest: Mapping[str, Any]) -> bool:
    """Whether the codes of these images are real images' (of the prior ground-truth, say)."""
    return REAL in manifest["model"]["parts"]


def open_samples(text: str, registry: Registry, *, reference: str) -> Samples:
    """Images that are there already: a folder of PNGs or an `.npz`, perhaps of `mixar sample`, which says how.

    A folder or file cannot tell that a class is missing from it, but the reference can, where it has classes.

    Raises:
        UserError: they cannot be read, or are JPEGs.
    """
    images, folder = open_images(text, registry, option="samples"), Path(text)
    if (told := _told_by(folder)) is not None:
        drawn, plan = told
        names = tuple(map(str, drawn.get("class_names", ())))
        return Samples(images, images.description, drawn, names, len(names) or max(plan.classes) + 1)
    own, real = images.data.class_names, _names_of(reference, images, registry)
    if images.labels is None or len(real) < len(own):
        return Samples(images, images.description, None, own, images.data.num_classes)
    if folder.is_dir():
        if not set(own) <= set(real):
            return Samples(images, images.description, None, own, images.data.num_classes)
        images = open_images(text, registry, class_names=real, option="samples")
    return Samples(images, images.description, None, real, len(real))


def _told_by(path: Path) -> tuple[dict[str, Any], Plan] | None:
    """How the samples in a folder or an `.npz` were drawn, if `mixar sample` wrote them."""
    if (path / MANIFEST).is_file():
        manifest, plan = plan_of(path)
        return with_timing(manifest, path), plan
    if manifest_beside(path).is_file():
        with suppress(UserError):  # somebody else's file
            manifest, plan = read_manifest(manifest_beside(path))
            if manifest.get("arr_0_crc32") == images_crc32(path):  # else it is of another file that was called so
                return manifest, plan
    return None


def _names_of(reference: str, images: ImageSet, registry: Registry) -> tuple[str, ...]:
    """The class names of a reference; none where it has no classes or is statistics."""
    try:
        found = open_images(reference, registry, image_size=images.height, option="--reference")
    except UserError:  # `open_reference` says what is wrong with it, if anything
        return ()
    return tuple(found.data.class_names)


def measure_samples(samples: Samples, folder: Path, means: Means, *, what: str) -> Features | None:
    """The samples' features, in the main process; kept in `folder`."""
    return features_of(
        samples.images,
        means.extractor,
        folder,
        means.processes,
        signals=means.signals,
        batch=means.batch,
        workers=means.workers,
        report=means.show(what),
    )


def floor_for(means: Means, count: int, size: int, recipe: Recipe | None) -> Floor | None:
    """The floor at `count` images, in the main process; every process calls this.

    From the reference's other split, where it has as many images, or else from the reference itself.
    """
    other, others = other_split(means.reference_text), None
    if other is not None:
        try:
            images = open_images(other, means.registry, recipe=recipe, image_size=size, option="--reference")
        except UserError:  # a data set need not have two splits
            images = None
        if images is not None and len(images) >= count:
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SEED))
            report = means.show("real images for the floor")
            others = measure(
                images,
                order[:count].sort().values,
                means.extractor,
                means.processes,
                batch_size=means.batch,
                workers=means.workers,
                progress=lambda done, total: report(done, total, done),
            )
    return floor_of(means.reference, count, others) if means.processes.is_main else None


def report_of(
    samples: Samples, found: Features, floor: Floor | None, means: Means, *, made: Mapping[str, Any]
) -> dict[str, Any]:
    """The report as plain values.

    Args:
        made: by which command, when, with what; goes in as it is.

    Raises:
        UserError: the samples cannot be measured.
    """
    extractor, reference, images = means.extractor, means.reference, samples.images
    scores = scores_of(found, reference)
    classes = count_classes(images.labels, samples.classes)
    reasons = reasons_against(
        is_inception=extractor.is_inception,
        published_weights=extractor.has_published_weights,
        adm_reference=reference.adm_imagenet,
        count=len(found),
        height=images.height,
        width=images.width,
        classes=classes,
        real_codes=samples.drawn is not None and draws_real_codes(samples.drawn),
    )
    counts = None
    if classes is not None:
        missing = [label_name(label, samples.class_names) for label in classes.missing]
        counts = {**asdict(classes), "missing": missing, "exactly_balanced": classes.exact}
    return {
        "comparable with ADM-protocol FID": comparable(reasons),
        "scores": asdict(scores),
        "floor": None if floor is None else asdict(floor),
        "samples": {
            "source": samples.source,
            "count": len(found),
            "width": images.width,
            "height": images.height,
            "format": "npz, uint8" if isinstance(images.data, NpzImages) else "PNG",
            "classes": counts,
            "drawn": None if samples.drawn is None else dict(samples.drawn),
        },
        "extractor": {
            "identity": extractor.identity,
            "feature_dim": extractor.feature_dim,
            "gives_fid": extractor.gives_fid,
        },
        "reference": {
            "description": reference.description,
            "count": reference.count,
            "vectors": None if reference.features_AF is None else len(reference.features_AF),
            "notes": list(reference.notes),
        },
        "settings": {
            "inception_score_splits": SPLITS,
            "kernel_subsets": KERNEL_SUBSETS,
            "kernel_subset_size": KERNEL_SUBSET_SIZE,
            "neighbours": NEIGHBOURS,
            "seed": SEED,
        },
        "made": dict(made),
    }


def write_report(folder: Path, report: Mapping[str, Any], text: str, samples: Samples) -> None:
    """Write report.json, report.md and a picture of the first samples."""
    columns = grid_columns(samples.classes)
    shown = min(SHOWN - SHOWN % (columns or 1), len(samples.images))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    images = torch.stack([samples.images.data[index][0] for index in range(shown)])
    labels = samples.images.data.labels()[:shown]
    names = [label_name(label, samples.class_names) for label in labels]
    write_png(folder / PICTURE, grid_picture(images, names, columns=columns))
    write_texts(folder, report, text)


def write_texts(folder: Path, report: Mapping[str, Any], text: str) -> None:
    """A report as JSON and as Markdown."""
    write_text(folder / f"{REPORT}.json", json.dumps(report, indent=2) + "\n")
    write_text(folder / f"{REPORT}.md", text)


def check_content(folder: Path, known: Sequence[str]) -> None:
    """See that a folder is new, empty, or of an earlier call of the same kind, whose files are `known`.

    Raises:
        UserError: it holds something else.
    """
    if folder.is_dir():
        strange = sorted(e.name for e in folder.iterdir() if e.name not in known and not e.name.endswith(".unfinished"))
        if strange:
            raise UserError(f"--out {folder}: holds something else ({strange[0]}); give another folder")


def check_out(folder: Path, known: Sequence[str]) -> None:
    """Check a folder's content, and make the folder.

    Raises:
        UserError: it holds something else (see `check_content`), or cannot be made.
    """
    check_content(folder, known)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)

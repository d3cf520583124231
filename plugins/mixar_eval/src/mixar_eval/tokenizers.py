"""`mixar eval tokenizer`: several tokenizers over the same images, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import field, frozen
from torch import Tensor

from mixar.folder import sha256
from mixar.model import load
from mixar.plugins import Registry
from mixar.recipe import Recipe
from mixar_core.distributed import Processes, share
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.tokenizer import ContinuousTokenizer, Tokenizer
from mixar_eval.distances import frechet_of, kernel_distance
from mixar_eval.features import as_saved
from mixar_eval.images import ImageSet, open_images, other_split
from mixar_eval.reconstructions import Measured, TokenizerMeter
from mixar_eval.references import Progress, Reference, measure, rank_notes
from mixar_eval.statistics import Gaussian

#: pixels that SSIM's window needs
SMALLEST = 11


@frozen(eq=False)
class Entry:
    """A tokenizer to measure: its name in the report, what model it is of, and the digest of its weights."""

    name: str
    tokenizer: Tokenizer
    recipe: Recipe
    type: str
    weights_sha256: str | None


@frozen
class Distances:
    """How far one set lies from another, by their feature vectors; `kernel` only to a reference that has vectors."""

    frechet: float
    kernel: float | None


@frozen(eq=False)
class Chosen:
    """The images to reconstruct, `indices_A` of `images`; and as many other real ones, where there are so many."""

    images: ImageSet
    indices_A: Tensor
    others: ImageSet | None = None
    others_A: Tensor = field(factory=lambda: torch.empty(0, dtype=torch.int64))
    between: str = ""


@frozen
class Floor:
    """Real images against other real ones at the same count: what no tokenizer is expected to pass."""

    distances: Distances
    images: int
    between: str


@frozen(eq=False)
class Comparison:
    """Everything measured.

    Args:
        data: the images, in words; images: how many of them. split: which one they are all of, None if of none.
        classes: how many the data have.
        reference: what reconstructions are measured against, in words; notes: what its reader must know.
        paired: whether that is their originals.
        measured: by entry's name. distances: of an entry's reconstructions to the reference, by way.
    """

    data: str
    images: int
    split: str | None
    classes: int
    reference: str
    notes: tuple[str, ...]
    paired: bool
    floor: Floor
    measured: Mapping[str, Measured]
    distances: Mapping[str, Mapping[str, Distances]]


def open_tokenizers(names: Sequence[str], registry: Registry, device: torch.device) -> list[Entry]:
    """The tokenizers of these models: a shipped name, a model folder or a run; both of a MixAR.

    Raises:
        UserError: there is no such model, or they are of different image sizes.
    """
    entries: list[Entry] = []
    for name in dict.fromkeys(names):
        model = load(name, device=device, registry=registry)
        there = [
            key for key in ("continuous_tokenizer", "discrete_tokenizer") if getattr(model.system, key) is not None
        ]
        for key in there:
            kind = key.removesuffix("_tokenizer")
            file = model.files.get(key)
            choice = getattr(model.recipe, key)
            entries.append(
                Entry(
                    name if len(there) == 1 and model.recipe.trains == key else f"{name}: {kind}",
                    getattr(model.system, key),
                    model.recipe,
                    f"{kind} ({choice.type})",
                    None if file is None else sha256(file),
                )
            )
    first = entries[0]
    for entry in entries:
        if entry.recipe.image_size != first.recipe.image_size:
            raise UserError(
                f"{first.name} is of {first.recipe.image_size} pixels and {entry.name} of {entry.recipe.image_size}; "
                f"tokenizers of one image size compare"
            )
    if first.recipe.image_size < SMALLEST:
        raise UserError(f"{first.name}: images of {first.recipe.image_size} pixels; SSIM needs {SMALLEST} or more")
    return entries


def choose(data: str, count: int | None, *, seed: int, least: int, recipe: Recipe, registry: Registry) -> Chosen:
    """`count` images of what `data` names (see `open_images`), at random by `seed`, and as many other real ones.

    Args:
        count: None: all there are. least: of which there must be so many.

    Raises:
        UserError: there are too few.
    """
    images = open_images(data, registry, recipe=recipe)
    count = len(images) if count is None else count
    if not least <= count <= len(images):
        raise UserError(f"--images {count}: {data} has {len(images):,}; allowed: {least} to {len(images)}")
    order_A = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    chosen = order_A[:count].sort().values
    if len(images) >= 2 * count:
        return Chosen(images, chosen, images, order_A[count : 2 * count].sort().values, "other images of the same set")
    if (other := other_split(data)) is not None:
        others = open_images(other, registry, recipe=recipe)
        if len(others) >= count:
            order_A = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
            return Chosen(
                images,
                chosen,
                others,
                order_A[:count].sort().values,
                f"images of the {others.description.partition(':')[0]}",
            )
    return Chosen(images, chosen)


def compare_tokenizers(
    entries: Sequence[Entry],
    chosen: Chosen,
    *,
    extractor: FeatureExtractor,
    processes: Processes,
    reference: Reference | None = None,
    seed: int = 0,
    batch_size: int = 32,
    workers: int = 0,
    progress: Progress | None = None,
) -> Comparison:
    """Reconstruct and measure; every process calls this with the same arguments.

    Args:
        entries: tokenizers on the processes' device, all of one image size.
        reference: what reconstructions are measured against; None: their originals, as reconstruction FID has it.
        seed: of the samples from continuous tokenizers' posteriors.
        progress: called in the main process, with images that went through the extractor.
    """
    count = len(chosen.indices_A)
    per_image = sum(2 if isinstance(entry.tokenizer, ContinuousTokenizer) else 1 for entry in entries)
    total = count * (1 + per_image) + (len(chosen.others_A) if reference is None else 0)
    before = 0

    def report(done: int, of: int) -> None:
        if progress is not None and processes.is_main:
            progress(before + done, total)

    def vectors(images: ImageSet, indices_A: Tensor) -> Tensor:
        nonlocal before
        found = measure(
            images, indices_A, extractor, processes, batch_size=batch_size, workers=workers, progress=report
        )
        before += len(indices_A)
        return found.features_AF

    real, paired = vectors(chosen.images, chosen.indices_A), reference is None
    if reference is not None:
        floor = Floor(_distances(real, reference), count, "the originals themselves, to the reference")
    else:
        # Without vectors, and so without a kernel distance: it takes the sets to be drawn independently, and an image
        # and its own reconstruction would bring it below zero.
        gaussian = Gaussian.of(real, extractor=extractor.identity)
        reference = Reference(f"the same {count:,} images", gaussian, None, notes=rank_notes(count, extractor))
        if chosen.others is None:
            half = Reference("half", Gaussian.of(real[1::2]), None)
            floor = Floor(_distances(real[::2], half), count // 2, "one half of the images, to the other")
        else:
            others = vectors(chosen.others, chosen.others_A)
            floor = Floor(_distances(others, reference), count, f"{count:,} {chosen.between}, to the originals")

    meters = {entry.name: TokenizerMeter(entry.tokenizer, extractor, seed=seed) for entry in entries}
    mine = share(torch.arange(count), processes)
    batches = chosen.images.batches(chosen.indices_A[mine], batch_size=batch_size, workers=workers)
    done = 0
    for positions_B, pixels_B3HW in zip(mine.split(batch_size), batches, strict=True):
        real_B3HW = as_saved(pixels_B3HW.to(processes.device))
        for meter in meters.values():
            meter.add(real_B3HW, positions_B)
        done += len(positions_B)
        report(min(done * processes.world, count) * per_image, total)
    measured = {name: meter.measured(count, processes) for name, meter in meters.items()}
    distances = {
        name: {way: _distances(found.features_AF, reference) for way, found in result.ways.items()}
        for name, result in measured.items()
    }
    return Comparison(
        data=chosen.images.description,
        images=count,
        split=chosen.images.split if count == len(chosen.images) else None,
        classes=chosen.images.data.num_classes,
        reference=reference.description,
        notes=reference.notes,
        paired=paired,
        floor=floor,
        measured=measured,
        distances=distances,
    )


def reconstruct_few(
    entries: Sequence[Entry],
    chosen: Chosen,
    extractor: FeatureExtractor,
    *,
    device: torch.device,
    seed: int,
    count: int,
) -> dict[str, Tensor]:
    """A few images, evenly spread, and each tokenizer's reconstructions of them, uint8, by name: rows of a picture."""
    size = len(chosen.indices_A)
    positions_B = torch.linspace(0, size - 1, min(count, size)).long()  # sets often come class after class
    pixels_B3HW = torch.cat(list(chosen.images.batches(chosen.indices_A[positions_B])))
    rows = {"original": pixels_B3HW}
    for entry in entries:
        meter = TokenizerMeter(entry.tokenizer, extractor, seed=seed)
        found = meter.add(as_saved(pixels_B3HW.to(device)), positions_B)
        rows |= {row_name(entry.name, way): images.cpu() for way, images in found.items()}
    return rows


def row_name(entry: str, way: str) -> str:
    """How a way to reconstruct is called in reports: a discrete tokenizer has but one."""
    return entry if way == "codes" else f"{entry}, {way}"


def _distances(features_AF: Tensor, reference: Reference) -> Distances:
    kernel = None if reference.features_AF is None else kernel_distance(features_AF, reference.features_AF)
    return Distances(frechet_of(Gaussian.of(features_AF), reference.gaussian), kernel)

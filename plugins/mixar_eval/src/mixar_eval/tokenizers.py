"""`mixar eval tokenizer`: several tokenizers over the same images, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from mixar.folder import sha256
from mixar.model import load
from mixar.plugins import Registry
from mixar.recipe import Recipe
from mixar_core.errors import UserError
from mixar_core.tokenizer import Tokenizer
from mixar_eval.context import EvalContext
from mixar_eval.distances import Gaussian
from mixar_eval.features import as_saved, features_of, over_batches
from mixar_eval.images import Images, ImageSet, open_images, other_images
from mixar_eval.references import Reference, rank_notes
from mixar_eval.scores import Floor, distances_of
from mixar_eval.tokenizer_meter import TokenizerMeter

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


@frozen(eq=False)
class Chosen:
    """The images to reconstruct; and as many other real ones, where there are so many, and `between` which."""

    images: ImageSet
    others: ImageSet | None = None
    between: str = ""


@frozen(eq=False)
class Comparison:
    """Everything measured.

    Args:
        reference: what reconstructions are measured against. paired: whether that is their originals.
        floor: real images against other real ones at the same count: what no tokenizer is expected to pass.
        tokenizers: what the report says of each, as plain values.
    """

    reference: Reference
    paired: bool
    floor: Floor
    tokenizers: list[dict[str, Any]]


def open_tokenizers(names: Sequence[str], registry: Registry, device: torch.device) -> list[Entry]:
    """The tokenizers of these models: a shipped name, a model folder or a run; both of a MixAR.

    Raises:
        UserError: there is no such model, or they are of different image sizes.
    """
    entries: list[Entry] = []
    for name in dict.fromkeys(names):
        model = load(name, device=device, registry=registry)
        both = {key: getattr(model.system, key) for key in ("continuous_tokenizer", "discrete_tokenizer")}
        there = {key: tokenizer for key, tokenizer in both.items() if tokenizer is not None}
        for key, tokenizer in there.items():
            kind, file = key.removesuffix("_tokenizer"), model.files.get(key)
            label = name if len(there) == 1 and model.recipe.trains == key else f"{name}: {kind}"
            type_ = f"{kind} ({getattr(model.recipe, key).type})"
            entries.append(Entry(label, tokenizer, model.recipe, type_, None if file is None else sha256(file)))
    first, size = entries[0], entries[0].recipe.image_size
    for entry in entries:
        if entry.recipe.image_size != size:
            raise UserError(
                f"{first.name} is of {size} pixels and {entry.name} of {entry.recipe.image_size}; "
                f"tokenizers of one image size compare"
            )
    if size < SMALLEST:
        raise UserError(f"{first.name}: images of {size} pixels; SSIM needs {SMALLEST} or more")
    return entries


def choose(data: Images, count: int | None, *, seed: int, least: int, recipe: Recipe, registry: Registry) -> Chosen:
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

    def shuffled(some: ImageSet) -> Tensor:
        return torch.randperm(len(some), generator=torch.Generator().manual_seed(seed))

    order_A = shuffled(images)
    chosen = images.take(order_A[:count])
    if len(images) >= 2 * count:
        return Chosen(chosen, images.take(order_A[count : 2 * count]), "other images of the same set")
    others = other_images(data, registry, recipe=recipe)
    if others is None or len(others) < count:
        return Chosen(chosen)
    between = f"images of the {others.description.partition(':')[0]}"
    return Chosen(chosen, others.take(shuffled(others)[:count]), between)


def compare_tokenizers(
    entries: Sequence[Entry], chosen: Chosen, context: EvalContext, *, reference: Reference | None = None, seed: int = 0
) -> Comparison:
    """Reconstruct and measure; every process calls this with the same arguments.

    Args:
        entries: tokenizers on the processes' device, all of one image size.
        reference: what reconstructions are measured against; None: their originals, as reconstruction FID has it.
        seed: of the samples from continuous tokenizers' posteriors.

    Raises:
        UserError: an image cannot be read. Stopped: a signal came.
    """
    count, extractor, paired = len(chosen.images), context.extractor, reference is None
    real_AF = features_of(chosen.images, context, "originals").features_AF
    if reference is not None:
        against, some_AF, what = reference, real_AF, "the originals themselves, to the reference"
    else:
        # Without vectors, and so without a kernel distance: it takes the sets to be drawn independently, and an image
        # and its own reconstruction would bring it below zero.
        gaussian = Gaussian.of(real_AF, extractor=extractor.identity)
        reference = Reference(f"the same {count:,} images", gaussian, notes=rank_notes(count, extractor))
        if chosen.others is None:
            against, some_AF = Reference("half", Gaussian.of(real_AF[::2])), real_AF[1::2]
            what = "one half of the images, to the other"
        else:
            others = features_of(chosen.others, context, "real images for the floor")
            against, some_AF, what = reference, others.features_AF, f"{count:,} {chosen.between}, to the originals"
    meters = [TokenizerMeter(entry.tokenizer, extractor, seed=seed) for entry in entries]

    def work(positions_B: Tensor, pixels_B3HW: Tensor) -> int:
        for meter in meters:
            meter.add(as_saved(pixels_B3HW.to(context.processes.device)), positions_B)
        return len(positions_B)

    over_batches(chosen.images, context, "reconstructing", work)
    told = [_told(entry, meter, reference, context) for entry, meter in zip(entries, meters, strict=True)]
    floor = context.processes.on_main(lambda: Floor(distances_of(some_AF, against), what))
    return Comparison(reference, paired, floor, told)


def _told(entry: Entry, meter: TokenizerMeter, reference: Reference, context: EvalContext) -> dict[str, Any]:
    found = meter.scores(context.processes)

    def of(way: dict[str, Tensor]) -> dict[str, float | None]:
        distances = distances_of(way["features"], reference)
        means = {name: float(way[name].double().mean()) for name in ("psnr", "ssim", "perceptual")}
        return {"frechet": distances.frechet, "kernel": distances.kernel, **means}

    return {
        "name": entry.name,
        "type": entry.type,
        "weights_sha256": entry.weights_sha256,
        "parameters": sum(parameter.numel() for parameter in entry.tokenizer.parameters()),
        "grid": str(entry.tokenizer.grid),
        "reconstructions": context.processes.on_main(lambda: {name: of(way) for name, way in found.ways.items()}),
        "codes": found.codes,
        "latents": found.latents,
    }


def reconstruct_few(
    entries: Sequence[Entry], images: ImageSet, context: EvalContext, *, seed: int, count: int
) -> dict[str, Tensor]:
    """A few images, evenly spread, and each tokenizer's reconstructions of them, uint8, by name: rows of a picture."""
    positions_B = torch.linspace(
        0, len(images) - 1, min(count, len(images))
    ).long()  # sets often come class after class
    pixels_B3HW = torch.cat(list(images.batches(positions_B)))
    rows = {"original": pixels_B3HW}
    for entry in entries:
        meter = TokenizerMeter(entry.tokenizer, context.extractor, seed=seed)
        found = meter.add(as_saved(pixels_B3HW.to(context.processes.device)), positions_B)
        rows |= {row_name(entry.name, way): decoded.cpu() for way, decoded in found.items()}
    return rows


def row_name(entry: str, way: str) -> str:
    """How a way to reconstruct is called in reports: a discrete tokenizer has but one."""
    return entry if way == "codes" else f"{entry}, {way}"

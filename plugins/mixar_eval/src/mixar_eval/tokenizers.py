"""`mixar eval tokenizer`: several tokenizers over the same images, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from mixar.folder import sha256
from mixar.model import load
from mixar.plugins import Registry
from mixar.recipe import Recipe
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.pictures import rows_picture
from mixar_core.tokenizer import DiscreteTokenizer, Tokenizer
from mixar_core.types import Grid
from mixar_eval.context import EvalContext
from mixar_eval.distances import Gaussian
from mixar_eval.features import as_saved, features_of_readable, over_batches
from mixar_eval.images import Images, ImageSet, open_images, other_images
from mixar_eval.protocol import CLASSES, basic_reasons
from mixar_eval.references import Reference, rank_notes
from mixar_eval.report import Report, Section, described, score_names
from mixar_eval.scores import distances_of
from mixar_eval.tokenizer_meter import TokenizerMeter

#: reconstruction FIDs are published of all 50,000 validation images
PROTOCOL = "published reconstruction FID of ImageNet 256"
PICTURE = "reconstructions.png"
#: pixels that SSIM's window needs
SMALLEST = 11


@frozen(eq=False)
class Entry:
    """A tokenizer to measure: its name in the report, what model it is of, and the digest of its weights.

    `discrete` is the one whose codes its latents may need.
    """

    name: str
    tokenizer: Tokenizer
    recipe: Recipe
    type: str
    weights_sha256: str | None
    discrete: DiscreteTokenizer | None = None

    def meter(self, extractor: FeatureExtractor, *, seed: int) -> TokenizerMeter:
        """What measures it, by features of this network."""
        return TokenizerMeter(self.tokenizer, extractor, seed=seed, discrete=self.discrete)


@frozen(eq=False)
class Chosen:
    """The images to reconstruct; and as many other real ones, where there are so many, and `between` which."""

    images: ImageSet
    others: ImageSet | None = None
    between: str = ""


def open_tokenizers(names: Sequence[str], registry: Registry, device: torch.device) -> list[Entry]:
    """The tokenizers of these models: a shipped name, a model folder or a run; both of a MixAR."""
    entries: list[Entry] = []
    for name in dict.fromkeys(names):
        model = load(name, device=device, registry=registry)
        both = {key: getattr(model.system, key) for key in ("continuous_tokenizer", "discrete_tokenizer")}
        there = {key: tokenizer for key, tokenizer in both.items() if tokenizer is not None}
        for key, tokenizer in there.items():
            kind, file = key.removesuffix("_tokenizer"), model.files.get(key)
            label = name if len(there) == 1 and model.recipe.trains == key else f"{name}: {kind}"
            type_ = f"{kind} ({getattr(model.recipe, key).type})"
            digest = None if file is None else sha256(file)
            entries.append(Entry(label, tokenizer, model.recipe, type_, digest, model.system.discrete_tokenizer))
    first, size = entries[0], entries[0].recipe.image_size
    pixels = Grid.of_pixels(size)
    for entry in entries:
        if entry.recipe.image_size != size:
            raise UserError(
                f"{first.name} is of {pixels.written} pixels and {entry.name} of "
                f"{Grid.of_pixels(entry.recipe.image_size).written}; "
                f"tokenizers of one image size compare"
            )
    if min(pixels.height, pixels.width) < SMALLEST:
        raise UserError(f"{first.name}: images of {pixels.written} pixels; SSIM needs {SMALLEST} or more a side")
    return entries


def choose(data: Images, count: int | None, *, seed: int, least: int, recipe: Recipe, registry: Registry) -> Chosen:
    """`count` images of what `data` names (see `open_images`), at random by `seed`, and as many other real ones.

    Args:
        count: None: all there are. least: of which there must be so many.
    """
    images = open_images(data, registry, recipe=recipe)
    count = len(images) if count is None else count
    if len(images) < least:
        raise UserError(f"{data}: too few images: {len(images)}; a tokenizer is measured on {least} or more")
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
    entries: Sequence[Entry],
    chosen: Chosen,
    context: EvalContext,
    *,
    reference: Reference | None = None,
    seed: int = 0,
    shown: int = 10,
) -> Report:
    """Reconstruct, measure and report; every process calls this with the same arguments.

    Args:
        entries: tokenizers on the processes' device, all of one image size.
        reference: what reconstructions are measured against; None: their originals, as reconstruction FID has it.
        seed: of the samples from continuous tokenizers' posteriors, and of how the images were chosen.
        shown: images in the picture.
    """
    (images, found_real), extractor = features_of_readable(chosen.images, context, "originals"), context.extractor
    real_AF = found_real.features_AF
    reasons = _reasons(images, extractor, paired=reference is None)
    reference, of_floor, some_AF, between = _compared(chosen, real_AF, reference, context)
    meters = [entry.meter(extractor, seed=seed) for entry in entries]

    def work(positions_B: Tensor, pixels_B3HW: Tensor) -> int:
        for meter in meters:
            meter.add(as_saved(pixels_B3HW.to(context.processes.device)), positions_B)
        return len(positions_B)

    over_batches(images, context, "reconstructing", work)
    tokenizers = [_told(entry, meter, reference, context) for entry, meter in zip(entries, meters, strict=True)]
    floor = context.processes.on_main(lambda: distances_of(some_AF, of_floor))
    apart = {"frechet": floor.frechet, "kernel": floor.kernel}
    rows = {
        row_name(tokenizer["name"], way): found
        for tokenizer in tokenizers
        for way, found in tokenizer["reconstructions"].items()
    }
    pictures = {}
    if context.processes.is_main:
        few = reconstruct_few(entries, images, context, seed=seed, count=shown)
        pictures[PICTURE] = rows_picture(few, scale=max(1, 96 // images.height))
    return Report(
        title=f"Tokenizers: {', '.join(entry.name for entry in entries)}",
        protocol=PROTOCOL,
        reasons=reasons,
        figures={f"{row}: {key}": value for row, found in rows.items() for key, value in found.items()},
        plain={
            "images": {"count": len(images), "of": images.description, "size": images.image_size},
            "seed": seed,
            "extractor": described(extractor),
            "reference": {"description": reference.description, "notes": list(reference.notes)},
            "floor": {"distances": apart, "images": floor.count, "between": between},
            "tokenizers": tokenizers,
        },
        sections=[
            _reconstructions(
                rows | {f"floor: {between}": apart},
                extractor,
                f"{len(images):,} images, chosen by seed {seed}, of the {images.description}.",
                reference=reference.description,
                has_kernel=reference.features_AF is not None,
            ),
            *_codes(tokenizers),
            *_latents(tokenizers),
        ],
        made=context.made(),
        notes=[*images.notes, *reference.notes],
        pictures=pictures,
    )


def _reasons(images: ImageSet, extractor: FeatureExtractor, *, paired: bool) -> list[str]:
    """Why not. That 50,000 validation images of 1,000 classes are ImageNet's is not asked, since no file says it."""
    reasons = basic_reasons(images, extractor, None if paired else "the reference is not the originals")
    if images.split != "validation":
        reasons.append("the images are not known to be a whole validation split")
    if (classes := len(images.class_names)) != CLASSES:
        reasons.append(f"{classes:,} classes and not {CLASSES:,}")
    return reasons


def _compared(
    chosen: Chosen, real_AF: Tensor, reference: Reference | None, context: EvalContext
) -> tuple[Reference, Reference, Tensor, str]:
    """The reference; and of the floor: what it is measured against, the real images' features, and which those are."""
    if reference is not None:
        return reference, reference, real_AF, "the originals themselves, to the reference"
    # Without vectors, and so without a kernel distance: it takes the sets to be drawn independently, and an image and
    # its own reconstruction would bring it below zero.
    count, extractor = len(real_AF), context.extractor
    gaussian = Gaussian.of(real_AF, extractor=extractor.identity)
    originals = Reference(f"the same {count:,} images", gaussian, notes=rank_notes(count, extractor))
    if chosen.others is None:
        half = Reference("half", Gaussian.of(real_AF[::2]))
        return originals, half, real_AF[1::2], "one half of the images, to the other"
    found, others = features_of_readable(chosen.others, context, "real images for the floor")
    originals = evolve(originals, notes=(*originals.notes, *found.notes))
    return originals, originals, others.features_AF, f"{len(found):,} {chosen.between}, to the originals"


def _told(entry: Entry, meter: TokenizerMeter, reference: Reference, context: EvalContext) -> dict[str, Any]:
    ways, counter = meter.ways(context.processes), meter.counter

    def of(way: dict[str, Tensor]) -> dict[str, float | None]:
        distances = distances_of(way["features"], reference)
        means = {name: float(way[name].double().mean()) for name in ("psnr", "ssim", "perceptual")}
        return {"frechet": distances.frechet, "kernel": distances.kernel, **means}

    return {
        "name": entry.name,
        "type": entry.type,
        "weights_sha256": entry.weights_sha256,
        "parameters": sum(parameter.numel() for parameter in entry.tokenizer.parameters()),
        "layout": str(entry.tokenizer.layout),
        "reconstructions": context.processes.on_main(lambda: {name: of(way) for name, way in ways.items()}),
        "codes": None,
        "latents": None,
        counter.name: counter.found(context.processes),
    }


def _reconstructions(
    rows: Mapping[str, Mapping[str, Any]], extractor: FeatureExtractor, images: str, *, reference: str, has_kernel: bool
) -> Section:
    """What was measured of reconstructions, a row each by its name; of which `images`, and to which `reference`."""
    frechet, kernel, _ = score_names(extractor.gives_fid)
    names = {"frechet": f"r{frechet}" if extractor.gives_fid else frechet, **({"kernel": kernel} if has_kernel else {})}
    names |= {"psnr": "PSNR, dB", "ssim": "SSIM", "perceptual": "perceptual"}
    return Section(
        lines=[images],
        rows=[
            {"reconstruction": row, **{column: scores.get(key) for key, column in names.items()}}
            for row, scores in rows.items()
        ],
        below=[
            f"Distances are between feature vectors of {extractor.identity}, from the reconstructions to {reference}: "
            f"lower is better. The last row is how far real images lie apart at the same count. The perceptual "
            f"distance is LPIPS without learned weights, in the same extractor's maps."
        ],
    )


def _codes(tokenizers: Sequence[Mapping[str, Any]]) -> list[Section]:
    """How discrete tokenizers use their codebooks, if there are any."""
    rows = [
        {
            "tokenizer": tokenizer["name"],
            "layout": tokenizer["layout"],
            "bits an image": codes["bits_per_image"],
            "codes in use": f"{codes['used']:,} of {codes['codebook_size']:,} ({codes['share_used']:.1%})",
            "among": f"{codes['codes']:,} tokens",
            "perplexity": codes["perplexity"],
            "entropy, bits a code": codes["entropy_bits"],
        }
        for tokenizer in tokenizers
        if (codes := tokenizer["codes"])
    ]
    return [Section("Codes", rows)] if rows else []


def _latents(tokenizers: Sequence[Mapping[str, Any]]) -> list[Section]:
    """How the latents of continuous tokenizers are spread, if there are any."""

    def spread(values: Sequence[float]) -> str:
        return f"{min(values):.2f} to {max(values):.2f}"

    rows = [
        {
            "tokenizer": tokenizer["name"],
            "layout": tokenizer["layout"],
            "channels": len(latents["mean"]),
            "KL, bits an image": latents["kl_bits"],
            "means, normalised": spread(latents["normalised_mean"]),
            "deviations, normalised": spread(latents["normalised_std"]),
        }
        for tokenizer in tokenizers
        if (latents := tokenizer["latents"])
    ]
    below = ["Normalised by the statistics that the tokenizer keeps: 0 and 1 where those fit these images."]
    return [Section("Latents", rows, below=below)] if rows else []


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
        meter = entry.meter(context.extractor, seed=seed)
        found = meter.add(as_saved(pixels_B3HW.to(context.processes.device)), positions_B)
        rows |= {row_name(entry.name, way): decoded.cpu() for way, decoded in found.items()}
    return rows


def row_name(entry: str, way: str) -> str:
    """How a way to reconstruct is called in reports: a discrete tokenizer has but one."""
    return entry if way == "codes" else f"{entry}, {way}"

"""The report of `mixar eval tokenizer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict
from PIL import Image

from mixar_eval.context import EvalContext
from mixar_eval.generation import described
from mixar_eval.protocol import CLASSES, COUNT, SIZE, extractor_reasons
from mixar_eval.report import Report, Section, distance_names
from mixar_eval.scores import Scores
from mixar_eval.tokenizer_meter import CodeUsage, LatentStatistics
from mixar_eval.tokenizers import Comparison, Entry, row_name

#: reconstruction FIDs are published of all 50,000 validation images
PROTOCOL = "published reconstruction FID of ImageNet 256"
PICTURE = "reconstructions.png"


def tokenizer_report(
    comparison: Comparison, entries: Sequence[Entry], context: EvalContext, *, seed: int, picture: Image.Image
) -> Report:
    """What was measured of the tokenizers.

    Args:
        seed: of the choice of images and of sampled latents.
        picture: originals and reconstructions.
    """
    chosen, size = comparison.chosen, entries[0].recipe.image_size
    tokenizers = [_of_entry(entry, comparison) for entry in entries]
    count, of = len(chosen.indices_A), chosen.images.description
    figures = {
        f"{row_name(tokenizer['name'], way)}: {key}": value
        for tokenizer in tokenizers
        for way, found in tokenizer["reconstructions"].items()
        for key, value in found.items()
    }
    return Report(
        title=f"Tokenizers: {', '.join(entry.name for entry in entries)}",
        protocol=PROTOCOL,
        reasons=_reasons(comparison, entries, context),
        figures=figures,
        plain={
            "images": {"count": count, "of": of, "size": size},
            "seed": seed,
            "extractor": described(context.extractor),
            "reference": {"description": comparison.reference.description, "notes": list(comparison.reference.notes)},
            "floor": {
                "distances": _distances(comparison.floor.scores),
                "images": comparison.floor.scores.count,
                "between": comparison.floor.what,
            },
            "tokenizers": tokenizers,
        },
        sections=[
            _reconstructions(tokenizers, comparison, context, f"{count:,} images, chosen by seed {seed}, of the {of}."),
            *_codes(tokenizers),
            *_latents(tokenizers),
        ],
        made=context.made(),
        notes=[*chosen.images.notes, *comparison.reference.notes],
        pictures={PICTURE: picture},
    )


def _reconstructions(
    tokenizers: Sequence[Mapping[str, Any]], comparison: Comparison, context: EvalContext, images: str
) -> Section:
    gives_fid, has_kernel = context.extractor.gives_fid, comparison.reference.features_AF is not None
    frechet, kernel = distance_names(gives_fid)
    names = {"frechet": f"r{frechet}" if gives_fid else frechet, **({"kernel": kernel} if has_kernel else {})}
    names |= {"psnr": "PSNR, dB", "ssim": "SSIM", "perceptual": "perceptual"}
    found = {
        row_name(tokenizer["name"], way): scores
        for tokenizer in tokenizers
        for way, scores in tokenizer["reconstructions"].items()
    }
    found[f"floor: {comparison.floor.what}"] = _distances(comparison.floor.scores)
    return Section(
        lines=[images],
        rows=[
            {"reconstruction": name, **{column: scores.get(key) for key, column in names.items()}}
            for name, scores in found.items()
        ],
        below=[
            f"Distances are between feature vectors of {context.extractor.identity}, from the reconstructions to "
            f"{comparison.reference.description}: lower is better. The last row is how far real images lie apart at "
            f"the same count. The perceptual distance is LPIPS without learned weights, in the same extractor's maps."
        ],
    )


def _codes(tokenizers: Sequence[Mapping[str, Any]]) -> list[Section]:
    rows = [
        {
            "tokenizer": tokenizer["name"],
            "grid": tokenizer["grid"],
            "bits an image": codes["bits_per_image"],
            "codes in use": f"{codes['used']:,} of {codes['codebook_size']:,} ({codes['share_used']:.1%})",
            "among": f"{codes['codes']:,} tokens",
            "perplexity": codes["perplexity"],
            "entropy, bits a code": codes["entropy_bits"],
        }
        for tokenizer in tokenizers
        if (codes := tokenizer["codes"]) is not None
    ]
    return [Section("Codes", rows)] if rows else []


def _latents(tokenizers: Sequence[Mapping[str, Any]]) -> list[Section]:
    def spread(values: Sequence[float]) -> str:
        return f"{min(values):.2f} to {max(values):.2f}"

    rows = [
        {
            "tokenizer": tokenizer["name"],
            "grid x channels": f"{tokenizer['grid']} x {len(latents['mean'])}",
            "KL, bits an image": latents["kl_bits"],
            "means, normalised": spread(latents["normalised_mean"]),
            "deviations, normalised": spread(latents["normalised_std"]),
        }
        for tokenizer in tokenizers
        if (latents := tokenizer["latents"]) is not None
    ]
    below = ["Normalised by the statistics that the tokenizer keeps: 0 and 1 where those fit these images."]
    return [Section("Latents", rows, below=below)] if rows else []


def _reasons(comparison: Comparison, entries: Sequence[Entry], context: EvalContext) -> list[str]:
    """Why not. That 50,000 validation images of 1,000 classes are ImageNet's is not asked, since no file says it."""
    chosen, extractor, size = comparison.chosen, context.extractor, entries[0].recipe.image_size
    count, classes = len(chosen.indices_A), len(chosen.images.class_names)
    reasons = extractor_reasons(extractor.is_inception, extractor.has_published_weights)
    if not comparison.paired:
        reasons.append("the reference is not the originals")
    if count != COUNT:
        reasons.append(f"{count:,} images and not {COUNT:,}")
    if size != SIZE:
        reasons.append(f"{size}x{size} pixels and not {SIZE}x{SIZE}")
    if chosen.images.split != "validation" or count != len(chosen.images):
        reasons.append("the images are not known to be a whole validation split")
    if classes != CLASSES:
        reasons.append(f"{classes:,} classes and not {CLASSES:,}")
    return reasons


def _distances(scores: Scores) -> dict[str, float | None]:
    return {"frechet": scores.frechet, "kernel": scores.kernel}


def _of_entry(entry: Entry, comparison: Comparison) -> dict[str, Any]:
    scores, distances = comparison.scores[entry.name], comparison.distances[entry.name]
    return {
        "name": entry.name,
        "type": entry.type,
        "weights_sha256": entry.weights_sha256,
        "parameters": sum(parameter.numel() for parameter in entry.tokenizer.parameters()),
        "grid": str(entry.tokenizer.grid),
        "reconstructions": {
            way: {
                **_distances(distances[way]),
                "psnr": float(found.psnr_A.double().mean()),
                "ssim": float(found.ssim_A.double().mean()),
                "perceptual": float(found.perceptual_A.double().mean()),
            }
            for way, found in scores.ways.items()
        },
        "codes": None if scores.codes is None else _of_codes(scores.codes),
        "latents": None if scores.latents is None else _of_latents(scores.latents),
    }


def _of_codes(codes: CodeUsage) -> dict[str, Any]:
    return {**asdict(codes), "share_used": codes.share_used, "perplexity": codes.perplexity}


def _of_latents(latents: LatentStatistics) -> dict[str, Any]:
    channels = {
        name: getattr(latents, f"{name}_C").tolist() for name in ("mean", "std", "normalised_mean", "normalised_std")
    }
    sizes = {"values_per_image": latents.values_per_image, "kl_nats": latents.kl_nats, "kl_bits": latents.kl_bits}
    return {**sizes, **channels}

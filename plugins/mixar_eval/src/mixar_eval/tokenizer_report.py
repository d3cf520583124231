"""The report of `mixar eval tokenizer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from mixar_eval.context import EvalContext
from mixar_eval.images import ImageSet
from mixar_eval.protocol import CLASSES, basic_reasons
from mixar_eval.report import Report, Section, described, distance_names
from mixar_eval.tokenizers import Comparison, row_name

#: reconstruction FIDs are published of all 50,000 validation images
PROTOCOL = "published reconstruction FID of ImageNet 256"
PICTURE = "reconstructions.png"


def tokenizer_report(
    found: Comparison, images: ImageSet, context: EvalContext, *, seed: int, picture: Image.Image
) -> Report:
    """What was measured of the tokenizers.

    Args:
        images: those that were reconstructed.
        seed: of the choice of images and of sampled latents.
        picture: originals and reconstructions.
    """
    reference, tokenizers, floor = found.reference, found.tokenizers, found.floor
    rows = {
        row_name(tokenizer["name"], way): scores
        for tokenizer in tokenizers
        for way, scores in tokenizer["reconstructions"].items()
    }
    apart = {"frechet": floor.scores.frechet, "kernel": floor.scores.kernel}
    chosen = f"{len(images):,} images, chosen by seed {seed}, of the {images.description}."
    shown = rows | {f"floor: {floor.what}": apart}
    return Report(
        title=f"Tokenizers: {', '.join(tokenizer['name'] for tokenizer in tokenizers)}",
        protocol=PROTOCOL,
        reasons=_reasons(images, found.paired, context),
        figures={f"{row}: {key}": value for row, scores in rows.items() for key, value in scores.items()},
        plain={
            "images": {"count": len(images), "of": images.description, "size": images.height},
            "seed": seed,
            "extractor": described(context.extractor),
            "reference": {"description": reference.description, "notes": list(reference.notes)},
            "floor": {"distances": apart, "images": floor.scores.count, "between": floor.what},
            "tokenizers": tokenizers,
        },
        sections=[
            _reconstructions(shown, reference.features_AF is not None, chosen, reference.description, context),
            *_codes([tokenizer for tokenizer in tokenizers if tokenizer["codes"] is not None]),
            *_latents([tokenizer for tokenizer in tokenizers if tokenizer["latents"] is not None]),
        ],
        made=context.made(),
        notes=[*images.notes, *reference.notes],
        pictures={PICTURE: picture},
    )


def _reasons(images: ImageSet, paired: bool, context: EvalContext) -> list[str]:
    """Why not. That 50,000 validation images of 1,000 classes are ImageNet's is not asked, since no file says it."""
    reasons = basic_reasons(images, context.extractor, None if paired else "the reference is not the originals")
    if images.split != "validation":
        reasons.append("the images are not known to be a whole validation split")
    if (classes := len(images.class_names)) != CLASSES:
        reasons.append(f"{classes:,} classes and not {CLASSES:,}")
    return reasons


def _reconstructions(
    rows: Mapping[str, Mapping[str, Any]], has_kernel: bool, chosen: str, reference: str, context: EvalContext
) -> Section:
    gives_fid = context.extractor.gives_fid
    frechet, kernel = distance_names(gives_fid)
    names = {"frechet": f"r{frechet}" if gives_fid else frechet, **({"kernel": kernel} if has_kernel else {})}
    names |= {"psnr": "PSNR, dB", "ssim": "SSIM", "perceptual": "perceptual"}
    return Section(
        lines=[chosen],
        rows=[
            {"reconstruction": row, **{column: scores.get(key) for key, column in names.items()}}
            for row, scores in rows.items()
        ],
        below=[
            f"Distances are between feature vectors of {context.extractor.identity}, from the reconstructions to "
            f"{reference}: lower is better. The last row is how far real images lie apart at the same count. The "
            f"perceptual distance is LPIPS without learned weights, in the same extractor's maps."
        ],
    )


def _codes(tokenizers: Sequence[Mapping[str, Any]]) -> list[Section]:
    rows = [
        {
            "tokenizer": tokenizer["name"],
            "grid": tokenizer["grid"],
            "bits an image": (codes := tokenizer["codes"])["bits_per_image"],
            "codes in use": f"{codes['used']:,} of {codes['codebook_size']:,} ({codes['share_used']:.1%})",
            "among": f"{codes['codes']:,} tokens",
            "perplexity": codes["perplexity"],
            "entropy, bits a code": codes["entropy_bits"],
        }
        for tokenizer in tokenizers
    ]
    return [Section("Codes", rows)] if rows else []


def _latents(tokenizers: Sequence[Mapping[str, Any]]) -> list[Section]:
    def spread(values: Sequence[float]) -> str:
        return f"{min(values):.2f} to {max(values):.2f}"

    rows = [
        {
            "tokenizer": tokenizer["name"],
            "grid x channels": f"{tokenizer['grid']} x {len((latents := tokenizer['latents'])['mean'])}",
            "KL, bits an image": latents["kl_bits"],
            "means, normalised": spread(latents["normalised_mean"]),
            "deviations, normalised": spread(latents["normalised_std"]),
        }
        for tokenizer in tokenizers
    ]
    below = ["Normalised by the statistics that the tokenizer keeps: 0 and 1 where those fit these images."]
    return [Section("Latents", rows, below=below)] if rows else []

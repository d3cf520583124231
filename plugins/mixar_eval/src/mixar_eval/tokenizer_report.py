"""The report of `mixar eval tokenizer`: plain values, and the same as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import asdict

from mixar_core.perceptual import FeatureExtractor
from mixar_eval.markdown import distance_names, number, table
from mixar_eval.protocol import CLASSES, COUNT, SIZE, comparable
from mixar_eval.tokenizers import Comparison, Entry, row_name
from mixar_eval.tokens import CodeUsage, LatentStatistics

#: key of the report: reconstruction FIDs are published of all 50,000 validation images
COMPARABLE = "comparable with published reconstruction FID of ImageNet 256"


def report_of(
    comparison: Comparison,
    entries: Sequence[Entry],
    extractor: FeatureExtractor,
    *,
    seed: int,
    made: Mapping[str, Any],
) -> dict[str, Any]:
    """The report as plain values.

    Args:
        seed: of the choice of images and of sampled latents.
        made: by which command, with what; goes in as it is.
    """
    return {
        COMPARABLE: comparable(_reasons(comparison, entries, extractor)),
        "images": {"count": comparison.images, "of": comparison.data, "size": entries[0].recipe.image_size},
        "seed": seed,
        "extractor": {
            "identity": extractor.identity,
            "feature_dim": extractor.feature_dim,
            "gives_fid": extractor.gives_fid,
        },
        "reference": {"description": comparison.reference, "notes": list(comparison.notes)},
        "floor": asdict(comparison.floor),
        "tokenizers": [_of_entry(entry, comparison) for entry in entries],
        "made": dict(made),
    }


def tokenizer_text(report: Mapping[str, Any], *, picture: str) -> str:
    """The report as Markdown.

    Args:
        picture: file name of the picture, beside the report.
    """
    tokenizers, images, extractor = report["tokenizers"], report["images"], report["extractor"]
    frechet, kernel = distance_names(extractor["gives_fid"])
    frechet = f"r{frechet}" if extractor["gives_fid"] else frechet
    columns: tuple[str, ...] = ("reconstruction", frechet, kernel, "PSNR, dB", "SSIM", "perceptual")
    rows = _reconstruction_rows(tokenizers, report["floor"])
    if all(row[2] is None for row in rows):
        columns, rows = columns[:2] + columns[3:], [row[:2] + row[3:] for row in rows]
    made = [(key, value) for key, value in report["made"].items() if key != "versions"]
    made += list(report["made"]["versions"].items())
    parts = [
        f"# Tokenizers: {', '.join(tokenizer['name'] for tokenizer in tokenizers)}\n",
        f"{images['count']:,} images, chosen by seed {report['seed']}, of the {images['of']}.\n",
        f"**Comparable with published reconstruction FID of ImageNet 256: {report[COMPARABLE]}**\n",
        table(columns, rows, right=range(1, len(columns))),
        f"Distances are between feature vectors of {extractor['identity']}, from the reconstructions to "
        f"{report['reference']['description']}: lower is better. The last row is how far real images lie apart at the "
        f"same count. The perceptual distance is LPIPS without learned weights, in the same extractor's maps.\n",
        *[f"- Reference: {note}\n" for note in report["reference"]["notes"]],
    ]
    codes, latents = _code_rows(tokenizers), _latent_rows(tokenizers)
    if codes:
        columns = ("codes", "grid", "bits an image", "codes in use", "among", "perplexity", "entropy, bits a code")
        parts += ["## Codes\n", table(columns, codes, right=range(1, 7))]
    if latents:
        columns = ("latents", "grid x channels", "KL, bits an image", "means, normalised", "deviations, normalised")
        parts += ["## Latents\n", table(columns, latents, right=range(1, 5))]
        parts.append("Normalised by the statistics that the tokenizer keeps: 0 and 1 where those fit these images.\n")
    parts += ["## Made by\n", table(("what", "value"), made), f"![Originals and reconstructions]({picture})\n"]
    return "\n".join(parts)


def _reconstruction_rows(tokenizers: Sequence[Mapping[str, Any]], floor: Mapping[str, Any]) -> list[list[str | None]]:
    rows = [
        [
            row_name(tokenizer["name"], way),
            *(number(found[key]) for key in ("frechet", "kernel", "psnr", "ssim", "perceptual")),
        ]
        for tokenizer in tokenizers
        for way, found in tokenizer["reconstructions"].items()
    ]
    apart = floor["distances"]
    return [*rows, [f"floor: {floor['between']}", number(apart["frechet"]), number(apart["kernel"]), None, None, None]]


def _code_rows(tokenizers: Sequence[Mapping[str, Any]]) -> list[list[str | None]]:
    return [
        [
            tokenizer["name"],
            tokenizer["grid"],
            number(codes["bits_per_image"]),
            f"{codes['used']:,} of {codes['codebook_size']:,} ({codes['share_used']:.1%})",
            f"{codes['codes']:,} tokens",
            number(codes["perplexity"]),
            number(codes["entropy_bits"]),
        ]
        for tokenizer in tokenizers
        if (codes := tokenizer["codes"]) is not None
    ]


def _latent_rows(tokenizers: Sequence[Mapping[str, Any]]) -> list[list[str | None]]:
    return [
        [
            tokenizer["name"],
            f"{tokenizer['grid']} x {len(latents['mean'])}",
            number(latents["kl_bits"]),
            f"{min(latents['normalised_mean']):.2f} to {max(latents['normalised_mean']):.2f}",
            f"{min(latents['normalised_std']):.2f} to {max(latents['normalised_std']):.2f}",
        ]
        for tokenizer in tokenizers
        if (latents := tokenizer["latents"]) is not None
    ]


def _reasons(comparison: Comparison, entries: Sequence[Entry], extractor: FeatureExtractor) -> list[str]:
    """Why not. That 50,000 validation images of 1,000 classes are ImageNet's is not asked, since no file says it."""
    reasons, size = [], entries[0].recipe.image_size
    if not extractor.is_inception:
        reasons.append("the extractor is not Inception")
    elif not extractor.has_published_weights:
        reasons.append("Inception's weights are not those of the known checksum")
    if not comparison.paired:
        reasons.append("the reference is not the originals")
    if comparison.images != COUNT:
        reasons.append(f"{comparison.images:,} images and not {COUNT:,}")
    if size != SIZE:
        reasons.append(f"{size}x{size} pixels and not {SIZE}x{SIZE}")
    if comparison.split != "validation":
        reasons.append("the images are not known to be a whole validation split")
    if comparison.classes != CLASSES:
        reasons.append(f"{comparison.classes:,} classes and not {CLASSES:,}")
    return reasons


def _of_entry(entry: Entry, comparison: Comparison) -> dict[str, Any]:
    measured, distances = comparison.measured[entry.name], comparison.distances[entry.name]
    return {
        "name": entry.name,
        "type": entry.type,
        "weights_sha256": entry.weights_sha256,
        "parameters": sum(parameter.numel() for parameter in entry.tokenizer.parameters()),
        "grid": str(entry.tokenizer.grid),
        "reconstructions": {
            way: {
                **asdict(distances[way]),
                "psnr": float(found.psnr_A.double().mean()),
                "ssim": float(found.ssim_A.double().mean()),
                "perceptual": float(found.perceptual_A.double().mean()),
            }
            for way, found in measured.ways.items()
        },
        "codes": None if measured.codes is None else _of_codes(measured.codes),
        "latents": None if measured.latents is None else _of_latents(measured.latents),
    }


def _of_codes(codes: CodeUsage) -> dict[str, Any]:
    return {**asdict(codes), "share_used": codes.share_used, "perplexity": codes.perplexity}


def _of_latents(latents: LatentStatistics) -> dict[str, Any]:
    channels = {
        name: getattr(latents, f"{name}_C").tolist() for name in ("mean", "std", "normalised_mean", "normalised_std")
    }
    sizes = {"values_per_image": latents.values_per_image, "kl_nats": latents.kl_nats, "kl_bits": latents.kl_bits}
    return {**sizes, **channels}

"""The tables of `mixar eval tokenizer`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixar_core.perceptual import FeatureExtractor
from mixar_eval.report import Section, score_names


def reconstructions_section(
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


def codes_section(tokenizers: Sequence[Mapping[str, Any]]) -> list[Section]:
    """How discrete tokenizers use their codebooks, if there are any."""
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
        if (codes := tokenizer["codes"])
    ]
    return [Section("Codes", rows)] if rows else []


def latents_section(tokenizers: Sequence[Mapping[str, Any]]) -> list[Section]:
    """How the latents of continuous tokenizers are spread, if there are any."""

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
        if (latents := tokenizer["latents"])
    ]
    below = ["Normalised by the statistics that the tokenizer keeps: 0 and 1 where those fit these images."]
    return [Section("Latents", rows, below=below)] if rows else []

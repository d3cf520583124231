"""l-DeTok's tokenizer: encoding, decoding, and its training with masked patches and noised latents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mixar.plugins import plugin_manager
from mixar_core.noise import Noise
from mixar_import.importers import ImporterConfig
from mixar_import.tokenizers import DeTokImporter
from mixar_plugins.tokenizers.detok import DeTok
from tests.parity.case import load_strictly


class Replay(Noise):
    """The draws of a run, in order; those of a posterior come as tokens (B, N, C)."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        super().__init__(torch.Generator())
        self.draws = iter(draws)

    def normal(self, shape: Sequence[int], device: torch.device | str, *, name: str = "") -> Tensor:
        draw = next(self.draws)
        return draw.transpose(1, 2).reshape(*shape) if name == "posterior" else draw

    def uniform(self, shape: Sequence[int], device: torch.device | str, *, name: str = "") -> Tensor:
        return next(self.draws)


def tokenizer_of(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    stats_mean: Tensor | None = None,
    stats_std: Tensor | None = None,
    **changes: Any,
) -> DeTok:
    """The part that a case's config describes, with its weights and statistics (none: mean 0, deviation 1)."""
    encoder, decoder = (config["SIZE_DICT"][config[f"vit_{half}_model_size"]] for half in ("enc", "dec"))
    settings = {
        "latent_channels": config["token_channels"],
        "patch": config["patch_size"],
        "width": encoder["width"],
        "depth": encoder["layers"],
        "heads": encoder["heads"],
        "decoder_width": decoder["width"],
        "decoder_depth": decoder["layers"],
        "decoder_heads": decoder["heads"],
        "mask_ratio": config.get("mask_ratio", 0.0),
        "gamma": config.get("gamma", 0.0),
        **changes,
    }
    tokenizer = build(weights, image_size=config["img_size"], **settings)
    if stats_mean is not None and stats_std is not None:
        tokenizer.latent_mean_C.copy_(stats_mean)
        tokenizer.latent_std_C.copy_(stats_std)
    return tokenizer


def build(weights: Mapping[str, Tensor], *, image_size: int, **settings: Any) -> DeTok:
    """The registered part with these settings and weights, and with statistics as they start."""
    part = plugin_manager().part("continuous-tokenizer", "detok")
    tokenizer = part.component(part.config(**settings), image_size=image_size).eval()
    load_strictly(tokenizer, DeTokImporter(ImporterConfig()).translate(weights)[0])
    assert isinstance(tokenizer, DeTok)
    return tokenizer


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`*_noised` and `*_ids_restore`: what the decoder is given in training, told by watching it."""
    images = io["images"]
    tokenizer = tokenizer_of(config, weights)
    posterior, mean = tokenizer.posterior(images), tokenizer.posterior(images).mean_BChw
    out = {
        "moments": tokenizer.encoder(images, None),
        "mean": _tokens(mean),
        "logvar": _tokens(posterior.logvar_BChw),
        "kl": posterior.kl_B(),
        "sample": _tokens(tokenizer.sample_posterior(posterior, Replay([io["sample_draw_000_randn"]]))),
        "reconstruction": tokenizer.decode_raw(mean),
        "tokenized_plain": tokenizer.encode(images),
    }
    tokenizer = tokenizer_of(config, weights, io["stats_mean"], io["stats_std"])
    out["tokenized"] = tokenizer.encode(images)
    out["detokenized"] = (tokenizer.decode(out["tokenized"]) + 1) / 2
    sampled = tokenizer.sample_posterior(posterior, Replay([io["from_moments_draw_000_randn"]]))
    out["sampled_from_moments"] = tokenizer.normalise(sampled)

    level_B11, eps = (
        torch.full((len(images), 1, 1), config["settings"]["level"]["noise_level"]),
        io["level_draw_000_randn"],
    )
    out["level_noised"] = tokenizer.noised(_tokens(mean), level_B11, eps)
    out["level_decoded"] = tokenizer.decoder(out["level_noised"], None)
    for name in ("train", "train_unmasked", "additive"):
        out |= _training(name, config, weights, io)
    return out


def _training(
    run: str, config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    settings = config["settings"][run]
    kind = "additive" if settings.get("use_additive_noise") else "interpolated"
    tokenizer = tokenizer_of(config, weights, noise=kind).train()
    draws = [io[name] for name in sorted(io) if name.startswith(f"{run}_draw_")]
    drawn = "pyuniform" in next(name for name in sorted(io) if name.startswith(f"{run}_draw_000"))
    ratio = max(0.0, draws.pop(0).item()) if drawn else settings["mask_ratio"]
    given: list[Tensor] = []
    tokenizer.decoder.register_forward_hook(lambda _, arguments, __: given.extend(arguments))
    posterior, _, decoded = tokenizer.restored(io["images"], ratio, noise=Replay(draws))
    noised, restore = given
    out = {f"{run}_noised": noised, f"{run}_ids_restore": restore, f"{run}_decoded": decoded}
    if run == "train":
        moments = torch.cat([_tokens(posterior.mean_BChw), _tokens(posterior.logvar_BChw)], dim=2)
        kl_B = posterior.kl_B()
        mse = ((io["images"] - decoded) / 2).square().mean()
        out |= {"train_moments": moments, "train_kl": kl_B, "train_kl_loss": kl_B.mean()[None], "train_mse": mse[None]}
    return out


def _tokens(latents_BChw: Tensor) -> Tensor:
    return latents_BChw.flatten(2).transpose(1, 2)


def _full_size(tensors: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        build(tensors, image_size=256)


MANIFESTS = {"detok_bb": _full_size}

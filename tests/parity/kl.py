"""The two KL autoencoders: posterior, sample and decoding."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixar.plugins import plugin_manager
from mixar_core.tokenizer import ContinuousTokenizer
from tests.parity.case import load_strictly

#: Ours alone: no released file holds the latents' statistics.
STATISTICS = ("latent_mean_C", "latent_std_C")


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`sample` is drawn with the case's `eps`, `decoded` from it."""
    tokenizer = build(
        image_size=config["resolution"],
        latent_channels=config["embed_dim"],
        channels=config["ch"],
        channel_multipliers=tuple(config["ch_mult"]),
        blocks=config["num_res_blocks"],
        encoder_attention=strides(config, config["encoder_attn_resolutions"]),
        decoder_attention=strides(config, config["decoder_attn_resolutions"]),
    )
    load_strictly(tokenizer, weights, kept=STATISTICS)
    posterior = tokenizer.posterior(io["images"])
    sample = posterior.mean_BChw + torch.exp(0.5 * posterior.logvar_BChw) * io["eps"]
    return {
        "mean": posterior.mean_BChw,
        "logvar": posterior.logvar_BChw,
        "sample": sample,
        "decoded": tokenizer.decode_raw(sample),
    }


def build(*, image_size: int, **settings: Any) -> ContinuousTokenizer:
    """The registered part with these settings."""
    part = plugin_manager().part("continuous-tokenizer", "kl")
    return part.component(part.config(**settings), image_size=image_size).eval()


def strides(config: Mapping[str, Any], resolutions: Collection[int]) -> tuple[int, ...]:
    """The strides at which the image has one of these resolutions."""
    levels = [2**level for level in range(len(config["ch_mult"]))]
    return tuple(stride for stride in levels if config["resolution"] // stride in resolutions)


def _full_size(tensors: Mapping[str, Tensor], **settings: Any) -> None:
    with torch.device("meta"):
        tokenizer = build(image_size=256, **settings)
    load_strictly(tokenizer, tensors, kept=STATISTICS)


MANIFESTS = {
    "kl16": _full_size,
    "vavae_f16d32": partial(_full_size, latent_channels=32, decoder_attention=(16,)),
}

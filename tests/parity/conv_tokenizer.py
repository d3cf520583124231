"""MaskBit's convolutional tokenizers: lookup-free, lookup, and lookup with the older decoder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixar.plugins import plugin_manager
from mixar_import.importers import MaskBitTokenizerImporter
from mixar_plugins.tokenizers.maskbit import ConvTokenizer
from tests.parity.case import NotACase, load_strictly

#: What a lookup-free quantizer computes for itself: a case has no seeded values for them, a released file holds them.
COMPUTED = ("quantizer.bits_to_indices", "quantizer.codebook")


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Encoder, quantizer and decoder as the originals have them: pixels as given, `train_*` in training mode."""
    name, settings = part_of(config)
    tokenizer = build(
        name,
        image_size=io["images"].shape[-1],
        channels=config["hidden_channels"],
        channel_multipliers=tuple(config["channel_mult"][: config["num_resolutions"]]),
        blocks=config["num_res_blocks"],
        downsample="conv" if config["sample_with_conv"] else "pool",
        commitment_weight=config["commitment_cost"],
        entropy_weight=config["entropy_loss_weight"],
        entropy_temperature=config["entropy_loss_temperature"],
        entropy_gamma=config["entropy_gamma"],
        legacy=config.get("legacy", False),
        **settings,
    )
    load_strictly(tokenizer, MaskBitTokenizerImporter.rename(weights), kept=COMPUTED)
    encoder_out = tokenizer.encoder(io["images"])
    quantized = tokenizer.quantizer(encoder_out)
    losses = tokenizer.quantizer.train()(encoder_out).losses
    return {
        "encoder_out": encoder_out,
        "quantized": quantized.vectors_BEhw,
        "indices": quantized.codes_BN.unflatten(1, encoder_out.shape[-2:]),
        "decoded": tokenizer.decoder(quantized.vectors_BEhw),
        **{f"train_{term}_loss": losses[term].reshape(1) for term in losses},
    }


def part_of(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The part's name, and the settings that only it has."""
    match config["quantizer_type"]:
        case "lookup-free":
            return "lfq", {"bits": config["token_size"]}
        case "lookup":
            return "vq", {"codebook_size": config["codebook_size"], "code_width": config["token_size"]}
        case other:
            raise NotACase(f'quantizer_type "{other}" is neither lookup-free nor lookup')


def build(name: str, *, image_size: int, **settings: Any) -> ConvTokenizer:
    """The registered part with these settings."""
    part = plugin_manager().part("discrete-tokenizer", name)
    return part.component(part.config(**settings), image_size=image_size).eval()


def _full_size(tensors: Mapping[str, Tensor], *, bits: int) -> None:
    with torch.device("meta"):
        tokenizer = build("lfq", image_size=256, bits=bits)
    load_strictly(tokenizer, MaskBitTokenizerImporter.rename(tensors))


MANIFESTS = {f"maskbit_tokenizer_{bits}bit": partial(_full_size, bits=bits) for bits in (10, 12, 14, 16, 18)}

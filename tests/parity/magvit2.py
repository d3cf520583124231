"""Open-MAGVIT2's tokenizer: codes, decoding, and a training step with its discriminator; perceptual loss apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mixar.plugins import plugin_manager
from mixar_core.training.reconstruction import ReconstructionConfig
from mixar_import.importers import ImporterConfig
from mixar_import.tokenizers import OpenMagvit2Importer
from mixar_plugins.tokenizers.magvit2 import Magvit2
from tests.parity import adversarial
from tests.parity.case import load_strictly


def tokenizer_of(config: Mapping[str, Any], weights: Mapping[str, Tensor], *, image_size: int) -> Magvit2:
    """The part that a case's config describes, with its weights; its losses are not weighted."""
    sizes = config["ddconfig"]
    return build(
        weights,
        image_size=image_size,
        bits=sizes["z_channels"],
        channels=sizes["ch"],
        channel_multipliers=tuple(sizes["ch_mult"]),
        blocks=sizes["num_res_blocks"],
        commitment_weight=1.0,
        entropy_weight=config.get("sample_minimization_weight", 1.0),
        entropy_gamma=config.get("batch_maximization_weight", 1.0) / config.get("sample_minimization_weight", 1.0),
    )


def build(tensors: Mapping[str, Tensor], *, image_size: int, **settings: Any) -> Magvit2:
    """The registered part with these settings and a file's tensors."""
    part = plugin_manager().part("discrete-tokenizer", "magvit2")
    tokenizer = part.component(part.config(**settings), image_size=image_size).eval()
    load_strictly(tokenizer, OpenMagvit2Importer(ImporterConfig()).translate(tensors)[0])
    assert isinstance(tokenizer, Magvit2)
    return tokenizer


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`latents_*`: the quantizer alone."""
    images, loss = io["images"], config["lossconfig"]["params"]
    tokenizer = tokenizer_of(config, weights, image_size=images.shape[-1])
    quantized = tokenizer.quantize(images)
    size = quantized.vectors_BEhw.shape[2:]
    decoded = tokenizer.decode_vectors(quantized.vectors_BEhw)
    given_BEhw = tokenizer.code_vectors(io["codes"]).transpose(1, 2).unflatten(2, size)
    codes_Bhw, first = quantized.codes_BN.unflatten(1, size), config["factorized_bits"][0]
    out = {
        "encoder_out": tokenizer.encoded(images),
        "indices": codes_Bhw,
        "indices_pre": codes_Bhw % 2**first,
        "indices_post": codes_Bhw >> first,
        "quantized": quantized.vectors_BEhw,
        "decoded": decoded,
        "code_vectors": given_BEhw,
        "decoded_codes": tokenizer.decode_vectors(given_BEhw),
    }
    losses = tokenizer.train().quantize(images).losses
    opposed = adversarial.run(config, weights, {"images": images, "decoded": decoded})
    nll = (decoded - images).abs().mean()
    annealed = ReconstructionConfig(
        entropy_annealing_factor=loss["codebook_enlarge_ratio"], entropy_annealing_steps=loss["codebook_enlarge_steps"]
    )
    enlarged = 1 + annealed.entropy_factor(config["settings"]["train"]["global_step"])
    quantizer = loss["codebook_weight"] * enlarged * losses["entropy"] + loss["commit_weight"] * losses["commitment"]
    out |= {
        **opposed,
        "train_nll_loss": nll[None],
        "train_entropy_loss": losses["entropy"][None],
        "train_codebook_entropy": (losses["average_entropy"] / tokenizer.config.entropy_gamma)[None],
        "train_commitment": losses["commitment"][None],
        "train_total_loss": nll + opposed["train_g_loss"] + quantizer,
    }
    with torch.enable_grad():
        latents = io["latents"].clone().requires_grad_()
        found = tokenizer.quantizer(latents)
        terms = found.losses
        (loss["codebook_weight"] * terms["entropy"] + loss["commit_weight"] * terms["commitment"]).backward()
    out["latents_indices"] = found.codes_BN.unflatten(1, latents.shape[2:])
    average = terms["average_entropy"] / tokenizer.config.entropy_gamma
    parts = [terms["per_sample_entropy"], average, terms["entropy"], terms["commitment"]]
    out["latents_entropy"] = torch.stack(parts).detach()
    assert latents.grad is not None
    out["latents_grad"] = latents.grad
    return out


def _full_size(tensors: Mapping[str, Tensor]) -> None:
    with torch.device("meta"):
        build(tensors, image_size=256)


MANIFESTS = {"magvit2_imagenet_256_L": _full_size}

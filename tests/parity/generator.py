"""Cases of MaskBit's and MaskGIT's generators: logits, loss, factorisation of tokens, step and guidance schedules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mixar.plugins import plugin_manager
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import NO_CLASS, Quantized
from mixar_import.importers import MaskBitGeneratorImporter
from mixar_plugins.priors.codes import combine_codes, split_codes
from mixar_plugins.priors.masked import MaskedTransformerPrior, masked_cross_entropy
from mixar_plugins.priors.schedules import guidance_scales, masked_after_steps
from tests.parity.case import NotACase, load_strictly

#: The part of each of the originals' classes.
PARTS = {"LFQBert": "maskbit", "Bert": "maskgit"}
#: What the prior computes for itself: a case has no seeded values for it, a released file holds it.
COMPUTED = ("bits_to_indices",)


class NoTokenizer(DiscreteTokenizer):
    """Only the sizes that a prior asks its tokenizer for."""

    def quantize(self, images_B3HW: Tensor) -> Quantized:
        raise NotImplementedError

    def code_vectors(self, codes_BN: Tensor) -> Tensor:
        raise NotImplementedError

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        raise NotImplementedError


def build(name: str, *, image_size: int, num_classes: int, **settings: Any) -> MaskedTransformerPrior:
    """The registered part with these settings, in evaluation mode."""
    part = plugin_manager().part("prior", name)
    config = part.config(**settings)
    tokenizer = NoTokenizer(
        image_size=image_size, stride=config.stride, codebook_size=2**config.bits, code_width=config.bits
    )
    return part.component(config, tokenizer=tokenizer, num_classes=num_classes).eval()


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    if config["cls"] not in PARTS:
        raise NotACase(f'cls "{config["cls"]}" is neither {" nor ".join(PARTS)}')
    prior = build(
        PARTS[config["cls"]],
        image_size=config["img_size"],
        num_classes=config["nclass"],
        bits=int(math.log2(config["codebook_size"])),
        stride=config["input_stride"],
        width=config["hidden_dim"],
        depth=config["depth"],
        heads=config["heads"],
        mlp_dim=config["mlp_dim"],
        splits=config["codebook_splits"],
        prenorm=config["use_prenorm"],
    )
    load_strictly(prior, MaskBitGeneratorImporter.rename(weights), kept=COMPUTED)
    settings, tokens_BNS, mask_BNS = prior.config, io["tokens"], io["mask"]

    out: dict[str, Tensor] = {}
    out["logits_cond"] = prior(io["tokens_in"], io["labels"])
    out["logits_uncond"] = prior(io["tokens_in"], torch.full_like(io["labels"], NO_CLASS))
    loss = masked_cross_entropy(out["logits_cond"], tokens_BNS, mask_BNS, label_smoothing=settings.label_smoothing)
    out["mlm_loss"] = loss.total[None]
    out["combined"] = combine_codes(tokens_BNS, bits=settings.bits)
    out["split_back"] = split_codes(io["combined"], bits=settings.bits, splits=settings.splits)

    entries = tokens_BNS[0].numel()
    for schedule in ("arccos", "cosine", "linear", "square", "root"):
        key = f"masked_after_step_{schedule}"
        if key in io:
            out[key] = torch.tensor(masked_after_steps(entries, len(io[key]), schedule))
    key = "cfg_scale_cosine_pow3_71"
    out[key] = torch.tensor(guidance_scales(7.1, len(io[key]), "cosine", 3.0), dtype=torch.float64)
    return out


def _full_size(tensors: Mapping[str, Tensor], *, bits: int) -> None:
    with torch.device("meta"):
        prior = build("maskbit", image_size=256, num_classes=1000, bits=bits)
    load_strictly(prior, MaskBitGeneratorImporter.rename(tensors))


MANIFESTS = {f"maskbit_generator_{bits}bit": partial(_full_size, bits=bits) for bits in (10, 12, 14, 16, 18)}

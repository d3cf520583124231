"""RAR's generator: logits and losses in any order, guidance that grows, sampling with recorded draws."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import isqrt
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from mixar.plugins import plugin_manager
from mixar_import.next import RARImporter
from mixar_import.tokenizers import MaskGITVQGANImporter
from mixar_plugins.priors.next import cross_entropy
from mixar_plugins.priors.rar import RARPrior
from tests.parity.case import load_strictly
from tests.parity.generator import NoTokenizer
from tests.parity.llamagen import Recorded, build, exponential, of_tokenizer, own

#: of each set of samples: guidance scale and power, temperature
SETS = {
    "constant_cfg4": (4.0, 0.0, 1.0),
    "pow275_cfg16": (16.0, 2.75, 1.0),
    "pow15_cfg69": (6.9, 1.5, 1.02),
    "unguided": (0.0, 0.0, 1.0),
}


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    generator, codebook = config["model"]["generator"], config["model"]["vq_model"]["codebook_size"]
    classes = generator["condition_num_classes"]
    tokenizer = NoTokenizer(
        image_size=isqrt(generator["image_seq_len"]), stride=1, codebook_size=codebook, code_width=1
    )
    prior = build(
        "rar",
        own(weights),
        RARImporter,
        tokenizer=tokenizer,
        classes=classes,
        width=generator["hidden_size"],
        depth=generator["num_hidden_layers"],
        heads=generator["num_attention_heads"],
        mlp_dim=generator["intermediate_size"],
    )
    assert isinstance(prior, RARPrior)
    codes_BN, labels_B, orders_BN = io["codes"], io["labels"], io["orders"]
    dropped_B = labels_B.masked_fill(io["drop_uniform"] < generator["class_label_dropout"], classes)
    shuffled_BN = codes_BN.gather(1, orders_BN)
    out = {"shuffled_codes": shuffled_BN}
    for name, classes_B in {"plain": labels_B, "dropped": dropped_B, "raster": labels_B}.items():
        order_BN = orders_BN if name != "raster" else torch.arange(codes_BN.shape[1]).expand_as(codes_BN)
        logits_BNV = prior(codes_BN, classes_B, order_BN)
        loss = cross_entropy(logits_BNV[:, :-1], codes_BN.gather(1, order_BN))
        out |= {f"logits_{name}": logits_BNV, f"loss_{name}": loss.total[None]}
        out |= {f"accuracy_{name}": loss.terms["accuracy"][None], f"condition_{name}": classes_B + codebook + 1}
    for name, (scale, power, temperature) in SETS.items():
        prior.config = evolve(prior.config, guidance_scale=scale, guidance_power=power, temperature=temperature)
        recorded = Recorded(prior, exponential(io, name))
        codes_BN = recorded.sample(labels_B).codes_BN
        out |= {f"{name}_codes": codes_BN, f"{name}_logits": torch.cat(recorded.logits, dim=1) / temperature}
        if f"{name}_image" in io:
            out |= _tokenizer(config["tokenizer"], of_tokenizer(weights), io, codes_BN, f"{name}_image")
    for key in (name for name in io if name.startswith("scale_cfg")):
        _, scale, power = key.split("_")
        prior.config = evolve(prior.config, guidance_power=float(power[3:]) / 10 ** (len(power) - 4))
        spans = [(at, at + 1) for at in range(len(io[key]))]
        out[key] = torch.tensor(prior.guidance(float(scale[3:]) / 10, spans)).flatten()
    return out


def _tokenizer(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor], codes_BN: Tensor, image: str
) -> dict[str, Tensor]:
    """MaskGIT's VQGAN on images, and codes that it decodes; images are in [0, 1] there."""
    part = plugin_manager().part("discrete-tokenizer", "vq")
    settings = part.config(
        legacy=True,
        downsample="pool",
        channels=config["hidden_channels"],
        channel_multipliers=tuple(config["channel_mult"]),
        blocks=config["num_res_blocks"],
        codebook_size=config["num_embeddings"],
        code_width=config["embedding_dim"],
        commitment_weight=1.0,  # as published: the weight is on the codebook's term instead
        entropy_weight=0.0,
    )
    tokenizer = part.component(settings, image_size=io["images"].shape[-1]).eval()
    load_strictly(tokenizer, MaskGITVQGANImporter.rename(weights))
    quantized = tokenizer.quantize(2 * io["images"] - 1)
    losses = tokenizer.train().quantize(2 * io["images"] - 1).losses
    tokenizer.eval()
    return {
        "tok_encoder_out": tokenizer.encoded(2 * io["images"] - 1),
        "tok_indices": quantized.codes_BN,
        "tok_loss": (losses["commitment"] + config["commitment_cost"] * losses["codebook"])[None],
        "tok_decoded": (tokenizer.decode_vectors(quantized.vectors_BEhw).clamp(-1, 1) + 1) / 2,
        image: (tokenizer.decode(codes_BN) + 1) / 2,
    }


def _full_size(tensors: Mapping[str, Tensor], *, width: int, depth: int, mlp_dim: int) -> None:
    tokenizer = NoTokenizer(image_size=256, stride=16, codebook_size=1024, code_width=256)
    with torch.device("meta"):
        sizes = {"width": width, "depth": depth, "heads": 16, "mlp_dim": mlp_dim}
        build("rar", tensors, RARImporter, tokenizer=tokenizer, classes=1000, **sizes)


MANIFESTS = {
    "rar_b": partial(_full_size, width=768, depth=24, mlp_dim=3072),
    "rar_l": partial(_full_size, width=1024, depth=24, mlp_dim=4096),
    "rar_xl": partial(_full_size, width=1280, depth=32, mlp_dim=5120),
    "rar_xxl": partial(_full_size, width=1408, depth=40, mlp_dim=6144),
}
INPUTS = ("codes", "labels", "orders", "images", "drop_uniform", "*_exponential")

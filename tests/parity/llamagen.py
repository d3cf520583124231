"""LlamaGen's generator: logits, losses, and sampling with guidance, filters and recorded draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import isqrt
from typing import Any

import torch
import torch.nn.functional as F
from attrs import evolve
from torch import Tensor

from mixar.plugins import plugin_manager
from mixar_core.noise import Noise
from mixar_core.types import Condition, DrawnCodes
from mixar_import.importers import Importer, ImporterConfig
from mixar_import.next import LlamaGenImporter
from mixar_plugins.priors.llamagen import LlamaGenPrior
from mixar_plugins.priors.next import NextPrior
from tests.parity import latent_codes
from tests.parity.case import NotACase, load_strictly
from tests.parity.generator import NoTokenizer

#: what a set of samples has if it says nothing else
_OFF = {"guidance_interval": None, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


class Recorded:
    """Stands between a prior and its draws: keeps logits and probabilities, and draws with a case's numbers.

    Args:
        exponential: for each draw Exponential(1) numbers (B, K, V); none: the likeliest code is taken.
    """

    def __init__(self, prior: NextPrior, exponential: Sequence[Tensor] = ()) -> None:
        self.prior, self.exponential = prior, list(exponential)
        self.logits: list[Tensor] = []
        self.probabilities: list[Tensor] = []

    def sample(self, labels_B: Tensor, noise: Noise | None = None) -> DrawnCodes:
        """What the prior draws."""
        draw = self.prior.draw

        def listening(logits_BKV: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
            self.logits.append(logits_BKV)
            return draw(logits_BKV, *settings)

        self.prior.draw, self.prior.choose = listening, self._choose  # type: ignore[method-assign]
        try:
            return self.prior.sample(Condition(labels_B), noise=noise or Noise.seeded(0))
        finally:
            del self.prior.draw, self.prior.choose

    def _choose(self, probabilities_BKV: Tensor, noise: Noise) -> Tensor:
        self.probabilities.append(probabilities_BKV)
        return (probabilities_BKV / self.exponential.pop(0) if self.exponential else probabilities_BKV).argmax(dim=-1)


def exponential(io: Mapping[str, Tensor], name: str) -> list[Tensor]:
    """The recorded numbers of a set, a code a draw; none where it draws without."""
    return [*io[f"{name}_exponential"].split(1, dim=1)] if f"{name}_exponential" in io else []


def own(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a case's model, without those of the tokenizer that it brings along."""
    return {name: tensor for name, tensor in weights.items() if not name.startswith("tokenizer.")}


def of_tokenizer(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the tokenizer."""
    start = "tokenizer."
    return {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)}


def build(
    name: str, tensors: Mapping[str, Tensor], importer: type[Importer], *, tokenizer: Any, classes: int, **settings: Any
) -> NextPrior:
    """The registered part with these settings and a file's tensors, in evaluation mode."""
    part = plugin_manager().part("prior", name)
    prior = part.component(part.config(**settings), tokenizer=tokenizer, num_classes=classes).eval()
    load_strictly(prior, importer(ImporterConfig()).translate(tensors)[0])
    assert isinstance(prior, NextPrior)
    return prior


def llama(config: Mapping[str, Any], name: str, weights: Mapping[str, Tensor], importer: type[Importer]) -> NextPrior:
    """The part of a case's constructor arguments."""
    as_released = {"cls_token_num": 1, "rope_base": 10000, "norm_eps": 1e-5, "model_type": "c2i"}
    if any(config[key] != value for key, value in as_released.items()) or config["n_kv_head"]:
        raise NotACase(f"n_kv_head or one of {', '.join(as_released)} is as no released file has it")
    side = isqrt(config["block_size"])
    tokenizer = NoTokenizer(image_size=side, stride=1, codebook_size=config["vocab_size"], code_width=1)
    return build(
        name,
        weights,
        importer,
        tokenizer=tokenizer,
        classes=config["num_classes"],
        width=config["dim"],
        depth=config["n_layer"],
        heads=config["n_head"],
        multiple_of=config["multiple_of"],
    )


def image(config: Mapping[str, Any], weights: Mapping[str, Tensor], codes_BN: Tensor) -> Tensor:
    """Codes decoded by the tokenizer that LlamaGen's cases bring along, not clamped."""
    size = isqrt(codes_BN.shape[1]) * 2 ** (len(config["tokenizer"]["encoder_ch_mult"]) - 1)
    tokenizer = latent_codes.llamagen(config["tokenizer"], of_tokenizer(weights), image_size=size)
    grid = tokenizer.layout.scales[0]
    vectors_BEhw = tokenizer.vectors_on_grid(codes_BN).transpose(1, 2).unflatten(2, (grid.height, grid.width))
    return tokenizer.decode_vectors(vectors_BEhw)


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    prior = llama(config, "llamagen", own(weights), LlamaGenImporter)
    assert isinstance(prior, LlamaGenPrior)
    codes_BN, labels_B = io["codes"], io["labels"]
    none_B = torch.full_like(labels_B, prior.num_classes)
    dropped_B = torch.where(io["drop_uniform"] < config["class_dropout_prob"], none_B, labels_B)
    out = {"logits_eval_all": prior(codes_BN, labels_B)}
    for name, classes_B in {"plain": labels_B, "dropped": dropped_B}.items():
        logits_BNV = prior(codes_BN[:, :-1], classes_B)
        each_BN = F.cross_entropy(logits_BNV.transpose(1, 2), codes_BN, reduction="none")
        out |= {f"logits_{name}": logits_BNV, f"loss_{name}": each_BN.mean()[None]}
        if name == "plain":
            valid_BN = io["valid"][:, None].expand_as(each_BN)
            out["loss_valid"] = ((each_BN * valid_BN).sum() / valid_BN.sum())[None]
    size, tokens = prior.codebook_size, prior.layout.tokens
    for name, settings in {
        "argmax": {"guidance_scale": 1.0},
        "topk1_cfg": {"guidance_scale": 2.0, "top_k": 1},
        "stoch_full": {"guidance_scale": 1.5},
        "stoch_filtered": {
            "guidance_scale": 1.75,
            "guidance_interval": tokens // 2,
            "temperature": 0.9,
            "top_k": size // 3,
            "top_p": 0.85,
        },
        "stoch_topp": {"guidance_scale": 2.0, "top_p": 0.7},
    }.items():
        prior.config = evolve(prior.config, **{**_OFF, **settings})
        recorded = Recorded(prior, exponential(io, name))
        codes_BN = recorded.sample(labels_B).codes_BN
        out |= {f"{name}_codes": codes_BN, f"{name}_logits": torch.cat(recorded.logits, dim=1)}
        out[f"{name}_probs"] = torch.cat(recorded.probabilities, dim=1)
        if f"{name}_image" in io:
            out[f"{name}_image"] = image(config, weights, codes_BN)
    return out


def _full_size(tensors: Mapping[str, Tensor], *, width: int, depth: int, heads: int) -> None:
    tokenizer = NoTokenizer(image_size=256, stride=16, codebook_size=16384, code_width=8)
    with torch.device("meta"):
        sizes = {"width": width, "depth": depth, "heads": heads}
        build("llamagen", tensors, LlamaGenImporter, tokenizer=tokenizer, classes=1000, **sizes)


MANIFESTS = {
    "llamagen_gpt_b": partial(_full_size, width=768, depth=12, heads=12),
    "llamagen_gpt_l": partial(_full_size, width=1024, depth=24, heads=16),
    "llamagen_gpt_xl": partial(_full_size, width=1280, depth=36, heads=20),
    "llamagen_gpt_xxl": partial(_full_size, width=1536, depth=48, heads=24),
    "llamagen_gpt_3b": partial(_full_size, width=3200, depth=24, heads=32),
}
INPUTS = ("codes", "labels", "valid", "drop_uniform", "*_exponential")

"""TiTok's generators: logits, masking and loss of training, and sampling with the draws that are stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from mixar.plugins import plugin_manager
from mixar_core.noise import Noise
from mixar_core.types import NO_CLASS, Condition, Grid, TokenLayout
from mixar_import.generators import TiTokGeneratorImporter
from mixar_plugins.priors.masked import masked_cross_entropy
from mixar_plugins.priors.titok import TiTokPrior
from mixar_plugins.tokenizers.titok import TiTok
from tests.parity import titok
from tests.parity.case import NotACase, load_strictly
from tests.parity.generator import NoTokenizer

#: The part of each of the originals' classes.
PARTS = {"ImageBert": "titok", "UViTBert": "titok-uvit"}


class Sequence1D(NoTokenizer):
    """Only the sizes of a tokenizer with a sequence of codes."""

    def __init__(self, *, tokens: int, codes: int) -> None:
        super().__init__(image_size=16 * tokens, stride=16, codebook_size=codes, code_width=1)
        self.tokens = tokens

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout("sequence", (Grid(1, self.tokens),))


class Replay(Noise):
    """The draws of a run, in order, in the shapes that are asked for."""

    def __init__(self, draws: Sequence[Tensor]) -> None:
        super().__init__(torch.Generator())
        self.draws = iter(draws)

    def uniform(self, shape: Sequence[int], device: torch.device | str, *, name: str = "") -> Tensor:
        return next(self.draws).reshape(*shape)


def build(name: str, *, tokens: int, codes: int, num_classes: int, **settings: Any) -> TiTokPrior:
    """The registered part with these settings, in evaluation mode."""
    part = plugin_manager().part("prior", name)
    tokenizer = Sequence1D(tokens=tokens, codes=codes)
    prior = part.component(part.config(**settings), tokenizer=tokenizer, num_classes=num_classes).eval()
    assert isinstance(prior, TiTokPrior)
    return prior


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Images are those of the case's tokenizer, in [0, 1]."""
    if config["cls"] not in PARTS:
        raise NotACase(f'cls "{config["cls"]}" is neither {" nor ".join(PARTS)}')
    model = config["config"]["model"]
    sizes = model["generator"]
    prior = build(
        PARTS[config["cls"]],
        tokens=sizes["image_seq_len"],
        codes=model["vq_model"]["codebook_size"],
        num_classes=sizes["condition_num_classes"],
        width=sizes["hidden_size"],
        depth=sizes["num_hidden_layers"],
        heads=sizes["num_attention_heads"],
        mlp_dim=sizes["intermediate_size"],
    )
    own = {name: tensor for name, tensor in weights.items() if not name.startswith("tokenizer.")}
    load_strictly(prior, TiTokGeneratorImporter.rename(own))
    of_tokenizer = {name.removeprefix("tokenizer."): tensor for name, tensor in weights.items() if name not in own}
    tokenizer = titok.tokenizer_of(config["tokenizer"], of_tokenizer)
    assert isinstance(tokenizer, TiTok)
    out = _training(prior, config["settings"]["train"], io)
    for name, settings in config["settings"].items():
        if name == "train":
            continue
        out[name] = _sampled(prior, name, as_ours(settings), io)
        vectors_BE1N = tokenizer.code_vectors(out[name]).transpose(1, 2)[:, :, None]
        out[f"{name}_image"] = (tokenizer.decode_vectors(vectors_BE1N) + 1) / 2
    return out


def _training(prior: TiTokPrior, settings: Mapping[str, Any], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tokens_BN1, labels_B = io["tokens"][..., None], io["labels"]
    masked_BN1 = prior.hidden(tokens_BN1, noise=Replay([io["masking_draw_000_uniform"], io["masking_draw_001_rand"]]))
    tokens_in_BN1 = tokens_BN1.masked_fill(masked_BN1, prior.mask_token)
    dropped = Condition(labels_B).dropped(io["train_draw_000_rand"] < settings["cond_drop_prob"]).labels_B
    logits_BN1V = prior(io["tokens_in"][..., None], dropped)
    weights = {
        "label_smoothing": settings["label_smoothing"],
        "visible_weight": settings["loss_weight_unmasked_token"],
    }
    losses = masked_cross_entropy(logits_BN1V, tokens_BN1, masked_BN1, **weights)
    nothing = torch.full_like(labels_B, NO_CLASS)
    return {
        "mask": masked_BN1[..., 0].to(io["mask"].dtype),
        "tokens_in": tokens_in_BN1[..., 0],
        "logits_cond": prior(tokens_in_BN1, labels_B)[:, :, 0],
        "logits_uncond": prior(tokens_in_BN1, nothing)[:, :, 0],
        "train_logits": logits_BN1V[:, :, 0],
        "train_loss": losses.total[None],
        "train_correct_tokens": losses.terms["masked_accuracy"][None],
    }


def as_ours(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a case's run of sampling, as the prior's config has them."""
    decay, scale = settings["guidance_decay"], settings["guidance_scale"]
    from_one = decay == "power-cosine"  # there 1 is no guidance
    return {
        "guidance_scale": scale - 1 if from_one else scale,
        "guidance_annealing": {"constant": "none", "linear": "linear", "power-cosine": "cosine"}[decay],
        "scale_pow": settings.get("guidance_scale_pow", 3.0),
        "randomize_temperature": settings["randomize_temperature"],
        "steps": settings["num_sample_steps"],
        "sampling_annealing": settings.get("softmax_temperature_annealing", False),
    }


def _sampled(prior: TiTokPrior, name: str, settings: Mapping[str, Any], io: Mapping[str, Tensor]) -> Tensor:
    prior.config = evolve(prior.config, **settings)
    draws = [io[draw] for draw in sorted(io) if draw.startswith(f"{name}_draw_")]
    return prior.sample(Condition(io["labels"]), noise=Replay(draws)).codes_BN


SIZES = {
    "l32": ("titok", {"tokens": 32}),
    "b64": ("titok", {"tokens": 64}),
    "s128": ("titok-uvit", {"tokens": 128}),
}


def _full_size(tensors: Mapping[str, Tensor], *, size: str) -> None:
    name, sizes = SIZES[size]
    with torch.device("meta"):
        prior = build(name, codes=4096, num_classes=1000, **sizes)
    load_strictly(prior, TiTokGeneratorImporter.rename(tensors))


MANIFESTS = {f"titok_{size}_generator": partial(_full_size, size=size) for size in SIZES}

"""Open-MAGVIT2's generator: logits and losses of both parts of a code, and cached sampling with recorded draws."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from mixar_core.tokenizer import DiscreteTokenizer
from mixar_import.next import OpenMagvit2ARImporter
from mixar_plugins.priors.magvit2 import Magvit2Prior
from mixar_plugins.priors.next import cross_entropy
from tests.parity import magvit2
from tests.parity.generator import NoTokenizer
from tests.parity.llamagen import Recorded, build


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    sizes, classes = config["transformer_config"]["params"], config["cond_stage_config"]["params"]["n_classes"]
    bits = sizes["factorized_bits"]
    start = "first_stage_model."
    tokenizer = magvit2.tokenizer_of(
        config["first_stage_config"]["params"],
        {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)},
        image_size=io["images"].shape[-1],
    )
    prior = build(
        "magvit2",
        weights,
        OpenMagvit2ARImporter,
        tokenizer=tokenizer,
        classes=classes,
        width=sizes["dim"],
        depth=sizes["spatial_n_layer"],
        heads=sizes["n_head"],
        multiple_of=sizes["multiple_of"],
        first_bits=bits[0],
        factorised_depth=sizes["factorized_n_layer"],
    )
    assert isinstance(prior, Magvit2Prior)
    labels_B = io["labels"]
    none_B = torch.full_like(labels_B, classes)
    images_codes_BN = tokenizer.encode(io["images"])
    given_BN = io["codes_pre"] + prior.first * io["codes_post"]
    dropped_B = labels_B.masked_fill(io["train_draw_000_rand"] < 0.1, classes)
    pre_BN, post_BN = prior.parts(images_codes_BN)
    out = {"indices_pre": pre_BN, "indices_post": post_BN, "codes_image": _image(tokenizer, given_BN)}
    for prefix, codes_BN, classes_B in (
        ("", images_codes_BN, labels_B),
        ("train_", given_BN, dropped_B),
        ("codes_", given_BN, labels_B),
        ("uncond_", given_BN, none_B),
    ):
        pre, post = prior(codes_BN, classes_B)
        losses = [cross_entropy(*each).total[None] for each in zip((pre, post), prior.parts(codes_BN), strict=True)]
        out |= {f"{prefix}logits_pre": pre, f"{prefix}logits_post": post, f"{prefix}loss": sum(losses)}
        out |= {f"{prefix}loss_pre": losses[0], f"{prefix}loss_post": losses[1]}
    for name, settings in config["settings"].items():
        if name.startswith("sampled_"):
            out |= _sampled(prior, settings, io, name)
            codes_BN = out[f"{name}_pre"] + prior.first * out[f"{name}_post"]
            out[f"{name}_image"] = _image(tokenizer, codes_BN)
    return out


def _image(tokenizer: DiscreteTokenizer, codes_BN: Tensor) -> Tensor:
    """Codes decoded, not clamped."""
    grid = tokenizer.layout.scales[0]
    vectors_BEhw = tokenizer.code_vectors(codes_BN).transpose(1, 2).unflatten(2, (grid.height, grid.width))
    return tokenizer.decode_vectors(vectors_BEhw)


def _sampled(
    prior: Magvit2Prior, settings: Mapping[str, Any], io: Mapping[str, Tensor], name: str
) -> dict[str, Tensor]:
    """A set of samples: both parts of every code, and what both heads said of both halves."""
    ours = {"cfg_scale": "guidance_scale", "temperature": "temperature", "top_k": "top_k", "top_p": "top_p"}
    both = {key: settings[there] for there, key in ours.items()}
    first = {key: values[0] for key, values in both.items()}
    prior.config = evolve(prior.config, **first, **{f"second_{key}": values[1] for key, values in both.items()})
    drawn = sorted(key for key in io if key.startswith(f"{name}_draw_"))
    said: list[list[Tensor]] = [[], []]
    hooks = [
        head.register_forward_hook(lambda _, __, logits, to=to: to.append(logits))
        for head, to in zip(prior.head, said, strict=True)
    ]
    codes_BN = Recorded(prior, [io[key][:, None] for key in drawn]).sample(io["labels"]).codes_BN
    for hook in hooks:
        hook.remove()
    pre_BN, post_BN = prior.parts(codes_BN)
    logits = {f"{name}_logits_{part}": torch.cat(each, dim=1) for part, each in zip(("pre", "post"), said, strict=True)}
    return {f"{name}_pre": pre_BN, f"{name}_post": post_BN, **logits}


def _full_size(tensors: Mapping[str, Tensor], *, width: int, depth: int, heads: int, factorised_depth: int) -> None:
    tokenizer = NoTokenizer(image_size=256, stride=16, codebook_size=2**18, code_width=18)
    with torch.device("meta"):
        sizes = {"width": width, "depth": depth, "heads": heads, "factorised_depth": factorised_depth}
        build("magvit2", tensors, OpenMagvit2ARImporter, tokenizer=tokenizer, classes=1000, **sizes)


MANIFESTS = {
    "magvit2_AR_256_B": partial(_full_size, width=1024, depth=24, heads=16, factorised_depth=2),
    "magvit2_AR_256_L": partial(_full_size, width=1280, depth=36, heads=20, factorised_depth=3),
    "magvit2_AR_256_XL": partial(_full_size, width=1536, depth=48, heads=24, factorised_depth=4),
}
INPUTS = ("images", "labels", "codes_pre", "codes_post", "*_draw_*")

"""VAR's generator: logits and losses, and sampling scale by scale with recorded draws."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from attrs import evolve
from torch import Tensor

from mixar.plugins import plugin_manager
from mixar_import.next import VARImporter
from mixar_plugins.priors.var import VARPrior, VARState
from tests.parity import latent_codes
from tests.parity.case import NotACase
from tests.parity.llamagen import Recorded, build, of_tokenizer, own


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    as_released = {"mlp_ratio": 4.0, "norm_eps": 1e-6, "shared_aln": False, "attn_l2_norm": True}
    if any(config[key] != value for key, value in as_released.items()):
        raise NotACase(f"one of {', '.join(as_released)} is as no released file has it")
    stride = 2 ** (len(config["tokenizer"].get("ch_mult", (1, 1, 2, 2, 4))) - 1)
    side = config["patch_nums"][-1] * stride
    tokenizer = latent_codes.var(config["tokenizer"], of_tokenizer(weights), image_size=side)
    sizes = {"width": config["embed_dim"], "depth": config["depth"], "heads": config["num_heads"]}
    prior = build("var", own(weights), VARImporter, tokenizer=tokenizer, classes=config["num_classes"], **sizes)
    assert isinstance(prior, VARPrior)
    codes_BN, labels_B = io["codes"], io["labels"]
    known_BTE = tokenizer.quantizer.known_before(codes_BN)
    dropped_B = labels_B.masked_fill(io["drop_uniform"] < config["cond_drop_rate"], prior.num_classes)
    out = {"var_input": known_BTE}
    for name, classes_B in {"plain": labels_B, "dropped": dropped_B}.items():
        logits_BVN = prior(known_BTE, classes_B).transpose(1, 2)
        out |= {
            f"logits_{name}": logits_BVN.transpose(1, 2),
            f"loss_{name}": F.cross_entropy(logits_BVN, codes_BN)[None],
        }
        if name == "plain":
            last = prior.layout.scales[-1].tokens
            out["loss_smoothed"] = F.cross_entropy(logits_BVN, codes_BN, label_smoothing=0.1)[None]
            out["loss_last_scale"] = F.cross_entropy(logits_BVN[..., -last:], codes_BN[:, -last:])[None]
    size = prior.codebook_size
    for name, settings in {
        "argmax": {"guidance_scale": 1.5, "top_k": 1},
        "stoch_full": {"guidance_scale": 1.5},
        "stoch_filtered": {"guidance_scale": 4.0, "top_k": size // 3, "top_p": 0.8},
        "smooth": {"guidance_scale": 3.0, "top_k": size // 2, "top_p": 0.95, "smooth": True},
    }.items():
        prior.config = evolve(prior.config, **{"top_k": 0, "top_p": 1.0, "smooth": False, **settings})
        out |= _sampled(prior, tokenizer, io, name)
    return out


def _sampled(prior: VARPrior, tokenizer: Any, io: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """A set of samples: the codes, the sums after each scale, the image in [0, 1]."""
    scales, states, sums = range(len(prior.layout.scales)), [], []
    begin, add = prior.begin, prior.add
    gumbels = [-io[key].log() for scale in scales if (key := f"{name}_gumbel_exponential_{scale}") in io]

    def begun(*arguments: Any) -> VARState:
        states.append(begin(*arguments))
        return states[0]

    def added(state: VARState, *arguments: Any) -> None:
        add(state, *arguments)
        assert state.sum_BEhw is not None
        sums.append(state.sum_BEhw)

    prior.begin, prior.add = begun, added  # type: ignore[method-assign]
    prior.gumbel = lambda *_: gumbels.pop(0)  # type: ignore[method-assign]
    draws = [io[f"{name}_exponential_{scale}"] for scale in scales if f"{name}_exponential_{scale}" in io]
    recorded = Recorded(prior, draws)
    codes_BN = recorded.sample(io["labels"]).codes_BN
    prior.add(states[0], codes_BN, prior.spans(None))
    del prior.begin, prior.add, prior.gumbel
    image = (tokenizer.decode_vectors(sums[-1]).clamp(-1, 1) + 1) / 2
    return {
        f"{name}_codes": codes_BN,
        f"{name}_logits": torch.cat(recorded.logits, dim=1),
        f"{name}_f_hat": torch.stack(sums),
        f"{name}_image": image,
        f"{name}_image_every4": image[..., ::4, ::4],
    }


def _full_size(tensors: Mapping[str, Tensor], *, depth: int) -> None:
    part = plugin_manager().part("discrete-tokenizer", "var")
    with torch.device("meta"):
        tokenizer = part.component(part.config(), image_size=256)
        sizes = {"width": 64 * depth, "depth": depth, "heads": depth}
        build("var", tensors, VARImporter, tokenizer=tokenizer, classes=1000, **sizes)


MANIFESTS = {f"var_d{depth}": partial(_full_size, depth=depth) for depth in (16, 20, 24, 30)}
INPUTS = ("codes", "labels", "drop_uniform", "*_exponential_*")

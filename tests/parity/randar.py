"""RandAR's generator: logits in a given order, and parallel decoding with recorded draws."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from mixar_import.next import RandARImporter
from mixar_plugins.priors.next import cross_entropy
from mixar_plugins.priors.randar import RandARPrior
from tests.parity.generator import NoTokenizer
from tests.parity.llamagen import Recorded, build, image, llama, own
from tests.parity.mar import Replay

#: of each set of samples: first and last guidance scale, steps as a share of the tokens, and other settings
SETS: dict[str, tuple[float, float, int | None, dict[str, Any]]] = {
    "serial_argmax": (1.0, 1.0, None, {"top_k": 1}),
    "parallel_argmax": (2.5, 2.5, 2, {"top_k": 1}),
    "parallel_stoch": (1.0, 4.0, 3, {}),
    "serial_stoch": (1.0, 1.0, None, {"temperature": 1.1}),
    "parallel_filtered": (3.0, 3.0, 2, {"temperature": 0.9, "top_k": 2, "top_p": 0.9}),
}


def run(config: Mapping[str, Any], weights: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything the case expects, computed by this project from the case's inputs."""
    prior = llama(config, "randar", own(weights), RandARImporter)
    assert isinstance(prior, RandARPrior)
    codes_BN, labels_B, orders_BN = io["codes"], io["labels"], io["orders"]
    tokens = prior.layout.tokens
    dropped_B = labels_B.masked_fill(io["drop_uniform"] < config["class_dropout_prob"], prior.num_classes)
    out = {"position_tokens": prior.instructions(orders_BN)}
    for name, classes_B in {"plain": labels_B, "dropped": dropped_B, "raster": labels_B}.items():
        order_BN = orders_BN if name != "raster" else torch.arange(tokens).expand_as(codes_BN)
        logits_BNV = prior(codes_BN, classes_B, order_BN)
        out[f"loss_{name}"] = cross_entropy(logits_BNV, codes_BN.gather(1, order_BN)).total[None]
        out[f"logits_{name}"] = logits_BNV
    for name in (name for name in io if name.startswith("schedule_")):
        _, size, steps = name.split("_")
        whole = NoTokenizer(image_size=int(int(size) ** 0.5), stride=1, codebook_size=2, code_width=1)
        spans = RandARPrior(prior.config, tokenizer=whole, num_classes=1).spans(int(steps))
        out[name] = torch.tensor([until - first for first, until in spans])
    for name, (start, end, part, settings) in SETS.items():
        settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, **settings}
        if settings["top_k"] == 2:
            settings["top_k"] = prior.codebook_size // 2
        steps = None if part is None else tokens // part
        prior.config = evolve(prior.config, guidance_start=start, guidance_scale=end, steps=steps, **settings)
        out |= _sampled(prior, io, name)
        if f"{name}_image" in io:
            out[f"{name}_image"] = image(config, weights, out[f"{name}_codes"])
    return out


def _sampled(prior: RandARPrior, io: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    spans, lengths, run_all = prior.spans(None), list[int](), prior.run
    drawn = io.get(f"{name}_exponential")

    def noting(x_BTD: Tensor, *arguments: Any) -> Tensor:
        lengths.append(x_BTD.shape[1])
        return run_all(x_BTD, *arguments)

    prior.run = noting  # type: ignore[method-assign]
    recorded = Recorded(prior, [] if drawn is None else [drawn[:, first:until] for first, until in spans])
    codes_BN = recorded.sample(io["labels"], Replay(io["orders"])).codes_BN
    del prior.run
    return {
        f"{name}_codes": codes_BN,
        f"{name}_logits": torch.cat(recorded.logits, dim=1),
        f"{name}_codes_per_step": torch.tensor([until - first for first, until in spans]),
        f"{name}_input_tokens": torch.tensor(lengths),
    }


def _full_size(tensors: Mapping[str, Tensor], *, width: int, depth: int, heads: int) -> None:
    tokenizer = NoTokenizer(image_size=256, stride=16, codebook_size=16384, code_width=8)
    with torch.device("meta"):
        sizes = {"width": width, "depth": depth, "heads": heads}
        build("randar", tensors, RandARImporter, tokenizer=tokenizer, classes=1000, **sizes)


MANIFESTS = {
    "randar_l_0.3b": partial(_full_size, width=1024, depth=24, heads=16),
    "randar_xl_0.7b": partial(_full_size, width=1280, depth=36, heads=20),
}
INPUTS = ("codes", "labels", "orders", "drop_uniform", "*_exponential")

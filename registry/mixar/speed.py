"""Ways of computing the same samples faster: weights in bf16, compiled blocks, CUDA graphs."""

from __future__ import annotations

from typing import Literal

import torch

from mixar_core.blocks import blocks_in
from mixar_core.graphs import Graphed
from mixar_core.model import MixAR
from mixar_core.prior import DiscretePrior

Precision = Literal["float32", "bf16"]


def hasten(
    model: MixAR | DiscretePrior, *, precision: Precision = "float32", compile: bool = False, graphs: bool = False
) -> list[str]:
    """Change a model, on its device, to sample faster from now on; it cannot be trained any more.

    Args:
        precision: bf16 holds the weights of backbone, head and prior in it, as far as each of them says; the rest is
            cast by autocast, under which the model is to run. The head's noisiest steps stay in float32.
        compile: torch.compile the blocks of backbone, head and prior: takes a while at the first batch, and changes
            last bits.
        graphs: capture the head's loop in CUDA graphs: the same bits, in one launch where there are thousands.

    Returns:
        what of this does not work here, a line each; sampling then runs without it.
    """
    parts = [model] if isinstance(model, DiscretePrior) else [model.backbone, model.head, model.prior]
    for part in parts:
        if precision == "bf16" and part is not None:
            part.hold_bf16()
    if compile:
        torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
        blocks = [] if isinstance(model, DiscretePrior) else [*model.backbone.blocks(), *blocks_in(model.head)]
        prior = model if isinstance(model, DiscretePrior) else model.prior
        for block in [*blocks, *([] if prior is None else blocks_in(prior))]:
            block.compile()
    if not graphs:
        return []
    if isinstance(model, DiscretePrior):
        return ["graphs: a prior has no head whose loop they could capture"]
    if not model.head.graphable:
        return [f"graphs: the head {type(model.head).__name__} cannot be captured; it runs without"]
    if next(model.head.parameters()).device.type != "cuda":
        return ["graphs: there is no GPU; the head runs without"]
    model.head.graphs = Graphed()
    return []

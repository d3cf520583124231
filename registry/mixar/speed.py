"""Ways of computing the same samples faster: weights in bf16, compiled blocks, CUDA graphs."""

from __future__ import annotations

from typing import Literal

import torch

from mixar.text import one_line
from mixar_core.backbone import Backbone
from mixar_core.blocks import blocks_in
from mixar_core.graphs import Graphed
from mixar_core.head import ContinuousHead
from mixar_core.model import MixAR
from mixar_core.prior import DiscretePrior
from mixar_core.products import pack

Precision = Literal["float32", "bf16"]


def hasten(
    model: MixAR | DiscretePrior | None,
    *,
    precision: Precision = "float32",
    compile: bool = False,
    graphs: bool = False,
) -> tuple[bool, list[str]]:
    """Change a model, on its device, to sample faster from now on; it cannot be trained any more.

    Args:
        precision: bf16 holds the weights of backbone, head and prior in it, as far as each of them says; the rest is
            cast by autocast, under which the model is to run. The head's noisiest steps stay in float32.
        compile: torch.compile the blocks of backbone, head and prior: takes a while at the first batch, and changes
            last bits. A first try of a line tells whether torch can: on a CPU it needs a C++ compiler.
        graphs: capture the head's loop in CUDA graphs: the same bits, in one launch where there are thousands.

    On a CPU products of large matrices are oneDNN's, unless blocks are compiled (see `mixar_core.products`).

    Returns:
        whether blocks are compiled; and what does not work here, a line each: sampling then runs without it.
    """
    prior, mixar = (model.prior, model) if isinstance(model, MixAR) else (model, None)
    own = () if mixar is None else (mixar.backbone, mixar.head)
    parts: list[Backbone | ContinuousHead | DiscretePrior] = [*own, *(() if prior is None else (prior,))]
    if precision == "bf16":
        for part in parts:
            part.hold_bf16()
    notices = []
    compiled = compile and model is not None
    if compiled and model is not None and (problem := _cannot_compile(next(model.parameters()).device)):
        notices.append(f"compile: torch cannot compile here ({problem}); blocks run as they are")
        compiled = False
    if compiled:
        torch._dynamo.config.cache_size_limit = max(64, torch._dynamo.config.cache_size_limit)
        for part in parts:
            for block in part.blocks() if isinstance(part, Backbone) else blocks_in(part):
                block.compile()
    elif model is not None:
        pack(model)
    if graphs and (problem := _cannot_graph(mixar)):
        notices.append(f"graphs: {problem}")
    elif graphs and mixar is not None:
        mixar.head.graphs = Graphed()
    return compiled, notices


def _cannot_graph(model: MixAR | None) -> str:
    """Why the head's loop is not captured; empty: it can be."""
    if model is None:
        return "there is no head whose loop they could capture"
    if not model.head.graphable:
        return f"the head {type(model.head).__name__} cannot be captured; it runs without"
    if next(model.head.parameters()).device.type != "cuda":
        return "there is no GPU; the head runs without"
    return ""


def _cannot_compile(device: torch.device) -> str:
    """Why nothing can be compiled for a device; empty: it can."""
    try:
        torch.compile(lambda x: x + 1.0)(torch.zeros(2, device=device))
    except Exception as error:  # no compiler, no Triton, no kernel for this device: torch says it in many ways
        return one_line(error)
    return ""

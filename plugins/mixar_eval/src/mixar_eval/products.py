"""The matrix products inside a network's parts, and the same products alone: what a part loses between them."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixar_core.products import PackedLinear

#: times more that products alone run by the faster library; the least counts
REPEATS = 2


class Products:
    """Calls of linear layers while it watches, by part: their seconds, and which layer multiplied how many rows."""

    def __init__(self) -> None:
        self.seconds = defaultdict[str, float](float)
        self.calls = defaultdict[str, list[tuple[nn.Linear, int]]](list)

    @contextmanager
    def watched(self, network: nn.Module, part: Callable[[], str]) -> Iterator[None]:
        """Inside it the network's linear layers count for the part that `part` names when they are called."""
        began: list[float] = []

        def before(_: nn.Module, __: object) -> None:
            began.append(time.perf_counter())

        def after(layer: nn.Linear, given: tuple[Tensor], _: object) -> None:
            self.seconds[part()] += time.perf_counter() - began.pop()
            self.calls[part()].append((layer, given[0].numel() // layer.in_features))

        with ExitStack() as hooks:
            for layer in network.modules():
                if isinstance(layer, nn.Linear):
                    hooks.enter_context(layer.register_forward_pre_hook(before))
                    hooks.enter_context(layer.register_forward_hook(after))
            yield

    @torch.inference_mode()
    def alone(self, part: str) -> float:
        """Seconds of the same products one after the other, weights as far away as in the network: the best of torch's
        own and of oneDNN's of packed weights."""
        sizes = {(rows, layer.in_features, layer.weight.dtype) for layer, rows in self.calls[part]}
        inputs = {size: torch.randn(size[:2]).to(size[2]) for size in sizes}
        took: dict[Callable[[nn.Linear, Tensor], Tensor], float] = {}
        for multiply in (_torch, _packed, *[None] * REPEATS):
            way = multiply or min(took, key=took.__getitem__)
            calls = [
                partial(way, layer, inputs[rows, layer.in_features, layer.weight.dtype])
                for layer, rows in self.calls[part]
            ]
            began = time.perf_counter()
            for call in calls:
                call()
            took[way] = min(time.perf_counter() - began, took.get(way, math.inf))
        return min(took.values())


def _torch(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _packed(layer: nn.Linear, x: Tensor) -> Tensor:
    if not isinstance(layer, PackedLinear):
        return _torch(layer, x)
    return torch.ops.mkldnn._linear_pointwise(x, layer.packed, layer.bias, "none", [], "")

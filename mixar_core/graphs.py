"""A function of tensors, captured as CUDA graphs: one launch for thousands of small kernels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from mixar_core.precision import full_precision

#: graphs that are kept; what is asked for beyond them runs as it is written
MOST = 64


@frozen(eq=False)
class Captured:
    """One graph: the buffers that it reads, and the one that it writes."""

    inputs: tuple[Tensor, ...]
    output: Tensor
    graph: torch.cuda.CUDAGraph


class Graphed:
    """Runs functions of tensors from graphs, one for each key and the shapes of its tensors that are asked for again.

    A function must read what it is given and weights that stay where they are, and nothing else; it must draw no random
    number and look at no value. Then its graph gives the same bits as the function. Off the GPU the same buffers are
    filled and read, without a graph.
    """

    def __init__(self) -> None:
        self._captured: dict[Hashable, Captured] = {}
        self._asked: set[Hashable] = set()
        self._refused = False
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, key: Hashable, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """`run(*inputs)`. What decides its kernels beside the inputs' shapes is in the key."""
        if inputs[0].device.type != "cuda":
            return run(*(tensor.clone() for tensor in inputs)).clone()
        key = key, *((tensor.shape, tensor.dtype) for tensor in inputs)
        if key not in self._captured:
            again = key in self._asked
            self._asked.add(key)
            if self._refused or not again or len(self._captured) >= MOST:
                return run(*inputs)
            try:
                self._captured[key] = self._capture(run, inputs)
            except RuntimeError as error:
                self._refused = True
                warnings.warn(f"no CUDA graph, so as without: {str(error).splitlines()[0]}", stacklevel=2)
                return run(*inputs)
        found = self._captured[key]
        for buffer, tensor in zip(found.inputs, inputs, strict=True):
            buffer.copy_(tensor)
        found.graph.replay()
        return found.output.clone()  # the next replay writes there

    def _capture(self, run: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> Captured:
        """Run once on the stream of the capture, so that libraries have their workspaces, then record."""
        device = inputs[0].device
        if self._stream is None:
            self._stream, self._pool = torch.cuda.Stream(device), torch.cuda.graph_pool_handle()
        with torch.inference_mode(False):  # else only there they could be filled
            buffers = tuple(tensor.clone() for tensor in inputs)
        # a cast weight that autocast keeps would lie in the graph's memory: what is captured casts for itself
        with full_precision(device):
            self._stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(self._stream):
                run(*buffers)
            torch.cuda.current_stream(device).wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                output = run(*buffers)
        return Captured(buffers, output, graph)

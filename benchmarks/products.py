"""Which library multiplies faster on this CPU, and attends? `python -m benchmarks.products`

A thread multiplies (rows x 1024) by (1024 x 3072), whose weights are too many for the caches: torch's own product, and
oneDNN's of a weight as it is and of a packed one, in float32 and bfloat16. The least of 5 runs each, in processor time,
and the largest error against float64. Then attention, forward and backward, of 64 sequences, 4 heads of width 48, in
bfloat16: torch's fused kernel and plain products, the median of 9 runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from mixar_core import blocks

ROWS, WIDTH, OUT, WEIGHTS = (4, 16, 64, 256, 1280), 1024, 3072, 6
TOKENS = (20, 80, 160, 256, 320, 512)


def main() -> None:
    """A line a number of rows and a precision; a line a length."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.no_grad():
            multiply(dtype)
    print(f"blocks.attend takes the fused kernel from {blocks.PLAIN_BELOW} tokens on")
    for tokens in TOKENS:
        q = torch.randn(64, 4, tokens, 48).to(torch.bfloat16).requires_grad_()
        plain = 1000 * median(seconds(partial(attend, blocks.plain_attention, q), 9))
        fused = 1000 * median(seconds(partial(attend, F.scaled_dot_product_attention, q), 9))
        print(f"{tokens:4d} tokens: plain {plain:7.1f} ms, fused {fused:7.1f} ms")


def multiply(dtype: torch.dtype) -> None:
    """A line a number of rows."""
    weights, bias = [torch.randn(OUT, WIDTH).to(dtype) for _ in range(WEIGHTS)], torch.randn(OUT).to(dtype)
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, 256) for weight in weights]
    for rows in ROWS:
        x, cells = torch.randn(rows, WIDTH).to(dtype), []
        exact = F.linear(x.double(), weights[0].double(), bias.double())
        for name, run, given in (
            ("torch", F.linear, weights),
            ("oneDNN", one_dnn, weights),
            ("packed", one_dnn, packed),
        ):
            error = (run(x, given[0], bias).double() - exact).abs().max() / exact.abs().max()
            took = min(seconds(partial(multiplied, run, x, given, bias), 5)) / WEIGHTS
            rate = 2e-9 * rows * WIDTH * OUT / took
            cells.append(f"{name} {1000 * took:7.2f} ms {rate:5.0f} GFLOP/s (error {error:.0e})")
        print(f"{str(dtype)[6:]:8} {rows:5d} rows: {'; '.join(cells)}", flush=True)


def multiplied(run: Callable[..., Tensor], x: Tensor, weights: Sequence[Tensor], bias: Tensor) -> None:
    """By every weight in turn."""
    for weight in weights:
        run(x, weight, bias)


def attend(way: Callable[..., Tensor], q: Tensor) -> None:
    """Forward and backward."""
    way(q, q, q).float().sum().backward()


def one_dnn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def seconds(run: Callable[[], object], times: int) -> list[float]:
    """Processor seconds of each of some runs, after one that does not count."""
    took = []
    for _ in range(times + 1):
        began = time.thread_time()
        run()
        took.append(time.thread_time() - began)
    return took[1:]


if __name__ == "__main__":
    main()

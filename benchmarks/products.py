"""Which library multiplies matrices faster on this CPU? `python -m benchmarks.products`

A thread multiplies (rows x 1024) by (1024 x 3072), whose weights are too many for the caches: torch's own product, and
oneDNN's of a weight as it is and of a packed one, in float32 and bfloat16. The least of 5 runs each, in processor time,
and the largest error of float32 against float64.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, WIDTH, OUT, WEIGHTS = (4, 16, 64, 256, 1280), 1024, 3072, 6


def main() -> None:
    """A line a number of rows and a precision."""
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        weights, bias = [torch.randn(OUT, WIDTH).to(dtype) for _ in range(WEIGHTS)], torch.randn(OUT).to(dtype)
        packed = [torch.ops.mkldnn._reorder_linear_weight(weight, 256) for weight in weights]
        for rows in ROWS:
            x = torch.randn(rows, WIDTH).to(dtype)
            exact = F.linear(x.double(), weights[0].double(), bias.double())
            cells = []
            for name, run, given in (
                ("torch", F.linear, weights),
                ("oneDNN", one_dnn, weights),
                ("packed", one_dnn, packed),
            ):
                took = seconds(partial(run, x), given, bias)
                error = (run(x, given[0], bias).double() - exact).abs().max() / exact.abs().max()
                rate = 2e-9 * rows * WIDTH * OUT / took
                cells.append(f"{name} {1000 * took:7.2f} ms {rate:5.0f} GFLOP/s (error {error:.0e})")
            print(f"{str(dtype)[6:]:8} {rows:5d} rows: {'; '.join(cells)}", flush=True)


def one_dnn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def seconds(run: Callable[[Tensor, Tensor], Tensor], weights: Sequence[Tensor], bias: Tensor) -> float:
    """Of one product, at best."""
    took = []
    for _ in range(6):
        began = time.thread_time()
        for weight in weights:
            run(weight, bias)
        took.append((time.thread_time() - began) / len(weights))
    return min(took[1:])


if __name__ == "__main__":
    main()

"""Where does the fused attention kernel pay on a CPU? `python -m benchmarks.attention`

Forward and backward of 64 sequences, 4 heads of width 48, bfloat16, one thread: the median of 9 runs.
"""

from __future__ import annotations

import time
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from mixar_core import blocks


def milliseconds(fused: bool, q: Tensor) -> float:
    """Median time of one forward and backward pass."""
    times = []
    for _ in range(10):
        started = time.perf_counter()
        out = F.scaled_dot_product_attention(q, q, q) if fused else blocks.plain_attention(q, q, q)
        out.float().sum().backward()
        times.append(time.perf_counter() - started)
    return 1000 * median(times[1:])


def main() -> None:
    """Print a line a length."""
    torch.set_num_threads(1)
    print(f"blocks.attend takes the fused kernel from {blocks.PLAIN_BELOW} tokens on")
    for tokens in (20, 80, 160, 256, 320, 512):
        q = torch.randn(64, 4, tokens, 48).to(torch.bfloat16).requires_grad_()
        print(f"{tokens:4d} tokens: plain {milliseconds(False, q):7.1f} ms, fused {milliseconds(True, q):7.1f} ms")


if __name__ == "__main__":
    main()

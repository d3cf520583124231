"""The head's loop as CUDA graphs: `python -m benchmarks.graphs [--device cuda]`

MAR-B's and MixAR-L's heads with seeded weights draw the tokens of a step (100 head steps, guidance) as written, from a
graph, and compiled from a graph, in float32 and with bf16 weights: milliseconds a step, whether the graph gives the
same bits, what a capture takes and holds. Without a GPU the same buffers run without a graph, in a small form.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from mixar_core.graphs import Graphed
from mixar_core.noise import Noise
from mixar_core.types import Grid, Step, TokenLayout, Z
from mixar_plugins.heads.diffusion import DiffusionHead, DiffusionHeadConfig

#: depth and width of the head, width of the backbone, length of a token
HEADS = {"mar_b": (6, 1024, 768, 16), "mixar_l": (12, 1536, 1024, 32)}


def main() -> None:
    """A line a head, precision and batch."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(parser.parse_args().device)
    there = device.type == "cuda"
    if not there:
        print("no GPU: the same buffers, without a graph, in a small form")
    torch.set_grad_enabled(False)
    for name, sizes in HEADS.items():
        for precision in ("float32", "bf16"):
            for batch, tokens in ((1, 4), (32, 4)) if there else ((1, 2),):
                try:
                    print(f"{name} {precision} {batch} x {tokens}: {line(sizes, precision, batch, tokens, device)}")
                except RuntimeError as error:
                    print(f"{name} {precision} {batch} x {tokens}: failed: {error}")


def line(sizes: tuple[int, int, int, int], precision: str, batch: int, tokens: int, device: torch.device) -> str:
    """What is found."""
    depth, width, of_z, token_dim = sizes if device.type == "cuda" else (1, 16, 16, 4)
    torch.manual_seed(0)
    config = DiffusionHeadConfig(depth=depth, width=width)
    head = DiffusionHead(config, token_dim=token_dim, width=of_z, layout=TokenLayout("grid", (Grid(16, 16),)))
    for parameter in head.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    head.to(device).eval()
    if precision == "bf16":
        head.hold_bf16()
    z_BKD = torch.randn(2, batch, tokens, of_z, device=device)
    z = Z(z_BKD[0], torch.arange(tokens, device=device).expand(batch, -1), z_BKD[1])
    step = Step(cfg=1.7, head_steps=100 if device.type == "cuda" else 5)

    def draw(seed: int = 1) -> Tensor:
        return head.sample(z, step, noise=Noise.seeded(seed, device=device))

    plain, before = draw(), held(device)
    eager = milliseconds(draw, device)
    head.graphs = Graphed()
    draw()  # what is asked for once is not captured
    capture = milliseconds(draw, device, times=1)
    same = all(torch.equal(draw(seed), without_graphs(head, draw, seed)) for seed in (1, 2)) and torch.equal(
        draw(), plain
    )
    graph, memory = milliseconds(draw, device), held(device) - before
    found = f"eager {eager:.1f} ms, graph {graph:.1f} ms, same bits {same}, capture {capture:.0f} ms, {memory:.0f} MB"
    if device.type == "cuda":
        for block in (head.net, head.quick):
            if block is not None:
                block.compile()
        head.graphs = None
        compiled = milliseconds(draw, device)
        head.graphs = Graphed()
        draw(), draw()
        error = (draw() - plain).abs().max() / plain.abs().max()
        found += f"; compiled {compiled:.1f} ms, from a graph {milliseconds(draw, device):.1f} ms, error {error:.1e}"
    return found


def without_graphs(head: DiffusionHead, draw: Callable[[int], Tensor], seed: int) -> Tensor:
    """The same draw as written."""
    kept, head.graphs = head.graphs, None
    drawn = draw(seed)
    head.graphs = kept
    return drawn


def held(device: torch.device) -> float:
    """MB that torch holds on the GPU."""
    return torch.cuda.memory_reserved(device) / 1e6 if device.type == "cuda" else 0.0


def milliseconds(draw: Callable[[], Tensor], device: torch.device, times: int = 5) -> float:
    """Median of some draws, each waited for, after one that does not count (unless only one is asked for)."""
    took = []
    for _ in range(times + (times > 1)):
        began = time.perf_counter()
        draw()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        took.append(1000 * (time.perf_counter() - began))
    return median(took[-times:])


if __name__ == "__main__":
    main()

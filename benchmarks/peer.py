"""Beside the published code of MAR: `python -m benchmarks.peer PATH [--what sample|train] [--precision bf16]`

PATH is a checkout of github.com/LTH14/mar (it needs timm, scipy and tqdm). MAR-B with the same seeded weights runs in
both codes, in turns within one process; the order changes from pair to pair, because a machine that gets hotter or
busier favours who comes first. What is timed of sampling is all but the decoder, of training all but the tokenizer:
forward, backward, clipping, AdamW and average, at the same share of masked tokens. In bf16 the published code runs
under autocast, as it was published; ours samples with bf16 weights and trains under autocast. Ours samples as
`mixar sample` does: of large matrices the products are oneDNN's.

Prints seconds of both and their ratio (above 1: ours is faster) pair by pair, by the clock and by the processor's time,
which other work on the machine disturbs less; the medians; and what share of the matrix product's measured peak ours
reaches. A quick look: `--steps 8 --head-steps 10 --images 1 --pairs 3`.
"""

from __future__ import annotations

import copy
import importlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any, get_args

import torch
import typer
from torch import nn

from benchmarks import study
from benchmarks.gpu.models import seeded, stepper
from mixar.assembly import System, build
from mixar.cost import estimate, training_flop_per_image
from mixar.model import Model
from mixar.plugins import plugin_manager
from mixar.recipe import load_recipe
from mixar.run import make_objective
from mixar.speed import Precision, hasten
from mixar_core.data.tokens import CachedTokens
from mixar_core.distributed import Processes
from mixar_core.noise import Noise
from mixar_core.training.engine import Engine
from mixar_core.types import Posterior

#: shares of masked tokens in turn, from the narrow end of training's distribution to its wide one
RATIOS = (0.75, 0.85, 0.95)
CPU = torch.device("cpu")
#: what both do, given the number of the pair; below 0: a round that does not count
Turn = Callable[[int], object]


def main(
    path: Path,
    what: str = "sample",
    precision: str = "float32",
    pairs: int = 5,
    images: int = 2,
    steps: int = 64,
    head_steps: int = 100,
    threads: int = 2,
) -> None:
    """Both codes in turns: batches of `--images`, sampled in `--steps` of `--head-steps` each."""
    study.names(what, ("sample", "train"))
    study.names(precision, get_args(Precision))
    torch.set_num_threads(threads)
    registry = plugin_manager()
    changes: dict[str, Any] = {"sampling.steps": steps, "sampling.head_steps": head_steps, "sampling.cfg": 2.9}
    changes |= {"training.precision": precision, "training.micro_batch": None, "training.batch_size": images}
    # latents are given: for counting, a cache stands for them
    recipe = load_recipe("mar_b", {**changes, "training.compile": False, "training.cache": "memory"}, registry=registry)
    system = seeded(recipe, registry, CPU)
    assert system.model is not None
    theirs = published(path, system.model.trained, head_steps=head_steps)
    counted = build(recipe, registry, meta=True)
    if what == "sample":
        cost = estimate(counted).sampling_gflop
        gflop = images * sum(float(cost[part]) for part in ("backbone", "head"))
        ours, other = sampling(system, theirs, images, precision)
    else:
        gflop = images * (training_flop_per_image(counted) or 0.0) / 1e9
        ours, other = training(system, theirs, images, precision)
    in_turns(ours, other, pairs, gflop, peak_gflops(torch.bfloat16 if precision == "bf16" else torch.float32))


# ---------------------------------------------------------------- the two sides


def published(path: Path, trained: nn.Module, *, head_steps: int) -> Any:
    """Their MAR-B with our weights, strictly by name."""
    sys.path.insert(0, str(path))
    made = importlib.import_module("models.mar").mar_base(
        diffloss_d=6, diffloss_w=1024, num_sampling_steps=str(head_steps), diffusion_batch_mul=4
    )
    state = trained.state_dict()
    names = [name.removeprefix("backbone.").replace("head.", "diffloss.", 1) for name in state]
    made.load_state_dict(dict(zip(names, state.values(), strict=True)), strict=True)
    return made


@contextmanager
def their_ways(precision: str) -> Iterator[None]:
    """Inside it `.cuda()` leaves a tensor where it is, and bf16 is autocast."""
    kept = torch.Tensor.cuda
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign]
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        torch.Tensor.cuda = kept  # type: ignore[method-assign]


def sampling(system: System, theirs: Any, images: int, precision: Any) -> tuple[Turn, Turn]:
    """A batch of latents, by both; of what does not count, the first step."""
    model, settings = system.model, system.recipe.sampling
    assert model is not None
    labels_B = torch.arange(images) * 37 % system.recipe.num_classes
    drawing = Model(system, (), CPU, precision=precision)
    hasten(model.eval(), precision=precision)
    theirs.eval()

    def our_turn(index: int) -> object:
        with torch.no_grad(), drawing.computing():
            steps = model.generation_steps(model.condition(labels_B), settings=settings, noise=Noise.seeded(abs(index)))
            return next(steps) if index < 0 else deque(steps, maxlen=1).pop()

    def their_turn(index: int) -> object:
        torch.manual_seed(abs(index))
        sys.modules["models.mar"].tqdm = lambda steps: steps[: 1 if index < 0 else None]  # type: ignore[attr-defined]
        how = {"num_iter": settings.steps, "cfg": settings.cfg, "cfg_schedule": "linear", "progress": True}
        with torch.no_grad(), their_ways(precision):
            return theirs.sample_tokens(bsz=images, labels=labels_B, **how)

    return our_turn, their_turn


def training(system: System, theirs: Any, images: int, precision: str) -> tuple[Turn, Turn]:
    """A whole step on the same latents, by both."""
    model, recipe = system.model, system.recipe
    assert model is not None and recipe.training is not None and recipe.continuous_tokenizer is not None
    now = SimpleNamespace(ratio=RATIOS[0])  # of masked tokens, which both are told
    told: Any = SimpleNamespace(ratio=lambda _: now.ratio, rvs=lambda _: [now.ratio])
    model.masking = theirs.mask_ratio_generator = told
    config = recipe.training
    latents_BChw = torch.randn(images, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    labels_B = torch.arange(images) % recipe.num_classes
    raw_BChw = latents_BChw * recipe.continuous_tokenizer.config.latent_std  # which the objective normalises
    batch = CachedTokens(Posterior(raw_BChw, torch.full_like(raw_BChw, -torch.inf)), None, labels_B)
    objective = make_objective(system, plugin_manager())
    step = stepper(Engine(objective, config, Processes(0, 1, CPU), steps=1000, warmup=100), batch)

    def our_turn(index: int) -> object:
        now.ratio = RATIOS[abs(index) % len(RATIOS)]
        return step(abs(index) + 1)["loss"]

    theirs.train()
    weights, average = [*theirs.parameters()], copy.deepcopy([*theirs.parameters()])
    decayed = importlib.import_module("util.misc").add_weight_decay(theirs, config.weight_decay)
    optimizer = torch.optim.AdamW(decayed, lr=1e-4, betas=config.betas)

    def their_turn(index: int) -> object:
        now.ratio = RATIOS[abs(index) % len(RATIOS)]
        with their_ways(precision):
            loss = theirs(latents_BChw, labels_B)
        value = loss.item()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, config.clip or 3.0)
        optimizer.step()
        optimizer.zero_grad()
        for kept, weight in zip(average, weights, strict=True):  # one after the other, as published
            kept.detach().mul_(0.9999).add_(weight.detach(), alpha=1.0 - 0.9999)
        return value

    return our_turn, their_turn


# ---------------------------------------------------------------- the clock


def peak_gflops(dtype: torch.dtype, side: int = 2048) -> float:
    """The most of nine products of two square matrices by torch's library or by oneDNN, in 1e9 operations a second."""
    left, right = torch.randn(2, side, side).to(dtype)
    best = 0.0
    with torch.no_grad():
        for product in (torch.mm, lambda a, b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")):
            for _ in range(9):
                started = time.perf_counter()
                product(left, right)
                best = max(best, 2e-9 * side**3 / (time.perf_counter() - started))
    return best


def in_turns(ours: Turn, theirs: Turn, pairs: int, gflop: float, peak: float) -> None:
    """Time both so many times in turns, after a round that does not count; prints as it goes."""
    works = {"ours": ours, "theirs": theirs}
    for work in works.values():
        work(-1)
    ratios, best = list[tuple[float, float]](), float("inf")
    for index in range(pairs):
        took = {}
        for name in sorted(works, reverse=bool(index % 2)):
            began = time.perf_counter(), time.process_time()
            works[name](index)
            took[name] = time.perf_counter() - began[0], time.process_time() - began[1]
        (mine, mine_cpu), (other, other_cpu) = took["ours"], took["theirs"]
        ratios.append((other / mine, other_cpu / mine_cpu))
        best = min(best, mine)
        print(
            f"pair {index + 1}: ours {mine:8.3f} s, theirs {other:8.3f} s, ratio {ratios[-1][0]:.3f} "
            f"(processor {ratios[-1][1]:.3f}); {rate(gflop / mine, peak)}",
            flush=True,
        )
    by_clock, by_processor = zip(*ratios, strict=True)
    print(
        f"median ratio {median(by_clock):.3f} (processor {median(by_processor):.3f}), lowest {min(by_clock):.3f}; "
        f"{rate(gflop / best, peak)}"
    )


def rate(gflop_per_s: float, peak: float) -> str:
    """What ours reaches."""
    return f"ours at {gflop_per_s:,.0f} GFLOP/s, {gflop_per_s / peak:.1%} of the peak"


if __name__ == "__main__":
    typer.run(main)

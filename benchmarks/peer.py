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

import argparse
import copy
import importlib
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import attrs
import torch
from torch import nn

from mixar.assembly import System, build
from mixar.cost import estimate, training_flop_per_image
from mixar.model import Model
from mixar.plugins import plugin_manager
from mixar.recipe import load_recipe
from mixar.speed import hasten
from mixar_core.data.loader import BatchShard
from mixar_core.data.tokens import CachedTokens
from mixar_core.distributed import Processes
from mixar_core.noise import Noise
from mixar_core.training.engine import Engine
from mixar_core.training.objective import MixARObjective
from mixar_core.types import Posterior

RECIPE, SEED = "mar_b", 0
#: shares of masked tokens in turn, from the narrow end of training's distribution to its wide one
RATIOS = (0.75, 0.85, 0.95)
CPU = torch.device("cpu")
#: of a turn: seconds by the clock, seconds of the processor
Took = tuple[float, float]


def main() -> None:
    """Both codes in turns."""
    asked = arguments()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(SEED)
    registry = plugin_manager()
    changes = [f"sampling.steps={asked.steps}", f"sampling.head_steps={asked.head_steps}", f"sampling.cfg={asked.cfg}"]
    recipe = load_recipe(RECIPE, registry=registry, overrides=changes)
    system = build(recipe, registry, load_weights=False)
    assert system.model is not None
    with torch.no_grad():  # a fresh head gives zeros, which a fault would not show in
        for parameter in system.model.trained.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02)
    theirs = published(asked.path, system.model.trained, head_steps=asked.head_steps)
    counted = build(recipe, registry, meta=True)
    result: dict[str, Any] = {**vars(asked), "path": "", "json": "", "torch": torch.__version__}
    result["peak_gflop_per_s"] = peak = peak_gflops(torch.bfloat16 if asked.precision == "bf16" else torch.float32)
    if asked.what == "sample":
        cost = estimate(counted).sampling_gflop
        gflop = asked.images * sum(float(cost[part]) for part in ("backbone", "head"))
        gflop = gflop if asked.first is None else 0.0  # of some steps it is not counted
        works = sampling(asked, system, theirs)
    else:
        gflop = asked.images * (training_flop_per_image(without_tokenizer(counted)) or 0.0) / 1e9
        works = training(asked, system, theirs)
    result |= pairs(works, asked.pairs, gflop, peak)
    if asked.json is not None:
        Path(asked.json).write_text(json.dumps(result, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("path", type=Path, help="the checkout")
    parser.add_argument("--what", choices=("sample", "train"), default="sample")
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--images", type=int, default=2, help="of a batch")
    parser.add_argument("--steps", type=int, default=64, help="autoregressive steps of sampling")
    parser.add_argument("--first", type=int, help="only the first so many of them")
    parser.add_argument("--head-steps", type=int, default=100)
    parser.add_argument("--cfg", type=float, default=2.9, help="1: no guidance")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="a file for all figures")
    return parser.parse_args()


# ---------------------------------------------------------------- the two sides


def published(path: Path, trained: nn.Module, *, head_steps: int) -> Any:
    """Their MAR-B with our weights, strictly by name."""
    sys.path.insert(0, str(path))
    made = importlib.import_module("models.mar").mar_base(
        diffloss_d=6, diffloss_w=1024, num_sampling_steps=str(head_steps), diffusion_batch_mul=4
    )
    names = {"backbone.": "", "head.": "diffloss."}
    state = {}
    for name, value in trained.state_dict().items():
        ours = next(prefix for prefix in names if name.startswith(prefix))
        state[names[ours] + name.removeprefix(ours)] = value
    made.load_state_dict(state, strict=True)
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


def sampling(asked: argparse.Namespace, system: System, theirs: Any) -> dict[str, Callable[[int], object]]:
    """A batch of latents, by both."""
    model, settings = system.model, system.recipe.sampling
    assert model is not None
    labels_B = torch.arange(asked.images) * 37 % system.recipe.num_classes
    drawing = Model(system, (), CPU, precision=asked.precision)
    hasten(model.eval(), precision=asked.precision)
    theirs.eval()

    def first(index: int) -> int | None:
        return 1 if index < 0 else asked.first

    def our_turn(index: int) -> object:
        with torch.no_grad(), drawing.computing():
            steps = model.generation_steps(model.condition(labels_B), settings=settings, noise=Noise.seeded(abs(index)))
            return deque(islice(steps, first(index)), maxlen=1).pop()

    def their_turn(index: int) -> object:
        torch.manual_seed(abs(index))
        sys.modules["models.mar"].tqdm = lambda steps: steps[: first(index)]  # type: ignore[attr-defined]
        how = {"num_iter": asked.steps, "cfg": asked.cfg, "cfg_schedule": "linear", "progress": True}
        with torch.no_grad(), their_ways(asked.precision):
            return theirs.sample_tokens(bsz=asked.images, labels=labels_B, **how)

    return {"ours": our_turn, "theirs": their_turn}


def training(asked: argparse.Namespace, system: System, theirs: Any) -> dict[str, Callable[[int], object]]:
    """A whole step on the same latents, by both."""
    model, recipe = system.model, system.recipe
    assert model is not None and recipe.training is not None
    now = SimpleNamespace(ratio=RATIOS[0])  # of masked tokens, which both are told
    told: Any = SimpleNamespace(ratio=lambda _: now.ratio, rvs=lambda _: [now.ratio])
    model.masking = theirs.mask_ratio_generator = told
    config = attrs.evolve(
        recipe.training, precision=asked.precision, micro_batch=None, batch_size=asked.images, compile=False
    )
    latents_BChw = torch.randn(asked.images, 16, 16, 16, generator=torch.Generator().manual_seed(SEED))
    labels_B = torch.arange(asked.images) % recipe.num_classes
    tokenizer = system.recipe.continuous_tokenizer
    assert tokenizer is not None
    raw_BChw = latents_BChw * tokenizer.config.latent_std  # which the objective normalises
    batch = CachedTokens(Posterior(raw_BChw, torch.full_like(raw_BChw, -torch.inf)), None, labels_B)
    engine = Engine(MixARObjective(model, recipe.sampling), config, Processes(0, 1, CPU), steps=1000, warmup=100)
    source: Any = SimpleNamespace(share=BatchShard(0, asked.images, asked.images), seed=SEED)

    def our_turn(index: int) -> object:
        now.ratio = RATIOS[abs(index) % len(RATIOS)]
        gradients = engine.gradients(batch, source, step=abs(index) + 1, counts={})
        engine.update(abs(index) + 1, gradients)
        return gradients.losses["loss"]

    theirs.train()
    weights, average = [*theirs.parameters()], copy.deepcopy([*theirs.parameters()])
    decayed = importlib.import_module("util.misc").add_weight_decay(theirs, config.weight_decay)
    optimizer = torch.optim.AdamW(decayed, lr=1e-4, betas=config.betas)

    def their_turn(index: int) -> object:
        now.ratio = RATIOS[abs(index) % len(RATIOS)]
        with their_ways(asked.precision):
            loss = theirs(latents_BChw, labels_B)
        value = loss.item()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, config.clip or 3.0)
        optimizer.step()
        optimizer.zero_grad()
        for kept, weight in zip(average, weights, strict=True):  # one after the other, as published
            kept.detach().mul_(0.9999).add_(weight.detach(), alpha=1.0 - 0.9999)
        return value

    return {"ours": our_turn, "theirs": their_turn}


def without_tokenizer(system: System) -> System:
    """The same for counting: latents are given."""
    assert system.recipe.training is not None
    training = attrs.evolve(system.recipe.training, cache="memory")
    return attrs.evolve(system, recipe=attrs.evolve(system.recipe, training=training))


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


def share_of(rate: float, peak: float) -> str:
    """What ours reaches, where its work is counted."""
    return f"; ours at {rate:,.0f} GFLOP/s, {rate / peak:.1%} of the peak" if rate else ""


def pairs(works: dict[str, Callable[[int], object]], count: int, gflop: float, peak: float) -> dict[str, Any]:
    """Time both `count` times in turns, after a round (of sampling, a step) that does not count; prints as it goes."""
    for work in works.values():
        work(-1)
    took: dict[str, list[Took]] = {name: [] for name in works}
    values: dict[str, list[float]] = {name: [] for name in works}
    for index in range(count):
        for name in sorted(works, reverse=bool(index % 2)):
            began = time.perf_counter(), time.process_time()
            out = works[name](index)
            took[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))
            if isinstance(out, float):
                values[name].append(out)
        (mine, mine_cpu), (other, other_cpu) = took["ours"][-1], took["theirs"][-1]
        print(
            f"pair {index + 1}: ours {mine:8.3f} s, theirs {other:8.3f} s, ratio {other / mine:.3f} "
            f"(processor {other_cpu / mine_cpu:.3f}){share_of(gflop / mine, peak)}",
            flush=True,
        )
    ratios = [[b[clock] / a[clock] for a, b in zip(took["ours"], took["theirs"], strict=True)] for clock in (0, 1)]
    best = min(seconds for seconds, _ in took["ours"])
    print(
        f"median ratio {median(ratios[0]):.3f} (processor {median(ratios[1]):.3f}), lowest {min(ratios[0]):.3f}"
        f"{share_of(gflop / best, peak)}"
    )
    for name, losses in values.items():
        if losses:
            print(f"mean loss, {name}: {sum(losses) / len(losses):.4f}")
    return {
        "seconds": {name: [seconds for seconds, _ in each] for name, each in took.items()},
        "processor_seconds": {name: [seconds for _, seconds in each] for name, each in took.items()},
        "ratios": ratios[0],
        "median_ratio": median(ratios[0]),
        "median_processor_ratio": median(ratios[1]),
        "lowest_ratio": min(ratios[0]),
        "gflop": gflop,
        "share_of_peak": gflop / best / peak,
        "losses": values,
    }


if __name__ == "__main__":
    main()

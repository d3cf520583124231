"""How fast full-size models train and draw: images a second, share of the card's peak, memory beside its estimate."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import product
from statistics import median
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.models import engine_of, recipe_of, seeded, stepper, tokens_for, with_preset
from benchmarks.gpu.part import Part, Row
from benchmarks.gpu.report import NAMES
from mixar.assembly import build
from mixar.cost import estimate, training_flop_per_image
from mixar.generation import batch_noise
from mixar.memory import training_memory
from mixar.model import Model
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import Recipe
from mixar.speed import Precision, hasten
from mixar_core.graphs import Graphed
from mixar_core.model import SamplingConfig
from mixar_core.noise import Noise
from mixar_core.types import Step, Z

WARM_UP, STEPS = 3, 10
#: what a way of training changes; a MixAR's first and second half: without TI-Mix, and in its middle
HOW: dict[str, dict[str, Any]] = {
    "-": {},
    "DC-Mix": {"ti_mix": {"schedule": "constant"}},
    "TI-Mix": {"ti_mix": {"schedule": "constant", "start": 0.5}},
    "activation checkpointing": {"backbone.activation_checkpointing": True},
    "compiled": {"training.compile": True},
}


@attrs.frozen
class Job:
    """A way of training, or with a preset of drawing.

    Args:
        how: of training, names in HOW; of drawing, `autocast` or `eager`: as it comes, else what is hastened.
    """

    recipe: str
    batch: int
    how: str = "-"
    precision: str = "bf16"
    preset: str | None = None

    @property
    def names(self) -> Row:
        """What tells it from the others."""
        return {key: value for key in NAMES if (value := getattr(self, key)) is not None}

    @property
    def lean(self) -> bool:
        """Whether drawing is hastened."""
        return self.how not in ("autocast", "eager")


# ---------------------------------------------------------------- training

TRAININGS = (
    Job("mar_b", 64),
    Job("mixar_l", 64, "DC-Mix"),
    Job("mixar_l", 64, "TI-Mix"),
    Job("mar_b", 256),
    Job("mixar_l", 256, "DC-Mix"),
    Job("mar_b", 256, "activation checkpointing"),
    Job("mixar_l", 256, "DC-Mix, activation checkpointing"),
    Job("mar_b", 64, precision="float32"),
    Job("mixar_l", 64, "DC-Mix", precision="float32"),
)
COMPILED = (Job("mar_b", 64, "compiled"), Job("mixar_l", 64, "DC-Mix, compiled"))


def training(part: Part) -> None:
    """Steps on tokens, as from a cache: forward, backward, clipping, AdamW and the average, all masked at random."""
    for job in TRAININGS:
        part.row(job.names, trained, part, job)


def compiled(part: Part) -> None:
    """The same with torch.compile; seconds until the steps are warm are there, too."""
    for job in COMPILED:
        part.row(job.names, trained, part, job)


def _trains(job: Job, batch: int) -> dict[str, Any]:
    settings = {"batch_size": batch, "micro_batch": None, "precision": job.precision, "compile": False}
    settings |= {"cache": "memory"}  # tokens are given
    changes = {f"training.{key}": value for key, value in settings.items()}
    for how in job.how.split(", "):
        changes |= HOW[how]
    return changes


def trained(part: Part, job: Job) -> Row:
    """Images a second of the median step, and peak memory."""
    registry = plugin_manager()
    batch = 4 if part.tiny else job.batch
    recipe = recipe_of(part, job.recipe, _trains(job, batch), registry)
    began = time.time()
    engine = engine_of(recipe, registry, part.device)
    step = stepper(engine, tokens_for(engine.objective, batch, part.device))
    warm_up, steps = (1, 2) if part.tiny else (WARM_UP, STEPS)
    if engine.config.compile:
        warm_up = 2 * warm_up  # its second shape is compiled for all
    for index in range(warm_up):
        first = step(index)
    part.synchronize()
    ready, seconds, losses = time.time() - began, [], [first["loss"]]
    for index in range(warm_up, warm_up + steps):
        seconds.append(part.seconds(lambda index=index: losses.append(step(index)["loss"])))  # type: ignore[misc]
        if part.left < 0:
            break
    return {
        "ms a step": 1000 * median(seconds),
        "images/s": batch / median(seconds),
        "GB": part.peak_gb(),
        "loss": losses[-1],
        "ready after s": ready,
    }


# ---------------------------------------------------------------- sampling


_GRAPHS = "bf16 weights, graphs"
#: the most telling first: there is no time for all on every card
DRAWINGS = (
    Job("mar_b", 64, "autocast", preset="exact"),
    Job("mar_b", 64, _GRAPHS, preset="exact"),
    Job("mixar_l", 64, "autocast", preset="one-shot"),
    Job("mixar_l", 64, _GRAPHS, preset="one-shot"),
    Job("mar_b", 64, _GRAPHS, preset="disa"),
    Job("mixar_l", 64, _GRAPHS, preset="exact"),
    Job("mixar_l", 64, _GRAPHS, preset="disa"),
    Job("mar_b", 1, "autocast", preset="exact"),
    Job("mar_b", 1, _GRAPHS, preset="exact"),
    Job("mixar_l", 64, "autocast", preset="exact"),
    Job("mar_b", 256, _GRAPHS, preset="exact"),
    Job("mar_b", 64, "autocast", preset="disa"),
    Job("mixar_l", 64, "autocast", preset="disa"),
    Job("mixar_l", 256, "autocast", preset="one-shot"),
    Job("mar_b", 16, "eager", "float32", preset="exact"),
    Job("mar_b", 16, "graphs", "float32", preset="exact"),
)
COMPILED_DRAWINGS = (
    Job("mar_b", 64, "bf16 weights, compiled", preset="exact"),
    Job("mar_b", 64, "bf16 weights, compiled, graphs", preset="exact"),
)


def sampling(part: Part) -> None:
    """Whole images: prior, all steps, decoding; eager, and with bf16 weights and CUDA graphs of the head's loop."""
    for job in DRAWINGS:
        part.row(job.names, drawn, part, job)


def sampling_compiled(part: Part) -> None:
    """The same with torch.compile."""
    for job in COMPILED_DRAWINGS:
        part.row(job.names, drawn, part, job)


def drawn(part: Part, job: Job) -> Row:
    """Seconds of a batch, after one that warmed up (or, eager, after two steps)."""
    registry, batch = plugin_manager(), 2 if part.tiny else job.batch
    tiny = {"sampling.steps": 2, "sampling.head_steps": 6} if part.tiny else {}
    recipe = recipe_of(part, job.recipe, with_preset(job.preset or "exact", registry) | tiny, registry)
    model, notices = _model(part, recipe, job, registry)
    labels_B = torch.arange(batch, device=part.device) % recipe.num_classes

    def draw(settings: SamplingConfig) -> float:
        return part.seconds(lambda: model.draw(labels_B, settings, batch_noise(0, 0)))

    short = attrs.evolve(recipe.sampling, steps=min(recipe.sampling.steps, 2), prior_steps=2)
    warm_up = draw(recipe.sampling if job.lean else short)
    part.forget()
    seconds = draw(recipe.sampling)
    return {
        "seconds": seconds,
        "images/s": batch / seconds,
        "GB": part.peak_gb(),
        "warm-up s": warm_up,
        "notices": "; ".join(notices) or None,
    }


def _model(part: Part, recipe: Recipe, job: Job, registry: Registry) -> tuple[Model, Sequence[str]]:
    """A model to draw with, as `mixar.load` with the same settings would give it."""
    system, compiled, notices = seeded(recipe, registry, part.device), False, list[str]()
    precision: Precision = "bf16" if job.precision == "bf16" else "float32"
    if job.lean:
        compile, graphs = ("compiled" in job.how), ("graphs" in job.how)
        compiled, notices = hasten(system.model, precision=precision, compile=compile, graphs=graphs)
    return Model(system, (), part.device, precision=precision, compiled=compiled), notices


# ---------------------------------------------------------------- graphs


def graphs(part: Part) -> None:
    """A step's tokens by the heads alone, 100 head steps with guidance: as written, from a CUDA graph, and compiled."""
    for recipe, precision, batch in product(("mar_b", "mixar_l"), ("float32", "bf16"), (1, 32)):
        what = {"recipe": recipe, "precision": precision, "batch": batch, "tokens": 4}
        part.row(what, _graphed, part, recipe, precision, 1 if part.tiny else batch)


def _graphed(part: Part, name: str, precision: str, batch: int) -> Row:
    """Milliseconds of each way, and whether the graph gives the same bits."""
    registry = plugin_manager()
    system = seeded(recipe_of(part, name, {}, registry), registry, part.device)
    assert system.model is not None
    head: Any = system.model.head.eval()  # what else is a head has no loop to capture
    if precision == "bf16":
        head.hold_bf16()
    z_2BKD = torch.randn(2, batch, 4, system.model.backbone.width, device=part.device)
    z = Z(z_2BKD[0], torch.arange(4, device=part.device).expand(batch, -1), z_2BKD[1])
    step = Step(cfg=1.7, head_steps=5 if part.tiny else 100)

    def draw(seed: int = 1) -> Tensor:
        with torch.no_grad():
            return head.sample(z, step, noise=Noise.seeded(seed, device=part.device))

    plain = [draw(seed) for seed in (1, 2)]
    row: Row = {"eager ms": 1e3 * part.seconds(draw, 5, before=1)}
    head.graphs = Graphed()
    draw()  # what is asked for once is not captured
    row |= {"capture ms": 1e3 * part.seconds(draw), "graph ms": 1e3 * part.seconds(draw, 5, before=1)}
    row["same bits"] = all(torch.equal(draw(seed), kept) for seed, kept in zip((1, 2), plain, strict=True))
    if part.device.type == "cuda":
        for block in filter(None, (head.net, head.quick)):
            block.compile()
        head.graphs = None
        row["compiled ms"] = 1e3 * part.seconds(draw, 5, before=1)
        head.graphs = Graphed()
        row["compiled, graph ms"] = 1e3 * part.seconds(draw, 5, before=3)
        row["error"] = float((draw() - plain[0]).abs().max() / plain[0].abs().max())
    return row


# ---------------------------------------------------------------- profiles


def profiles(part: Part) -> None:
    """Where the time of a MAR-B training step and of sampling goes, by operator, as torch.profiler has it."""
    registry = plugin_manager()
    batch = 4 if part.tiny else 64
    overrides = {"training.batch_size": batch, "training.micro_batch": None}
    recipe = recipe_of(part, "mar_b", overrides, registry)
    engine = engine_of(recipe, registry, part.device)
    step = stepper(engine, tokens_for(engine.objective, batch, part.device))
    for index in range(3):
        step(index)
    _profiled(part, f"training step, {batch} images, bf16", lambda: step(3))

    head_steps = 4 if part.tiny else 25
    steps = {"sampling.steps": 4, "sampling.head_steps": head_steps}
    recipe = recipe_of(part, "mar_b", with_preset("exact", registry) | steps, registry)
    model, _ = _model(part, recipe, Job("mar_b", batch, "autocast"), registry)
    labels_B = torch.arange(batch, device=part.device)
    model.draw(labels_B, recipe.sampling, batch_noise(0, 0))
    what = f"sampling {batch} images, 4 steps of {head_steps} head steps, bf16 autocast"
    _profiled(part, what, lambda: model.draw(labels_B, recipe.sampling, batch_noise(0, 0)))


def _profiled(part: Part, what: str, run: Callable[[], object], most: int = 12) -> None:
    wall = part.seconds(run)
    gpu = part.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as profiler:
        run()
        part.synchronize()
    averages = profiler.key_averages()
    operators = [e for e in averages if _on(e, "CPU")]
    times = {e.key: (e.self_device_time_total if gpu else e.self_cpu_time_total, e.count) for e in operators}
    total = sum(time for time, _ in times.values())
    kernels = sum(e.count for e in averages if _on(e, "CUDA"))
    busy = {"kernels": kernels or None, "busy": 1e-6 * total / wall}
    part.write({"what": what, "operator": "all", "calls": None, "ms": 1e-3 * total, "share": 1.0, **busy})
    for key, (spent, count) in sorted(times.items(), key=lambda item: -item[1][0])[:most]:
        part.write({"what": what, "operator": key, "calls": count, "ms": 1e-3 * spent, "share": spent / total})


def _on(event: Any, device: str) -> bool:
    return str(event.device_type).endswith(f".{device}")


# ---------------------------------------------------------------- what it costs, counted


def costs(part: Part) -> None:
    """GFLOP of an image, and the memory that `mixar recipe check` estimates, of every way of training and drawing.

    On the CPU, beside the other parts.
    """
    registry = plugin_manager()
    for job in (*TRAININGS, *COMPILED):
        planned = build(recipe_of(part, job.recipe, _trains(job, job.batch), registry), registry, meta=True)
        flop, memory = training_flop_per_image(planned), training_memory(planned)
        part.write({**job.names, "GFLOP": flop and 1e-9 * flop, "GB estimated": memory["training"]})
    for recipe, preset in dict.fromkeys((job.recipe, job.preset or "") for job in DRAWINGS):
        planned = build(recipe_of(part, recipe, with_preset(preset, registry), registry), registry, meta=True)
        gflop = estimate(planned).sampling_gflop["total"]
        part.write({"recipe": recipe, "preset": preset, "GFLOP": gflop if isinstance(gflop, float) else None})

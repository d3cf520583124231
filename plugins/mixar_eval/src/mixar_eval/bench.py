"""What a model's sampling and training cost, part by part: seconds, FLOP, share of the machine's peak, and growth."""

from __future__ import annotations

import resource
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from types import SimpleNamespace
from typing import Any, cast

import attrs
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mixar.assembly import System, build
from mixar.cost import FORWARDS_A_STEP, gflop_of
from mixar.generation import batch_noise
from mixar.memory import trained_passes
from mixar.model import Model
from mixar.plugins import Registry
from mixar.recipe import Recipe, load_recipe
from mixar.run import make_objective
from mixar_core.data.loader import BatchShard
from mixar_core.distributed import Processes
from mixar_core.errors import UserError
from mixar_core.precision import tf32_where
from mixar_core.tokenizer import ContinuousTokenizer
from mixar_core.training.engine import Engine
from mixar_core.types import Grid, ImageBatch
from mixar_eval.products import Products

Row = dict[str, Any]
#: of what is counted, what attention does with the tokens of one sequence
_ATTENTION = ("bmm", "attention")


class Clock:
    """Seconds spent in calls, by part; calls inside others count for these alone."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, defaultdict[str, float](float)
        #: parts that time counts for now, each inside the one before
        self.parts: list[str] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Inside it time is this part's."""
        self._wait()
        began, before = time.perf_counter(), sum(self.seconds.values())
        self.parts.append(name)
        try:
            yield
        finally:
            self.parts.pop()
            self._wait()
            inner = sum(self.seconds.values()) - before
            self.seconds[name] += time.perf_counter() - began - inner

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Count calls of an object's method as this part's, from now on."""
        call = getattr(owner, method)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            with self.part(name):
                return call(*arguments, **keywords)

        setattr(owner, method, timed)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measured(run: Callable[[Clock], None], clock: Clock, repeats: int) -> dict[str, float]:
    """Median seconds of each part over `repeats` runs, after one that warms up."""
    found: dict[str, list[float]] = defaultdict(list)
    for repeat in range(repeats + 1):
        clock.seconds.clear()
        run(clock)
        for name, seconds in clock.seconds.items() if repeat else ():
            found[name].append(seconds)
    return {name: median(seconds) for name, seconds in found.items()}


# ---------------------------------------------------------------- parts


def sampling_rows(model: Model, registry: Registry, batch: int, repeats: int) -> list[Row]:
    """Drawing a batch: prior, backbone, head, decoder, and what is left.

    On a CPU also each part's `products`: the share of its time in matrix products of linear layers; and
    `of_same_shapes`: what these products take alone, one after the other, as a share of what they take there.
    """
    mixar, clock = model.system.model, Clock(model.device)
    if mixar is None:
        raise UserError(f"{model.recipe.name}: trains {model.recipe.trains}; bench is for a MixAR or MAR")
    start = mixar.backbone.start

    def started(*arguments: Any, **keywords: Any) -> Any:
        state = start(*arguments, **keywords)
        clock.watch(state, "predict", "backbone")
        return state

    mixar.backbone.start = started  # type: ignore[method-assign]
    clock.watch(mixar.head, "sample", "head")
    beside, tokenizer = mixar.continuous_tokenizer.beside, mixar.continuous_tokenizer

    def placed(codes_BN: Tensor | None) -> ContinuousTokenizer:
        of_codes = beside(codes_BN)
        clock.watch(of_codes, "decode", "continuous_tokenizer")
        return of_codes

    if tokenizer.needs_codes:  # each image's has its own codes
        tokenizer.beside = placed  # type: ignore[method-assign]
    else:
        clock.watch(tokenizer, "decode", "continuous_tokenizer")
    if mixar.prior is not None:
        clock.watch(mixar.prior, "sample", "prior")
    labels_B = model.labels([index % max(1, model.recipe.num_classes) for index in range(batch)])
    if model.recipe.num_classes == 0:
        labels_B = torch.full_like(labels_B, -1)

    def run(clock: Clock) -> None:
        with clock.part("rest"):
            model.draw(labels_B, model.recipe.sampling, batch_noise(0, 0))

    _, gflop = gflop_of(build(model.recipe, registry, meta=True))
    rows: list[Row] = [
        {"of": "sampling", "part": name, "seconds": seconds, "gflop": scaled(gflop.get(name, 0.0), batch)}
        for name, seconds in measured(run, clock, repeats).items()
    ]
    if model.device.type == "cpu":
        products = Products()
        clock.seconds.clear()
        with products.watched(mixar, lambda: clock.parts[-1]):
            run(clock)
        for row in rows:
            if inside := products.seconds.get(row["part"]):
                row["products"] = inside / clock.seconds[row["part"]]
                row["of_same_shapes"] = products.alone(row["part"]) / inside
    return rows


def training_rows(recipe: Recipe, registry: Registry, device: torch.device, batch: int, repeats: int) -> list[Row]:
    """A training step from images: tokenizers, TI-Mix's prior, forward passes, backward pass, update."""
    if recipe.training is None:
        return []
    training = attrs.evolve(recipe.training, batch_size=batch, micro_batch=None)
    recipe = attrs.evolve(recipe, training=training)
    system, clock = build(recipe, registry, device=device, load_weights=False), Clock(device)
    objective = make_objective(system, registry)
    engine = Engine(objective, training, Processes(0, 1, device), steps=1000, warmup=0)
    pixels = Grid.of_pixels(recipe.image_size)
    images_B3HW = torch.rand(batch, 3, pixels.height, pixels.width, device=device) * 2 - 1
    labels_B = torch.arange(batch, device=device) % max(1, recipe.num_classes)
    source = cast(Any, SimpleNamespace(share=BatchShard(0, batch, batch), seed=0))
    assert system.model is not None
    clock.watch(objective, "tokenize", "tokenizers")
    clock.watch(system.model.backbone, "forward", "backbone, forward")
    clock.watch(system.model.head, "loss", "head, forward")
    clock.watch(engine, "update", "update")
    if system.prior is not None:
        clock.watch(system.prior, "predict", "prior")

    def run(clock: Clock) -> None:
        with clock.part("backward"), tf32_where(training.precision, device):
            step = 999  # where TI-Mix asks the prior
            engine.update(step, engine.gradients(ImageBatch(images_B3HW, labels_B), source, step=step, counts={}))

    found, _ = gflop_of(build(recipe, registry, meta=True))
    forward = {f"{name}, forward": found[name] for name in ("backbone", "head")}
    gflop = {name: value / FORWARDS_A_STEP if isinstance(value, float) else value for name, value in forward.items()}
    gflop |= {"prior": found.get("prior", 0.0)}
    tokenizers = (found.get(key, 0.0) for key in ("continuous_tokenizer", "discrete_tokenizer"))
    gflop["tokenizers"] = sum(value for value in tokenizers if isinstance(value, float | int))
    known = [value for value in (found["backbone"], found["head"]) if isinstance(value, float)]
    gflop["backward"] = sum(known) * (1 - 1 / FORWARDS_A_STEP)
    return [
        {"of": "training", "part": name, "seconds": seconds, "gflop": scaled(gflop.get(name, 0.0), batch)}
        for name, seconds in measured(run, clock, repeats).items()
    ]


def scaled(gflop: object, batch: int) -> float | None:
    """Of a batch; None where it is not known."""
    return gflop * batch if isinstance(gflop, float | int) else None


def peak_gflops(device: torch.device, precision: str, rows: int, width: int) -> float:
    """The best that matrix products of the backbone's MLP reach here, GFLOP/s, forward; torch's and oneDNN's."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    x, weight = (torch.randn(n, width, device=device).to(dtype) for n in (rows, 4 * width))
    ways: list[Callable[[], Tensor]] = [lambda: x @ weight.T]
    if device.type == "cpu" and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        ways.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    clock, best = Clock(device), []
    for way in ways:

        def run(clock: Clock, way: Callable[[], Tensor] = way) -> None:
            with clock.part("product"):
                way()

        best.append(8e-9 * rows * width**2 / measured(run, clock, 9)["product"])
    return max(best)


# ---------------------------------------------------------------- growth


def growth(recipe: Recipe, registry: Registry) -> list[Row]:
    """How counted FLOP and parameters change with tokens, batch, steps, classes and code bits, against the recipe's.

    FLOP are of one image, so that a batch only multiplies them. `attention`: products within a sequence, which alone
    may grow with the square of the tokens.
    """
    parts = ("continuous_tokenizer", "discrete_tokenizer", "prior")
    chosen = {key: choice for key in parts if (choice := getattr(recipe, key)) is not None}
    # weights fit one size only, and nothing is computed with them
    recipe = attrs.evolve(recipe, **{key: attrs.evolve(choice, weights=None) for key, choice in chosen.items()})
    base = counted(recipe, registry)
    pixels, sampling = Grid.of_pixels(recipe.image_size), recipe.sampling
    changes: dict[str, Callable[[], Recipe]] = {
        "4 x tokens": lambda: attrs.evolve(recipe, image_size=(2 * pixels.height, 2 * pixels.width)),
        "2 x steps": lambda: attrs.evolve(recipe, sampling=attrs.evolve(sampling, steps=2 * sampling.steps)),
        "10 x classes": lambda: attrs.evolve(recipe, num_classes=10 * recipe.num_classes),
        "+2 code bits": lambda: with_bits(recipe, 2),
    }
    rows = [{"change": "as it is", **base}]
    for name, change in changes.items():
        try:
            now = counted(change(), registry)
        except (UserError, ValueError, TypeError) as error:
            rows.append({"change": name, "refused": str(error).splitlines()[0]})
            continue
        rows.append({"change": name} | {key: now[key] / value for key, value in base.items() if value and now.get(key)})
    return rows


def with_bits(recipe: Recipe, more: int) -> Recipe:
    """The recipe with longer codes.

    Raises:
        UserError: its codes have no bits to set.
    """
    changed = {}
    for key in ("discrete_tokenizer", "prior"):
        choice = getattr(recipe, key)
        bits = getattr(getattr(choice, "config", None), "bits", None)
        if bits is None:
            raise UserError("its codes have no bits to set")
        changed[key] = attrs.evolve(choice, config=attrs.evolve(choice.config, bits=bits + more))
    return attrs.evolve(recipe, **changed)


def counted(recipe: Recipe, registry: Registry) -> dict[str, float]:
    """Parameters in millions, GFLOP of a training step and of sampling, and of one pass: in attention, and else."""
    system = build(recipe, registry, meta=True)
    training, sampling = gflop_of(system)
    figures = {
        "million parameters": 1e-6 * system.parameters,
        "training": training["total"],
        "sampling": sampling["total"],
        **pass_gflop(system),
    }
    return {name: value for name, value in figures.items() if isinstance(value, float)}


def pass_gflop(system: System) -> dict[str, float]:
    """Of one forward pass of the backbone with all tokens masked but one in four: in attention, and in all else."""
    assert system.model is not None
    masked = max(1, system.model.backbone.layout.tokens * 3 // 4)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        trained_passes(system, masked)["backbone"]()
    by_operator = counter.get_flop_counts()["Global"]
    inside = sum(flop for operator, flop in by_operator.items() if any(word in str(operator) for word in _ATTENTION))
    return {"a pass, attention": 1e-9 * inside, "a pass, all else": 1e-9 * (counter.get_total_flops() - inside)}


# ---------------------------------------------------------------- all of it


def bench(model: Model, registry: Registry, *, batch: int, repeats: int) -> dict[str, Any]:
    """Rows of parts with GFLOP/s and share of the peak, rows of growth, the peak, and memory in 1e9 bytes."""
    recipe, backbone = model.recipe, model.system.model.backbone if model.system.model else None
    rows = sampling_rows(model, registry, batch, repeats)
    assert backbone is not None
    peak_of = partial(peak_gflops, model.device, rows=batch * backbone.layout.tokens, width=backbone.width)
    trains = recipe.training.precision if recipe.training else "float32"
    peaks = {"sampling": peak_of(model.precision), "training": peak_of(trains)}
    rows += training_rows(recipe, registry, model.device, batch, repeats)
    for row in rows:
        rate = row["gflop"] / row["seconds"] if row["gflop"] else None
        row |= {"gflop_per_s": rate, "of_peak": None if rate is None else rate / peaks[row["of"]]}
    cuda = model.device.type == "cuda"
    memory = torch.cuda.max_memory_allocated() if cuda else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    of = {"batch": batch, "precision": {"sampling": model.precision, "training": trains}}
    shared = {"device": str(model.device), "threads": torch.get_num_threads(), "peak_gflop_per_s": peaks}
    tables = {"parts": rows, "growth": growth(recipe, registry)}
    return {"name": recipe.name, **of, **shared, "memory_gb": 1e-9 * memory, **tables}


def fresh(name: str, registry: Registry, overrides: Any, device: torch.device, precision: Any) -> Model:
    """A recipe's model with fresh weights, as `mixar.load` gives one that is trained."""
    from mixar.speed import hasten

    recipe = load_recipe(name, overrides, registry=registry)
    system = build(recipe, registry, device=device, load_weights=False)
    hasten(system.model, precision=precision)
    return Model(system, (), device, precision=precision)

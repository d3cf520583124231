"""Which way of sampling a model is worth its time: presets and settings, timed and measured, the best one kept.

By successive halving (arXiv 1502.07943): all candidates draw a few images, and the better half of those that are within
the budget of time goes on with twice as many. The candidates are a list, few images tell most of them apart, and what
is left is measured with several seeds; a search that models the space, as Optuna's, would have little to add.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from attrs import evolve, frozen
from PIL import Image

from mixar import strict_yaml
from mixar.generation import decoded
from mixar.model import Model
from mixar.presets import read_preset
from mixar.recipe import PartChoice
from mixar.registry import PRESETS
from mixar.sampling import Plan, all_classes
from mixar.structure import structure, unstructure
from mixar_core.errors import UserError
from mixar_core.model import SamplingConfig
from mixar_core.noise import Noise
from mixar_core.storage import write_text, writing
from mixar_eval.context import EvalContext
from mixar_eval.distances import kernel_distance
from mixar_eval.features import features_of
from mixar_eval.generation import FEATURES, SAMPLES, draw_samples
from mixar_eval.points import drawn, new_figure
from mixar_eval.references import Reference
from mixar_eval.report import Report, Section, number, score_names

TABLE, PICTURE = "tune.csv", "tune.png"
#: what the others are held against
BASELINE = "exact"
#: of the grid beside the presets: head steps, solvers with the temperature that they ask for, and the prior's steps, of
#: which None are as the recipe says
HEAD_STEPS, SOLVERS, PRIOR_STEPS = (5, 10, 25, 50), {"ddpm": None, "dpm++": 1.0}, (None, 4)
#: candidates that the last round measures, with every seed
FINALISTS = 5


@frozen(eq=False)
class Candidate:
    """A way of sampling as a preset's file says it: a sampler, and what it changes of `sampling`."""

    name: str
    sampler: Mapping[str, Any]
    sampling: Mapping[str, Any]

    def of(self, model: Model, context: EvalContext) -> Model:
        """The model, sampling so; it shares the other's weights.

        Raises:
            UserError: the model cannot.
        """
        assert model.system.model is not None
        settings = dict(self.sampler)
        part = context.registry.part("sampler", str(settings.pop("type")))
        config = structure(settings, part.config, path="sampler")
        recipe = evolve(
            model.recipe,
            sampler=PartChoice(context.registry.name_of(part), config),
            sampling=structure({**unstructure(model.recipe.sampling), **self.sampling}, SamplingConfig),
        )
        mixar = copy.copy(model.system.model)
        mixar.sampler = part.component(config)
        one = evolve(model, system=evolve(model.system, recipe=recipe, model=mixar))
        condition = mixar.condition(one.labels(list(all_classes(one))[:1]))
        for planned in mixar.plan(condition, recipe.sampling, noise=Noise.seeded(0)).steps:
            mixar.head.check(planned.step)
        return one


@frozen(eq=False)
class Result:
    """A candidate as far as it came: images a seed, seconds an image and its distances, one a seed."""

    candidate: Candidate
    images: int
    seconds: float
    kernel: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The kernel distance over the seeds."""
        return mean(self.kernel)

    @property
    def spread(self) -> float:
        """Its standard deviation over the seeds; 0 of one seed."""
        return stdev(self.kernel) if len(self.kernel) > 1 else 0.0

    def as_good_as(self, baseline: Result) -> bool:
        """Whether it is no worse than the other's mean and spread."""
        return self.mean <= baseline.mean + baseline.spread

    def row(self) -> dict[str, Any]:
        """As the CSV file has it."""
        return {
            "preset": self.candidate.name,
            "images": self.images,
            "seeds": len(self.kernel),
            "kernel_distance": self.mean,
            "spread": self.spread,
            "seconds_per_image": self.seconds,
        }


def candidates(model: Model, context: EvalContext) -> list[Candidate]:
    """The presets that the model can take, and a grid of few steps; the baseline first.

    Raises:
        UserError: the baseline is none of them, or the model draws no images by steps.
    """
    if model.system.model is None:
        raise UserError(f"model {model.recipe.name}: there is nothing to tune: it trains {model.recipe.trains}")
    found = []
    for candidate in [*_presets(context), *_grid(model)]:
        try:
            candidate.of(model, context)
        except UserError:
            if candidate.name == BASELINE:
                raise
        else:
            found.append(candidate)
    return sorted(found, key=lambda candidate: candidate.name != BASELINE)


def _presets(context: EvalContext) -> Iterator[Candidate]:
    for name, paths in context.registry.presets().items():
        preset = read_preset(paths[0], context.registry)
        yield Candidate(name, preset["sampler"], preset["sampling"])


def _grid(model: Model) -> Iterator[Candidate]:
    """Few steps of the backbone, few of the head, and few of the prior, where there is one."""
    assert model.system.model is not None
    tokens = model.system.model.backbone.layout.tokens
    steps = [count for count in (1, 2, 4, 8, 16, 32) if count <= tokens]
    prior_steps = (None,) if model.system.prior is None else PRIOR_STEPS
    for some, head_steps, (solver, temperature), prior in product(steps, HEAD_STEPS, SOLVERS.items(), prior_steps):
        changes = {"temperature": temperature, "prior_steps": prior}
        sampling = {"steps": some, "head_steps": head_steps} | {k: v for k, v in changes.items() if v is not None}
        name = f"{some}x{head_steps}" + ("" if solver == "ddpm" else f"_{solver}") + (f"_prior{prior}" if prior else "")
        yield Candidate(name, {"type": "cosine", "solver": solver}, sampling)


def tune(
    model: Model,
    folder: Path,
    reference: Reference,
    context: EvalContext,
    *,
    seconds: float,
    count: int,
    seeds: int,
    batch: int,
    name: str = "fast",
) -> tuple[Report, Candidate | None]:
    """Search, and report the frontier; every process calls this.

    Args:
        seconds: an image may take, its prior and decoding included, on this machine with `batch` images at a time.
        count: images that the last round draws for every seed.

    Returns:
        the report, and what is best within the budget: of those no worse than the baseline's mean and spread the
        fastest, or else the one with the lowest distance; None where nothing is within it.

    Raises:
        UserError: the reference has no images, or the model cannot be tuned.
    """
    if reference.features_AF is None:
        raise UserError("--reference: statistics alone; the kernel distance needs the reference's images")
    every = candidates(model, context)
    baseline, field, done = every[0], every[1:], {}
    images = max(32, count >> max(0, (len(field) // FINALISTS).bit_length()))

    real_BF = reference.features_AF

    def measured(candidate: Candidate, images: int, seeds: int) -> Result:
        one = candidate.of(model, context)
        kernel, took = [], []
        for seed in range(seeds):
            plan = Plan(images, batch, seed, one.recipe.sampling, all_classes(model))
            place = folder / f"{candidate.name}_{images}_seed-{seed}"
            samples = draw_samples(one, plan, place / SAMPLES, context, f"sampling {place.name}")
            found = features_of(samples, context, f"features of {place.name}", cache=place / FEATURES)
            kernel.append(context.processes.on_main(partial(kernel_distance, found.features_AF, real_BF)))
            assert samples.drawn is not None  # they are ours
            if (spent := samples.drawn["seconds_per_image_and_process"]) is None:  # killed before it was noted
                raise UserError(f"{place}: how long drawing took is not noted; remove this folder, and repeat")
            took.append(spent)
        return Result(candidate, images, min(took), tuple(kernel))

    while len(field) > FINALISTS and images < count:
        for candidate in field:
            done[candidate.name] = measured(candidate, images, 1)
        within = [done[candidate.name] for candidate in field if done[candidate.name].seconds <= seconds]
        field = [result.candidate for result in sorted(within, key=lambda r: r.mean)[: max(FINALISTS, len(field) // 2)]]
        images = min(2 * images, count)
    for candidate in [baseline, *field[:FINALISTS]]:
        done[candidate.name] = measured(candidate, count, seeds)
    exact, last = done.pop(baseline.name), [done[candidate.name] for candidate in field[:FINALISTS]]
    chosen = choose(exact, [result for result in last if result.seconds <= seconds])
    timed = [exact, *([] if chosen is None else [chosen])]
    times = {result.candidate.name: _parts(result.candidate.of(model, context), batch) for result in timed}
    report = _report(model, exact, last, chosen, [*done.values()], times, context, reference, seconds, name)
    return report, None if chosen is None else chosen.candidate


def choose(exact: Result, within: Sequence[Result]) -> Result | None:
    """The fastest that is no worse than the baseline's mean and spread; else the best; None of none."""
    as_good = [result for result in within if result.as_good_as(exact)]
    if as_good:
        return min(as_good, key=lambda result: result.seconds)
    return min(within, key=lambda result: result.mean, default=None)


def store(candidate: Candidate, folder: Path, name: str, summary: str) -> Path:
    """Write what was found as a preset, which a model carries whose folder this is; its file.

    Raises:
        UserError: it cannot be written.
    """
    path = folder / PRESETS / f"{name}.yaml"
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    plain = {"summary": summary, "sampler": dict(candidate.sampler), "sampling": dict(candidate.sampling)}
    write_text(path, strict_yaml.dump(plain))
    return path


def _report(
    model: Model,
    exact: Result,
    last: Sequence[Result],
    chosen: Result | None,
    others: Sequence[Result],
    times: Mapping[str, Mapping[str, float]],
    context: EvalContext,
    reference: Reference,
    seconds: float,
    name: str,
) -> Report:
    kernel = score_names(context.extractor.gives_fid)[1]
    rows = [
        {
            "preset": result.candidate.name,
            kernel: f"{number(result.mean, 3)} ± {number(result.spread, 2)}",
            "seconds an image": number(result.seconds, 3),
            "times faster": number(exact.seconds / result.seconds, 3),
            "": f"stored as {name}" if result is chosen else "",
        }
        for result in [exact, *sorted(last, key=lambda result: result.seconds)]
    ]
    lines = [
        f"{exact.images:,} images for each of {len(exact.kernel)} seeds; ± is the standard deviation over the seeds. "
        f"Budget: {seconds:g} s an image of one process, prior and decoding included."
    ]
    worse = chosen is not None and not chosen.as_good_as(exact)
    below = ["**No candidate within the budget is as good as the baseline.**"] if worse else []
    below += ["**No candidate is within the budget.**"] if chosen is None else []
    plain = [result.row() for result in [exact, *last]]
    return Report(
        title=f"Tuning of {model.recipe.name}",
        protocol="published figures",
        reasons=["these are few images, which compare with each other alone"],
        figures={result.candidate.name: result.mean for result in [exact, *last]},
        plain={"budget": seconds, "chosen": chosen and chosen.candidate.name, "rows": plain, "parts": times},
        sections=[
            Section(lines=lines, rows=rows, below=below),
            Section("Where the time goes, in seconds an image", [{"preset": n, **t} for n, t in times.items()]),
        ],
        made=context.made(),
        notes=reference.notes,
        pictures={PICTURE: _plot(exact, last, others, chosen, kernel)},
        rows=(TABLE, [result.row() for result in [exact, *others]]),
    )


def _plot(
    exact: Result, last: Sequence[Result], others: Sequence[Result], chosen: Result | None, kernel: str
) -> Image.Image:
    """The distance over time: the baseline and the last round with their spread, in grey what fell out early."""
    figure = new_figure(7.0, 4.5, f"{exact.images:,} images for each of {len(exact.kernel)} seeds")
    axes = figure.subplots()
    early = [result for result in others if result not in last]
    times, distances = [result.seconds for result in early], [result.mean for result in early]
    axes.plot(times, distances, ".", color="0.8", label="fell out, with fewer images", zorder=0)
    for result in [exact, *last]:
        label = f"{result.candidate.name}{' (stored)' if result is chosen else ''}"
        axes.errorbar(result.seconds, result.mean, result.spread, fmt="o", capsize=3, label=label)
    axes.axhspan(exact.mean - exact.spread, exact.mean + exact.spread, color="0.93", zorder=-1)
    axes.set(xscale="log", xlabel="seconds an image, log scale", ylabel=kernel)
    axes.legend(fontsize=8)
    return drawn(figure)


def _parts(model: Model, batch: int) -> dict[str, float]:
    """Seconds an image that the parts of sampling take: of a batch, after one that is not counted."""
    mixar, classes, sampling = model.system.model, all_classes(model), model.recipe.sampling
    assert mixar is not None
    labels_B = model.labels([classes[index % len(classes)] for index in range(batch)])
    found: dict[str, float] = {}
    for _ in range(2):
        began, codes_BN = time.perf_counter(), None
        if model.system.prior is not None:
            codes_BN = model.draw_codes(labels_B, sampling, Noise.seeded(0))
        coded = time.perf_counter()
        with model.computing():
            steps = mixar.generation_steps(
                mixar.condition(labels_B), settings=sampling, noise=Noise.seeded(0), codes_BN=codes_BN
            )
            *_, last = steps
        tokens = time.perf_counter()
        decoded(mixar.continuous_tokenizer, last.latents_BChw)
        moments = pairwise((began, coded, tokens, time.perf_counter()))
        names = ("prior", "backbone and head", "decoder")
        found = {name: round((end - start) / batch, 5) for name, (start, end) in zip(names, moments, strict=True)}
    return found

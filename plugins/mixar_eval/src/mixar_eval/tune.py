"""Which way of sampling a model is worth its time: presets and settings, timed and measured, the best one kept.

By successive halving (arXiv 1502.07943): all candidates draw a few images, and half of them go on with twice as many.
Who is slower than the budget, or further away than the baseline's own samples scatter, falls out; of the others those
stay that no one else beats in both time and distance. The candidates are a list, few images tell most apart, and what
is left is measured with several seeds; a search that models the space, as Optuna's, would have little to add.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from attrs import evolve, frozen
from PIL import Image
from torch import Tensor

from mixar import strict_yaml
from mixar.generation import decoded
from mixar.model import Model
from mixar.registry import PRESETS
from mixar.sampling import Plan, all_classes
from mixar.speed import Precision
from mixar.text import choices
from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.storage import write_text, writing
from mixar_eval.candidates import BASELINE, Candidate, probes
from mixar_eval.context import EvalContext
from mixar_eval.distances import kernel_distance
from mixar_eval.features import features_of
from mixar_eval.generation import FEATURES, SAMPLES, draw_samples
from mixar_eval.points import drawn, new_figure
from mixar_eval.references import Reference
from mixar_eval.report import Report, Section, number, score_names

TABLE, PICTURE = "tune.csv", "tune.png"
#: candidates that the last round measures, with every seed
FINALISTS = 6
#: a candidate of a round is out if its distance is above the baseline's at as many images by so many of its spreads
TOLERANCE = 2.0


@frozen(eq=False)
class Result:
    """A candidate as far as it came: images a seed, seconds an image and its distances, one a seed.

    Args:
        features: of the images in order, (A, F) for every seed.
    """

    candidate: Candidate
    images: int
    seconds: float
    kernel: tuple[float, ...]
    features: tuple[Tensor, ...] = ()

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
            "precision": self.candidate.precision,
            "images": self.images,
            "seeds": len(self.kernel),
            "kernel_distance": self.mean,
            "spread": self.spread,
            "seconds_per_image": self.seconds,
        }


@frozen(eq=False)
class Study:
    """What candidates are measured with: the model in each precision, the reference, and where samples are kept."""

    models: Mapping[Precision, Model]
    folder: Path
    reference: Reference
    context: EvalContext
    batch: int

    def sampling(self, candidate: Candidate) -> Model:
        """The model that samples so."""
        return candidate.of(self.models[candidate.precision], self.context)

    def measured(self, candidate: Candidate, images: int, seeds: int) -> Result:
        """Draw and measure; what is there already is found again."""
        one, context = self.sampling(candidate), self.context
        features, took = [], []
        for seed in range(seeds):
            plan = Plan(images, self.batch, seed, one.recipe.sampling, all_classes(one))
            place = self.folder / f"{candidate.name}_{candidate.precision}_{images}_seed-{seed}"
            samples = draw_samples(one, plan, place / SAMPLES, context, f"sampling {place.name}")
            found = features_of(samples, context, f"features of {place.name}", cache=place / FEATURES)
            features.append(found.in_order().features_AF)
            assert samples.drawn is not None  # they are ours
            if (spent := samples.drawn["seconds_per_image_and_process"]) is None:  # killed before it was noted
                raise UserError(f"{place}: how long drawing took is not noted; remove this folder, and repeat")
            took.append(spent)
        return self.of_features(Result(candidate, images, min(took), (), tuple(features)))

    def of_features(self, result: Result) -> Result:
        """With its distances.

        Raises:
            UserError: the reference has no images.
        """
        if (real_BF := self.reference.features_AF) is None:
            raise UserError("--reference: statistics alone; the kernel distance needs the reference's images")
        kernel = [self.context.processes.on_main(partial(kernel_distance, f, real_BF)) for f in result.features]
        return evolve(result, kernel=tuple(kernel))

    def first(self, result: Result, images: int) -> Result:
        """Of its first images alone: those that it would have drawn, had it been asked for so few."""
        return self.of_features(evolve(result, images=images, features=tuple(f[:images] for f in result.features)))


def tune(
    study: Study,
    found: Mapping[str, Candidate],
    *,
    seconds: float,
    count: int,
    seeds: int,
    name: str = "fast",
) -> tuple[Report, Candidate | None]:
    """Search, and report the frontier; every process calls this.

    Args:
        found: what `candidates` gives.
        seconds: an image may take, its prior and decoding included, on this machine.
        count: images that the last round draws for every seed.

    Returns:
        the report, and what is best within the budget: of those no worse than the baseline's mean and spread the
        fastest, or else the one with the lowest distance; None where nothing is within it.

    Raises:
        UserError: the model cannot be measured.
    """
    (baseline, *field), done = found.values(), dict[str, Result]()
    exact = study.measured(baseline, count, seeds)
    images = max(32, count >> max(0, (len(field) // FINALISTS).bit_length()))
    while len(field) > FINALISTS and images < count:
        results = [study.measured(candidate, images, 1) for candidate in field]
        done |= {result.candidate.name: result for result in results}
        within, bar = [result for result in results if result.seconds <= seconds], study.first(exact, images)
        near = [result for result in within if result.mean <= bar.mean + TOLERANCE * bar.spread] or within
        images = min(2 * images, count)
        field = [
            each.candidate for each in best_of(near, max(FINALISTS, len(field) // 2) if images < count else FINALISTS)
        ]
    last = [study.measured(candidate, count, seeds) for candidate in field[:FINALISTS]]
    done |= {result.candidate.name: result for result in last}
    chosen = choose(exact, [result for result in last if result.seconds <= seconds])
    budget = f"Budget: {seconds:g} s an image of one process, prior and decoding included."
    report = _report(study, exact, last, chosen, [*done.values()], name, budget)
    return report, None if chosen is None else chosen.candidate


def compare(study: Study, found: Mapping[str, Candidate], names: Sequence[str], *, count: int, seeds: int) -> Report:
    """Measure these candidates beside the baseline, and report; every process calls this.

    Args:
        found: what `candidates` gives; `probes` are known as well.

    Raises:
        UserError: there is none of a name, or the model cannot be measured.
    """
    found = {**found, **probes(found[BASELINE])}
    for name in names:
        if name not in found:
            raise UserError(f"--presets {name}: none that this model can take; {choices(found, name)}")
    exact = study.measured(found[BASELINE], count, seeds)
    last = [study.measured(found[name], count, seeds) for name in dict.fromkeys(names) if name != BASELINE]
    return _report(study, exact, last, None, last)


def best_of(results: Sequence[Result], count: int) -> list[Result]:
    """So many results: those that no other beats in both time and distance, then those that only these beat, and so on;
    of the last such front evenly by time. From the fastest on."""
    left, kept = sorted(results, key=lambda result: (result.seconds, result.mean)), list[Result]()
    while left and len(kept) < count:
        lowest = [min(each.mean for each in left[: place + 1]) for place in range(len(left))]
        front = [each for place, each in enumerate(left) if place == 0 or each.mean < lowest[place - 1]]
        left, room = [each for each in left if each not in front], count - len(kept)
        if len(front) > room:
            front = [front[round(place * (len(front) - 1) / max(1, room - 1))] for place in range(room)]
        kept += front
    return sorted(kept, key=lambda result: result.seconds)


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
    plain |= {} if candidate.precision == "float32" else {"precision": candidate.precision}
    write_text(path, strict_yaml.dump(plain))
    return path


def _report(
    study: Study,
    exact: Result,
    last: Sequence[Result],
    chosen: Result | None,
    others: Sequence[Result],
    name: str = "",
    budget: str | None = None,
) -> Report:
    """Of a search, where there is a budget, or of a comparison."""
    context, kernel = study.context, score_names(study.context.extractor.gives_fid)[1]
    shown = [exact, *sorted(last, key=lambda result: result.seconds)]
    rows = [
        {
            "preset": result.candidate.name,
            "precision": result.candidate.precision,
            kernel: f"{number(result.mean, 3)} ± {number(result.spread, 2)}",
            "seconds an image": number(result.seconds, 3),
            "times faster": number(exact.seconds / result.seconds, 3),
            "as good": "" if result is exact else "yes" if result.as_good_as(exact) else "no",
            "": f"stored as {name}" if result is chosen else "",
        }
        for result in shown
    ]
    lines = [
        f"{exact.images:,} images for each of {len(exact.kernel)} seeds; ± is the standard deviation over the seeds; "
        f"as good is what lies no further away than the baseline's mean and ±. {budget or ''}".strip()
    ]
    probed = probes(exact.candidate)
    blind = [each.candidate.name for each in last if each.candidate.name in probed and each.as_good_as(exact)]
    below = [f"**The comparison is blind to {' and '.join(blind)}: no worse than the baseline here.**"] if blind else []
    if budget is not None and chosen is None:
        below += ["**No candidate is within the budget.**"]
    elif chosen is not None and not chosen.as_good_as(exact):
        below += ["**No candidate within the budget is as good as the baseline.**"]
    timed = [exact, *([*last] if budget is None else [] if chosen is None else [chosen])]
    times = {each.candidate.name: _parts(study.sampling(each.candidate), study.batch) for each in timed}
    plain = {"budget": budget, "chosen": chosen and chosen.candidate.name, "insensitive_to": blind, "parts": times}
    return Report(
        title=f"{'Presets' if budget is None else 'Tuning'} of {next(iter(study.models.values())).recipe.name}",
        protocol="published figures",
        reasons=["these are few images, which compare with each other alone"],
        figures={result.candidate.name: result.mean for result in shown},
        plain=plain | {"rows": [result.row() for result in shown]},
        sections=[
            Section(lines=lines, rows=rows, below=below),
            Section("Where the time goes, in seconds an image", [{"preset": n, **t} for n, t in times.items()]),
        ],
        made=context.made(),
        notes=study.reference.notes,
        pictures={PICTURE: _plot(exact, last, others, chosen, kernel)},
        rows=(TABLE, [result.row() for result in dict.fromkeys([*shown, *others])]),
    )


def _plot(
    exact: Result, last: Sequence[Result], others: Sequence[Result], chosen: Result | None, kernel: str
) -> Image.Image:
    """The distance over time: the baseline and the last round with their spread, in grey what fell out early."""
    figure = new_figure(7.0, 4.5, f"{exact.images:,} images for each of {len(exact.kernel)} seeds")
    axes = figure.subplots()
    early = [result for result in others if result not in last]
    times, distances = [result.seconds for result in early], [result.mean for result in early]
    axes.plot(times, distances, ".", color="0.8", label="fell out, with fewer images" if early else None, zorder=0)
    for result in [exact, *last]:
        label = f"{result.candidate.name}{' (stored)' if result is chosen else ''}"
        axes.errorbar(result.seconds, result.mean, result.spread, fmt="o", capsize=3, label=label)
    axes.axhspan(exact.mean - exact.spread, exact.mean + exact.spread, color="0.93", zorder=-1)
    axes.set(xscale="log", xlabel="seconds an image, log scale", ylabel=kernel)
    axes.legend(fontsize=8)
    return drawn(figure)


def _parts(model: Model, batch: int) -> dict[str, float]:
    """Seconds an image that the parts of sampling take: of a batch, after a step that is not counted."""
    mixar, classes, sampling = model.system.model, all_classes(model), model.recipe.sampling
    assert mixar is not None
    labels_B = model.labels([classes[index % len(classes)] for index in range(batch)])
    found: dict[str, float] = {}
    for only in (1, None):
        began, codes_BN = time.perf_counter(), None
        if model.system.prior is not None:
            codes_BN = model.draw_codes(labels_B, sampling, Noise.seeded(0))
        coded = time.perf_counter()
        with model.computing():
            steps = mixar.generation_steps(
                mixar.condition(labels_B), settings=sampling, noise=Noise.seeded(0), codes_BN=codes_BN
            )
            *_, last = islice(steps, only)
        tokens = time.perf_counter()
        decoded(mixar.continuous_tokenizer, last.latents_BChw, last.codes_BN)
        moments = pairwise((began, coded, tokens, time.perf_counter()))
        names = ("prior", "backbone and head", "decoder")
        found = {name: round((end - start) / batch, 5) for name, (start, end) in zip(names, moments, strict=True)}
    return found

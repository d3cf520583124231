"""What the figures say: a table with the spread over seeds, a plot, and for each expectation whether it was met."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.claims import cost
from benchmarks.claims.claim import Claim, Entry, Expected
from benchmarks.claims.jobs import figures_of, write_figures
from benchmarks.claims.judging import FIGURES, judge_of
from benchmarks.claims.plan import CLAIMS, few
from benchmarks.runner import Desk
from benchmarks.study import csv_of, spreads
from mixar_core.pictures import rows_picture, write_png
from mixar_core.storage import write_text
from mixar_eval.report import number, table

#: the claim whose rows are timings at full size
COST = "cost"
COST_CLAIM = Claim(
    COST,
    "What guidance costs at the published size",
    "MixAR-L with DC-SA samples 1.23 times as long as with DC-Mix and trains 1.20 times as long, with DC-CA 1.19 and "
    "1.13 times (Table 2).",
    (),
    (
        Expected("dc-sa takes longer to sample than dc-mix", "sampling_ratio", "dc-mix", "dc-sa"),
        Expected("dc-ca takes longer to sample than dc-mix", "sampling_ratio", "dc-mix", "dc-ca"),
        Expected("dc-sa takes longer to train than dc-mix", "training_ratio", "dc-mix", "dc-sa"),
        Expected("dc-ca takes longer to train than dc-mix", "training_ratio", "dc-mix", "dc-ca"),
    ),
    figures=(
        "parameters",
        "head_share",
        "sampling_ratio",
        "training_ratio",
        "sampling_s",
        "training_s",
        "head_share_of_time",
    ),
    shown=("sampling_ratio", "training_ratio"),
)
#: behind this heading of a report stands what people wrote, which is kept when the figures are made anew
BY_HAND = "## What it says"
_SURE = 0.05
#: rows of the picture of samples
_PICTURED = 24
_HELP = {
    "kernel": "kernel distance (KID), and frechet: Frechet distance, to real images that gave no codes; less is better",
    "recognised": "share that a classifier fitted on real images takes for what was asked",
    "unlike": "share that lies further from the nearest real image than all but 1 % of real ones do",
    "variety": "variance of features within a class, as a share of real ones'",
    "sharpness": "mean difference of neighbouring pixels, as a share of real ones'",
    "seams": "difference of pixels across borders of tokens over that elsewhere, as a share of real ones'",
    "loss": "diffusion loss on the validation images, averaged weights, fixed masks and noise",
    "loss_at_equal_time": "the same when the fastest arm had finished, by the seconds of a step",
    "ms_a_step": "milliseconds of an optimizer step, one thread, the median",
    "ms_an_image": "processor milliseconds of an image without its codes, one thread",
    "norm_median": "of the gradient's norm, every fifth step; norm_largest: its largest",
    "norm_spikes": "share of steps whose gradient's norm, and loss_spikes: whose loss, lies six deviations above its "
    "neighbours' (robust: from the median deviation)",
    "diverged": "share of runs that ended with a loss that is not finite",
}


def report(name: str, desk: Desk, results: Path) -> None:
    """NAME.csv, NAME.png and NAME.md of what is measured by now; nothing where nothing is."""
    claim = COST_CLAIM if name == COST else CLAIMS[name]
    rows = cost.compared(desk) if name == COST else rows_of(claim, desk)
    if not rows:
        return
    results.mkdir(parents=True, exist_ok=True)
    write_text(results / f"{name}.csv", csv_of(rows))
    _plot(claim, rows, results / f"{name}.png")
    drawn = _samples(claim, desk)
    if drawn:
        write_png(results / f"{name}_samples.png", rows_picture(drawn, "two of each class, seed 0"))
    file = results / f"{name}.md"
    written = file.read_text() if file.is_file() else ""
    by_hand = written[written.index(BY_HAND) :] if BY_HAND in written else ""
    write_text(file, _markdown(claim, rows, desk, pictured=bool(drawn)) + (f"\n{by_hand}" if by_hand else ""))
    print(f"{name}: {len(rows)} rows, {file}")
    for expected in claim.expected:
        print(f"  {expected.says}: {verdict(expected, rows)}")


def rows_of(claim: Claim, desk: Desk) -> list[dict[str, Any]]:
    """A row for each measurement of the claim that is there."""
    found = []
    for entry in few(claim) if desk.quick else claim.entries:
        figures = _figures(entry, desk)
        if figures is not None:
            found.append({"arm": entry.arm, "x": entry.x, "seed": entry.training.seed, **figures})
    _equal_time(found)
    return found


def _figures(entry: Entry, desk: Desk) -> dict[str, Any] | None:
    """Those of the run and of the set; None where one is not there yet."""
    found: dict[str, Any] = {}
    if entry.training.recipe is not None:
        file = figures_of(entry.training.name, "training", desk)
        if not file.is_file():
            return None
        found |= _of_log(json.loads(file.read_text()))
    file = figures_of(entry.training.name, entry.drawn.name, desk)
    if not file.is_file():
        return None
    drawn = json.loads(file.read_text())
    if "seconds_an_image" in drawn:
        drawn["ms_an_image"] = 1000 * drawn["seconds_an_image"]
    own = {name: drawn[name] for name in (*FIGURES, "ms_an_image") if name in drawn}
    return own if entry.drawn.alone else {**found, **own}  # of codes alone nothing else of the run was used


def _of_log(log: Mapping[str, Any]) -> dict[str, Any]:
    if "diverged" in log:
        return {"diverged": 1.0}
    found = {key: log[key] for key in ("parameters", "loss", "curve") if key in log}
    return {
        **found,
        "ms_a_step": 1000 * log["seconds_a_step"],
        "norm_median": median(log["norms"]),
        "norm_largest": max(log["norms"]),
        "norm_spikes": spikes(log["norms"]),
        "loss_spikes": spikes(log["losses"]),
        "diverged": 0.0,
    }


def spikes(values: Sequence[float], *, around: int = 10, deviations: float = 6.0) -> float:
    """Share of values further above the median of their neighbours than so many robust standard deviations."""
    middles = [median(values[max(0, i - around) : i + around + 1]) for i in range(len(values))]
    off = [value - middle for value, middle in zip(values, middles, strict=True)]
    deviation = 1.4826 * median(map(abs, off))
    return mean(each > deviations * deviation for each in off)


def _equal_time(rows: Sequence[dict[str, Any]]) -> None:
    """Instead of the curve: the loss when the fastest run of the same seed ended, between two measurements linearly."""
    ends: dict[int, float] = {}
    for row in rows:
        if row.get("curve"):
            seconds = max(map(int, row["curve"])) * row["ms_a_step"]
            ends[row["seed"]] = min(seconds, ends.get(row["seed"], math.inf))
    for row in rows:
        if curve := row.pop("curve", None):
            x, y = zip(*sorted((int(step) * row["ms_a_step"], loss) for step, loss in curve.items()), strict=True)
            row["loss_at_equal_time"] = float(numpy.interp(ends[row["seed"]], x, y))


def verdict(expected: Expected, rows: Iterable[Mapping[str, Any]]) -> str:
    """Whether an expectation was met: a paired t-test over the seeds, one-sided, on the level 5 %."""
    lower = _by_seed(expected.figure, expected.lower, expected.x, rows)
    high_x = expected.x if expected.higher_x is None else expected.higher_x
    higher = _by_seed(expected.figure, expected.higher, high_x, rows)
    seeds = sorted(lower.keys() & higher.keys())
    if not seeds:
        return "not measured"
    off = [lower[seed] - higher[seed] for seed in seeds]
    means = [number(mean(side[seed] for seed in seeds), 3) for side in (lower, higher)]
    said = f"{expected.figure} {means[0]} against {means[1]}"
    if len(off) == 1:
        return f"one seed, no verdict ({said})"
    if stdev(off) == 0:
        sure = float(mean(off) >= 0)
        other = float(mean(off) <= 0)
    else:
        from scipy.stats import ttest_1samp

        sure = ttest_1samp(off, 0.0, alternative="less").pvalue
        other = ttest_1samp(off, 0.0, alternative="greater").pvalue
    words = "holds" if sure < _SURE else "the other way round" if other < _SURE else "not beyond the spread"
    return f"{words} ({said}; {len(off)} pairs, p {min(sure, other):.2g})"


def _by_seed(figure: str, arm: str, x: float | str | None, rows: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    wanted = (row for row in rows if row["arm"] == arm and (x is None or row.get("x") == x))
    return {row["seed"]: row[figure] for row in wanted if row.get(figure) is not None}


def _samples(claim: Claim, desk: Desk) -> dict[str, Tensor]:
    """Images of the first sets that seed 0 drew, by arm and x."""
    found: dict[str, Tensor] = {}
    for entry in claim.entries:
        file = desk.out / "samples" / entry.training.name / f"{entry.drawn.name}.safetensors"
        if file.is_file() and len(found) < _PICTURED:
            found[f"{entry.arm}, {entry.x}" if entry.x is not None else entry.arm] = load_file(file)["images"]
    return found


def _markdown(claim: Claim, rows: Sequence[Mapping[str, Any]], desk: Desk, *, pictured: bool) -> str:
    columns = [name for name in claim.figures if any(row.get(name) is not None for row in rows)]
    by = {"arm": "arm", "x": claim.across or "x"}
    if all(row.get("x") is None for row in rows):
        del by["x"]
    shown = [
        {said: row[key] or "" for key, said in by.items()} | {k: row.get(k) for k in ("seed", *columns)} for row in rows
    ]
    floor = [] if claim.name == COST else [f"{_floor(claim, desk)}\n"]
    samples = [f"![Drawn by seed 0]({claim.name}_samples.png)\n"] if pictured else []
    notes = [f"{name}: {_HELP[name]}." for name in columns if name in _HELP]
    return "\n".join(
        [
            f"# {claim.title}\n",
            f"    python -m benchmarks.claims {claim.name}\n",
            f"The claim: {claim.says}\n",
            table(spreads(shown, [*by.values()])),
            *floor,
            f"![{claim.title}]({claim.name}.png)\n",
            *samples,
            *(f"- {expected.says}: **{verdict(expected, rows)}**" for expected in claim.expected),
            "",
            "Mean ± standard deviation over seeds (of training and of drawing; rounds, where time is measured). All "
            f"rows: [{claim.name}.csv]({claim.name}.csv). Holds: one-sided paired t-test over seeds, p < 0.05, "
            "with no correction for how many there are. " + " ".join(notes),
            "",
        ]
    )


def _floor(claim: Claim, desk: Desk) -> str:
    """What as many real images measure."""
    data = claim.entries[0].training.data
    file = desk.out / "measured" / f"real-{data}.json"
    if not file.is_file():
        write_figures(file, judge_of(data, desk).figures_of_floor())
    figures = json.loads(file.read_text())
    said = ", ".join(f"{name} {number(figures[name], 3)}" for name in claim.figures if name in figures)
    return f"The floor, {figures['count']} real images measured as if they had been drawn: {said}."


def _plot(claim: Claim, rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """A panel a figure: lines over x where it is a number, else bars of every arm and x, with deviations."""
    from matplotlib.figure import Figure

    names = [name for name in claim.shown if any(row.get(name) is not None for row in rows)]
    if not names:
        return
    groups: dict[tuple[str, Any], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["arm"], row.get("x")), []).append(row)
    lines = all(isinstance(x, int | float) for _, x in groups)
    height = 3.6 if lines else 1.2 + 0.26 * len(groups)
    figure = Figure(figsize=(4.2 * len(names), height), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        values = {key: [row[name] for row in group if row.get(name) is not None] for key, group in groups.items()}
        points = {key: (mean(found), stdev(found) if len(found) > 1 else 0.0) for key, found in values.items() if found}
        if lines:
            for arm in dict.fromkeys(arm for arm, _ in points):
                at = sorted((x, *point) for (which, x), point in points.items() if which == arm)
                x, y, error = zip(*at, strict=True)
                axes.errorbar(x, y, error, marker="o", markersize=3, capsize=2, label=arm)
            axes.set_xlabel(claim.across)
            if claim.logarithmic:
                axes.set_xscale("log")
            axes.legend(fontsize=6)
        else:
            labels = [f"{arm}, {x}" if x else arm for arm, x in points]
            y, error = zip(*points.values(), strict=True)
            axes.barh(labels, y, xerr=error, capsize=2)
            axes.invert_yaxis()
            axes.tick_params(axis="y", labelsize=6)
        axes.set_title(name, fontsize=9)
    figure.savefig(file, dpi=110)

"""Does it pay to trust codes by their confidence? `python -m benchmarks.adaptive [--seeds 0,1,2] [--arms dc-mix]`

A prior at temperature 2 draws codes that are wrong now and then: of the digits they decode to, 82 % are recognised,
of real ones 96 %. As in the paper DC-Mix comes first, then TI-Mix: the shipped model of the digits is trained further
for the same steps, half of the hidden codes being the prior's, as `dc-mix`, as `adaptive` (injector dc-mix-adaptive),
and as `certain`: the same, but a true code is called certain in training, where `adaptive` is told what the prior
thinks of it. Each model draws 500 digits at three temperatures of the prior.

The models `dc-mix` also draw with the sampler `cosine` at several numbers of steps and steps of the head, and with the
sampler `adaptive` at several settings, all from the same codes: a frontier of time against quality.

What was done already is not done again. At the end all figures are printed as tables in Markdown, and written under
`--out` as `adaptive.csv` and `adaptive.png`: share recognised, kernel distance (KID) to the real validation digits,
processor seconds without those of the prior.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from statistics import mean, stdev
from typing import Any
from unittest import mock

import torch
import typer
from attrs import evolve, frozen
from safetensors.torch import load_file, save_file

import mixar
from benchmarks.heads import digits
from mixar.generation import batch_noise
from mixar.model import Model
from mixar_adaptive.injector import AdaptiveDCMix
from mixar_adaptive.sampler import AdaptiveConfig, AdaptiveSampler
from mixar_core.noise import Noise
from mixar_core.plan import Plan, Sampler, Task
from mixar_core.types import DiscreteTokens, DrawnCodes
from mixar_eval.distances import kernel_distance
from mixar_plugins.priors.masked import MaskedTransformerPrior
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler
from mixar_zoo.classifier import fit_classifier

ARMS = {"dc-mix": "dc-mix", "adaptive": "dc-mix-adaptive", "certain": "dc-mix-adaptive"}
#: of the prior: in TI-Mix and in the frontier, and those that are compared
TEMPERATURE, TEMPERATURES = 2.0, (1.0, 2.0, 3.0)
COUNT = 500
FIGURES = ("recognised", "kid", "seconds")


class ByChance(AdaptiveSampler):
    """The control: the same steps, and the tokens in random order."""

    def plan(self, task: Task, *, noise: Noise) -> Plan:
        """As if nothing were known of the codes."""
        return super().plan(evolve(task, confidence_BN=None), noise=noise)


@frozen
class Drawing:
    """How a set of digits is drawn: the sampler, autoregressive steps, steps of the head, the prior's temperature."""

    name: str
    sampler: Sampler
    steps: int
    head_steps: int
    temperature: float = TEMPERATURE


def cosine(steps: int, head_steps: int, temperature: float = TEMPERATURE) -> Drawing:
    """The plan of MAR."""
    name = f"cosine: {steps} steps, head {head_steps}, prior at {temperature:g}"
    return Drawing(name, CosineSampler(CosineConfig()), steps, head_steps, temperature)


def adaptive(steps: int, share: float, quick: int, redraw: float = 0.0, *, chance: bool = False) -> Drawing:
    """The confident share in one step with `quick` steps of the head, the others with 25."""
    name = (
        f"{'by chance' if chance else 'adaptive'}: {steps} steps, {share:.0%} in one, head {quick}, redraw {redraw:.0%}"
    )
    config = AdaptiveConfig(confident=share, confident_head_steps=quick, redraw=redraw)
    return Drawing(name, (ByChance if chance else AdaptiveSampler)(config), steps, 25)


COMPARED = [cosine(8, 25, temperature) for temperature in TEMPERATURES]
FRONTIER = [
    *(cosine(steps, head) for steps, head in ((2, 10), (4, 10), (8, 10), (4, 25), (16, 25), (8, 50))),
    *(adaptive(*each) for each in ((3, 0.5, 10), (5, 0.5, 10), (9, 0.5, 10), (5, 0.75, 10))),
    adaptive(5, 0.5, 10, 0.25),
    adaptive(5, 0.5, 10, chance=True),
]


def main(
    arms: str = ",".join(ARMS),
    seeds: str = "0,1,2",
    steps: int = 300,
    out: Path = Path("runs/adaptive"),
    report: bool = True,
) -> None:
    """Train, draw, measure, and print what all runs under `--out` have given."""
    if unknown := [arm for arm in arms.split(",") if arm not in ARMS]:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; allowed: {', '.join(ARMS)}")
    for seed in map(int, seeds.split(",")):
        for arm in arms.split(","):
            run(arm, seed, steps, out / f"{arm}-{seed}")
    if report:
        write(measure(out), out)
        gates(out)


def run(arm: str, seed: int, steps: int, folder: Path) -> None:
    """Train one model and draw with it, unless that is done."""
    changes = {
        "injector": {"type": ARMS[arm]},
        "prior": {"weights": "digits_prior", "predict_temperature": TEMPERATURE},
        "ti_mix": {"schedule": "constant", "start": 0.5},
        "training": {"seed": seed, "steps": steps, "learning_rate": 5e-4, "warmup_steps": 20},
        "init": {"from": "digits"},
        "accept_other_classes": True,  # digits have numbers for names
        "callbacks": [],
    }
    if not (folder / "weights.safetensors").is_file():
        with truth_called_certain() if arm == "certain" else nullcontext():
            mixar.train(mixar.load_recipe("digits_quick", changes), folder, resume=folder.exists())
    if not (folder / "drawn.safetensors").is_file():
        draw(mixar.load(folder, precision="bf16"), seed, folder, [*COMPARED, *(FRONTIER if arm == "dc-mix" else ())])


def truth_called_certain() -> Any:
    """The prior says nothing of true codes."""
    predict = MaskedTransformerPrior.predict

    def silent(self: MaskedTransformerPrior, *args: Any, **kwargs: Any) -> DrawnCodes:
        return evolve(predict(self, *args, **kwargs), truth_BN=None)

    return mock.patch.object(MaskedTransformerPrior, "predict", silent)


def draw(model: Model, seed: int, folder: Path, drawings: Sequence[Drawing]) -> None:
    """Digits of every drawing, from codes that are drawn once a temperature, and the seconds of all but the codes."""
    mixture = model.system.model
    assert mixture is not None and mixture.prior is not None
    labels_B, sets, seconds = model.labels(sorted(list(range(10)) * (COUNT // 10))), {}, {}
    for temperature in TEMPERATURES:
        settings = evolve(model.recipe.sampling, prior_temperature=temperature)
        codes = mixture.sample_codes(mixture.condition(labels_B), settings=settings, noise=batch_noise(seed, 0))
        sets[f"codes alone, prior at {temperature:g}"] = model.decode_codes(codes.codes_BN)
        with mock.patch.object(mixture.prior, "sample", lambda *_, codes=codes, **__: codes):
            for drawing in drawings:
                if drawing.temperature == temperature:
                    mixture.sampler = drawing.sampler
                    settings = evolve(model.recipe.sampling, steps=drawing.steps, head_steps=drawing.head_steps)
                    began = time.process_time()  # with one thread the seconds of one core, whatever else runs
                    sets[drawing.name] = model.draw(labels_B, settings, batch_noise(seed, 1))[0]
                    seconds[drawing.name] = time.process_time() - began
    (folder / "seconds.json").write_text(json.dumps(seconds, indent=2) + "\n")
    save_file({name: images.contiguous() for name, images in sets.items()}, folder / "drawn.safetensors")


def measure(folder: Path) -> list[dict[str, Any]]:
    """A row for each set of digits of each finished run under the folder."""
    judge = fit_classifier(*digits("train"))
    real = judge.judge(digits("validation")[0])[1]
    labels = torch.arange(10).repeat_interleave(COUNT // 10)
    rows: list[dict[str, Any]] = []
    for arm in ARMS:
        for path in sorted(folder.glob(f"{arm}-*/drawn.safetensors")):
            seconds = json.loads((path.parent / "seconds.json").read_text())
            for name, images in load_file(path).items():
                guessed, features = judge.judge(images)
                row = {"arm": arm, "seed": int(path.parent.name.split("-")[-1]), "drawing": name}
                row["recognised"] = float((guessed == labels).float().mean())
                row["kid"], row["seconds"] = kernel_distance(features, real), seconds.get(name, "")
                rows.append(row)
    return rows


def write(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Every set to the file; mean and standard deviation over the seeds to the terminal and the plot."""
    with (folder / "adaptive.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("arm", "seed", "drawing", *FIGURES))
        writer.writeheader()
        writer.writerows(rows)
    order = [f"codes alone, prior at {t:g}" for t in TEMPERATURES] + [d.name for d in (*COMPARED, *FRONTIER)]
    points: dict[tuple[str, str], dict[str, tuple[float, float]]] = {}
    for name in order:
        for arm in ARMS:
            found = [row for row in rows if (row["arm"], row["drawing"]) == (arm, name)]
            figures = {figure: [float(row[figure]) for row in found if row[figure] != ""] for figure in FIGURES}
            if found:
                points[name, arm] = {figure: spread(values) for figure, values in figures.items() if values}
    lines = [
        (name, arm, *("{:.4f} ± {:.4f}".format(*point[f]) if f in point else "" for f in FIGURES))
        for (name, arm), point in points.items()
    ]
    print("\n".join("| " + " | ".join(line) + " |" for line in (("drawing", "arm", *FIGURES), ("---",) * 5, *lines)))
    plot({name: point for (name, arm), point in points.items() if arm == "dc-mix"}, folder / "adaptive.png")


def gates(folder: Path) -> None:
    """What the gates have learned: mean over the seeds, by the confidence of a code and the share known."""
    confidences_N = torch.tensor([0.0, -0.5, -1.0, -2.0, -3.0, -5.0, -8.0])
    print("\n| arm | known |" + "".join(f" {value:g} |" for value in confidences_N.tolist()))
    print("|---|---|" + "---|" * len(confidences_N))
    for arm, injector in ARMS.items():
        runs = [path.parent for path in folder.glob(f"{arm}-*/drawn.safetensors")]
        for known in (0.0, 0.5) if injector == "dc-mix-adaptive" and runs else ():
            gate_SN = torch.stack([gate(mixar.load(run), confidences_N, known) for run in runs])
            print(f"| {arm} | {known:.0%} |" + "".join(f" {value:.2f} |" for value in gate_SN.mean(dim=0).tolist()))


@torch.no_grad()
def gate(model: Model, confidences_N: torch.Tensor, known: float) -> torch.Tensor:
    """The gates (N,) of codes with these confidences."""
    assert model.system.model is not None
    injector, nothing_BNE = model.system.model.injector, torch.zeros(1, len(confidences_N), 0)
    assert isinstance(injector, AdaptiveDCMix)
    codes_BN = torch.zeros(1, len(confidences_N), dtype=torch.int64)
    return injector.gate(DiscreteTokens(codes_BN, nothing_BNE, nothing_BNE, confidences_N[None], known))[0]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation, which is 0 of one value."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def plot(points: Mapping[str, Mapping[str, tuple[float, float]]], file: Path) -> None:
    """Seconds against kernel distance, a colour for each sampler."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for kind, marker in (("cosine", "o"), ("adaptive", "s"), ("by chance", "x")):
        chosen = [d.name for d in (COMPARED[1], *FRONTIER) if d.name.startswith(kind) and d.name in points]
        x, y = ([points[name][figure_][0] for name in chosen] for figure_ in ("seconds", "kid"))
        errors = [points[name]["kid"][1] for name in chosen]
        axes.errorbar(x, y, errors, fmt=marker, capsize=2, label=kind)
        for name, at in zip(chosen, zip(x, y, strict=True), strict=True):
            text = name.split(": ")[1].replace(", redraw 0%", "").replace(", prior at 2", "").replace(" steps", "")
            axes.annotate(text, at, xytext=(4, 3), textcoords="offset points", fontsize=6)
    axes.set_xlabel(f"processor seconds for {COUNT:,} digits, without the prior's")
    axes.set_ylabel("KID to real digits")
    axes.legend()
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    typer.run(main)

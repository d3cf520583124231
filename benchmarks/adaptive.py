"""Does it pay to trust codes by their confidence? `python -m benchmarks.adaptive [--seeds 0,1,2] [--arms dc-mix]`

A prior at temperature 2 draws codes that are wrong now and then: of the digits they decode to, 82 % are recognised,
of real ones 96 %. As in the paper DC-Mix comes first, then TI-Mix: the shipped model of the digits is trained further
for the same steps, half of the hidden codes being the prior's, as `dc-mix` and as `adaptive` (injector
dc-mix-adaptive). Each model draws 500 digits at three temperatures of the prior.

The models `dc-mix` also draw with the sampler `cosine` at several numbers of steps and steps of the head, and with the
sampler `adaptive` at several settings, all from the same codes: a frontier of time against quality.

At the end: share recognised, distances to the real validation digits, processor seconds without those of the prior, as
a table, `adaptive.csv` and `adaptive.png` under `--out`; and what the gates have learned.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from unittest import mock

import torch
import typer
from attrs import evolve

import mixar
from benchmarks import study
from mixar.generation import batch_noise
from mixar.model import Model
from mixar_adaptive.injector import AdaptiveDCMix
from mixar_adaptive.sampler import AdaptiveConfig, AdaptiveSampler
from mixar_core.noise import Noise
from mixar_core.plan import Plan, Sampler, Task
from mixar_core.types import DiscreteTokens
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler

ARMS = {"dc-mix": "dc-mix", "adaptive": "dc-mix-adaptive"}
#: of the prior: in TI-Mix and in the frontier, and those that are compared
TEMPERATURE, TEMPERATURES = 2.0, (1.0, 2.0, 3.0)
COUNT = 500
#: log-probabilities of codes, and shares of tokens known, that the gates are asked about
CONFIDENCES, KNOWN = torch.tensor([0.0, -0.5, -1.0, -2.0, -3.0, -5.0, -8.0]), (0.0, 0.5)


class ByChance(AdaptiveSampler):
    """The control: the same steps, and the tokens in random order."""

    def plan(self, task: Task, *, noise: Noise) -> Plan:
        """As if nothing were known of the codes."""
        return super().plan(evolve(task, confidence_BN=None), noise=noise)


#: a way to draw: the sampler, autoregressive steps, steps of the head, the prior's temperature
Drawing = tuple[Sampler, int, int, float]


def cosine(steps: int, head: int, temperature: float = TEMPERATURE) -> tuple[str, Drawing]:
    """The plan of MAR, with its name."""
    name = f"cosine: {steps} steps, head {head}, prior at {temperature:g}"
    return name, (CosineSampler(CosineConfig()), steps, head, temperature)


def adaptive(steps: int, share: float, redraw: float = 0.0, *, chance: bool = False) -> tuple[str, Drawing]:
    """The confident share in one step with 10 steps of the head, the others with 25."""
    kind, sampler = ("by chance", ByChance) if chance else ("adaptive", AdaptiveSampler)
    config = AdaptiveConfig(confident=share, confident_head_steps=10, redraw=redraw)
    name = f"{kind}: {steps} steps, {share:.0%} in one, head 10, redraw {redraw:.0%}"
    return name, (sampler(config), steps, 25, TEMPERATURE)


COMPARED = dict(cosine(8, 25, temperature) for temperature in TEMPERATURES)
FRONTIER = dict(
    [
        *(cosine(steps, head) for steps, head in ((2, 10), (4, 10), (8, 10), (4, 25), (16, 25), (8, 50))),
        *(adaptive(steps, share) for steps, share in ((3, 0.5), (5, 0.5), (9, 0.5), (5, 0.75))),
        adaptive(5, 0.5, 0.25),
        adaptive(5, 0.5, chance=True),
    ]
)


def main(arms: str = ",".join(ARMS), seeds: str = "0,1,2", steps: int = 300, out: Path = Path("runs/adaptive")) -> None:
    """Train, draw, measure, and tell of all runs under `--out`."""
    for seed, arm in product(study.numbers(seeds), study.names(arms, ARMS)):
        changes = {
            "injector": {"type": ARMS[arm]},
            "prior": {"weights": "digits_prior", "predict_temperature": TEMPERATURE},
            "ti_mix": {"schedule": "constant", "start": 0.5},
            "training": {"seed": seed, "steps": steps, "learning_rate": 5e-4, "warmup_steps": 20},
            "init": {"from": "digits"},
            "accept_other_classes": True,  # digits have numbers for names
            "callbacks": [],
        }
        study.measured(study.trained(out / f"{arm}-{seed}", "digits_quick", changes), drawn, arm=arm, seed=seed)
    study.report(out / "adaptive", out, ["arm", "drawing"], [*ARMS])
    found = sorted(out.glob("dc-mix-*/measured.json"))
    plot([row for path in found for row in json.loads(path.read_text())], out / "adaptive.png")
    gated = [mixar.load(path.parent) for path in sorted(out.glob("adaptive-*/measured.json"))]
    for known in KNOWN if gated else ():
        gates_N = torch.stack([gate(model, CONFIDENCES, known) for model in gated]).mean(dim=0)
        said = (f"{at:g}: {value:.2f}" for at, value in zip(CONFIDENCES.tolist(), gates_N.tolist(), strict=True))
        print(f"gates by log-probability, {known:.0%} known: {', '.join(said)}")


def drawn(run: Path, about: study.Row) -> study.Found:
    """Digits of every drawing, from codes that are drawn once a temperature, and the seconds of all but the codes."""
    model, seed = mixar.load(run, precision="bf16"), about["seed"]
    mixture, labels_B, rows = model.system.model, model.labels(study.balanced(COUNT)), []
    drawings = {**COMPARED, **(FRONTIER if about["arm"] == "dc-mix" else {})}
    assert mixture is not None and mixture.prior is not None
    for temperature in TEMPERATURES:
        settings = evolve(model.recipe.sampling, prior_temperature=temperature)
        codes = mixture.sample_codes(mixture.condition(labels_B), settings=settings, noise=batch_noise(seed, 0))
        alone = study.judge().figures(model.decode_codes(codes.codes_BN), labels_B)
        rows.append({"drawing": f"codes alone, prior at {temperature:g}", **alone})
        with mock.patch.object(mixture.prior, "sample", lambda *_, codes=codes, **__: codes):
            for name, (sampler, steps, head, at) in drawings.items():
                if at != temperature:
                    continue
                mixture.sampler = sampler
                settings = evolve(model.recipe.sampling, steps=steps, head_steps=head)
                began = time.process_time()  # with one thread the seconds of one core, whatever else runs
                images = model.draw(labels_B, settings, batch_noise(seed, 1))[0]
                seconds = time.process_time() - began
                rows.append({"drawing": name, **study.judge().figures(images, labels_B), "seconds": seconds})
    return rows, {}


@torch.no_grad()
def gate(model: Model, confidences_N: torch.Tensor, known: float) -> torch.Tensor:
    """The gates (N,) of codes with these confidences."""
    assert model.system.model is not None
    injector, nothing_BNE = model.system.model.injector, torch.zeros(1, len(confidences_N), 0)
    assert isinstance(injector, AdaptiveDCMix)
    codes_BN = torch.zeros(1, len(confidences_N), dtype=torch.int64)
    return injector.gate(DiscreteTokens(codes_BN, nothing_BNE, nothing_BNE, confidences_N[None], known))[0]


def plot(rows: Sequence[study.Row], file: Path) -> None:
    """Seconds against kernel distance, a colour for each sampler, means over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name in (cosine(8, 25)[0], *FRONTIER):
        if not (found := [row for row in rows if row["drawing"] == name]):
            continue
        at = mean(row["seconds"] for row in found), mean(row["kernel"] for row in found)
        axes.plot(*at, {"cosine": "oC0", "adaptive": "sC1", "by chance": "xC2"}[name.partition(":")[0]])
        axes.annotate(name, at, xytext=(4, 3), textcoords="offset points", fontsize=6)
    axes.set_xlabel(f"processor seconds for {COUNT:,} digits, without the prior's")
    axes.set_ylabel("KID to real digits")
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    typer.run(main)

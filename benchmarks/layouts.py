"""Codes in other layouts than a grid: `python -m benchmarks.layouts [--seeds 0 1 2] [--out runs/layouts]`

Trains on digits a residual tokenizer (recipe `digits_rvq`: two codes a place) and a pyramid one (`digits_pyramid`: a
pyramid of three grids), a small prior for each, and a MixAR with each of them by every door: fill (dc-mix), prefix
(dc-sa), memory (dc-ca). The same MixARs with the shipped grid tokenizer `digits_lfq` and its prior stand beside them.
All are measured by a classifier fitted on real digits. What is trained or measured already is kept; `--only rvq_prior`
does one of the runs alone, and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mixar
from benchmarks.heads import digits, spread
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_eval.distances import frechet_distance, kernel_distance
from mixar_eval.report import csv_text, table
from mixar_zoo.classifier import DigitClassifier, fit_classifier

#: bits of a code, by tokenizer; that of the shipped one, whose prior is shipped, too, is not trained here
BITS = {"rvq": 5, "pyramid": 8}
SHIPPED = "lfq"
DOORS = {"fill": "dc-mix", "prefix": "dc-sa", "memory": "dc-ca"}
#: optimizer steps of the priors and of the MixARs
PRIOR_STEPS, STEPS = 600, 500
SAMPLES = 500
_BATCH = 250
#: what is told of a tokenizer, and of what was drawn
_ABOUT = ("layout", "tokens", "bits", "psnr", "reconstruction_frechet")
_DRAWN = {"recognised": ".1%", "kernel": ".4f", "frechet": ".4f"}


def runs(seeds: list[int]) -> Iterator[str]:
    """Names of all runs, each behind those it needs."""
    for name in BITS:
        yield from (name, f"{name}_prior")
    for seed in seeds:
        for door in DOORS:
            yield from (f"{name}_{door}_{seed}" for name in (SHIPPED, *BITS))


def recipe_of(run: str, out: Path) -> mixar.Recipe:
    """What this run trains."""
    tokenizer, *rest = run.split("_")
    codes = f"digits_{tokenizer}" if tokenizer == SHIPPED else str((out / tokenizer).resolve())
    quiet = {"callbacks": [], "training.evaluate_every": 0, "training.preview_every": 0}
    if not rest:
        return mixar.load_recipe(f"digits_{tokenizer}", {"callbacks": []})
    if rest == ["prior"]:
        prior = {"type": "maskgit", "bits": BITS[tokenizer], "stride": 8, "splits": 1}
        sizes = {"width": 128, "depth": 4, "heads": 4, "mlp_dim": 512}
        sampling = {"label_smoothing": 0.0, "steps": 16, "guidance_scale": 0.0, "randomize_temperature": 4.0}
        changes = {"prior": {**prior, **sizes, **sampling}, "training.steps": PRIOR_STEPS, "training.ema_decay": 0.99}
        return mixar.load_recipe("digits_prior", {**quiet, **changes, "discrete_tokenizer.weights": codes})
    door, seed = rest
    weights = "digits_prior" if tokenizer == SHIPPED else str((out / f"{tokenizer}_prior").resolve())
    changes = {
        "discrete_tokenizer.weights": codes,
        "prior.weights": weights,
        "injector": {"type": DOORS[door]},
        "ti_mix.schedule": "constant",  # a pyramid's codes do not stand on one token each
        "training.steps": STEPS,
        "training.seed": int(seed),
    }
    return mixar.load_recipe("digits_quick", {**quiet, **changes})


def train(run: str, out: Path) -> None:
    """Train this run, unless that is done."""
    folder = out / run
    if not (folder / "weights.safetensors").is_file():
        mixar.train(recipe_of(run, out), folder, resume=folder.exists())


class Judge:
    """Real digits and a classifier fitted on them."""

    def __init__(self) -> None:
        self.classifier: DigitClassifier = fit_classifier(*digits("train"))
        self.real_B3HW, _ = digits("validation")
        self.real_AF = self.classifier.judge(self.real_B3HW)[1]

    def of_drawn(self, images_B3HW: Tensor, labels_B: Tensor) -> dict[str, float]:
        """Share recognised as what was asked for, and distances to the real validation digits."""
        found_B, features_AF = self.classifier.judge(images_B3HW)
        return {
            "recognised": float((found_B == labels_B).float().mean()),
            "kernel": kernel_distance(features_AF, self.real_AF),
            "frechet": frechet_distance(features_AF, self.real_AF),
        }

    @torch.no_grad()
    def of_tokenizer(self, tokenizer: DiscreteTokenizer) -> dict[str, Any]:
        """Layout and cost of its codes, and how far reconstructions of the validation digits lie off."""
        images = self.real_B3HW.float() / 127.5 - 1
        decoded = torch.cat([tokenizer.decode(tokenizer.encode(part)) for part in images.split(_BATCH)])
        error_B = (decoded - images).square().flatten(1).mean(dim=1)
        features_AF = self.classifier.judge(((decoded + 1) * 127.5).round().to(torch.uint8))[1]
        return {
            "layout": str(tokenizer.layout),
            "tokens": tokenizer.layout.tokens,
            "bits": round(tokenizer.layout.tokens * math.log2(tokenizer.codebook_size)),
            "psnr": float((10 * torch.log10(4 / error_B)).mean()),
            "reconstruction_frechet": frechet_distance(features_AF, self.real_AF),
        }


def measure(run: str, out: Path, judge: Judge) -> None:
    """Draw with a MixAR and measure, unless that is done; the tokenizer and its codes alone with the first of them."""
    tokenizer, _, seed = run.split("_")
    labels_B = torch.arange(10).repeat_interleave(SAMPLES // 10)
    report, codes_report = out / run / "measured.json", out / f"{tokenizer}_codes.json"
    if report.is_file() and codes_report.is_file():
        return
    model = mixar.load(out / run)
    codes_BN = model.sample_codes(labels_B, seed=0)
    if not codes_report.is_file():
        assert model.system.discrete_tokenizer is not None
        alone = torch.cat([model.decode_codes(part) for part in codes_BN.split(_BATCH)])
        figures = judge.of_tokenizer(model.system.discrete_tokenizer)
        codes_report.write_text(json.dumps({**figures, **judge.of_drawn(alone, labels_B)}))
    drawn = model.generate(labels_B, codes=codes_BN, seed=int(seed), batch_size=_BATCH).images
    report.write_text(json.dumps(judge.of_drawn(drawn, labels_B)))


def tables(seeds: list[int], out: Path, results: Path) -> None:
    """Print two tables, of tokenizers and of what was drawn, and write layouts.csv, a row a measurement."""
    tokenizers, drawn, rows = [], [], []
    for name in (SHIPPED, *BITS):
        codes = json.loads((out / f"{name}_codes.json").read_text())
        about = {"tokenizer": f"digits_{name}", **{key: codes[key] for key in _ABOUT}}
        tokenizers.append({**about, "psnr": f"{codes['psnr']:.2f}"})
        found: dict[str, dict[int | None, Any]] = {"codes alone": {None: codes}}
        for door, injector in DOORS.items():
            files = {seed: out / f"{name}_{door}_{seed}/measured.json" for seed in seeds}
            found[f"MixAR, {door} ({injector})"] = {seed: json.loads(file.read_text()) for seed, file in files.items()}
        for by, figures in found.items():
            cells = {key: spread([figure[key] for figure in figures.values()], form) for key, form in _DRAWN.items()}
            drawn.append({"codes": f"digits_{name}", "drawn by": by, **cells})
            rows += [
                {**about, "drawn_by": by, "seed": seed, **{key: figure[key] for key in _DRAWN}}
                for seed, figure in figures.items()
            ]
    results.mkdir(parents=True, exist_ok=True)
    (results / "layouts.csv").write_text(csv_text(rows))
    print(table(tokenizers), table(drawn), sep="\n")


def main() -> None:
    """Train, measure, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the MixARs")
    parser.add_argument("--out", type=Path, default=Path("runs/layouts"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of the figures")
    parser.add_argument("--only", metavar="RUN", help="train this run alone")
    arguments = parser.parse_args()
    if arguments.only:
        train(arguments.only, arguments.out)
        return
    for run in runs(arguments.seeds):
        train(run, arguments.out)
    judge = Judge()
    for run in runs(arguments.seeds):
        if run.count("_") == 2:
            measure(run, arguments.out, judge)
    tables(arguments.seeds, arguments.out, arguments.results)


if __name__ == "__main__":
    main()

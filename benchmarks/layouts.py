"""Codes in other layouts than a grid: `python -m benchmarks.layouts [--seeds 0,1,2] [--out runs/layouts]`

Trains on digits a residual tokenizer (recipe `digits_rvq`: two codes a place) and a pyramid one (`digits_pyramid`: a
pyramid of three grids), a small prior for each, and a MixAR with each of them by every door: fill (dc-mix), prefix
(dc-sa), memory (dc-ca). The same MixARs with the shipped grid tokenizer `digits_lfq` and its prior stand beside them.
All are measured by a classifier fitted on real digits. `--quick`: a few steps of everything.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import torch
import typer

import mixar
from benchmarks import study
from mixar_core.pictures import to_uint8

#: bits of a code, by tokenizer; the first one is shipped with its prior, which are not trained here
BITS = {"lfq": 10, "rvq": 5, "pyramid": 8}
DOORS = {"fill": "dc-mix", "prefix": "dc-sa", "memory": "dc-ca"}
#: optimizer steps of the priors and of the MixARs
PRIOR_STEPS, STEPS = 600, 500
SAMPLES, _BATCH = 500, 250


def main(
    seeds: str = "0,1,2",
    out: Path = Path("runs/layouts"),
    results: Path = Path("docs/results"),
    quick: bool = False,
) -> None:
    """Train, measure, and tell of all runs under `--out`."""
    few = {"training.steps": 10, "training.warmup_steps": 0} if quick else {}
    for name, bits in BITS.items():
        tokenizer, prior = f"digits_{name}", "digits_prior"
        if name != "lfq":
            tokenizer = str(study.trained(out / name, tokenizer, {"callbacks": [], **few}).resolve())
            prior = str(study.trained(out / f"{name}_prior", prior, {**prior_of(tokenizer, bits), **few}).resolve())
        for number, (seed, (door, injector)) in enumerate(product(study.numbers(seeds), DOORS.items())):
            changes = {
                "discrete_tokenizer.weights": tokenizer,
                "prior.weights": prior,
                "injector": {"type": injector},
                "ti_mix.schedule": "constant",  # a pyramid's codes do not stand on one token each
                "training.steps": STEPS,
                "training.seed": seed,
            }
            run = study.trained(out / f"{name}_{door}_{seed}", "digits_quick", {**study.QUIET, **changes, **few})
            about = {"tokenizer": f"digits_{name}", "drawn_by": f"MixAR, {door} ({injector})", "seed": seed}
            study.measured(run, drawn if number else with_codes_alone, **about)
    study.report(results / "layouts", out, ["tokenizer", "drawn_by"], [f"digits_{name}" for name in BITS])


def prior_of(tokenizer: str, bits: int) -> study.Row:
    """What a small prior changes in the recipe."""
    prior = {"type": "maskgit", "bits": bits, "stride": 8, "splits": 1}
    prior |= {"width": 128, "depth": 4, "heads": 4, "mlp_dim": 512}
    prior |= {"label_smoothing": 0.0, "steps": 16, "guidance_scale": 0.0, "randomize_temperature": 4.0}
    changes = {"prior": prior, "training.steps": PRIOR_STEPS, "training.ema_decay": 0.99}
    return {**study.QUIET, **changes, "discrete_tokenizer.weights": tokenizer}


def drawn(run: Path, about: study.Row) -> study.Found:
    """Digits of a MixAR, from codes that are the same for all doors and seeds."""
    model, labels_B = mixar.load(run), study.balanced(SAMPLES)
    codes_BN = model.sample_codes(labels_B, seed=0)
    return [study.drawn(model, labels_B, seed=about["seed"], codes=codes_BN)[1]], {}


@torch.no_grad()
def with_codes_alone(run: Path, about: study.Row) -> study.Found:
    """The same, and what the codes alone decode to; the tokenizer's layout, cost and reconstructions beside them."""
    model, labels_B = mixar.load(run), study.balanced(SAMPLES)
    codes_BN, tokenizer = model.sample_codes(labels_B, seed=0), model.system.discrete_tokenizer
    assert tokenizer is not None
    alone = study.codes_alone(model, codes_BN)
    real_B3HW, classes_B = study.digits("validation")
    x_B3HW = real_B3HW.float() / 127.5 - 1
    decoded = torch.cat([tokenizer.decode(tokenizer.encode(part)) for part in x_B3HW.split(_BATCH)])
    error_B = (decoded - x_B3HW).square().flatten(1).mean(dim=1)
    row = {
        "drawn_by": "codes alone",
        **study.judge().figures(alone, labels_B),
        "layout": str(tokenizer.layout),
        "bits": round(tokenizer.layout.tokens * math.log2(tokenizer.codebook_size)),
        "psnr": float((10 * torch.log10(4 / error_B)).mean()),
        "reconstruction_frechet": study.judge().figures(to_uint8(decoded), classes_B)["frechet"],
    }
    return [row, *drawn(run, about)[0]], {}


if __name__ == "__main__":
    typer.run(main)

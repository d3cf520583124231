"""MixAR over a family of priors: `python -m benchmarks.family [--jobs N] [--limit SECONDS] [--out runs/family]`

The same MixAR is trained on digits over three discrete tokenizers: bits on a grid (`digits_lfq`), a pyramid of scales
(`digits_pyramid`), a sequence without places (TiTok's). Codes of the first two come in by the fill (dc-mix), of
the last by the prefix (dc-sa). Priors of five kinds draw the codes: masked bits, raster next-token, random order,
next-scale, and masked codes of the sequence; all are trained for as many steps, with transformers of one size. Without
TI-Mix a MixAR is trained on true codes, so that priors of one tokenizer share it.

What is trained or measured already is kept; a run that is stopped is resumed by the same command. At the end: a table,
`family.csv` and `family.png` in `--results`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from safetensors.torch import load_file, save_file

import mixar
from benchmarks.heads import spread
from benchmarks.layouts import Judge
from mixar_core.pictures import rows_picture, write_png
from mixar_eval.report import csv_text, table

#: optimizer steps of the priors and of the MixARs
PRIOR_STEPS, STEPS = 500, 400
SAMPLES, _BATCH = 500, 250
#: a tokenizer and the injector of its codes
TOKENIZERS = {"lfq": "dc-mix", "pyramid": "dc-mix", "titok": "dc-sa"}
SHIPPED = "lfq"
#: TiTok's shape: what `digits_pyramid` is changed to
TITOK = {
    "name": "digits_titok",
    "discrete_tokenizer": {
        "type": "titok",
        "legacy": False,
        "tokens": 16,
        "patch": 8,
        "width": 96,
        "depth": 3,
        "heads": 4,
        "decoder_width": 96,
        "decoder_depth": 3,
        "decoder_heads": 4,
        "codebook_size": 1024,
        "code_width": 10,
        "entropy_weight": 0.02,
        "entropy_temperature": 0.1,
    },
    "reconstruction.loss": "l2",  # of seven settings tried for 300 steps the best; with l1 strokes stay black for long
    "training.steps": 1500,
    "training.batch_size": 32,
    "training.learning_rate": 2e-3,
    "training.precision": "float32",
    "training.ema_decay": 0.99,
}
_MASKED = {"splits": 1, "label_smoothing": 0.0, "steps": 16, "guidance_scale": 0.0, "randomize_temperature": 4.0}
_SIZE = {"width": 128, "depth": 6, "heads": 4}
_LLAMA = {**_SIZE, "multiple_of": 32, "guidance_scale": 1.0}
_BERT = {**_SIZE, "mlp_dim": 512, "bits": 10, **_MASKED}
_FIGURES = {"recognised": ".1%", "kernel": ".4f", "frechet": ".3f"}


@frozen
class Prior:
    """A way to draw codes: in words, over which tokenizer, and its settings."""

    words: str
    tokenizer: str
    settings: Mapping[str, Any]


PRIORS = {
    "masked": Prior("masked bits", "lfq", {"type": "maskbit", "stride": 8, **_BERT}),
    "raster": Prior("raster next-token", "lfq", {"type": "llamagen", **_LLAMA}),
    "random": Prior("random order", "lfq", {"type": "randar", **_LLAMA}),
    "scales": Prior("next-scale", "pyramid", {"type": "var", **_SIZE, "guidance_scale": 0.0, "top_k": 0, "top_p": 1.0}),
    "sequence": Prior("masked sequence", "titok", {"type": "maskgit", "stride": 8, **_BERT}),
}


def runs(seeds: list[int]) -> dict[str, list[str]]:
    """Names of what is trained, each with those it needs."""
    needs: dict[str, list[str]] = {name: [] for name in TOKENIZERS if name != SHIPPED}
    needs |= {f"{name}_prior": needs_of(prior.tokenizer) for name, prior in PRIORS.items()}
    return needs | {f"{name}_mixar_{seed}": needs_of(name) for seed in seeds for name in TOKENIZERS}


def needs_of(tokenizer: str) -> list[str]:
    """What must be trained before something over this tokenizer."""
    return [] if tokenizer == SHIPPED else [tokenizer]


def recipe_of(run: str, out: Path, *, quick: bool) -> mixar.Recipe:
    """What this run trains; in a quick one of a few steps each."""
    name, *rest = run.split("_")
    quiet: dict[str, Any] = {"callbacks": [], "training.evaluate_every": 0, "training.preview_every": 0}
    few = {"training.steps": 10, "training.warmup_steps": 0} if quick else {}
    if not rest:
        changes = TITOK if name == "titok" else {}
        return mixar.load_recipe("digits_pyramid", {**changes, **quiet, **few})
    tokenizer = PRIORS[name].tokenizer if rest == ["prior"] else name
    codes = f"digits_{tokenizer}" if tokenizer == SHIPPED else str((out / tokenizer).resolve())
    changes = {**quiet, "discrete_tokenizer.weights": codes}
    if rest == ["prior"]:
        settings = {"prior": dict(PRIORS[name].settings), "training.steps": PRIOR_STEPS, "training.ema_decay": 0.99}
        return mixar.load_recipe("digits_prior", {**changes, **settings, **few})
    settings = {"prior": None, "injector": {"type": TOKENIZERS[name]}, "ti_mix.schedule": "constant"}
    own = {"training.steps": STEPS, "training.seed": int(rest[1])}
    return mixar.load_recipe("digits_quick", {**changes, **settings, **own, **few})


def done(run: str, out: Path) -> bool:
    """Whether it is trained."""
    return (out / run / "weights.safetensors").is_file()


def train(run: str, out: Path, *, quick: bool) -> None:
    """Train this run, unless that is done."""
    if not done(run, out):
        mixar.train(recipe_of(run, out, quick=quick), out / run, resume=(out / run).exists())


def train_all(needs: Mapping[str, list[str]], out: Path, *, jobs: int, limit: float, quick: bool) -> bool:
    """Train what is not trained, so many at once, each a process with one thread; whether all is done in time."""
    end, running, failed = time.monotonic() + limit, dict[str, subprocess.Popen[bytes]](), set[str]()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    while True:
        for run in [run for run, process in running.items() if process.poll() is not None]:
            if running.pop(run).returncode:
                failed.add(run)
            print(f"{run}: {'failed, see its .txt' if run in failed else 'trained'}", flush=True)
        todo = [run for run in needs if not done(run, out) and run not in failed and run not in running]
        ready = [run for run in todo if all(done(need, out) for need in needs[run])]
        if time.monotonic() > end or not (running or ready):
            break
        for run in ready[: jobs - len(running)]:
            command = [sys.executable, "-m", "benchmarks.family", "--only", run, "--out", str(out)]
            command += ["--quick"] if quick else []
            with (out / f"{run}.txt").open("ab") as log:
                running[run] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        time.sleep(0.2)
    for process in running.values():  # each leaves a checkpoint
        process.terminate()
    for process in running.values():
        process.wait()
    return all(done(run, out) for run in needs)


def measure(name: str, seed: int, out: Path, judge: Judge) -> None:
    """Draw with a prior and a MixAR and measure, unless that is done; a file of figures and one of a few images."""
    file = out / f"{name}_{seed}.json"
    if file.is_file():
        return
    labels_B = torch.arange(10).repeat_interleave(SAMPLES // 10)
    model = mixar.load(out / f"{PRIORS[name].tokenizer}_mixar_{seed}")
    began = time.process_time()
    codes_BN = mixar.load(out / f"{name}_prior").sample_codes(labels_B, seed=seed)
    drawn_at = time.process_time()
    images = model.generate(labels_B, codes=codes_BN, seed=seed, batch_size=_BATCH).images
    ended = time.process_time()
    alone = torch.cat([model.decode_codes(part) for part in codes_BN.split(_BATCH)])
    few = labels_B.unique() * (SAMPLES // 10)
    save_file({"mixar": images[few].contiguous(), "alone": alone[few].contiguous()}, file.with_suffix(".safetensors"))
    seconds = {"prior_ms": (drawn_at - began) / SAMPLES * 1e3, "mixar_ms": (ended - drawn_at) / SAMPLES * 1e3}
    found = {"mixar": judge.of_drawn(images, labels_B), "codes alone": judge.of_drawn(alone, labels_B), **seconds}
    file.write_text(json.dumps(found))


def report(seeds: list[int], out: Path, results: Path) -> None:
    """Print the table, and write it, a row a measurement, and a picture: a digit of each class a row."""
    printed, rows, pictures = [], [], {}
    for name, prior in PRIORS.items():
        found = {seed: json.loads((out / f"{name}_{seed}.json").read_text()) for seed in seeds}
        about = {"prior": prior.words, "codes": f"digits_{prior.tokenizer}", "door": TOKENIZERS[prior.tokenizer]}
        for by in ("codes alone", "mixar"):
            figures = [found[seed][by] for seed in seeds]
            cells = {key: spread([figure[key] for figure in figures], form) for key, form in _FIGURES.items()}
            key = "prior_ms" if by == "codes alone" else "mixar_ms"
            printed.append({**about, "drawn by": by, **cells, "ms/image": f"{min(found[s][key] for s in seeds):.1f}"})
            rows += [
                {**about, "drawn_by": by, "seed": seed, **found[seed][by], "ms": found[seed][key]} for seed in seeds
            ]
        drawn = load_file(out / f"{name}_{seeds[0]}.safetensors")
        pictures |= {f"{prior.words}: codes": drawn["alone"], f"{prior.words}: MixAR": drawn["mixar"]}
    results.mkdir(parents=True, exist_ok=True)
    (results / "family.csv").write_text(csv_text(rows))
    write_png(results / "family.png", rows_picture(pictures, "codes of each prior decoded alone, and with MixAR"))
    print(table(printed))


def main() -> None:
    """Train, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the MixARs, and of the draws")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, each with one thread")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds after which trainings are stopped")
    parser.add_argument("--out", type=Path, default=Path("runs/family"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=Path("docs/results"), help="folder of the figures")
    parser.add_argument("--quick", action="store_true", help="a few steps of everything, to try it")
    parser.add_argument("--only", metavar="RUN", help="train this run alone")
    arguments = parser.parse_args()
    if arguments.only:
        train(arguments.only, arguments.out, quick=arguments.quick)
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    settings = {"jobs": arguments.jobs, "limit": arguments.limit, "quick": arguments.quick}
    if not train_all(runs(arguments.seeds), arguments.out, **settings):
        sys.exit("not all is trained: the same command goes on")
    judge = Judge()
    for name in PRIORS:
        for seed in arguments.seeds:
            measure(name, seed, arguments.out, judge)
    report(arguments.seeds, arguments.out, arguments.results)


if __name__ == "__main__":
    main()

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

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import typer
from attrs import frozen
from safetensors.torch import load_file, save_file

import mixar
from benchmarks import study
from benchmarks.claims.jobs import Desk
from benchmarks.claims.runner import run_all
from mixar_core.pictures import rows_picture, write_png
from mixar_core.storage import write_text
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
_FIGURES = ("recognised", "kernel", "frechet")


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


@frozen
class Place(Desk):
    """The runs lie in the folder itself."""

    def folder(self, run: str) -> Path:
        """Of a run."""
        return (self.out / run).resolve()


@frozen
class Run:
    """What is trained, over a tokenizer which must be there before."""

    name: str
    tokenizer: str
    threads: int = 1

    @property
    def run(self) -> str:
        """Its folder."""
        return self.name

    @property
    def needs(self) -> frozenset[str]:
        """The runs that must be there before."""
        return frozenset({self.tokenizer} - {SHIPPED, self.name})

    def done(self, desk: Desk) -> bool:
        """Whether it is trained."""
        return desk.has(self.name)


def runs(seeds: list[int]) -> list[Run]:
    """All that is trained."""
    tokenizers = [Run(name, name) for name in TOKENIZERS if name != SHIPPED]
    priors = [Run(f"{name}_prior", prior.tokenizer) for name, prior in PRIORS.items()]
    return [*tokenizers, *priors, *(Run(f"{name}_mixar_{seed}", name) for seed in seeds for name in TOKENIZERS)]


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


def measure(name: str, seed: int, out: Path) -> None:
    """Draw with a prior and a MixAR and measure, unless that is done; a file of figures and one of a few images."""
    file = out / f"{name}_{seed}.json"
    if file.is_file():
        return
    labels_B = study.balanced(SAMPLES)
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
    judged = {"mixar": study.judge().figures(images, labels_B), "codes alone": study.judge().figures(alone, labels_B)}
    write_text(file, json.dumps({**judged, **seconds}))


def report(seeds: list[int], out: Path, results: Path) -> None:
    """Print the table, and write it, a row a measurement, and a picture: a digit of each class a row."""
    printed, rows = [], []
    pictures: dict[str, torch.Tensor] = {}
    for name, prior in PRIORS.items():
        found = {seed: json.loads((out / f"{name}_{seed}.json").read_text()) for seed in seeds}
        about = {"prior": prior.words, "codes": f"digits_{prior.tokenizer}", "door": TOKENIZERS[prior.tokenizer]}
        for by in ("codes alone", "mixar"):
            cells = {of: study.spread([found[seed][by][of] for seed in seeds]) for of in _FIGURES}
            key = "prior_ms" if by == "codes alone" else "mixar_ms"
            printed.append({**about, "drawn by": by, **cells, "ms/image": f"{min(found[s][key] for s in seeds):.1f}"})
            rows += [
                {**about, "drawn_by": by, "seed": seed, "ms": found[seed][key]}
                | {of: found[seed][by][of] for of in _FIGURES}
                for seed in seeds
            ]
        drawn = load_file(out / f"{name}_{seeds[0]}.safetensors")
        pictures |= {f"{prior.words}: codes": drawn["alone"], f"{prior.words}: MixAR": drawn["mixar"]}
    results.mkdir(parents=True, exist_ok=True)
    (results / "family.csv").write_text(csv_text(rows))
    write_png(results / "family.png", rows_picture(pictures, "codes of each prior decoded alone, and with MixAR"))
    print(table(printed))


def main(
    seeds: str = "0,1,2",
    jobs: int = 1,
    limit: float | None = None,
    out: Path = Path("runs/family"),
    results: Path = Path("docs/results"),
    quick: bool = False,
    device: str = "cpu",
    only: str | None = None,
) -> None:
    """Train so many at once, each with one thread, for `--limit` seconds; then measure, and report.

    Seeds are those of the MixARs and of the draws; `--quick`: a few steps of everything; `--only`: one run alone.
    """
    desk, wanted = Place(out, quick, device), study.numbers(seeds)
    if only:
        recipe = recipe_of(only, out, quick=quick)
        mixar.train(recipe, desk.folder(only), resume=desk.folder(only).exists(), device=device)
        return
    outcome = run_all(runs(wanted), desk, of=("benchmarks.family", "--only"), jobs=jobs, limit_s=limit)
    if outcome.failed or outcome.left:
        sys.exit(f"failed: {', '.join(outcome.failed) or 'none'}; left: {outcome.left}; the same command goes on")
    for name in PRIORS:
        for seed in wanted:
            measure(name, seed, out)
    report(wanted, out, results)


if __name__ == "__main__":
    typer.run(main)

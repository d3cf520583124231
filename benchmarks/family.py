"""MixAR over a family of priors: `python -m benchmarks.family [--seeds 0,1,2] [--out runs/family]`

The same MixAR is trained on digits over three discrete tokenizers: bits on a grid (`digits_lfq`), a pyramid of scales
(`digits_pyramid`), a sequence without places (TiTok's). Codes of the first two come in by the fill (dc-mix), of
the last by the prefix (dc-sa). Priors of five kinds draw the codes: masked bits, raster next-token, random order,
next-scale, and masked codes of the sequence; all are trained for as many steps, with transformers of one size. Without
TI-Mix a MixAR is trained on true codes, so that priors of one tokenizer share it. `--quick`: a few steps of everything.
"""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path
from typing import Any

import typer

import mixar
from benchmarks import study

#: optimizer steps of the priors and of the MixARs
PRIOR_STEPS, STEPS = 500, 400
SAMPLES = 500
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
_VAR = {**_SIZE, "guidance_scale": 0.0, "top_k": 0, "top_p": 1.0}
#: ways to draw codes: a name of its run, over which tokenizer, and its settings
PRIORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "masked bits": ("masked", "lfq", {"type": "maskbit", "stride": 8, **_BERT}),
    "raster next-token": ("raster", "lfq", {"type": "llamagen", **_LLAMA}),
    "random order": ("random", "lfq", {"type": "randar", **_LLAMA}),
    "next-scale": ("scales", "pyramid", {"type": "var", **_VAR}),
    "masked sequence": ("sequence", "titok", {"type": "maskgit", "stride": 8, **_BERT}),
}


def main(
    seeds: str = "0,1,2",
    out: Path = Path("runs/family"),
    results: Path = Path("docs/results"),
    quick: bool = False,
) -> None:
    """Train, draw, measure, and tell of all runs under `--out`. Seeds are those of the MixARs and of the draws."""
    few = {"training.steps": 10, "training.warmup_steps": 0} if quick else {}

    def over(tokenizer: str) -> study.Row:
        codes = f"digits_{tokenizer}" if tokenizer == SHIPPED else str((out / tokenizer).resolve())
        return {**study.QUIET, "discrete_tokenizer.weights": codes}

    for name in TOKENIZERS:
        if name != SHIPPED:
            own = TITOK if name == "titok" else {}
            study.trained(out / name, "digits_pyramid", {**own, **study.QUIET, **few})
    for name, tokenizer, settings in PRIORS.values():
        changes = {"prior": settings, "training.steps": PRIOR_STEPS, "training.ema_decay": 0.99}
        study.trained(out / f"{name}_prior", "digits_prior", {**over(tokenizer), **changes, **few})
    for seed, (tokenizer, injector) in product(study.numbers(seeds), TOKENIZERS.items()):
        changes = {"prior": None, "injector": {"type": injector}, "ti_mix.schedule": "constant"}
        changes |= {"training.steps": STEPS, "training.seed": seed}
        run = study.trained(out / f"{tokenizer}_mixar_{seed}", "digits_quick", {**over(tokenizer), **changes, **few})
        study.measured(run, drawn, seed=seed, codes=f"digits_{tokenizer}", door=injector)
    by = ["prior", "codes", "door", "drawn_by"]
    study.report(results / "family", out, by, [*PRIORS], title="codes of each prior decoded alone, and with MixAR")


def drawn(run: Path, about: study.Row) -> study.Found:
    """Of a MixAR and every prior of its tokenizer: what the codes alone decode to, and what MixAR makes of them."""
    model, labels_B, seed = mixar.load(run), study.balanced(SAMPLES), about["seed"]
    rows, few = [], {}
    for words, (name, tokenizer, _) in PRIORS.items():
        if about["codes"] == f"digits_{tokenizer}":
            began = time.process_time()
            codes_BN = mixar.load(run.parent / f"{name}_prior").sample_codes(labels_B, seed=seed)
            seconds = (time.process_time() - began) / SAMPLES
            alone = study.codes_alone(model, codes_BN)
            images, figures = study.drawn(model, labels_B, seed=seed, codes=codes_BN)
            judged = {**study.judge().figures(alone, labels_B), "seconds": seconds}
            rows += [{"prior": words, "drawn_by": "codes alone", **judged}]
            rows += [{"prior": words, "drawn_by": "mixar", **figures}]
            few[f"{words}: codes"] = study.first_of_each(alone, labels_B, 1)
            few[f"{words}: MixAR"] = study.first_of_each(images, labels_B, 1)
    return rows, few


if __name__ == "__main__":
    typer.run(main)

"""HART's residual or whole latents behind the same codes: `python -m benchmarks.hart [--seeds 0,1,2] [--out runs/hart]`

HART's tokenizer is trained on digits to decode its codes with what they leave over and without; its prior draws codes.
Guided by them one MixAR draws what is continuous in three forms, for as many steps: the residual that the codes leave,
the whole features that they are the codes of (decoded by the same decoder), and latents of the shipped tokenizer
`digits_continuous`. What the codes alone decode to stands beside them, from drawn codes and from the true ones of real
training digits. `--quick`: a few steps of everything.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import product
from pathlib import Path

import torch
import typer
from torch import Tensor

import mixar
from benchmarks import study
from benchmarks.claims.parts import registry_with_parts
from mixar.measuring import measure
from mixar_core.perceptual import psnr_B
from mixar_core.pictures import to_uint8

#: optimizer steps of the tokenizer, the prior and the MixARs
TOKENIZER_STEPS, PRIOR_STEPS, STEPS = 2500, 1000, 800
SAMPLES, _BATCH = 500, 250
TOKENIZER = {
    "type": "hart",
    "codes_alone": 0.5,
    "codebook_size": 256,
    "latent_channels": 16,
    "scales": [1, 2, 4],
    "smoothing": 3,
    "channels": 24,
    "channel_multipliers": [1, 2, 4, 4],
    "blocks": 1,
    "attention": False,
    "norm": "none",
    "entropy_weight": 0.1,
    "entropy_temperature": 0.5,
}
_SIZE = {"width": 128, "depth": 6, "heads": 4, "context_width": 128, "mlp_width": 384}
PRIOR = {"type": "hart", **_SIZE, "guidance_scale": 0.0, "top_k": 0, "smooth": False}
#: what a MixAR draws, and the part whose latents it is; that of the last is shipped
ARMS = {"residual": "hart-residual", "features": "hart-features", "latents": None}


def main(
    seeds: str = "0,1,2",
    out: Path = Path("runs/hart"),
    results: Path = Path("docs/results"),
    steps: int = STEPS,
    quick: bool = False,
) -> None:
    """Train, draw, measure, and tell of all runs under `--out`. Seeds are those of the MixARs and of the draws."""
    registry = registry_with_parts()
    few = {"training.steps": 2, "training.warmup_steps": 0, "training.batch_size": 8} if quick else {}
    few |= {"training.cache": "none", "reconstruction.statistics_images": 16} if quick else {}
    changes = {"name": "digits_hart", "discrete_tokenizer": TOKENIZER, "training.steps": TOKENIZER_STEPS}
    tokenizer = study.trained(out / "tokenizer", "digits_pyramid", {**study.QUIET, **changes, **few})
    codes = {**study.QUIET, "discrete_tokenizer.weights": str(tokenizer.resolve())}
    changes = {"prior": PRIOR, "training.steps": PRIOR_STEPS, "training.ema_decay": 0.99}
    study.trained(out / "prior", "digits_prior", {**codes, **changes, **few})
    for seed, (arm, part) in product(study.numbers(seeds), ARMS.items()):
        changes = {"prior": None, "ti_mix": None, "training.steps": steps, "training.seed": seed}
        if part is not None:
            latents = {"continuous_tokenizer": {"type": part}}
            if not (out / arm).exists():
                recipe = mixar.load_recipe("digits_continuous", {**codes, **latents, **few}, registry=registry)
                measure(recipe, out / arm, registry)
            changes["continuous_tokenizer.weights"] = str((out / arm).resolve())
        run = study.trained(out / f"{arm}_{seed}", "digits_quick", {**codes, **changes, **few}, registry=registry)
        study.measured(run, partial(drawn, count=20 if quick else SAMPLES), arm=arm, seed=seed)
    by, order = ["what", "arm", "codes"], ["codes alone", "mixar", "reconstructed"]
    study.report(results / out.name, out, by, order, title="a digit of each class, seed 0")


@torch.no_grad()
def drawn(run: Path, about: study.Row, *, count: int) -> study.Found:
    """What MixAR makes of drawn codes and of true ones; in the first arm's, what these decode to alone.

    True codes are those of real training digits, and with seed 0 their reconstructions stand beside them.
    """
    model, labels_B = mixar.load(run, registry=registry_with_parts()), study.balanced(count)
    discrete, continuous, seed = model.system.discrete_tokenizer, model.system.continuous_tokenizer, about["seed"]
    assert discrete is not None and continuous is not None
    real_B3HW = study.first_of_each(*study.digits("train"), count // 10)
    x_B3HW = real_B3HW.float() / 127.5 - 1
    began = time.process_time()
    codes = {"drawn": mixar.load(run.parent / "prior").sample_codes(labels_B, seed=seed, batch_size=_BATCH)}
    alone = {"seconds": (time.process_time() - began) / count}
    codes["true"] = torch.cat([discrete.encode(part) for part in x_B3HW.split(_BATCH)])
    rows, few = [], {}

    def tell(given: str, images_B3HW: Tensor, figures: study.Row, **what: str) -> None:
        if given == "true":
            figures = {**figures, "psnr": float(psnr_B(x_B3HW, images_B3HW.float() / 127.5 - 1).mean())}
        rows.append({**what, "codes": given, **figures})
        few[" ".join([*what.values(), given])] = study.first_of_each(images_B3HW, labels_B, 1)

    for given, codes_BN in codes.items():
        if about["arm"] == "residual":
            images = study.codes_alone(model, codes_BN)
            figures = study.judge().figures(images, labels_B) | (alone if given == "drawn" else {})
            tell(given, images, figures, what="codes alone", arm="")
        how = {"seed": seed, "batch_size": _BATCH, "codes": codes_BN}
        tell(given, *study.drawn(model, labels_B, **how), what="mixar", arm=about["arm"])
    if seed == 0:
        pairs = zip(x_B3HW.split(_BATCH), map(continuous.beside, codes["true"].split(_BATCH)), strict=True)
        images = to_uint8(torch.cat([beside.decode(beside.encode(part)) for part, beside in pairs]))
        tell("true", images, study.judge().figures(images, labels_B), what="reconstructed", arm=about["arm"])
    return rows, few


if __name__ == "__main__":
    typer.run(main)

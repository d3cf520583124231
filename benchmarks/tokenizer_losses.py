"""What losses add to a tokenizer: `python -m benchmarks.tokenizer_losses [--arms plain,adversarial] [--seeds 0,1,2]`

Trains the tokenizers of the digits, both kinds, with the pixels' loss alone (`plain`) and with others beside it
(ARMS), for the same steps, and reconstructs the validation digits. Distances are taken in the features of a classifier
fitted on real training digits, which no loss here has seen. Figures: PSNR; share of the validation digits that are
recognised after reconstruction; kernel (KID) and Frechet distance to them; sharpness, the mean square difference of
neighbouring pixels as a share of the real digits'; codes in use, of 1,024; processor seconds a training step.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path

import torch
import typer
from torch import Tensor

import mixar
from benchmarks import study
from mixar.generation import decoded

ADVERSARIAL = {
    "discriminator": {"type": "patchgan", "channels": 32, "layers": 2},
    "adversarial": {"weight": 0.5, "adaptive": True},
}
#: VA-VAE's alignment of latents, to features of EfficientNet-Lite0
ALIGNED = {"aligned_to": {"type": "efficientnet-lite0", "maps_scale": 1}, "alignment": {"weight": 0.1}}
ARMS: dict[str, Mapping[str, object]] = {
    "plain": {},
    "adversarial": ADVERSARIAL,
    "aligned": ALIGNED,
    "both": {**ADVERSARIAL, **ALIGNED},
}
#: tokenizers, and the arms that there are for each
TOKENIZERS = {"digits_lfq": ("plain", "adversarial"), "digits_continuous": tuple(ARMS)}
_BATCH = 250


def main(
    tokenizers: str = ",".join(TOKENIZERS),
    arms: str = ",".join(ARMS),
    seeds: str = "0,1,2",
    steps: int = 300,
    start: int = 150,
    out: Path = Path("runs/tokenizer-losses"),
    results: Path = Path("docs/results"),
    name: str = "tokenizer-losses",
) -> None:
    """Train, the discriminator from step `--start` on, reconstruct, and tell of all runs under `--out`."""
    asked = product(study.numbers(seeds), study.names(tokenizers, TOKENIZERS), study.names(arms, ARMS))
    for seed, tokenizer, arm in asked:
        if arm not in TOKENIZERS[tokenizer]:
            continue
        changes = {**study.QUIET, "training.steps": steps, "training.seed": seed, **ARMS[arm]}
        changes |= {"adversarial.start_step": start} if "adversarial" in changes else {}
        run = study.trained(out / f"{tokenizer}-{arm}-{seed}", tokenizer, changes)
        study.measured(run, reconstructed, tokenizer=tokenizer, loss=arm, seed=seed)
    study.report(results / name, out, ["tokenizer", "loss"], [*TOKENIZERS], title="validation digits, reconstructed")


@torch.no_grad()
def reconstructed(run: Path, about: study.Row) -> study.Found:
    """What the validation digits are like when a tokenizer gives them back."""
    recipe = mixar.load_recipe(run / "recipe.yaml")
    system = mixar.build(recipe, trained_weights=run / "weights.safetensors")
    assert recipe.training is not None and recipe.training.steps is not None
    real_B3HW, labels_B = study.digits("validation")
    parts = (real_B3HW.float() / 127.5 - 1.0).split(_BATCH)
    tokenizer = system.continuous_tokenizer or system.discrete_tokenizer
    assert tokenizer is not None
    encoded = [tokenizer.encode(part) for part in parts]
    decoded_B3HW = torch.cat([decoded(tokenizer, each) for each in encoded])
    error_B = (decoded_B3HW.float() - real_B3HW.float()).square().flatten(1).mean(dim=1).clamp_min(1e-6)
    row = {
        "psnr": float((10 * torch.log10(255**2 / error_B)).mean()),
        **study.judge().figures(decoded_B3HW, labels_B),
        "sharpness": sharpness(decoded_B3HW) / sharpness(real_B3HW),
        "codes": torch.cat(encoded).unique().numel() if system.discrete_tokenizer else None,
        "seconds": study.seconds_of(run) / recipe.training.steps,
    }
    label = f"{about['tokenizer'].removeprefix('digits_')}, {about['loss']}"
    return [row], {label: study.first_of_each(decoded_B3HW, labels_B, 1)}


def sharpness(images_B3HW: Tensor) -> float:
    """Mean square difference of neighbouring pixels."""
    pixels = images_B3HW.float()
    return float(sum(pixels.diff(dim=dim).square().mean() for dim in (2, 3)))


if __name__ == "__main__":
    typer.run(main)

"""What losses add to a tokenizer: `python -m benchmarks.tokenizer_losses [--arms plain,adversarial] [--seeds 0,1,2]`

Trains the tokenizers of the digits, both kinds, with the pixels' loss alone (`plain`) and with others beside it
(ARMS), for the same steps, and reconstructs the validation digits. What was done already is not done again. At the end
the figures of all runs are printed as tables, in Markdown, and written to `tokenizer-losses.csv`; reconstructions to
`tokenizer-losses.png`. Distances are taken in the features of a classifier fitted on real training digits, which no
loss here has seen. Figures: PSNR; Frechet and kernel distance (KID) of the reconstructions to the validation digits;
share of these that are recognised after reconstruction; sharpness, the mean square difference of neighbouring pixels as
a share of the real digits'; codes in use on the validation digits, of 1,024; processor seconds a training step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor

import mixar
from benchmarks.heads import digits, spread
from mixar_core.pictures import rows_picture, to_uint8, write_png
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_eval.distances import frechet_distance, kernel_distance
from mixar_eval.report import csv_text, table
from mixar_zoo.classifier import DigitClassifier, fit_classifier

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
#: figures and how they are printed
FIGURES = {
    "psnr": ".2f",
    "frechet": ".4f",
    "kid": ".4f",
    "recognised": ".1%",
    "sharpness": ".3f",
    "codes": ".0f",
    "seconds": ".3f",
}
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
    report: bool = True,
) -> None:
    """Train, the discriminator from step `--start` on, reconstruct, and measure all finished runs under `--out`."""
    for text, known in ((tokenizers, TOKENIZERS), (arms, ARMS)):
        if unknown := [name for name in text.split(",") if name not in known]:
            raise typer.BadParameter(f"unknown: {', '.join(unknown)}; allowed: {', '.join(known)}")
    for seed in map(int, seeds.split(",")):
        for tokenizer in tokenizers.split(","):
            for arm in filter(TOKENIZERS[tokenizer].__contains__, arms.split(",")):
                changes = {"training.steps": steps, "training.seed": seed, **ARMS[arm]}
                changes |= {"adversarial.start_step": start} if "adversarial" in changes else {}
                run(tokenizer, changes, out / f"{tokenizer}-{arm}-{seed}", steps=steps)
    if report:
        measure(out, results / name)


def run(tokenizer: str, changes: Mapping[str, object], folder: Path, *, steps: int) -> None:
    """Train one tokenizer and reconstruct with it, unless that is done."""
    quiet = {"callbacks": [], "training.evaluate_every": 0, "training.preview_every": 0}
    if not (folder / "weights.safetensors").is_file():
        began = time.process_time()  # with one thread the seconds of one core, whatever else the machine does
        recipe = mixar.load_recipe(tokenizer, {**quiet, **changes})
        if mixar.train(recipe, folder, resume=folder.exists()).stopped:
            raise typer.Exit(1)
        (folder / "seconds.json").write_text(json.dumps((time.process_time() - began) / steps) + "\n")
    if not (folder / "decoded.safetensors").is_file():
        found = {name: tensor.contiguous() for name, tensor in reconstruct(folder).items()}
        save_file(found, folder / "decoded.safetensors")


@torch.no_grad()
def reconstruct(folder: Path) -> dict[str, Tensor]:
    """The validation digits, as a trained tokenizer gives them back (uint8), and their codes where it has some."""
    recipe = mixar.load_recipe(folder / "recipe.yaml")
    system = mixar.build(recipe, trained_weights=folder / "weights.safetensors")
    images_B3HW = digits("validation")[0].float() / 127.5 - 1.0
    if (discrete := system.discrete_tokenizer) is not None:
        codes_BN = torch.cat([discrete.encode(part) for part in images_B3HW.split(_BATCH)])
        return {"decoded": _decoded(discrete, codes_BN), "codes": codes_BN}
    continuous = system.continuous_tokenizer
    assert continuous is not None
    parts = [continuous.decode(continuous.encode(part)) for part in images_B3HW.split(_BATCH)]
    return {"decoded": to_uint8(torch.cat(parts))}


def _decoded(tokenizer: DiscreteTokenizer, codes_BN: Tensor) -> Tensor:
    return to_uint8(torch.cat([tokenizer.decode(part) for part in codes_BN.split(_BATCH)]))


def measure(out: Path, results: Path) -> None:
    """Print a table for each tokenizer, and write a row for every finished run, `.csv`, and a picture, `.png`."""
    judge, rows = fit_classifier(*digits("train")), []
    real_B3HW, labels_B = digits("validation")
    few = torch.cat([(labels_B == digit).nonzero()[:1, 0] for digit in range(10)])
    pictures = {"real": real_B3HW[few]}
    for tokenizer in TOKENIZERS:
        cells = []
        for arm in ARMS:
            found = {}
            for path in sorted(out.glob(f"{tokenizer}-{arm}-*/decoded.safetensors")):
                seed = int(path.parent.name.split("-")[-1])
                found[seed] = figures(path, judge, real_B3HW, labels_B)
                pictures.setdefault(f"{tokenizer.removeprefix('digits_')}, {arm}", load_file(path)["decoded"][few])
            rows += [{"tokenizer": tokenizer, "loss": arm, "seed": seed, **each} for seed, each in found.items()]
            if found:
                values = {name: [each[name] for each in found.values()] for name in FIGURES}
                shown = {n: spread(v, FIGURES[n]) for n, v in values.items() if v[0] is not None}  # type: ignore
                cells.append({"loss": arm, **shown})
        if cells:
            print(f"{tokenizer}\n\n{table(cells)}")
    results.parent.mkdir(parents=True, exist_ok=True)
    results.with_suffix(".csv").write_text(csv_text(rows))
    write_png(results.with_suffix(".png"), rows_picture(pictures, "validation digits, reconstructed (seed 0)"))


def figures(path: Path, judge: DigitClassifier, real_B3HW: Tensor, labels_B: Tensor) -> dict[str, float | None]:
    """What a run's reconstructions are like."""
    stored = load_file(path)
    decoded_B3HW = stored["decoded"]
    (guessed_B, features_BF), (_, real_BF) = judge.judge(decoded_B3HW), judge.judge(real_B3HW)
    error_B = (decoded_B3HW.float() - real_B3HW.float()).square().flatten(1).mean(dim=1).clamp_min(1e-6)
    return {
        "psnr": float((10 * torch.log10(255**2 / error_B)).mean()),
        "frechet": frechet_distance(features_BF, real_BF),
        "kid": kernel_distance(features_BF, real_BF),
        "recognised": float((guessed_B == labels_B).float().mean()),
        "sharpness": sharpness(decoded_B3HW) / sharpness(real_B3HW),
        "codes": float(stored["codes"].unique().numel()) if "codes" in stored else None,
        "seconds": json.loads((path.parent / "seconds.json").read_text()),
    }


def sharpness(images_B3HW: Tensor) -> float:
    """Mean square difference of neighbouring pixels."""
    pixels = images_B3HW.float()
    return float(sum(pixels.diff(dim=dim).square().mean() for dim in (2, 3)))


if __name__ == "__main__":
    typer.run(main)

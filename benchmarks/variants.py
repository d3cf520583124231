"""MAR's variant table on a small scale: `python -m benchmarks.variants [--seeds 0,1,2] [--models raster,masked]`

Trains, for the same steps on the digits, a causal transformer in raster order, one in random order, and a bidirectional
one from masks of every ratio, each as plain MAR without codes or guidance, on 8 x 8 tokens of a continuous tokenizer
that is trained first; and the bidirectional one again for as much computing as the causal ones. Then draws: one token a
step with each, and several a step with the bidirectional one. Prints the table with the published FIDs (MAR, Table 1,
without guidance) beside what is measured here, and writes it as `variants.csv` and `variants.png` beside the runs. What
was done already is not done again.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
import typer
from attrs import frozen
from safetensors.torch import load_file, save_file

import mixar
from benchmarks.heads import digits
from mixar.cost import training_flop_per_image
from mixar_core.noise import Noise
from mixar_core.pictures import rows_picture, write_png
from mixar_core.types import TokenBatch
from mixar_eval.distances import kernel_distance
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler, OrderName
from mixar_zoo.classifier import fit_classifier

TOKENS, WIDTH, BATCH = 64, 64, 100
SIZES = {"width": WIDTH, "heads": 4, "buffer": 4, "dropout": 0.0, "attention_dropout": 0.0}
#: what is trained: the backbone (four blocks each: a masked one has an encoder and a decoder), and from which masks
MODELS: Mapping[str, Mapping[str, Any]] = {
    "raster": {
        "backbone": {"type": "causal", "order": "raster", "depth": 4, **SIZES},
        "masking": None,
        "sampler": {"type": "cosine", "order": "raster", "tokens_per_step": 1},
    },
    "random": {"backbone": {"type": "causal", "order": "random", "depth": 4, **SIZES}, "masking": None},
    "masked": {
        "backbone": {"type": "masked", "depth": 2, **SIZES},
        "masking": {"ratio_std": 100.0, "ratio_min": 0.0},  # as good as uniform: every state that sampling meets
    },
}
#: a step of the masked one multiplies less than half of what a causal one's does: as much computing is more steps
LONGER = {"masked_longer": ("masked", 2.3)}


@frozen
class Row:
    """A row of the table: which model draws, in which steps, and the FID that is published for it."""

    name: str
    model: str
    steps: int
    order: OrderName = "random"
    published: float | None = None


ROWS = (
    Row("raster, causal, one token a step", "raster", TOKENS, "raster", published=19.23),
    Row("random, causal, one token a step", "random", TOKENS, published=13.07),
    Row("random, bidirectional, one token a step", "masked", TOKENS, published=3.43),
    Row("random, bidirectional, 12 steps", "masked", 12, published=3.50),
    Row("random, bidirectional, one token a step, 2.3 x the training", "masked_longer", TOKENS),
    Row("random, bidirectional, 12 steps, 2.3 x the training", "masked_longer", 12),
    Row("random, causal, 12 steps", "random", 12),
    Row("raster, causal of random order, one token a step", "random", TOKENS, "raster"),
    Row("raster, bidirectional, one token a step", "masked", TOKENS, "raster"),
)
FIGURES = ("kid", "recognised", "loss", "seconds_an_image", "training_tflop")


def main(
    seeds: str = "0,1,2",
    models: str = ",".join([*MODELS, *LONGER]),
    steps: int = 1200,
    count: int = 500,
    out: Path = Path("runs/variants"),
    report: bool = True,
) -> None:
    """Train and draw what is not there yet, then measure and show all that is."""
    tokenizer = trained_tokenizer(out / "tokenizer")
    for seed in map(int, seeds.split(",")):
        for name in models.split(","):
            folder = out / f"{name}-{seed}"
            train(name, seed, steps, tokenizer, folder)
            for row in ROWS:
                if row.model == name:
                    draw(row, seed, count, folder)
    if report:
        show(measured(out, count), out)


def trained_tokenizer(folder: Path) -> Path:
    """A continuous tokenizer of 32 px to 8 x 8 latents of 4 channels."""
    if not (folder / "weights.safetensors").is_file():
        small = {"type": "kl", "latent_channels": 4, "channels": 16, "channel_multipliers": [1, 2, 4]}
        changes = {"continuous_tokenizer": small, "callbacks": [], "training.steps": 700}
        changes |= {"training.evaluate_every": 700, "training.preview_every": 0}
        mixar.train(mixar.load_recipe("digits_continuous", changes), folder, resume=folder.exists())
    return folder


def train(name: str, seed: int, steps: int, tokenizer: Path, folder: Path) -> None:
    """One model."""
    if (folder / "weights.safetensors").is_file():
        return
    name, times = LONGER.get(name, (name, 1.0))
    steps = round(times * steps)
    changes = {
        **MODELS[name],
        "continuous_tokenizer": {"weights": str(tokenizer.resolve())},
        "discrete_tokenizer": None,
        "prior": None,
        "injector": {"type": "none"},
        "ti_mix.schedule": "constant",
        "head": {"type": "diffusion", "depth": 2, "width": WIDTH, "sampling_steps": 25, "clip": 4.0},
        "training.steps": steps,
        "training.seed": seed,
        "training.batch_size": 32,
        "training.learning_rate": 2.0e-3,
        "training.evaluate_every": steps,
        "training.evaluate_batches": 31,
        "callbacks": [],
    }
    mixar.train(mixar.load_recipe("digits_quick", changes), folder, resume=folder.exists())


def draw(row: Row, seed: int, count: int, folder: Path) -> None:
    """Images of a row, `count` of all digits alike, and the seconds of one thread that one took (batches of 100)."""
    file = folder / f"{row.steps}-{row.order}.safetensors"
    if file.is_file():
        return
    model = mixar.load(folder)
    assert model.system.model is not None
    one = row.steps == TOKENS
    model.system.model.sampler = CosineSampler(CosineConfig(order=row.order, tokens_per_step=1 if one else None))
    began = time.process_time()
    drawn = model.generate(torch.arange(count) % 10, steps=row.steps, seed=seed, batch_size=BATCH)
    seconds = torch.tensor((time.process_time() - began) / count)
    save_file({"images": drawn.images.contiguous(), "seconds": seconds}, file)


def measured(out: Path, count: int) -> list[dict[str, Any]]:
    """The figures of every row and seed that is there, and of real digits: training ones against validation ones."""
    real, judge = digits("validation"), fit_classifier(*digits("train"))
    reference, found = judge.judge(real[0])[1], []
    for row in ROWS:
        for file in sorted(out.glob(f"{row.model}-*/{row.steps}-{row.order}.safetensors")):
            drawn, labels = load_file(file), torch.arange(count) % 10
            guessed, features = judge.judge(drawn["images"])
            log = [json.loads(line) for line in (file.parent / "log.jsonl").read_text().splitlines()]
            loss = [entry["losses"]["ema/loss"] for entry in log if entry["kind"] == "validation"][-1]
            if (row.model, row.order) == ("random", "raster"):
                loss = loss_in_raster_order(file.parent)
            figures: dict[str, Any] = {
                "row": row.name,
                "published_fid": row.published,
                "seed": int(file.parent.name.rpartition("-")[2]),
                "kid": kernel_distance(features, reference),
                "recognised": float((guessed == labels).float().mean()),
                "loss": loss,
                "seconds_an_image": float(drawn["seconds"]),
                "training_tflop": training_tflop(file.parent),
            }
            found.append(figures)
    images, labels = digits("train")
    others = torch.cat([(labels == digit).nonzero()[: count // 10, 0] for digit in range(10)])
    right = float((judge.judge(real[0])[0] == real[1]).float().mean())
    kid = kernel_distance(judge.judge(images[others])[1], reference)
    found.append({"row": "real digits", "kid": kid, "recognised": right})
    return found


@torch.no_grad()
def loss_in_raster_order(folder: Path) -> float:
    """The validation loss of a causal model that was trained in random orders, its tokens predicted row by row."""
    model = mixar.load(folder, device="cpu").system.model
    assert model is not None
    model.backbone.order = "raster"
    images, labels = digits("validation")
    noise, losses = Noise.seeded(0), []
    for rows in torch.arange(len(images)).split(BATCH):
        latents = model.continuous_tokenizer.encode(images[rows] / 127.5 - 1.0, noise)
        losses.append(model.loss(TokenBatch(latents, None, labels[rows]), noise=noise).total)
    return float(torch.stack(losses).mean())


def training_tflop(folder: Path) -> float:
    """What the whole training computed, by the products it multiplies."""
    recipe = mixar.load_recipe(folder / "recipe.yaml")
    assert recipe.training is not None and recipe.training.steps is not None
    per_image = training_flop_per_image(mixar.build(recipe, meta=True))
    return (per_image or 0) * recipe.training.batch_size * recipe.training.steps / 1e12


def show(found: Sequence[Mapping[str, Any]], out: Path) -> None:
    """The table, with the spread over seeds; every run in a CSV file; a picture."""
    with (out / "variants.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ("row", "published_fid", "seed", *FIGURES))
        writer.writeheader()
        for each in found:
            writer.writerow({key: f"{value:.5g}" if isinstance(value, float) else value for key, value in each.items()})
    print(f"| order, attention | published FID | {' | '.join(FIGURES)} |")
    print(f"|---|{'---:|' * (1 + len(FIGURES))}")
    for name in dict.fromkeys(each["row"] for each in found):
        runs = [each for each in found if each["row"] == name]
        print(f"| {name} | {runs[0].get('published_fid') or ''} |", *(f"{spread(runs, each)} |" for each in FIGURES))
    pictures = {
        row.name: load_file(file)["images"][:20]
        for row in ROWS
        if (file := out / f"{row.model}-0" / f"{row.steps}-{row.order}.safetensors").is_file()
    }
    write_png(out / "variants.png", rows_picture(pictures, "two of each digit, seed 0"))


def spread(runs: Sequence[Mapping[str, Any]], figure: str) -> str:
    """Mean and standard deviation over the seeds."""
    values = [run[figure] for run in runs if figure in run]
    if not values:
        return ""
    return f"{mean(values):.3g}" + (f" ± {stdev(values):.1g}" if len(set(values)) > 1 else "")


if __name__ == "__main__":
    typer.run(main)

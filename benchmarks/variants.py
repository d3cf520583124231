"""MAR's variant table on a small scale: `python -m benchmarks.variants [--seeds 0,1,2] [--models raster,masked]`

Trains, for the same steps on the digits, a causal transformer in raster order, one in random order, and a bidirectional
one from masks of every ratio, each as plain MAR without codes or guidance, on 8 x 8 tokens of a continuous tokenizer
that is trained first; and the bidirectional one again for as much computing as the causal ones. Then draws: one token a
step with each, and several a step with the bidirectional one. Prints the table with the published FIDs (MAR, Table 1,
without guidance) beside what is measured here, and writes it as `variants.csv` and `variants.png` beside the runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import torch
import typer

import mixar
from benchmarks import study
from mixar.cost import training_flop_per_image
from mixar_core.noise import Noise
from mixar_core.types import TokenBatch
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler, OrderName

TOKENS, WIDTH, BATCH, COUNT = 64, 64, 100, 500
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


#: rows of the table: which model draws, in which steps and order, and the FID that is published for it
ROWS: Mapping[str, tuple[str, int, OrderName, float | None]] = {
    "raster, causal, one token a step": ("raster", TOKENS, "raster", 19.23),
    "random, causal, one token a step": ("random", TOKENS, "random", 13.07),
    "random, bidirectional, one token a step": ("masked", TOKENS, "random", 3.43),
    "random, bidirectional, 12 steps": ("masked", 12, "random", 3.50),
    "random, bidirectional, one token a step, 2.3 x the training": ("masked_longer", TOKENS, "random", None),
    "random, bidirectional, 12 steps, 2.3 x the training": ("masked_longer", 12, "random", None),
    "random, causal, 12 steps": ("random", 12, "random", None),
    "raster, causal of random order, one token a step": ("random", TOKENS, "raster", None),
    "raster, bidirectional, one token a step": ("masked", TOKENS, "raster", None),
}


def main(
    seeds: str = "0,1,2",
    models: str = ",".join([*MODELS, *LONGER]),
    steps: int = 1200,
    out: Path = Path("runs/variants"),
) -> None:
    """Train and draw what is not there yet, then tell of all that is."""
    small = {"type": "kl", "latent_channels": 4, "channels": 16, "channel_multipliers": [1, 2, 4]}
    changes = {"continuous_tokenizer": small, "callbacks": [], "training.steps": 700}
    changes |= {"training.evaluate_every": 700, "training.preview_every": 0}
    tokenizer = study.trained(out / "tokenizer", "digits_continuous", changes)
    for seed, name in product(study.numbers(seeds), study.names(models, [*MODELS, *LONGER])):
        run = study.trained(out / f"{name}-{seed}", "digits_quick", changes_of(name, seed, steps, tokenizer))
        study.measured(run, drawn, seed=seed)
    study.report(out / "variants", out, ["row", "published FID"], [*ROWS], title="two of each digit, seed 0")
    print(f"real digits: {study.judge().real(COUNT)}")


def changes_of(name: str, seed: int, steps: int, tokenizer: Path) -> dict[str, Any]:
    """What one model changes in the recipe."""
    model, times = LONGER.get(name, (name, 1.0))
    return {
        **MODELS[model],
        "continuous_tokenizer": {"weights": str(tokenizer.resolve())},
        "discrete_tokenizer": None,
        "prior": None,
        "injector": {"type": "none"},
        "ti_mix.schedule": "constant",
        "head": {"type": "diffusion", "depth": 2, "width": WIDTH, "sampling_steps": 25, "clip": 4.0},
        "training.seed": seed,
        "training.batch_size": 32,
        "training.learning_rate": 2.0e-3,
        **study.validated(round(times * steps)),
    }


def drawn(run: Path, about: study.Row) -> study.Found:
    """The rows of a model: digits, and the seconds of one thread that one took (batches of 100)."""
    rows, few, labels_B = [], {}, torch.arange(COUNT) % 10
    for name, (model, steps, order, published) in ROWS.items():
        if model != run.name.rpartition("-")[0]:
            continue
        loaded = mixar.load(run)
        assert loaded.system.model is not None
        one = 1 if steps == TOKENS else None
        loaded.system.model.sampler = CosineSampler(CosineConfig(order=order, tokens_per_step=one))
        images, figures = study.drawn(loaded, labels_B, seed=about["seed"], steps=steps, batch_size=BATCH)
        loss = loss_in_raster_order(run) if (model, order) == ("random", "raster") else study.last_loss(run)
        row = {"row": name, "published FID": published, **figures, "loss": loss}
        rows.append({**row, "training_tflop": training_tflop(run)})
        few[name] = images[:20]
    return rows, few


@torch.no_grad()
def loss_in_raster_order(run: Path) -> float:
    """The validation loss of a causal model that was trained in random orders, its tokens predicted row by row."""
    model = mixar.load(run, device="cpu").system.model
    assert model is not None
    model.backbone.order = "raster"
    images, labels = study.digits("validation")
    noise, losses = Noise.seeded(0), []
    for rows in torch.arange(len(images)).split(BATCH):
        latents = model.continuous_tokenizer.encode(images[rows] / 127.5 - 1.0, noise)
        losses.append(model.loss(TokenBatch(latents, None, labels[rows]), noise=noise).total)
    return float(torch.stack(losses).mean())


def training_tflop(run: Path) -> float:
    """What the whole training computed, by the products it multiplies."""
    recipe = mixar.load_recipe(run / "recipe.yaml")
    assert recipe.training is not None and recipe.training.steps is not None
    per_image = training_flop_per_image(mixar.build(recipe, meta=True))
    return (per_image or 0) * recipe.training.batch_size * recipe.training.steps / 1e12


if __name__ == "__main__":
    typer.run(main)

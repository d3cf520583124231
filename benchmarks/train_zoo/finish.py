"""Of the best MixAR: which settings of sampling, how much is spread over seeds, and pictures."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.train_zoo.measure import Bench
from mixar_core.pictures import rows_picture, write_png

#: tried one after the other, each beside the best of those before it
SETTINGS: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("prior_cfg", (0.0, 0.5, 3.0)),
    ("cfg", (1.0, 1.5, 3.0)),
    ("temperature", (0.6, 0.9, 1.0)),
    ("prior_temperature", (0.8, 1.2)),
    ("steps", (2, 4, 16, 32)),
    ("prior_steps", (16, 64)),
    ("head_steps", (10, 20, 100)),
)
SEEDS = (1, 2)
#: images of a category in the pictures
SHOWN = 12


def tune(name: str, prior: str, *, ends: float) -> list[Callable[[Bench], object]]:
    """Jobs: each setting in turn, then the best with other seeds, then pictures. After `ends` no more are tried."""
    found: dict[str, Any] = {}

    def tried(key: str, value: float) -> Callable[[Bench], object]:
        def job(bench: Bench) -> None:
            if time.time() > ends - 30:
                return
            now = bench.mixar(name, prior, **found)["judge"]
            if bench.mixar(name, prior, **{**found, key: value})["judge"] < now:
                found[key] = value

        return job

    def seeds(bench: Bench) -> None:
        for seed in SEEDS:
            bench.mixar(name, prior, seed=seed, **found)

    jobs = [tried(key, value) for key, values in SETTINGS for value in values]
    return [*jobs, seeds, lambda bench: pictures(bench, name, prior, found)]


def pictures(bench: Bench, name: str, prior: str, settings: dict[str, Any]) -> None:
    """A row of samples a category, each over what its codes alone decode to (Figure 2); and nearest training images."""
    labels_B = torch.arange(bench.family.categories).repeat_interleave(SHOWN)
    of_prior = {key: value for key, value in settings.items() if key.startswith("prior_")}
    drawn = bench.drawn(name, prior, labels_B, seed=0, **settings)
    alone = bench.load(prior).decode_codes(bench.drawn_codes(prior, labels_B, seed=0, **of_prior))
    rows = {}
    for label in range(bench.family.categories):
        rows[f"{label}"] = drawn[labels_B == label]
        rows[f"{label}: codes alone"] = alone[labels_B == label]
    write_png(bench.out / "samples.png", rows_picture(rows, f"{name}, {settings}"))
    some = torch.arange(0, len(drawn), max(1, len(drawn) // 24))[:24]
    judge = bench.judges[0]
    distances = torch.cdist(bench.features_of(drawn[some], judge), bench.features["train"][judge])
    nearest = distances.topk(2, largest=False).indices
    rows = {"samples": drawn[some]}
    rows |= {f"nearest {k + 1}": bench.images["train"][nearest[:, k]] for k in range(2)}
    write_png(bench.out / "nearest.png", rows_picture(rows, "samples, and the training images nearest to each"))

"""How much faster are training steps from a token cache? `python -m benchmarks.cache [--steps 15] [--out FOLDER]`

Caches the emoji and trains on them from images, with recipe `emoji64`'s frozen tokenizers in the loop, and from the
cache: the same seed, batch and model. Prints seconds a step and the share of them spent waiting for data, for

    tokens alone     a batch of tokens, nothing trained: what the cache spares
    a small model    trained on them
    as it is         the recipe's own model, before TI-Mix begins
    TI-Mix           the same later on: the frozen prior runs in every step, which no cache can spare

and the cache's size against the arithmetic. How much a whole step gains depends on what the model itself takes.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import typer

import mixar
from benchmarks.study import log_of, trained
from mixar.assembly import build, open_data
from mixar.cache import make_cache
from mixar.plugins import plugin_manager
from mixar.recipe import Recipe
from mixar.run import make_objective
from mixar_core.data.cache import TokenCache
from mixar_core.data.dataset import ImageDataset
from mixar_core.data.streams import Stream, step_noise
from mixar_core.distributed import Processes
from mixar_core.training.sources import make_source
from mixar_eval.report import table

SMALL = {"backbone.width": 64, "backbone.depth": 1, "backbone.heads": 2, "head.depth": 1, "head.width": 64}
#: what is trained, as settings of the recipe
MODELS: dict[str, dict[str, object]] = {
    "a small model": {"ti_mix.schedule": "constant", **SMALL},
    "as it is": {"ti_mix.schedule": "constant"},
    "TI-Mix": {"ti_mix.begin": 0.0, "ti_mix.end": 0.001},
}
#: steps that are not counted
WARM_UP = 3


def main(
    recipe: str = "emoji64",
    steps: int = 15,
    workers: int = 0,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    out: Path = Path("runs/cache_benchmark"),
) -> None:
    """Cache, train both ways, print a table; `--steps` of each training are counted, `--workers` load."""
    made = make_cache(mixar.load_recipe(recipe), out / "cache", plugin_manager(), device=device)
    if (about := made.index) is None:  # it was stopped
        raise typer.Exit(1)
    cache = TokenCache.open(out / "cache")
    rate = f"{made.encoded / made.seconds:.0f} images/s" if made.encoded else "written before"
    size, counted = sum(shard.bytes for shard in about.shards), about.count * about.settings.row_bytes
    print(
        f"{about.count:,} images in {size:,} bytes ({rate}); by arithmetic {about.count:,} x "
        f"{about.settings.row_bytes:,} = {counted:,}, and {size - counted:,} for headers"
    )
    base: dict[str, Any] = {"callbacks": [], "training.workers": workers, "training.steps": steps + WARM_UP}
    base |= {"training.log_every": 1, "training.warmup_steps": 0, "training.checkpoint_every": 0}
    base |= {"training.evaluate_every": 0, "training.preview_every": 0}
    rows = []
    for name, of_model in {"tokens alone": {}, **MODELS}.items():
        found = []
        for where, kept in {"images": "none", "cache": str(out / "cache")}.items():
            changes = {**base, "training.cache": kept, **of_model}
            chosen = mixar.load_recipe(recipe, changes)
            if of_model:
                found.append(timed(trained(out / name / where, recipe, changes, device=device), chosen))
            else:
                data = cache if where == "cache" else open_data(chosen, plugin_manager(), "train")
                found.append((tokens_alone(chosen, data, torch.device(device)), 1.0))
        (images_s, images_wait), (cache_s, cache_wait) = found
        row = {"seconds a step": name, "images": images_s, "waiting": f"{images_wait:.1%}"}
        rows.append({**row, "cache": cache_s, "waiting ": f"{cache_wait:.1%}", "ratio": images_s / cache_s})
    print(f"{recipe}, {device}\n\n{table(rows)}")


def timed(run: Path, recipe: Recipe) -> tuple[float, float]:
    """Median seconds of a step of its training, and the share of all spent waiting for data."""
    assert recipe.training is not None
    steps = log_of(run, "train")[WARM_UP:]
    seconds = [recipe.training.batch_size / entry["images_per_second"] for entry in steps]
    waited = sum(taken * entry["waiting_share"] for taken, entry in zip(seconds, steps, strict=True))
    return median(seconds), waited / sum(seconds)


def tokens_alone(recipe: Recipe, data: ImageDataset | TokenCache, device: torch.device) -> float:
    """Median seconds until a batch's tokens are there."""
    assert recipe.training is not None and recipe.training.steps is not None
    registry = plugin_manager()
    opened = open_data(recipe, registry, "train")
    objective = make_objective(build(recipe, registry, data=opened), registry).to(device)
    source = make_source(objective, data, recipe.training, Processes(0, 1, device))
    taken, started = [], time.perf_counter()
    for step, batch in enumerate(source.batches(0, recipe.training.steps)):
        objective.tokenize(batch, noise=step_noise(Stream.TOKENS, seed=0, step=step, device=device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
        started = time.perf_counter()
    return median(taken[WARM_UP:])


if __name__ == "__main__":
    typer.run(main)

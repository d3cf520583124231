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

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch

import mixar
from mixar.assembly import build, open_data
from mixar.cache import make_cache
from mixar.cli.common import print_table
from mixar.plugins import plugin_manager
from mixar.recipe import Recipe
from mixar.run import make_objective
from mixar_core.data.cache import TokenCache
from mixar_core.data.streams import Stream, step_noise
from mixar_core.data.tokens import CachedTokens
from mixar_core.distributed import Processes
from mixar_core.training.sources import make_source

SMALL = {"backbone.width": 64, "backbone.depth": 1, "backbone.heads": 2, "head.depth": 1, "head.width": 64}
#: what is trained, as settings of the recipe
MODELS: dict[str, dict[str, object]] = {
    "a small model": {"ti_mix.schedule": "constant", **SMALL},
    "as it is": {"ti_mix.schedule": "constant"},
    "TI-Mix": {"ti_mix.begin": 0.0, "ti_mix.end": 0.001},
}
#: steps that are not counted
WARM_UP = 3


def resolved(arguments: argparse.Namespace, cache: str, **overrides: object) -> Recipe:
    """The recipe, to train for a few steps and do nothing else."""
    base = {
        "training.steps": arguments.steps + WARM_UP,
        "training.warmup_steps": 0,
        "training.cache": cache,
        "training.workers": arguments.workers,
        "training.log_every": 1,
        "training.evaluate_every": 0,
        "training.preview_every": 0,
        "training.checkpoint_every": 0,
        "callbacks": [],
    }
    return mixar.load_recipe(arguments.recipe, {**base, **overrides})


def trained(recipe: Recipe, folder: Path, device: str) -> tuple[float, float]:
    """Median seconds of a training step, and the share of all spent waiting for data."""
    assert recipe.training is not None
    mixar.train(recipe, folder, device=device)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [entry for entry in log if entry["kind"] == "train"][WARM_UP:]
    seconds = [recipe.training.batch_size / entry["images_per_second"] for entry in steps]
    waited = sum(taken * entry["waiting_share"] for taken, entry in zip(seconds, steps, strict=True))
    return median(seconds), waited / sum(seconds)


def tokens_alone(recipe: Recipe, cache: TokenCache | None, device: torch.device) -> float:
    """Median seconds until a batch's tokens are there."""
    assert recipe.training is not None
    registry = plugin_manager()
    data = open_data(recipe, registry, "train")
    objective = make_objective(build(recipe, registry, data=data), registry).to(device)
    source = make_source(objective, data if cache is None else cache, recipe.training, Processes(0, 1, device))

    assert recipe.training.steps is not None
    taken, started = [], time.perf_counter()
    for step, batch in enumerate(source.batches(0, recipe.training.steps)):
        noise = step_noise(Stream.TOKENS, seed=0, step=step, device=device)
        if isinstance(batch, CachedTokens):
            objective.tokenizers.draw(batch, noise=noise)
        else:
            objective.tokenize(batch, noise=noise)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - started)
        started = time.perf_counter()
    return median(taken[WARM_UP:])


def main() -> None:
    """Cache, train both ways, print a table, write the figures beside the runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="emoji64", help="recipe to train")
    parser.add_argument("--steps", type=int, default=15, help="optimizer steps of each training that are counted")
    parser.add_argument("--workers", type=int, default=0, help="loader processes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where to compute")
    parser.add_argument("--out", type=Path, default=Path("runs/cache_benchmark"), help="new or empty folder")
    arguments = parser.parse_args()

    folder = arguments.out / "cache"
    made = make_cache(mixar.load_recipe(arguments.recipe), folder, plugin_manager(), device=arguments.device)
    cache = TokenCache.open(folder)
    assert cache.index is not None
    about, rate = cache.index, f"{made.encoded / made.seconds:.0f} images/s" if made.encoded else "written before"
    size, counted = sum(shard.bytes for shard in about.shards), about.count * about.settings.row_bytes
    print(
        f"{about.count:,} images in {size:,} bytes ({rate}); by arithmetic {about.count:,} x "
        f"{about.settings.row_bytes:,} = {counted:,}, and {size - counted:,} for headers"
    )

    device = torch.device(arguments.device)
    kinds = {"images": "none", "cache": str(folder)}
    rows = {
        "tokens alone": [
            (tokens_alone(resolved(arguments, where), cache if kind == "cache" else None, device), 1.0)
            for kind, where in kinds.items()
        ]
    }
    for name, overrides in MODELS.items():
        rows[name] = [
            trained(resolved(arguments, where, **overrides), arguments.out / name / kind, arguments.device)
            for kind, where in kinds.items()
        ]
    shown = [
        (name, f"{slow:.4f}", f"{slow_waits:.1%}", f"{fast:.4f}", f"{fast_waits:.1%}", f"{slow / fast:.1f}")
        for name, ((slow, slow_waits), (fast, fast_waits)) in rows.items()
    ]
    columns = ("", "images", "waiting", "cache", "waiting", "ratio")
    print_table(f"seconds a step, {arguments.recipe}, {arguments.device}", columns, shown, right=range(1, 6))
    figures = {"steps": rows, "bytes": size, "bytes_by_arithmetic": counted}
    (arguments.out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

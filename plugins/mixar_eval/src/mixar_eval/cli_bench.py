"""`mixar bench`: where the time of a model goes."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from mixar.cli import common


def bench_command(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL|RECIPE", help="A run, a model folder or name; or a recipe: fresh weights.")
    ],
    settings: common.Set = None,
    batch: common.Batch = 4,
    repeats: Annotated[int, typer.Option(callback=common.at_least(1), help="Runs whose median counts.")] = 3,
    precision: common.Precision = "float32",
    device: common.Device = None,
    no_plugin: common.NoPlugin = None,
    as_json: common.Json = False,
) -> None:
    """Seconds and FLOP of every part of sampling and of a training step, beside this machine's best, and their growth.

    A training step is the recipe's, from images, in its own precision. Example: `mixar bench digits`, or a full-size
    one, quickly: `mixar bench mar_b --batch 1 --repeats 1 --set sampling.steps=4 --set sampling.head_steps=10`
    """
    import torch

    import mixar
    from mixar_core.distributed import available_device
    from mixar_core.errors import UserError
    from mixar_eval.bench import bench, fresh

    registry = common.open_registry(context, no_plugin)
    chosen = available_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        registry.find_model(model)
    except UserError:
        loaded = fresh(model, registry, settings or (), chosen, precision)
    else:
        if settings:
            raise UserError(f"--set changes a recipe, and {model} is a model; give its recipe")
        loaded = mixar.load(model, device=chosen, precision=precision, registry=registry)
    found = bench(loaded, registry, batch=batch, repeats=repeats)
    if as_json:
        common.print_json(found)
        return
    peaks = ", ".join(f"{key} {value:,.0f} GFLOP/s" for key, value in found["peak_gflop_per_s"].items())
    print(f"{found['name']}: batch {batch} on {found['device']}; best products here: {peaks}")
    columns = ("of", "part", "seconds", "GFLOP", "GFLOP/s", "of the peak", "products", "as fast as alone")
    shares = ("of_peak", "products", "of_same_shapes")
    cells = [
        (
            *(row["of"], row["part"], f"{row['seconds']:.4f}", *map(_cell, (row["gflop"], row["gflop_per_s"]))),
            *(_share(row.get(key)) for key in shares),
        )
        for row in found["parts"]
    ]
    title = (
        "Parts of drawing a batch, and of a training step; their share in products of linear layers, and these alone"
    )
    common.print_table(title, columns, cells, right=(2, 3, 4, 5, 6, 7))
    base, *changes = found["growth"]
    names = [key for key in base if key != "change"]
    cells = [(base["change"], *(_cell(base[name]) for name in names))]
    cells += [
        (row["change"], *(f"x {row[name]:.3g}" if name in row else row.get("refused", "") for name in names))
        for row in changes
    ]
    title = "Counted: parameters, GFLOP of an image, of one pass of the backbone; and how they grow"
    common.print_table(title, ("", *names), cells, right=tuple(range(1, len(names) + 1)))
    print(f"memory: {found['memory_gb']:.3g} GB at most, all of it")


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"

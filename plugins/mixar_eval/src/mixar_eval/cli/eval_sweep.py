"""`mixar eval sweep`: which guidance scale, temperature and number of steps draw the best images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from mixar.cli.common import Batch, Device, Json, NoPlugin, Precision, Raw, at_least, checked_device, open_registry
from mixar_eval.cli.eval_common import (
    ExtractorText,
    Out,
    ReferenceText,
    Seed,
    Workers,
    made,
    measuring,
    numbers,
    publish,
)

TABLE, PLOT = "sweep.csv", "sweep.png"


def sweep_command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a model folder, or a shipped model's name.")],
    reference: ReferenceText,
    budget: Annotated[int, typer.Option(callback=at_least(1), help="Images to draw in all, over all points.")],
    cfg: Annotated[str, typer.Option(metavar="A,B", help="Guidance scales; default: the recipe's.")] = "",
    temperature: Annotated[str, typer.Option(metavar="A,B", help="Temperatures; default: the recipe's.")] = "",
    steps: Annotated[str, typer.Option(metavar="A,B", help="Numbers of steps; default: the recipe's.")] = "",
    by: Annotated[
        Literal["frechet", "kernel"],
        typer.Option(help="What is best; `kernel` is less biased where points have few images."),
    ] = "frechet",
    extractor: ExtractorText = "efficientnet-lite0",
    out: Out = Path("runs/eval_sweep"),
    seed: Seed = 0,
    raw: Raw = False,
    precision: Precision = "float32",
    batch: Batch = 64,
    workers: Workers = 0,
    device: Device = None,
    as_json: Json = False,
    no_plugin: NoPlugin = None,
) -> None:
    """Measure a model over a grid of settings, each point with the same share of a budget of images.

    Writes a CSV file, a plot with the best point, and a report. Interrupted, it goes on when it is repeated; processes
    started by torchrun share the work. Example:
    `mixar eval sweep emoji64 --cfg 1,1.5,2,3 --temperature 0.6,1 --budget 4000 --reference data:train`
    """
    import attrs

    from mixar.model import load
    from mixar.sampling import Plan, all_classes
    from mixar_core.distributed import PATIENT, join_processes
    from mixar_core.errors import UserError
    from mixar_core.storage import write_text
    from mixar_eval.generation import REPORT, check_content, check_out, floor_for
    from mixar_eval.points import POINTS, circumstances, csv_text, images_per_point, measure_point
    from mixar_eval.sweep import (
        SweepPoint,
        best_of,
        floor_value,
        grid,
        plot_sweep,
        sweep_text,
    )

    began, registry = time.monotonic(), open_registry(context, no_plugin)
    scales, temperatures = numbers(cfg, float, "--cfg"), numbers(temperature, float, "--temperature")
    step_counts = numbers(steps, int, "--steps")
    processes = join_processes(checked_device(device), timeout=PATIENT)
    weights: Literal["ema", "raw"] = "raw" if raw else "ema"
    loaded = load(model, device=processes.device, weights=weights, precision=precision, registry=registry)
    settings, recipe = grid(loaded, scales, temperatures, step_counts), loaded.recipe
    if len(settings) < 2:
        raise UserError("nothing to sweep over: give several values of --cfg, --temperature or --steps")
    each = images_per_point(budget, len(settings), recipe.num_classes)
    plan = Plan(count=each, batch=batch, seed=seed, settings=settings[0].sampling, classes=all_classes(loaded))
    known = (POINTS, TABLE, PLOT, f"{REPORT}.json", f"{REPORT}.md")
    processes.on_main(lambda: check_content(out, known))
    with measuring(
        processes,
        registry,
        out=out,
        reference=reference,
        extractor=extractor,
        recipe=recipe,
        size=recipe.image_size,
        classes=recipe.num_classes or None,
        batch=batch,
        workers=workers,
    ) as means:
        processes.on_main(lambda: check_out(out, known))
        if by == "kernel" and means.reference.features_AF is None:
            raise UserError("--by kernel: needs a reference with images, these are statistics alone")
        floor = floor_for(means, each, recipe.image_size, recipe)
        points: list[SweepPoint] = []
        for index, setting in enumerate(settings, start=1):
            of_point = attrs.evolve(plan, settings=setting.sampling)
            what = f"point {index} of {len(settings)}"
            measured = measure_point(loaded, of_point, out / POINTS / setting.name, means, what=what)
            if measured is not None:
                points.append(SweepPoint(setting, measured))
        if processes.is_main:
            of_model = [(recipe.name, point.measured) for point in points]
            shared = circumstances(means, plan, recipe.image_size, floor, of_model) | made(processes, began)
            fid, best = means.extractor.gives_fid, best_of(points, by)
            plot_sweep(points, out / PLOT, by=by, gives_fid=fid, floor=floor_value(shared, by))
            write_text(out / TABLE, csv_text([point.row() for point in points]))
            rows = [point.row() | {"drawn": point.measured.drawn} for point in points]
            report = {"best": best.row(), "by": by, "points": rows, **shared}
            title = f"Sweep of {Path(model).name}"
            text = sweep_text(points, shared, title=title, by=by, gives_fid=fid, picture=PLOT)
            publish(out, report, text, as_json=as_json)

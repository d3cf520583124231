"""`mixar eval guidance`: injectors side by side, quality against tokens, parameters and time."""

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

TABLE, PLOT = "guidance.csv", "guidance.png"


def guidance_command(
    context: typer.Context,
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Runs, model folders or shipped models; one an injector.")
    ],
    reference: ReferenceText,
    count: Annotated[
        int | None, typer.Option(callback=at_least(50), help="Images of each row; default: 50,000.")
    ] = None,
    steps: Annotated[
        str, typer.Option(metavar="A,B", help="Numbers of steps, a row for each; default: each recipe's.")
    ] = "",
    cfg: Annotated[
        float | None, typer.Option(callback=at_least(0), help="Guidance scale of all; default: each recipe's.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(callback=at_least(0), help="Scale of the noise of all; default: each recipe's.")
    ] = None,
    extractor: ExtractorText = "efficientnet-lite0",
    out: Out = Path("runs/eval_guidance"),
    seed: Seed = 0,
    raw: Raw = False,
    precision: Precision = "float32",
    batch: Batch = 64,
    workers: Workers = 0,
    device: Device = None,
    as_json: Json = False,
    no_plugin: NoPlugin = None,
) -> None:
    """The paper's comparison: no guidance, DC-Mix, DC-SA, DC-CA; distance against tokens, parameters and time.

    Takes any trained models of one size and one list of classes, and labels them by their injectors. Interrupted, it
    goes on when it is repeated; processes started by torchrun share the work. Example:
    `mixar eval guidance runs/mar runs/dc_mix runs/dc_sa runs/dc_ca --steps 16,64 --count 5000 --reference data:train`
    """
    from mixar.model import Model, load
    from mixar.sampling import Plan, all_classes
    from mixar_core.distributed import PATIENT, join_processes
    from mixar_core.errors import UserError
    from mixar_core.storage import write_text
    from mixar_eval.generation import REPORT, check_content, check_out, floor_for
    from mixar_eval.guidance import Row, check_models, cost_of, guidance_text, plot_guidance
    from mixar_eval.points import POINTS, circumstances, csv_text, measure_point

    began, registry = time.monotonic(), open_registry(context, no_plugin)
    step_counts = numbers(steps, int, "--steps")
    processes = join_processes(checked_device(device), timeout=PATIENT)
    loaded: dict[str, Model] = {}
    for name in models:
        if Path(name).name in loaded:
            raise UserError(f"two models are called {Path(name).name}; rows and folders are named after them")
        weights: Literal["ema", "raw"] = "raw" if raw else "ema"
        loaded[Path(name).name] = load(
            name, device=processes.device, weights=weights, precision=precision, registry=registry
        )
    check_models(loaded)
    recipe = next(iter(loaded.values())).recipe
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
        number = count or 50_000
        floor = floor_for(means, number, recipe.image_size, recipe)
        rows: list[Row] = []
        for name, model in loaded.items():
            for some in step_counts or [model.recipe.sampling.steps]:
                settings = model.settings(steps=some, cfg=cfg, temperature=temperature)
                plan = Plan(count=number, batch=batch, seed=seed, settings=settings, classes=all_classes(model))
                label = f"{name}_steps-{some}"
                measured = measure_point(model, plan, out / POINTS / label, means, what=label)
                if measured is not None:
                    rows.append(Row(name, some, cost_of(model, settings, registry), measured))
        if processes.is_main:
            points = [(row.model, row.measured) for row in rows]
            shared = circumstances(means, plan, recipe.image_size, floor, points) | made(processes, began)
            lowest, fid = None if floor is None else floor.scores.frechet, means.extractor.gives_fid
            plot_guidance(rows, out / PLOT, gives_fid=fid, floor=lowest)
            write_text(out / TABLE, csv_text([row.row() for row in rows]))
            report = {"rows": [row.row() | {"drawn": row.measured.drawn} for row in rows], **shared}
            text = guidance_text(rows, shared, gives_fid=fid, floor=lowest, picture=PLOT)
            publish(out, report, text, as_json=as_json)

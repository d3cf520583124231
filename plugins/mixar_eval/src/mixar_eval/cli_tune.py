"""`mixar tune`: the fastest way of sampling a model that costs no quality."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from mixar.cli import common
from mixar_core.errors import UserError
from mixar_eval import cli_shared


def tune_command(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A run, a model folder, or a shipped model's name.")],
    reference: cli_shared.ReferenceText,
    budget: Annotated[
        str | None, typer.Option(metavar="TIME", help='What an image may take, as "0.5s/image"; of one process.')
    ] = None,
    presets: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Measure these beside `exact`, and search and store nothing: fast,disa,4x10."),
    ] = None,
    count: Annotated[
        int, typer.Option(callback=common.at_least(64), help="Images that the last round draws for every seed.")
    ] = 512,
    seeds: Annotated[int, typer.Option(callback=common.at_least(2), help="Of the last round.")] = 5,
    name: Annotated[str, typer.Option(help="What the preset is called that is stored with the model.")] = "fast",
    extractor: cli_shared.ExtractorText = None,
    out: cli_shared.Out = Path("runs/tune"),
    raw: common.Raw = False,
    precision: common.Precision = "float32",
    batch: common.Batch = 64,
    workers: cli_shared.Workers = 0,
    device: common.Device = None,
    as_json: common.Json = False,
    no_plugin: common.NoPlugin = None,
) -> None:
    """Search presets and their settings under a budget of time, and store the best one with the model.

    A shipped model stays as it is: its preset is written into --out.

    A preset is drawn in float32 where it does not say another; --precision is of what is searched besides.
    Of what is within the budget and no worse than `exact` (its mean over the seeds and their spread) the fastest is
    stored, so that `mixar sample MODEL --preset fast` is what was measured on this model. Interrupted, it goes on when
    it is repeated. Examples: `mixar tune runs/digits_quick --reference data:train --budget 0.05s/image` ·
    `mixar tune digits --reference data:train --presets fast,disa`
    """
    if (budget is None) == (presets is None):
        raise UserError("--budget and --presets: give one of them, what an image may take or what is to be compared")
    seconds = 0.0 if budget is None else seconds_of(budget)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise UserError(f"--name {name}: letters, digits, - and _ make a preset's name")
    if name == "exact":
        raise UserError("--name exact: the others are held against the preset of this name; give another")
    with cli_shared.measuring(context) as run:
        from mixar.registry import PRESETS
        from mixar_eval import references, report, tune
        from mixar_eval.candidates import candidates

        loaded, folder = cli_shared.load_model(model, run, context, "float32"), run.registry.find_model(model)
        shipped = run.registry.shipped_by(folder) is not None
        run.processes.on_main(lambda: report.check_folder(out, "points", tune.TABLE, tune.PICTURE, PRESETS))
        against = references.open_reference(reference, run, recipe=loaded.recipe, num_classes=loaded.recipe.num_classes)
        every = candidates(loaded, run, folder, precision)
        precisions = {candidate.precision for candidate in every.values()}
        models = {
            each: loaded if each == "float32" else cli_shared.load_model(model, run, context, each)
            for each in precisions
        }
        study = tune.Study(models, out / "points", against, run, batch)
        if presets is not None:
            names = [each.strip() for each in presets.split(",")]
            cli_shared.publish(tune.compare(study, every, names, count=count, seeds=seeds), run, context)
            return
        found, chosen = tune.tune(study, every, seconds=seconds, count=count, seeds=seeds, name=name)
        cli_shared.publish(found, run, context)
        if chosen is not None and run.processes.is_main:
            place, summary = out if shipped else folder, f"{chosen.name}, found by mixar tune within {budget}"
            path = tune.store(chosen, place, name, summary)
            carried = f"a shipped model stays as it is: a copy of {folder} can carry it, in its folder {PRESETS}"
            use = carried if shipped else common.command_line("mixar", "sample", model, "--preset", name)
            if not as_json:
                print(f"stored as {path}; {use}")


def seconds_of(budget: str) -> float:
    """Seconds an image, of `0.5s/image`.

    Raises:
        UserError: it says something else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|ms)\s*/\s*image", budget.strip())
    if not found or not float(found[1]):
        raise UserError(f'--budget {budget}: not a time an image; for example "0.5s/image" or "200ms/image"')
    return float(found[1]) / (1000.0 if found[2] == "ms" else 1.0)

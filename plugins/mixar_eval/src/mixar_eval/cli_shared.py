"""What the commands that measure share: their options, what they measure with, how a report is published."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixar.cli import common
from mixar_core.errors import UserError

if TYPE_CHECKING:
    from mixar.model import Model
    from mixar.speed import Precision
    from mixar_eval.context import EvalContext
    from mixar_eval.report import Report

ReferenceText = Annotated[
    str,
    typer.Option(
        "--reference",
        metavar="DATA",
        help="Real images: data:train (the model's), a data set part as NAME:SPLIT, a folder of PNGs, an .npz of "
        "images or of statistics (mu, sigma).",
    ),
]
ExtractorText = Annotated[
    str | None,
    typer.Option(
        "--extractor",
        metavar="NAME",
        help="As `inception:weights_file=FILE`; `mixar plugins` lists them. Default: the first of efficientnet-lite0, "
        "-lite1 and -lite2 that no loss of the model has seen.",
    ),
]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", parser=common.as_path, help="Folder of the report, and of samples.")
]
Seed = Annotated[int, typer.Option("--seed", callback=common.at_least(0), help="Of the samples.")]
Workers = Annotated[
    int, typer.Option("--workers", callback=common.at_least(0), help="Processes that load images, each.")
]


@contextmanager
def measuring(context: typer.Context, *, several: bool = False) -> Iterator[EvalContext]:
    """What a command measures with, by the options that all have in common. Told to stop, it says how to go on.

    Args:
        several: it measures with more than one extractor.
    """
    from mixar.progress import Phases
    from mixar.recipe import load_recipe
    from mixar_core.distributed import PATIENT, StopSignals, join_processes, naming_lost_processes
    from mixar_eval import judge
    from mixar_eval.context import Stopped

    given = context.params
    registry = common.open_registry(context, given["no_plugin"])
    names = given.get("models") or [name for key in ("samples", "model") if (name := given.get(key))]
    recipes = judge.recipes_of(names, registry)
    if given["extractor"] is None and (recipe := given.get("recipe")):  # whose models the statistics are for
        recipes.append(load_recipe(recipe, registry=registry, overrides=given["settings"] or ()))
    processes = join_processes(given["device"], timeout=PATIENT)
    with StopSignals() as signals, naming_lost_processes(processes), Phases() as show:
        run = judge.contexts(
            given["extractor"],
            several=several,
            recipes=recipes,
            registry=registry,
            processes=processes,
            batch_size=given["batch"],
            workers=given["workers"],
            signals=signals,
            show=show,
            command=shlex.join(["mixar", *sys.argv[1:]]),
        )
        try:
            yield run
        except Stopped:
            if processes.is_main:
                print(f"stopped; what was finished is in {given['out']}, and the same command goes on")
    processes.leave()


def load_model(name: str, run: EvalContext, context: typer.Context, precision: Precision | None = None) -> Model:
    """The model of this name, with the weights that were asked for, in this precision or in that asked for."""
    from mixar.model import load

    weights: Any = "raw" if context.params["raw"] else "ema"
    precision = precision or context.params["precision"]
    return load(name, device=run.processes.device, weights=weights, precision=precision, registry=run.registry)


def publish(report: Report, run: EvalContext, context: typer.Context, *, brief: bool = False) -> None:
    """Write a report, and print it."""
    from mixar_eval.judge import with_warning

    out = context.params["out"]
    if not run.processes.is_main:
        return
    report = with_warning(report, run)
    report.save(out)
    if context.params["as_json"]:
        common.print_json(report.to_json())
    else:
        print(report.brief() if brief else report.to_markdown())
        print(f"report: {out / 'report.md'}")


def numbers(text: str, kind: type[int] | type[float], option: str) -> list[Any]:
    """Numbers separated by commas; none in an empty text."""
    try:
        return [kind(item) for item in text.split(",")] if text else []
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{option} {text}: not {what} separated by commas") from error

"""What the commands of `mixar eval` share: options, and what goes on around the work."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from mixar.cli.common import as_path, at_least, open_registry, print_json
from mixar_core.errors import UserError

if TYPE_CHECKING:
    from mixar.model import Model
    from mixar_eval.context import EvalContext
    from mixar_eval.references import Reference
    from mixar_eval.report import Report

Number = TypeVar("Number", int, float)
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
    str,
    typer.Option("--extractor", metavar="NAME", help="As `inception:weights_file=FILE`; `mixar plugins` lists them."),
]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", parser=as_path, help="Folder of the report, and of samples.")
]
Seed = Annotated[int, typer.Option("--seed", callback=at_least(0), help="Of the samples.")]
Workers = Annotated[int, typer.Option("--workers", callback=at_least(0), help="Processes that load images, each.")]


@contextmanager
def measuring(
    context: typer.Context,
    no_plugin: list[str] | None,
    extractor: str,
    device: str | None,
    batch: int,
    workers: int,
    out: Path,
) -> Iterator[EvalContext]:
    """What a command measures with. Told to stop, it says how to go on."""
    from mixar.cli.progress import Phases
    from mixar_core.distributed import PATIENT, StopSignals, join_processes, naming_lost_processes
    from mixar_eval.context import EvalContext, Stopped
    from mixar_eval.extractors import open_extractor

    registry = open_registry(context, no_plugin)
    processes = join_processes(device, timeout=PATIENT)
    with StopSignals() as signals, naming_lost_processes(processes), Phases() as show:
        run = EvalContext(
            registry=registry,
            extractor=open_extractor(extractor, registry, device=processes.device),
            processes=processes,
            batch_size=batch,
            workers=workers,
            signals=signals,
            show=show,
            command=shlex.join(["mixar", *sys.argv[1:]]),
        )
        try:
            yield run
        except Stopped:
            if processes.is_main:
                print(f"stopped; what was finished is in {out}, and the same command goes on")
    processes.leave()


def load_model(name: str, run: EvalContext, *, raw: bool, precision: Any) -> Model:
    """The model of this name, on this process's device."""
    from mixar.model import load

    weights: Literal["ema", "raw"] = "raw" if raw else "ema"
    return load(name, device=run.processes.device, weights=weights, precision=precision, registry=run.registry)


def reference_for(text: str, model: Model, run: EvalContext) -> Reference:
    """The reference that `text` names, for images of this model."""
    from mixar_eval.references import open_reference

    recipe = model.recipe
    size, classes = recipe.image_size, recipe.num_classes or None
    return open_reference(text, run, recipe=recipe, image_size=size, num_classes=classes)


def publish(report: Report, out: Path, run: EvalContext, *, as_json: bool, brief: bool = False) -> None:
    """Write a report, and print it."""
    if not run.processes.is_main:
        return
    report.save(out)
    if as_json:
        print_json(report.to_json())
    else:
        print(report.brief() if brief else report.to_markdown())
        print(f"report: {out / 'report.md'}")


def numbers(text: str, kind: type[Number], option: str) -> list[Number]:
    """Numbers separated by commas; none in an empty text.

    Raises:
        UserError: something else is there.
    """
    try:
        return [kind(item) for item in text.split(",")] if text else []
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{option} {text}: not {what} separated by commas") from error

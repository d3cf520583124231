"""What the commands of `mixar eval` share: options, and what goes on around the work."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from mixar.cli.common import at_least

if TYPE_CHECKING:
    from mixar.plugins import Registry
    from mixar.recipe import Recipe
    from mixar_core.distributed import Processes
    from mixar_eval.generation import Means

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
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of samples, features and report.")]
Seed = Annotated[int, typer.Option("--seed", callback=at_least(0), help="Of the samples.")]
Workers = Annotated[int, typer.Option("--workers", callback=at_least(0), help="Processes that load images, each.")]


def numbers(text: str, kind: type[Number], option: str) -> list[Number]:
    """Numbers separated by commas; none in an empty text.

    Raises:
        UserError: something else is there.
    """
    from mixar_core.errors import UserError

    try:
        return [kind(item) for item in text.split(",")] if text else []
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{option} {text}: not {what} separated by commas") from error


@contextmanager
def measuring(
    processes: Processes,
    registry: Registry,
    *,
    out: Path,
    reference: str,
    extractor: str,
    recipe: Recipe | None,
    size: int,
    classes: int | None,
    batch: int,
    workers: int,
) -> Iterator[Means]:
    """The reference, measured; then what the body does with it. Told to stop, it says how to go on.

    Args:
        recipe: of the model, if there is one. size: side of the images. classes: how many; None where not known.
    """
    from mixar.cli.progress import Phases
    from mixar_core.distributed import StopSignals, naming_lost_processes
    from mixar_eval.extractors import open_extractor
    from mixar_eval.generation import Means
    from mixar_eval.measuring import Stopped
    from mixar_eval.references import open_reference

    chosen = open_extractor(extractor, registry, device=processes.device)
    with StopSignals() as signals, naming_lost_processes(processes), Phases() as show:
        report = show("reference")
        opened = open_reference(
            reference,
            extractor=chosen,
            registry=registry,
            processes=processes,
            recipe=recipe,
            image_size=size,
            num_classes=classes,
            batch_size=batch,
            workers=workers,
            progress=lambda done, total: report(done, total, done),
        )
        try:
            yield Means(registry, processes, signals, show, chosen, opened, reference, batch, workers)
        except Stopped:
            if processes.is_main:
                print(f"stopped; what was finished is in {out}, and the same command goes on")
    processes.leave()


def made(processes: Processes, began: float) -> dict[str, Any]:
    """By what a report was made; `began` is when by time.monotonic()."""
    from importlib.metadata import version

    from mixar.folder import versions
    from mixar.sampling import device_name

    return {
        "command": shlex.join(["mixar", *sys.argv[1:]]),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds of this call": round(time.monotonic() - began, 1),
        "device": device_name(processes.device),
        "processes": processes.world,
        "versions": versions() | {name: version(name) for name in ("numpy", "torch-fidelity")},
    }


def publish(out: Path, report: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Write a report, and print it."""
    from mixar.cli.common import print_json
    from mixar_eval.generation import REPORT, write_texts

    write_texts(out, report, text)
    if as_json:
        print_json(report)
    else:
        print(text)
        print(f"report: {out / f'{REPORT}.md'}")

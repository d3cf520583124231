"""`mixar sample`: images from a trained model. A few as PNG files and one labelled grid; many with --count."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixar.cli.common import (
    Batch,
    Cfg,
    Compile,
    Device,
    Graphs,
    ModelName,
    NoPlugin,
    Preset,
    PresetPrecision,
    Raw,
    Steps,
    Temperature,
    as_path,
    asked_classes,
    at_least,
    open_registry,
)
from mixar_core.errors import UserError

if TYPE_CHECKING:
    from mixar.model import Model
    from mixar.sampling import Plan
    from mixar_core.distributed import Processes

#: classes drawn when none are asked for
DEFAULT_CLASSES = 10


def _codes(text: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, text.split(",")))
    except ValueError as error:
        raise typer.BadParameter(f"{text}: not whole numbers separated by commas") from error


def sample_command(
    context: typer.Context,
    model: ModelName,
    classes: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B", help="Class names, separated by commas; may be given more than once."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="0,1", help="Class numbers, separated by commas; may be given more than once."),
    ] = None,
    per_class: Annotated[
        int | None, typer.Option("-n", "--per-class", callback=at_least(1), help="Images a class; default: 1.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(callback=at_least(1), help="Images in all, spread evenly over all classes; resumable."),
    ] = None,
    random_labels: Annotated[
        bool, typer.Option("--random-labels", help="With --count: draw each image's class at random.")
    ] = False,
    preset: Preset = None,
    steps: Steps = None,
    cfg: Cfg = None,
    temperature: Temperature = None,
    seed: Annotated[
        int,
        typer.Option(
            callback=at_least(0),
            help="The same seed, classes and --batch give the same images (on one machine: the same bits).",
        ),
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=as_path, help="Where the pictures go; default: samples.")
    ] = None,
    npz: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=as_path,
            help="With --count: one .npz as ADM's evaluation reads it, instead of pictures.",
        ),
    ] = None,
    codes: Annotated[
        list[Any] | None,
        typer.Option(
            metavar="0,1,...", parser=_codes, help="An image's codes, instead of the prior's; once for each image."
        ),
    ] = None,
    codes_too: Annotated[
        bool, typer.Option("--codes-too", help="Also what the discrete codes alone decode to.")
    ] = False,
    raw: Raw = False,
    precision: PresetPrecision = None,
    compile: Compile = False,
    graphs: Graphs = False,
    batch: Batch = 64,
    device: Device = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder of samples that is there already.")] = False,
    no_plugin: NoPlugin = None,
) -> None:
    """Draw images from a trained model.

    Without classes, up to ten are drawn, spread evenly. A comma may be in a class's name: a text that is a name as a
    whole is taken as that. With --count, a call that was interrupted goes on when it is repeated, and processes started
    by torchrun share the work. Examples:
    `mixar sample runs/digits --labels 3,7 -n 8` ·
    `mixar sample emoji64 --classes "Food & Drink" --steps 16 --cfg 2 --seed 1 --out food --codes-too` ·
    `torchrun --nproc-per-node 8 -m mixar sample models/mar_b --count 50000 --npz mar_b.npz`
    """
    for refused, why in (
        (classes and labels, "--classes and --labels: give one of them"),
        (npz and out, "--npz and --out: give one of them"),
        (count and per_class, "--count and --per-class: give one of them"),
        (count and codes_too, "--count and --codes-too: give one of them"),
        (count and codes, "--count and --codes: give one of them"),
        (npz and not count, "--npz: needs --count, the number of images"),
        (random_labels and not count, "--random-labels: needs --count, the number of images"),
        (
            os.environ.get("WORLD_SIZE", "1") != "1" and not count,
            "several processes share the images of --count only; give that, or leave torchrun away",
        ),
    ):
        if refused:
            raise UserError(why)
    from mixar.model import load
    from mixar.sampling import Plan, all_classes
    from mixar.stores import check_folder, parts_of
    from mixar_core.distributed import PATIENT, join_processes

    registry = open_registry(context, no_plugin)
    folder = out or Path("samples") if npz is None else parts_of(npz, force=force)
    if count is None:
        check_folder(folder, force=force)
    processes = join_processes(device, timeout=PATIENT)
    loaded = load(
        model,
        device=processes.device,
        weights="raw" if raw else "ema",
        precision=precision,
        preset=preset,
        compile=compile,
        graphs=graphs,
        registry=registry,
    )
    for notice in loaded.notices if processes.is_main else ():
        typer.echo(notice, err=True)
    asked, every = asked_classes(loaded, classes or (), labels or ()), all_classes(loaded)
    changes: dict[str, Any] = {"steps": steps, "cfg": cfg, "temperature": temperature}
    planned = partial(Plan, batch=batch, seed=seed, settings=loaded.settings(**changes))
    if count is None:
        shown, each = min(len(every), DEFAULT_CLASSES), per_class or 1
        wanted = asked or [every[index * len(every) // shown] for index in range(shown)]
        plan = planned(count=each * len(wanted), classes=tuple(label for label in wanted for _ in range(each)))
        changes |= {"codes": codes} if codes else {}
        _draw_few(loaded, plan, folder, changes, columns=each if each > 1 else None, codes_too=codes_too, force=force)
        return
    for twice in (label for label in asked if asked.count(label) > 1):
        raise UserError(f"--count spreads its images evenly over the classes, and {twice} is given more than once")
    plan = planned(count=count, classes=tuple(asked) or every, labels="random" if random_labels else "balanced")
    _draw_many(loaded, plan, folder, processes, npz=npz, force=force)


def _draw_few(
    model: Model,
    plan: Plan,
    folder: Path,
    changes: dict[str, Any],
    *,
    columns: int | None,
    codes_too: bool,
    force: bool,
) -> None:
    """Draw at once, into a folder that appears whole; `changes`: of settings and codes, for `Model.generate`."""
    from mixar.progress import progress_bar
    from mixar.sampling import describe
    from mixar.stores import write_samples

    with progress_bar("sampling") as show:
        drawn = model.generate(plan.labels_N(), seed=plan.seed, batch_size=plan.batch, progress=show, **changes)
    if codes_too and drawn.codes is None:
        raise UserError(f"--codes-too: model {model.recipe.name} uses no discrete codes")
    alone = model.decode_codes(drawn.codes) if codes_too else None
    manifest = describe(model, plan) | {key: changes[key] for key in ("codes",) if key in changes}
    write_samples(folder, drawn, manifest, codes_alone=alone, columns=columns, replace=force)
    print(f"{plan.count} images in {folder}, all of them in {folder / 'grid.png'}")


def _draw_many(model: Model, plan: Plan, folder: Path, processes: Processes, *, npz: Path | None, force: bool) -> None:
    """Draw what is missing in `folder`, shared by the processes, and print where it is, or how to go on."""
    from mixar.generation import overview
    from mixar.progress import progress_bar
    from mixar.sampling import MANIFEST, claim, describe, draw_chunks, manifest_beside
    from mixar.stores import PNGStore, RawStore, check_ours, pack_npz
    from mixar_core.distributed import StopSignals, naming_lost_processes
    from mixar_core.pictures import write_png
    from mixar_core.storage import writing

    def prepare() -> dict[str, Any]:
        if force and (folder / MANIFEST).is_file():
            check_ours(folder)
            with writing(folder):
                shutil.rmtree(folder.resolve())
        return claim(folder, describe(model, plan), model.recipe)

    manifest = processes.on_main(prepare)
    store = PNGStore(folder, plan, manifest["class_names"]) if npz is None else RawStore(folder)
    with StopSignals() as signals, naming_lost_processes(processes), progress_bar("sampling") as show:
        finished = draw_chunks(model, plan, store, processes, signals=signals, report=show)
    processes.leave()
    if not processes.is_main:
        return
    if not finished:
        there = plan.size(*store.done())
        print(f"stopped with {there:,} of {plan.count:,} images in {folder}; the same command without --force goes on")
        return
    how = f"{plan.in_words}; seed {plan.seed}"
    if isinstance(store, PNGStore):
        labels, names = plan.labels_N().tolist(), manifest["class_names"]
        picture, shown = overview(store.read, labels, names, len(plan.classes))
        write_png(folder / "grid.png", picture)
        print(f"{plan.count:,} images in {folder}, {how}; the first {shown} in {folder / 'grid.png'}")
    elif npz is not None:
        pack_npz(npz, store, plan, manifest)
        shutil.rmtree(folder)
        print(f"{plan.count:,} images in {npz}, {how}; how they were drawn in {manifest_beside(npz)}")

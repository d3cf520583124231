"""`mixar train`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from attrs import frozen

from mixar.cli.common import Device, NoPlugin, Set, as_path, command_line, open_registry
from mixar_core.errors import UserError

if TYPE_CHECKING:
    from mixar.plugins import Registry
    from mixar.recipe import Recipe
    from mixar_core.training.trainer import Result

#: fewest images that `mixar eval tokenizer` takes
MEASURED = 4


def train_command(
    context: typer.Context,
    recipes: Annotated[
        list[str],
        typer.Argument(metavar="RECIPE...", help="Names or paths of recipes; with --resume, run folders."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", parser=as_path, help="Run folder, or of several the folder of theirs; default: runs/NAME."
        ),
    ] = None,
    settings: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in that folder.")] = False,
    seed: Annotated[int | None, typer.Option(help="The same as --set training.seed=N.")] = None,
    device: Device = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Train what a recipe describes, into a run folder that `mixar sample` takes.

    Several recipes are trained one after the other, each into a folder of its own; --set and --seed are for all of
    them. With --resume the finished ones are passed over, one that was stopped goes on, and the rest begin. Examples:
    `mixar train digits_quick` · `mixar train kl16 --set data.path=/data/imagenet --out runs/kl` ·
    `mixar train runs/kl --resume` · `mixar train own/continuous.yaml own/discrete.yaml --out own/runs` ·
    `torchrun --nproc-per-node 8 -m mixar train kl16`
    """
    from mixar.recipe import make_recipe
    from mixar.run import train

    registry = open_registry(context, no_plugin)
    overrides = [*(settings or ()), *(() if seed is None else (f"training.seed={seed}",))]
    jobs = _jobs(recipes, out, overrides, resume, registry)
    speaks = os.environ.get("RANK", "0") == "0"  # under torchrun one process does
    for job in jobs:
        resolved = make_recipe(job.plain, registry, where=f"recipe {job.recipe}")
        result = train(resolved, job.folder, resume=job.resume, device=device, registry=registry)
        if speaks:
            print(_how_it_ended(result, jobs, device))
        if result.stopped:
            return
    if speaks:
        print(_next_command(resolved, result.folder, registry))


@frozen
class _Job:
    """A recipe, by name or path, and its plain values; its run folder, and whether the run in it goes on.

    Those become a `Recipe` when its turn comes: it may name runs that are trained before it.
    """

    recipe: str
    plain: Mapping[str, Any]
    folder: Path
    resume: bool


def _jobs(
    words: Sequence[str], out: Path | None, overrides: Sequence[str], resume: bool, registry: Registry
) -> list[_Job]:
    """What is to be trained, in this order; refused before anything is, where one of several cannot begin."""
    from mixar.folder import RECIPE
    from mixar.recipe import load_plain

    several, jobs = len(words) > 1, []
    for word in words:
        run = as_path(word)
        if is_run := (run / RECIPE).is_file() and (resume or not registry.recipes().get(word)):
            if not resume:
                raise UserError(_what_was_meant(run))
            word = str(run / RECIPE)
        plain = load_plain(word, overrides, registry)
        name = str(plain["name"])
        folder = run if is_run and (several or out is None) else out or Path("runs") / name
        folder = folder / name if several and out is not None and not is_run else folder
        jobs.append(_Job(word, plain, folder, resume and (not several or (folder / RECIPE).is_file())))
    for folder, count in Counter(job.folder for job in jobs).items():
        if count > 1:
            raise UserError(f"{count} of these recipes would be trained into {folder}; give them names of their own")
        if resume and (said := _killed_early(folder, given={job.recipe for job in jobs})):
            raise UserError(said)
        if several and not resume and folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"{folder} is not an empty folder; with --resume all of these go on where they were")
    return jobs


def _killed_early(run: Path, *, given: Collection[str]) -> str:
    """What to do with a run that has nothing to go on from; empty of any other folder.

    Args:
        given: recipes that were asked for. Where the run's own is one, it must stay.
    """
    from mixar.folder import RECIPE, WEIGHTS
    from mixar_core.training.checkpoint import list_checkpoints

    if not (run / RECIPE).is_file() or (run / WEIGHTS).is_file() or list_checkpoints(run):
        return ""
    then = f"to train anew: {_anew(run)}" if str(run / RECIPE) in given else "remove it, and it begins anew"
    return f"{run} was killed before its first checkpoint; {then}"


def _train(*words: object) -> str:
    return f"{_launcher()} {command_line('train', *words)}"


def _anew(run: Path) -> str:
    """The command that trains a run's recipe again, elsewhere."""
    from mixar.folder import RECIPE

    return _train(run / RECIPE, "--out", Path("runs") / f"{run.name}-anew")


def _what_was_meant(run: Path) -> str:
    """What to write where a run or a model is given in place of a recipe."""
    from mixar.folder import RECIPE, WEIGHTS
    from mixar_core.training.checkpoint import list_checkpoints

    if said := _killed_early(run, given={str(run / RECIPE)}):
        return said
    anew = _anew(run)
    if list_checkpoints(run) and not (run / WEIGHTS).is_file():
        return f"{run} is a run, and no recipe; to go on with it: {_train(run, '--resume')}; to train anew: {anew}"
    further = _train(run / RECIPE, "--set", f"init.from={run}", "--out", Path("runs") / f"{run.name}-further")
    return f"{run} is a trained model, and no recipe; to train anew: {anew}; to train it further: {further}"


def _how_it_ended(result: Result, jobs: Sequence[_Job], device: str | None) -> str:
    """A line; of a run that was stopped with the command that goes on."""
    several = len(jobs) > 1
    name = f"{result.folder}: " if several else ""
    if not result.stopped:
        losses = ", ".join(f"{name} {value:.4g}" for name, value in result.losses.items() if name.endswith("loss"))
        measured = f"; {losses}" if losses else ""
        before = ", done before" if several and not losses else f" in {result.seconds:.0f} s"
        return f"{name}{result.steps} steps{before}{measured}"
    words: list[object] = ["train", result.folder, "--resume", *(() if device is None else ("--device", device))]
    if several:
        words = [word for word in sys.argv[1:] if word != "--resume"]
        words.insert(words.index("train") + 1, "--resume")
    again = f"{_launcher()} {command_line(*words)}"
    return f"{name}stopped after step {result.step} of {result.steps}; {again} goes on"


def _launcher() -> str:
    """What the command line began with."""
    world = os.environ.get("WORLD_SIZE")
    if world is None:
        return "mixar"
    here = world == os.environ.get("LOCAL_WORLD_SIZE")  # of several machines each has a command line of its own
    return f"torchrun {f'--nproc-per-node {world}' if here else '...'} -m mixar"


def _next_command(recipe: Recipe, run: Path, registry: Registry) -> str:
    """What to do with a finished run: a tokenizer draws nothing by itself, but can be measured."""
    from mixar.assembly import build, open_data
    from mixar.folder import RECIPE

    if recipe.trains == "mixar" and recipe.prior is None and build(recipe, registry, meta=True).takes_codes:
        return f"to sample, name the run of a prior in {run / RECIPE}: prior: {{weights: RUN}}"
    if not recipe.trains.endswith("tokenizer"):
        return command_line("mixar", "sample", run)
    splits: tuple[Literal["validation", "train"], ...] = ("validation", "train")
    for split in splits:
        try:
            if len(open_data(recipe, registry, split)) >= MEASURED:
                more = () if split == "validation" else ("--data", "data:train")
                return command_line("mixar", "eval", "tokenizer", run, *more)
        except UserError:  # there is no such split
            continue
    return f"{run}: there are fewer than {MEASURED} images, too few to measure a tokenizer"

"""What the commands share: the options they have in common, and how they print."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mixar_core.errors import UserError

if TYPE_CHECKING:
    from mixar.model import Model
    from mixar.plugins import Registry
    from mixar_core.types import ImageSize

NoPlugin = Annotated[
    list[str] | None,
    typer.Option("--no-plugin", metavar="NAME", help="Leave out this plugin; may be given more than once."),
]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A run folder, a model folder, or a shipped model's name.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe, e.g. training.steps=100."),
]


def as_path(text: str) -> Path:
    """A path given to an option: `~` is the home folder also where the shell left it alone, as in `--out=~/x`."""
    from mixar_core.storage import user_path

    return user_path(text)


def size_of_text(text: str) -> ImageSize:
    """Pixels of an image given to an option: `32`, or `32x48` for height and width."""
    sides = [int(side) for side in text.split("x") if re.fullmatch("[0-9]+", side) and int(side)]
    if len(sides) not in (1, 2) or len(sides) != len(text.split("x")):
        raise typer.BadParameter(f"{text}: not a side such as 64, nor a height and a width such as 48x64")
    return sides[0] if len(sides) == 1 or sides[0] == sides[1] else (sides[0], sides[1])


def at_least(low: int) -> Callable[[typer.CallbackParam, float | None], float | None]:
    """A check of a number given to an option: the bound, the value and the option's name in one line."""

    def check(parameter: typer.CallbackParam, value: float | None) -> float | None:
        if value is not None and value < low:
            raise UserError(f"{parameter.opts[0]}: {value} is too small; allowed: {low} or more")
        return value

    return check


def _device_that_is_there(value: str | None) -> str | None:
    if value is not None:
        from mixar_core.distributed import available_device

        try:
            available_device(value)
        except UserError as error:
            raise UserError(f"--{error}") from error
    return value


def _go_offline(wanted: bool) -> bool:
    if wanted:
        os.environ["HF_HUB_OFFLINE"] = "1"
    return wanted


Steps = Annotated[
    int | None, typer.Option("--steps", callback=at_least(1), help="Sampling steps; default: the recipe's.")
]
Cfg = Annotated[
    float | None, typer.Option("--cfg", callback=at_least(0), help="Guidance scale, 1 for none; default: the recipe's.")
]
Temperature = Annotated[
    float | None,
    typer.Option("--temperature", callback=at_least(0), help="Scale of the noise; default: the recipe's."),
]
Preset = Annotated[
    str | None,
    typer.Option("--preset", metavar="NAME", help="How it samples: mixar presets; default: the recipe's way."),
]
Batch = Annotated[int, typer.Option("--batch", callback=at_least(1), help="Images at a time.")]
Raw = Annotated[bool, typer.Option("--raw", help="The last step's weights instead of the averaged ones.")]
Device = Annotated[
    str | None,
    typer.Option(
        "--device", callback=_device_that_is_there, help="cpu, cuda, cuda:1 ...; default: the GPU if there is one."
    ),
]
Precision = Annotated[
    Literal["float32", "bf16"],
    typer.Option("--precision", help="What is computed in; bf16 is about twice as fast and draws other images."),
]
PresetPrecision = Annotated[
    Literal["float32", "bf16"] | None,
    typer.Option("--precision", help="What is computed in: float32 or bf16; default: as the preset says, or float32."),
]
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the networks' blocks: a slow first batch, then faster ones.")
]
Graphs = Annotated[
    bool, typer.Option("--graphs", help="On a GPU: the head's loop as CUDA graphs; the same images, sooner.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Offline = Annotated[
    bool,
    typer.Option("--offline", callback=_go_offline, help="Fetch nothing: hf:// files come from this machine's cache."),
]


def asked_classes(model: Model, classes: Sequence[str], labels: Sequence[str]) -> list[int]:
    """Class numbers asked for; none where none are."""
    from mixar.labels import split_names

    names = [name for text in classes for name in split_names(text, model.class_names)]
    numbers = [item.strip() for text in labels for item in text.split(",")]
    if not all(re.fullmatch(r"[+-]?[0-9]+", number) for number in numbers):
        raise UserError(f"labels {','.join(labels)}: not whole numbers separated by commas")
    wanted = [*names, *map(int, numbers)]
    return model.labels(wanted).tolist() if wanted else []


def command_line(*words: object) -> str:
    """A command to run next, to be copied as it is printed, whatever is in the names."""
    return shlex.join(f"./{word}" if isinstance(word, Path) and str(word)[0] == "-" else str(word) for word in words)


def open_registry(context: typer.Context, no_plugin: Sequence[str] | None) -> Registry:
    """The installed plugins but those left out, before the command's name or after it."""
    from mixar.plugins import plugin_manager

    return plugin_manager(blocked=[*(context.obj or ()), *(no_plugin or ())], option="--no-plugin")


def print_json(value: Any) -> None:
    """Indented JSON on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def has_width() -> bool:
    """Whether lines on stdout are to fit a width: a terminal's, or that of COLUMNS."""
    from rich.console import Console

    return Console().is_terminal or "COLUMNS" in os.environ


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()
) -> None:
    """A table on stdout; columns whose index is in `right` are aligned right. Only a terminal's width folds a line."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text("" if cell is None else str(cell)) for cell in row))
    console = Console()
    if has_width():
        console.print(table)
        return
    console.width = console.measure(table, options=console.options.update(max_width=10**6)).maximum
    with console.capture() as printed:
        console.print(table)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()))

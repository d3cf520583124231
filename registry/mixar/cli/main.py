"""The program: its commands, and what it does with errors. Bad input is one line on stderr and exit code 2."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import pluggy
import typer
from typer.models import CommandInfo, TyperInfo

from mixar.cli.cache import cache_command
from mixar.cli.common import NoPlugin, Offline
from mixar.cli.data import data_command
from mixar.cli.edit import edit_command
from mixar.cli.inspect import presets_command, recipe_app, recipes_command
from mixar.cli.measure import measure_command
from mixar.cli.new import new_command
from mixar.cli.plugin import plugin_app, plugins_command
from mixar.cli.publish import publish_command
from mixar.cli.sample import sample_command
from mixar.cli.train import train_command
from mixar.plugins import load_plugins
from mixar.text import comes_with, one_line
from mixar_core.errors import UserError

#: the exit code of a program that Ctrl-C ended; typer returns it
_INTERRUPTED = 130
#: what typer raises for a wrong command line; newer ones bring a copy of click, so it cannot be imported from there
_ClickError: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

app = typer.Typer(
    name="mixar",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("sample")(sample_command)
app.command("edit")(edit_command)
app.command("new")(new_command)
app.command("train")(train_command)
app.command("data")(data_command)
app.command("cache")(cache_command)
app.command("measure")(measure_command)
app.command("publish")(publish_command)
app.command("recipes")(recipes_command)
app.add_typer(recipe_app, name="recipe")
app.command("presets")(presets_command)
app.command("plugins")(plugins_command)
app.add_typer(plugin_app, name="plugin")


#: the packages of this repository that bring commands of their own, for who has not installed them
_PACKAGES = {
    "eval": "mixar_eval",
    "tune": "mixar_eval",
    "weights": "mixar_import",
    "serve": "mixar_page",
    "demo": "mixar_zoo",
}


def _guides() -> Path:
    """The guides: inside a wheel, and beside the packages in a checkout."""
    here = Path(__file__).resolve()
    packed, beside = here.parents[1] / "docs", here.parents[3] / "docs"
    return packed if packed.is_dir() else beside


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version
        from platform import python_version

        print(f"mixar {version('mixar')} (torch {version('torch')}, Python {python_version()})")
        raise typer.Exit


@app.callback(
    epilog="Examples: `mixar recipes` · `mixar recipe check mixar_l` · `mixar train RECIPE --out runs/first` · "
    f"`mixar sample runs/first --seed 1`. Every command has `--help`.\n\nGuides: {_guides()}"
)
def root(
    context: typer.Context,
    no_plugin: NoPlugin = None,
    offline: Offline = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print versions and stop.")
    ] = False,
) -> None:
    """MixAR: masked autoregressive image generation in a continuous latent space, guided by discrete tokens."""
    context.obj = list(no_plugin or ())


def main() -> None:
    """Run the program; ends the process with 0, 2 for bad input, or 130 when interrupted."""
    words, missing, interrupts = sys.argv[1:], [], _interrupts()
    if isinstance(sys.stdout, io.TextIOWrapper):  # None where it is closed
        sys.stdout.reconfigure(errors="backslashreplace")  # whatever is in a file's name, and whatever a terminal knows
    try:
        manager, plugins = load_plugins(blocked=_blocked(words), option="--no-plugin")
        problems = add_commands(app, manager)
        missing = [f"plugin {p.name} of {p.distribution} was not loaded: {p.problem}" for p in plugins if p.problem]
        missing += problems
        # told to whoever asks what there is, or for what is not there; `mixar plugins` lists broken plugins itself
        asked = not words or {"-h", "--help"} & {*words}
        for warning in missing if asked else problems if "plugins" in words else ():
            print(f"warning: {warning}", file=sys.stderr)
        code = app(standalone_mode=False)
    except UserError as error:
        code = 2 if error.reported else _complain(str(error))
    except _ClickError as error:
        context, message = getattr(error, "ctx", None), error.format_message()
        see = f" (see {context.command_path} --help)" if context else ""
        why = _why_missing(message, missing)
        code = _complain(f"{message.rstrip('.') if why else message}{why}{see}")
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        reason = error.strerror or str(error)
        code = _complain(f"{error.filename}: {reason}" if error.filename else reason)
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    except Exception as error:
        if interrupts:  # a package that was being imported swallowed it, and broke
            code = _INTERRUPTED
        # torch is not imported here just to name its class
        elif type(error).__name__ == "OutOfMemoryError":
            code = _complain("out of GPU memory; a smaller training.micro_batch or --batch needs less")
        else:
            raise
    if code == _INTERRUPTED:
        print("interrupted", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def _interrupts() -> list[int]:
    """Will hold the number of every Ctrl-C, each of which raises KeyboardInterrupt as before."""
    came: list[int] = []

    def interrupt(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    return came


def add_commands(app: typer.Typer, manager: pluggy.PluginManager) -> list[str]:
    """Add every plugin's commands to the program; what could not be added, and why.

    Each plugin fills a program of its own first, so that one that fails or takes a command's name spoils no other.
    """
    problems, plugins = [], manager.list_name_plugin()
    taken = {name for names, _ in _named(app) for name in names}
    for name, plugin in plugins:
        own = typer.Typer()
        others = [other for _, other in plugins if other is not plugin]
        try:
            manager.subset_hook_caller("mixar_commands", others)(app=own)
            named = _named(own)
        except (Exception, SystemExit) as error:  # whatever a third party's code raises must not take the others down
            problems.append(f"the commands of plugin {name} are left out: {one_line(error)}")
            continue
        for commands, brought in named:
            if clash := ", ".join(sorted(taken & commands)):
                problems.append(f"command {clash} of plugin {name} is left out: there is one of that name already")
            else:
                taken |= commands
                _add(app, brought)
    return problems


def _named(app: typer.Typer) -> list[tuple[set[str], CommandInfo | TyperInfo]]:
    """What a program holds, with its names (a group without one lends its commands'); all of it can be built."""
    every: list[CommandInfo | TyperInfo] = [*app.registered_commands, *app.registered_groups]
    found = []
    for brought in every:
        alone = typer.Typer()
        alone.callback()(lambda: None)
        _add(alone, brought)
        group: Any = typer.main.get_command(alone)
        found.append(({*group.commands}, brought))
    return found


def _add(app: typer.Typer, brought: CommandInfo | TyperInfo) -> None:
    if isinstance(brought, CommandInfo):
        app.registered_commands.append(brought)
    else:
        app.registered_groups.append(brought)


def _blocked(words: Sequence[str]) -> list[str]:
    """The plugins to leave out, of a command line that is not parsed yet: plugins bring commands of their own."""
    apart = [value for option, value in pairwise(words) if option == "--no-plugin"]
    return apart + [word.partition("=")[2] for word in words if word.startswith("--no-plugin=")]


def _complain(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _why_missing(message: str, missing: Sequence[str]) -> str:
    """Of a command that is not there: which plugins could have brought it, or where it comes from if it is ours."""
    if "No such command" not in message:
        return ""
    said = "".join(f" ({each})" for each in missing)
    for name, package in _PACKAGES.items():
        if f"No such command '{name}'" in message and f"of {package.replace('_', '-')} " not in said:
            return f"; {comes_with(package)}{said}"
    return said

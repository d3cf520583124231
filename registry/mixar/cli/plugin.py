"""Commands for who writes plugins: plugins, plugin new, plugin check."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixar.cli.common import Json, NoPlugin, as_path, command_line, has_width, open_registry, print_json, print_table
from mixar.scaffold import KINDS, new_plugin
from mixar_core.errors import UserError

if TYPE_CHECKING:
    from mixar.plugins import Part, Plugin, Registry
    from mixar_core.testing.report import Finding

plugin_app = typer.Typer(
    no_args_is_help=True, help="Write a plugin: `new` makes a package that works as it stands, `check` its contracts."
)
#: problems of a check that are told
_SAID = 3
#: a setting without a default that was not given, as `mixar.structure` says it
_LACKING = re.compile(r"([\w.]+): required, and not there")
#: a default from which on a part may take long to be checked
_LARGE = 256
PART = "A part as recipes name it; `KIND:NAME` where several kinds have one of that name."


def plugins_command(
    context: typer.Context,
    part: Annotated[str | None, typer.Option("--part", metavar="NAME", help=f"Its settings. {PART}")] = None,
    kinds: Annotated[
        bool, typer.Option("--kinds", help="The kinds of parts, and what a part of each must define.")
    ] = False,
    no_plugin: NoPlugin = None,
    as_json: Json = False,
) -> None:
    """List the installed plugins, their parts, and what could not be loaded and why.

    Examples: `mixar plugins --part diffusion` · `mixar plugins --kinds`
    """
    if part is not None and kinds:
        raise UserError("--part and --kinds: give one of them")
    registry = open_registry(context, no_plugin)
    if part is not None:
        _show_part(registry, part, as_json)
    elif kinds:
        _show_kinds(registry, as_json)
    else:
        _list(registry, as_json)


def _list(registry: Registry, as_json: bool) -> None:
    import attrs

    parts = [part for kind in registry.kinds for part in registry.parts(kind)]
    told = [
        {
            "kind": part.kind,
            "name": registry.name_of(part),
            "plugin": registry.plugin_of(part).name,
            "summary": part.summary,
            "settings": [field.name for field in attrs.fields(part.config) if field.init],
        }
        for part in parts
    ]
    models = sorted(registry.models())
    if as_json:
        keys = ("name", "distribution", "problem", "broken_parts")
        plugins = [{key: value for key, value in attrs.asdict(p).items() if key in keys} for p in registry.plugins]
        print_json({"plugins": plugins, "parts": told, "models": models})
        return
    states = [(p.name, p.distribution, state) for p in registry.plugins for state in _states(p)]
    print_table("Plugins", ("plugin", "distribution", "state"), states)
    if any(p.problem or p.broken_parts for p in registry.plugins):
        print("What is not in use or left out disturbs nothing else: upgrade, repair or uninstall its package.\n")
    print_table("Parts", ("kind", "name", "plugin", "what it is"), [list(part.values())[:4] for part in told])
    if models:
        print_table("Models to sample from", ("name",), [(name,) for name in models])


def _states(plugin: Plugin) -> list[str]:
    if plugin.problem:
        return [f"not in use: {plugin.problem}"]
    return ["loaded", *(f"left out: {broken.problem}" for broken in plugin.broken_parts)]


def _show_part(registry: Registry, text: str, as_json: bool) -> None:
    import attrs

    from mixar.described import find_part, settings_of

    part = find_part(registry, text)
    plugin, name, settings = registry.plugin_of(part), registry.name_of(part), settings_of(part.config)
    if as_json:
        told: dict[str, Any] = {"kind": part.kind, "name": name, "plugin": plugin.name, "summary": part.summary}
        print_json(told | {"settings": [attrs.asdict(setting) for setting in settings]})
        return
    print(f'{part.kind} "{name}" of plugin {plugin.name} ({plugin.distribution}): {part.summary}')
    print(f"class {part.component.__module__}.{part.component.__qualname__}\n")
    rows = [
        (s.name, s.type, "required" if s.required else json.dumps(s.default, default=str), s.allowed, s.meaning)
        for s in settings
    ]
    if rows:
        print_table("Settings", ("name", "type", "default", "allowed", "meaning"), rows)
    else:
        print("It has no settings.")


def _show_kinds(registry: Registry, as_json: bool) -> None:
    import attrs

    from mixar.described import kinds_of

    kinds = kinds_of(registry)
    if as_json:
        print_json([attrs.asdict(kind) for kind in kinds])
        return
    if not has_width():
        for kind in kinds:
            print(f"{kind.kind}: {kind.base}\n  {kind.meaning}\n  built as {kind.built}")
            for duty in kind.must_define:
                print(f"  {duty.signature}", *([f"      {duty.meaning}"] if duty.meaning else []), sep="\n")
            print()
        return
    rows = []
    for kind in kinds:
        rows += [(kind.kind, kind.base, kind.meaning), ("", kind.built.replace("Class", "built as Class", 1), "")]
        rows += [("", duty.signature, duty.meaning) for duty in kind.must_define]
    print_table("Kinds of parts", ("kind", "class, and what one must define", "what it does"), rows)


@plugin_app.command("new")
def new_command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the package, the plugin and its parts.")],
    kinds: Annotated[
        list[str], typer.Option("--kind", metavar="KIND", help=f"Of a part, repeatable: {', '.join(KINDS)}.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", parser=as_path, metavar="DIR", help="The new folder; default: NAME.")
    ] = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Write a plugin package with a small working part of each kind, its tests and a README.

    Example: `mixar plugin new my-parts --kind head --kind sampler`
    """
    folder = Path(name) if out is None else out
    for path in new_plugin(name, kinds, folder, open_registry(context, no_plugin)):
        print(folder / path)
    name = name.replace("_", "-")
    print("\nnext:")
    for words in (("pip", "install", "-e", folder), ("mixar", "plugin", "check", name)):
        print(f"  {command_line(*words)}")


@plugin_app.command("check")
def check_command(
    context: typer.Context,
    what: Annotated[
        str, typer.Argument(metavar="DISTRIBUTION|PART", help=f"All parts of a package or plugin, or one. {PART}")
    ],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the part, e.g. depth=2.")
    ] = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Check that parts keep the contracts of their kinds, built small, and tell of each check whether it holds.

    Ends with 0 if all do, 1 if one does not. Examples: `mixar plugin check my-parts` ·
    `mixar plugin check head:diffusion --set depth=2 --set width=64`
    """
    from mixar.described import find_part
    from mixar.recipe import parse_overrides

    registry = open_registry(context, no_plugin)
    plugins = [plugin for plugin in registry.plugins if what in (plugin.name, plugin.package)]
    parts = (
        [part for plugin in plugins for part in plugin.parts]
        if plugins
        else [find_part(registry, what, or_package=True)]
    )
    plain = parse_overrides(settings or ())
    if plain and len(parts) != 1:
        names = ", ".join(f"{part.kind}:{registry.name_of(part)}" for part in parts) or "none"
        raise UserError(f"--set is for one part; {what} has: {names}")
    broken = [state for plugin in plugins for state in _states(plugin) if state != "loaded"]
    told = [_check(registry, part, plain, alone=len(parts) == 1 and not broken) for part in parts]
    for state in broken:
        print(f"{what}: FAILS: {state}")
        told.append("FAILS")
    counts = [f"{told.count(state)} {state}" for state in ("ok", "FAILS", "not checked") if state in told]
    print(f"\nparts: {', '.join(counts) or 'none'}")
    if "FAILS" in told:
        raise typer.Exit(1)


def _check(registry: Registry, part: Part, plain: Mapping[str, Any], *, alone: bool) -> str:
    """Print a part's report, a line a check; `ok`, `FAILS` or `not checked`, which of one that is alone is an error."""
    from mixar.checked import check
    from mixar.described import settings_of

    plugin = registry.plugin_of(part)
    title = f'{part.kind} "{registry.name_of(part)}" of plugin {plugin.name} ({plugin.distribution})'
    large = any(type(setting.default) is int and setting.default >= _LARGE for setting in settings_of(part.config))
    slow = ", at its default sizes; smaller ones by --set are checked sooner" if large and not plain else ""
    lines, out = iter([f"{title}{slow}"]), sys.stdout

    def tell(finding: Finding) -> None:
        for line in lines:
            print(line, file=out)
        said = list(dict.fromkeys(finding.problems or finding.remarks))
        more = f"; and {len(said) - _SAID} more" if len(said) > _SAID else ""
        state = "FAILS" if finding.problems else "-" if finding.remarks else "ok"
        print(
            f"  {state:5}  {finding.topic}{': ' if said else ''}{'; '.join(said[:_SAID])}{more}", file=out, flush=True
        )

    try:
        printed = io.StringIO()  # by a callback: no part of the report
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            found = check(part, plain, tell=tell)
    except UserError as error:
        lacking = [word for key in _LACKING.findall(str(error)) for word in ("--set", f"{key}=...")]
        if alone:
            way = f"; give {' '.join(lacking)}" if lacking else ""
            raise UserError(f'{part.kind} "{part.name}": {error}{way}') from error
        print(f"{title}: not checked: {error}")
        if lacking:
            name = f"{part.kind}:{registry.name_of(part)}"
            print(f"  by itself: {command_line('mixar', 'plugin', 'check', name, *lacking)}")
        return "not checked"
    return "FAILS" if any(finding.problems for finding in found) else "ok"

"""What is installed: finds plugins through entry points, checks what they offer, and looks parts up by name."""

from __future__ import annotations

import inspect
import re
from abc import ABCMeta
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, cast, get_args

import attrs
import pluggy

from mixar_core.errors import UserError
from mixar_core.injector import Door, GuidanceInjector
from mixar_registry import hookspecs
from mixar_registry.part import KINDS, Part
from mixar_registry.text import choices, one_line

GROUP = "mixar"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@attrs.frozen
class Plugin:
    """An installed plugin: its entry point's name, its distribution with version, and why it is not in use, if so."""

    name: str
    distribution: str
    problem: str | None = None


@attrs.frozen(eq=False)
class Registry:
    """Parts, recipes and models that the installed plugins offer. Made by `plugin_manager`."""

    plugins: tuple[Plugin, ...]
    _parts: Mapping[tuple[str, str], tuple[Part, Plugin]]
    _recipe_folders: tuple[Path, ...]
    _model_folders: tuple[Path, ...]

    @property
    def broken(self) -> tuple[Plugin, ...]:
        """Plugins that could not be loaded, each with its `problem`."""
        return tuple(plugin for plugin in self.plugins if plugin.problem)

    def parts(self, kind: str) -> list[Part]:
        """All parts of a kind, by name."""
        return [part for (of, _), (part, _) in sorted(self._parts.items()) if of == kind]

    def part(self, kind: str, name: str) -> Part:
        """The part of this kind and name.

        Raises:
            UserError: there is none; says what there is, and which plugins failed to load.
        """
        if (kind, name) in self._parts:
            return self._parts[kind, name][0]
        names = [part.name for part in self.parts(kind)]
        raise UserError(f'unknown {kind} "{name}"; {choices(names, name)}{self._blame()}')

    def plugin_of(self, part: Part) -> Plugin:
        """The plugin that offers a part."""
        return self._parts[part.kind, part.name][1]

    def recipes(self) -> dict[str, list[Path]]:
        """Recipes by name (the file's, without .yaml); more than one path where plugins clash."""
        files = (file for folder in self._recipe_folders for file in folder.rglob("*.yaml"))
        return _by_name((file.stem, file) for file in files)

    def models(self) -> dict[str, list[Path]]:
        """Shipped models by name (the folder's); more than one path where plugins clash."""
        files = (file for folder in self._model_folders for file in folder.glob("*/recipe.yaml"))
        return _by_name((file.parent.name, file.parent) for file in files)

    def find_recipe(self, name_or_path: str | Path) -> Path:
        """A recipe's file, by its name or by its path (anything with a slash or ending in .yaml is a path)."""
        text = str(name_or_path)
        if "/" in text or text.endswith((".yaml", ".yml")):
            path = Path(text)
            if path.is_file():
                return path
            raise UserError(f"recipe {text}: no such file")
        return self._only(text, self.recipes(), "recipe")

    def find_model(self, name_or_path: str | Path) -> Path:
        """A model's folder, by its name or by its path. A path wins where both exist."""
        path = Path(name_or_path)
        if (path / "recipe.yaml").is_file():
            return path
        if path.is_dir():
            raise UserError(f"model {name_or_path}: a model or run folder has a recipe.yaml, this one has none")
        if "/" in str(name_or_path):
            raise UserError(f"model {name_or_path}: no such folder")
        return self._only(str(name_or_path), self.models(), "model")

    def _only(self, name: str, known: Mapping[str, list[Path]], what: str) -> Path:
        paths = known.get(name, [])
        if not paths:
            raise UserError(f'unknown {what} "{name}"; {choices(known, name)}{self._blame()}')
        if len(paths) > 1:
            raise UserError(f'{what} "{name}" is there more than once: {", ".join(map(str, paths))}; give its path')
        return paths[0]

    def _blame(self) -> str:
        return "".join(f" (plugin {p.name} of {p.distribution} was not loaded: {p.problem})" for p in self.broken)


def plugin_manager(*, blocked: Sequence[str] = ()) -> Registry:
    """Load every plugin of the entry-point group `mixar` but the `blocked` ones.

    A plugin that cannot be imported, has a misspelt hook or offers something that is not a part is left out and
    reported in `Registry.broken`; the others still load.

    Raises:
        UserError: one plugin name is used by two distributions, one part's name by two parts, or a blocked name is
            unknown.
    """
    found = _entry_points(blocked)
    manager = pluggy.PluginManager("mixar")
    manager.add_hookspecs(hookspecs)
    plugins: list[Plugin] = []
    parts: dict[tuple[str, str], tuple[Part, Plugin]] = {}
    recipe_folders: list[Path] = []
    model_folders: list[Path] = []
    for entry in found:
        plugin = Plugin(entry.name, _distribution(entry))
        try:
            offered = _offered(manager, entry)
            folders = [Path(f) for f in offered.get("mixar_recipe_folders", ())]
            models = [Path(f) for f in offered.get("mixar_model_folders", ())]
            own = [_checked(part) for part in offered.get("mixar_parts", ())]
        except Exception as error:  # whatever a third party's code raises must not take the others down
            plugins.append(attrs.evolve(plugin, problem=one_line(error)))
            continue
        plugins.append(plugin)
        for part in own:
            if (part.kind, part.name) in parts:
                other = parts[part.kind, part.name][1]
                raise UserError(
                    f'{part.kind} "{part.name}" is offered by plugin {other.name} of {other.distribution} and also by '
                    f"plugin {plugin.name} of {plugin.distribution}; uninstall one or give --no-plugin {plugin.name}"
                )
            parts[part.kind, part.name] = part, plugin
        recipe_folders += folders
        model_folders += models
    return Registry(tuple(plugins), parts, tuple(recipe_folders), tuple(model_folders))


def _entry_points(blocked: Sequence[str]) -> list[EntryPoint]:
    """The plugins to load, by name."""
    by_name: dict[str, list[EntryPoint]] = defaultdict(list)
    for entry in entry_points(group=GROUP):
        by_name[entry.name].append(entry)
    for name in blocked:
        if by_name.pop(name, None) is None:
            raise UserError(f'--no-plugin: unknown plugin "{name}"; {choices(by_name, name)}')
    for name, entries in by_name.items():
        if len(entries) > 1:  # pluggy would keep one and say nothing
            owners = " and ".join(sorted(_distribution(entry) for entry in entries))
            raise UserError(f'two plugins are called "{name}", of {owners}; uninstall one or give --no-plugin {name}')
    return [by_name[name][0] for name in sorted(by_name)]


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "unknown distribution"


def _offered(manager: pluggy.PluginManager, entry: EntryPoint) -> dict[str, Iterable[Any]]:
    """Import a plugin and call its hooks, each on its own: hook name -> what it returned."""
    module = entry.load()
    manager.register(module, name=entry.name)
    callers = manager.get_hookcallers(module) or []
    known = [name for name in vars(hookspecs) if name.startswith("mixar_")]
    for caller in callers:
        if not caller.has_spec():
            raise TypeError(f'unknown hook "{caller.name}"; {choices(known, caller.name)}')
    if not callers:
        raise TypeError(f"{entry.value} has no function marked @hookimpl; hooks: {', '.join(known)}")
    return {
        caller.name: cast(Iterable[Any], implementation.function())
        for caller in callers
        for implementation in caller.get_hookimpls()
        if implementation.plugin_name == entry.name
    }


def _checked(part: object) -> Part:
    """A part as it should be.

    Raises:
        TypeError: it is not.
    """
    if not isinstance(part, Part):
        raise TypeError(f"mixar_parts returned {part!r}, not a Part")
    label = f'{part.kind} "{part.name}"'
    if part.kind not in KINDS:
        raise TypeError(f"part {label}: unknown kind; {choices(KINDS, part.kind)}")
    if not _NAME.fullmatch(part.name):
        raise TypeError(f"part {label}: a name is lower-case letters, digits and hyphens")
    base = KINDS[part.kind]
    if not (isinstance(part.component, type) and issubclass(part.component, base)):
        raise TypeError(f"part {label}: component {part.component!r} does not derive from {base.__name__}")
    if inspect.isabstract(part.component):
        lacking = ", ".join(sorted(cast(ABCMeta, part.component).__abstractmethods__))
        raise TypeError(f"part {label}: component {part.component.__name__} lacks {lacking}")
    if issubclass(part.component, GuidanceInjector):
        opens, doors = getattr(part.component, "opens", None), get_args(Door)
        if not (isinstance(opens, Set) and opens <= {*doors}):
            raise TypeError(f"part {label}: opens is {opens!r}, not a set of doors; {choices(doors)}")
    if not (isinstance(part.config, type) and attrs.has(part.config) and attrs.inspect(part.config).is_frozen):
        raise TypeError(f"part {label}: config {part.config!r} is not a frozen attrs class")
    reserved = {"type", "weights"} & {field.name for field in attrs.fields(part.config)}
    if reserved:
        raise TypeError(f"part {label}: config has a field {sorted(reserved)[0]}, which recipes use themselves")
    return part


def _by_name(pairs: Iterable[tuple[str, Path]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name, path in sorted(pairs):
        paths = found.setdefault(name, [])
        if path.resolve() not in [other.resolve() for other in paths]:
            paths.append(path)
    return found

"""Plugins: the hooks a package may implement, the parts it may offer, and the registry of all that is installed.

    from mixar import Part, hookimpl

    MIXAR_INTERFACE = 2  # the version of `mixar_core` that the parts were written for

    @hookimpl
    def mixar_parts():
        return [Part("injector", "dc-sum", DCSum, DCSumConfig)]

Packages are found through the entry-point group `mixar`; mixar's own parts and commands come in by the same door.
"""

from __future__ import annotations

import inspect
import re
from abc import ABCMeta
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, cast, get_args

import attrs
import pluggy

import mixar_core
from mixar.text import choices, one_line
from mixar.written import path_of
from mixar_core.errors import UserError

if TYPE_CHECKING:
    import typer

GROUP = "mixar"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
hookspec = pluggy.HookspecMarker(GROUP)
#: What a plugin decorates its hook functions with.
hookimpl = pluggy.HookimplMarker(GROUP)


@attrs.frozen
class Part:
    """One component that recipes can name.

    Args:
        kind: one of `Registry.kinds`.
        name: what a recipe writes behind `type:`; lower case, digits and hyphens.
        component: the class, derived from the kind's abstract class and built as that class's docstring says.
        config: a frozen attrs class with its settings; every field is a key of the recipe.
    """

    kind: str
    name: str
    component: type
    config: type

    @property
    def summary(self) -> str:
        """First line of the component's docstring."""
        return next(iter((self.component.__doc__ or "").strip().splitlines()), "")


class Hooks(Protocol):
    """What a plugin module may define. Import what is heavy inside the functions: `mixar --help` loads every plugin."""

    @hookspec
    def mixar_parts(self) -> Sequence[Part]:
        """The parts this package offers."""

    @hookspec
    def mixar_kinds(self) -> Mapping[str, type]:
        """Kinds of parts beyond mixar's own: name -> abstract class."""

    @hookspec
    def mixar_recipe_folders(self) -> Sequence[Path]:
        """Folders whose *.yaml, at any depth, are recipes found by file name."""

    @hookspec
    def mixar_model_folders(self) -> Sequence[Path]:
        """Folders whose sub-folders are models (recipe.yaml + weights.safetensors), found by folder name."""

    @hookspec
    def mixar_commands(self, app: typer.Typer) -> None:
        """Add commands to the program: `app.command("name")(function)`, `app.add_typer(...)`."""

    @hookspec(firstresult=True)
    def mixar_evaluate(self) -> Any:
        """The function behind `mixar.evaluate`."""


_HOOKS = [name for name in vars(Hooks) if name.startswith("mixar_")]

#: in a word, what a part that was written for the interface before this one meets
_CHANGED = "a Condition in place of labels, heads on (B, K, D), a prior's DrawnCodes, a tokenizer's layout"

#: the kinds of parts that the core knows: name -> abstract class in mixar_core
_OWN_KINDS = {
    "continuous-tokenizer": "ContinuousTokenizer",
    "discrete-tokenizer": "DiscreteTokenizer",
    "prior": "DiscretePrior",
    "backbone": "Backbone",
    "injector": "GuidanceInjector",
    "head": "ContinuousHead",
    "sampler": "Sampler",
    "conditioner": "Conditioner",
    "dataset": "ImageDataset",
    "extractor": "FeatureExtractor",
    "optimizer": "Optimizer",
    "callback": "Callback",
}


@attrs.frozen
class Plugin:
    """An installed plugin and what it brings.

    Args:
        name: its entry point's.
        distribution: the package's name and version.
        problem: why it is not in use, if so.
    """

    name: str
    distribution: str
    problem: str | None = None
    parts: tuple[Part, ...] = ()
    recipe_folders: tuple[Path, ...] = ()
    model_folders: tuple[Path, ...] = ()


@attrs.frozen(eq=False)
class Registry:
    """Parts, recipes and models that the installed plugins offer. Made by `plugin_manager`."""

    plugins: tuple[Plugin, ...]
    #: kind of part -> the abstract class its components derive from
    kinds: Mapping[str, type]
    _parts: Mapping[tuple[str, str], tuple[Part, Plugin]]

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
        if (kind, name) not in self._parts:
            raise self._unknown(kind, name, [part.name for part in self.parts(kind)])
        return self._parts[kind, name][0]

    def plugin_of(self, part: Part) -> Plugin:
        """The plugin that offers a part."""
        return self._parts[part.kind, part.name][1]

    def recipes(self) -> dict[str, list[Path]]:
        """Recipes by name (the file's, without .yaml); more than one path where plugins clash."""
        files = (file for plugin in self.plugins for folder in plugin.recipe_folders for file in folder.rglob("*.yaml"))
        return _by_name((file.stem, file) for file in files)

    def models(self) -> dict[str, list[Path]]:
        """Shipped models by name (the folder's); more than one path where plugins clash."""
        folders = (folder for plugin in self.plugins for folder in plugin.model_folders)
        return _by_name((file.parent.name, file.parent) for folder in folders for file in folder.glob("*/recipe.yaml"))

    def is_shipped(self, file: Path) -> bool:
        """Whether a file lies in a plugin's folder of recipes or of models."""
        folders = [folder for plugin in self.plugins for folder in (*plugin.recipe_folders, *plugin.model_folders)]
        return any(file.resolve().is_relative_to(folder.resolve()) for folder in folders)

    def find_recipe(self, name_or_path: str | Path) -> Path:
        """A recipe's file, by its name or by its path (anything with a slash or ending in .yaml is a path).

        Raises:
            UserError: there is none, or several plugins have one of that name.
        """
        path = path_of(name_or_path)
        if path is None:
            return self._only(str(name_or_path), self.recipes(), "recipe")
        path = path / "recipe.yaml" if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"recipe {path}: no such file")
        return path

    def find_model(self, name_or_path: str | Path) -> Path:
        """A model's folder, by its name or by its path; a word without a slash is a folder only if that is a model.

        Raises:
            UserError: there is none, or several plugins have one of that name.
        """
        path = path_of(name_or_path, holding="recipe.yaml")
        if path is None:
            return self._only(str(name_or_path), self.models(), "model")
        if not (path / "recipe.yaml").is_file():
            lacks = "a model or run folder has a recipe.yaml, this one has none" if path.is_dir() else "no such folder"
            raise UserError(f"model {path}: {lacks}")
        return path

    def _only(self, name: str, known: Mapping[str, list[Path]], what: str) -> Path:
        if name not in known:
            raise self._unknown(what, name, known)
        path, *others = known[name]
        if others:
            paths = ", ".join(map(str, known[name]))
            raise UserError(f'{what} "{name}" is there more than once: {paths}; give its path')
        return path

    def _unknown(self, what: str, name: str, known: Iterable[str]) -> UserError:
        blame = "".join(f" (plugin {p.name} of {p.distribution} was not loaded: {p.problem})" for p in self.broken)
        return UserError(f'unknown {what} "{name}"; {choices(known, name)}{blame}')


def plugin_manager(*, blocked: Sequence[str] = ()) -> Registry:
    """Load every plugin of the entry-point group `mixar` but the `blocked` ones.

    A plugin that cannot be imported, has a misspelt hook, offers something that is not a part, or parts that were
    written for another interface, is left out and reported in `Registry.broken`; the others still load.

    Raises:
        UserError: one plugin name is used by two distributions, one part's name by two parts, or a blocked name is
            unknown.
    """
    manager, plugins = load_plugins(blocked=blocked)
    kinds: dict[str, type] = {name: getattr(mixar_core, kind) for name, kind in _OWN_KINDS.items()}
    parts: dict[tuple[str, str], tuple[Part, Plugin]] = {}

    def offered(plugin: Plugin, hook: str) -> Any:
        """What this one plugin's hook returns."""
        others = [module for name, module in manager.list_name_plugin() if name != plugin.name]
        return next(iter(manager.subset_hook_caller(hook, others)()), ())

    def with_kinds(plugin: Plugin) -> Plugin:
        new = offered(plugin, "mixar_kinds") or {}
        if taken := sorted(kinds.keys() & new.keys()):
            raise TypeError(f'kind "{taken[0]}" is there already')
        kinds.update(new)
        return plugin

    def with_parts(plugin: Plugin) -> Plugin:
        return attrs.evolve(
            plugin,
            parts=tuple(_checked(part, kinds) for part in offered(plugin, "mixar_parts")),
            recipe_folders=tuple(map(Path, offered(plugin, "mixar_recipe_folders"))),
            model_folders=tuple(map(Path, offered(plugin, "mixar_model_folders"))),
        )

    plugins = [_unless_broken(plugin, with_kinds) for plugin in plugins]  # kinds first: any plugin has parts of them
    plugins = [_unless_broken(plugin, with_parts) for plugin in plugins]
    for plugin in plugins:
        for part in plugin.parts:
            if (part.kind, part.name) in parts:
                other = parts[part.kind, part.name][1]
                raise UserError(
                    f'{part.kind} "{part.name}" is offered by plugin {other.name} of {other.distribution} and also by '
                    f"plugin {plugin.name} of {plugin.distribution}; uninstall one or give --no-plugin {plugin.name}"
                )
            parts[part.kind, part.name] = part, plugin
    return Registry(tuple(plugins), kinds, parts)


def _unless_broken(plugin: Plugin, take: Callable[[Plugin], Plugin]) -> Plugin:
    """What `take` makes of a plugin; what a third party's code raises takes no other plugin down."""
    try:
        return plugin if plugin.problem else take(plugin)
    except (Exception, SystemExit) as error:
        return attrs.evolve(plugin, problem=one_line(error))


def evaluate(*args: Any, **kwargs: Any) -> Any:
    """Measure images against a reference: `mixar_eval.evaluate`, which comes with the package mixar-eval.

    Raises:
        UserError: that package is not installed, or this is a worker process that is still being started.
    """
    from mixar_core.distributed import refuse_while_starting

    refuse_while_starting()
    function = load_plugins()[0].hook.mixar_evaluate()
    if function is None:
        raise UserError(
            "mixar.evaluate comes with the package mixar-eval, which is not installed; in a checkout: "
            "pip install ./plugins/mixar_eval"
        )
    return function(*args, **kwargs)


def load_plugins(*, blocked: Sequence[str] = ()) -> tuple[pluggy.PluginManager, list[Plugin]]:
    """pluggy's manager with every plugin that can be imported, and all plugins, those that cannot with the reason.

    Raises:
        UserError: one plugin name is used by two distributions, or a blocked name is unknown.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    by_name: dict[str, list[EntryPoint]] = defaultdict(list)
    for entry in entry_points(group=GROUP):
        by_name[entry.name].append(entry)
    for name in blocked:
        if name not in by_name:
            raise UserError(f'--no-plugin: unknown plugin "{name}"; {choices(by_name, name)}')
        manager.set_blocked(name)

    def load(plugin: Plugin) -> Plugin:
        module = by_name[plugin.name][0].load()
        try:
            manager.register(module, name=plugin.name)
            _check_hooks(manager, module)
        except Exception:
            if manager.has_plugin(plugin.name):
                manager.unregister(name=plugin.name)
            raise
        return plugin

    plugins = []
    for name, entries in sorted(by_name.items()):
        if manager.is_blocked(name):
            continue
        owners = sorted(f"{entry.dist.name} {entry.dist.version}" for entry in entries if entry.dist)
        if len(entries) > 1:
            raise UserError(
                f'two plugins are called "{name}", of {" and ".join(owners)}; uninstall one or give --no-plugin {name}'
            )
        plugins.append(_unless_broken(Plugin(name, owners[0]), load))
    return manager, plugins


def _check_hooks(manager: pluggy.PluginManager, module: ModuleType) -> None:
    callers = manager.get_hookcallers(module) or []
    if not callers:
        raise TypeError(f"{module.__name__} has no function marked @hookimpl; hooks: {', '.join(_HOOKS)}")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        unknown = next(caller.name for caller in callers if not caller.has_spec())
        raise TypeError(f'unknown hook "{unknown}"; {choices(_HOOKS, unknown)}') from error
    if {"mixar_parts", "mixar_kinds"} & {caller.name for caller in callers}:
        _check_interface(module)


def _check_interface(module: ModuleType) -> None:
    """See that parts were written for the abstract classes there are."""
    written_for, ours = getattr(module, "MIXAR_INTERFACE", 1), mixar_core.INTERFACE
    if written_for == ours:
        return
    if type(written_for) is not int or written_for < 1:
        raise TypeError(f"MIXAR_INTERFACE is {written_for!r}, not the number of a version; this mixar has {ours}")
    says = f"written for interface {written_for}, this mixar has {ours}"
    if written_for > ours:
        raise TypeError(f"{says}: upgrade mixar")
    raise TypeError(
        f"{says}: {_CHANGED}; docs/plugins.md says what to change before it declares MIXAR_INTERFACE = {ours}"
    )


def _checked(part: object, kinds: Mapping[str, type]) -> Part:
    """The part, or a TypeError where it is not as it should be."""
    if not isinstance(part, Part):
        raise TypeError(f"mixar_parts returned {part!r}, not a Part")
    label = f'{part.kind} "{part.name}"'
    if part.kind not in kinds:
        raise TypeError(f"part {label}: unknown kind; {choices(kinds, part.kind)}")
    if not _NAME.fullmatch(part.name):
        raise TypeError(f"part {label}: a name is lower-case letters, digits and hyphens")
    base = kinds[part.kind]
    if not (isinstance(part.component, type) and issubclass(part.component, base)):
        raise TypeError(f"part {label}: component {part.component!r} does not derive from {base.__name__}")
    if inspect.isabstract(part.component):
        lacking = ", ".join(sorted(cast(ABCMeta, part.component).__abstractmethods__))
        raise TypeError(f"part {label}: component {part.component.__name__} lacks {lacking}")
    if part.kind == "injector":
        from mixar_core.injector import Door

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

"""Plugins: packages that bring parts, recipes, models and commands, and how they are loaded.

    from mixar import Part, hookimpl

    MIXAR_INTERFACE = 2  # the version of `mixar_core` that the parts were written for

    @hookimpl
    def mixar_parts():
        return [Part("injector", "dc-sum", DCSum, DCSumConfig)]

Packages are found through the entry-point group `mixar`; mixar's own parts and commands come in by the same door. What
a plugin may define is in `mixar.hooks`, what of it is in use and by which name in `mixar.registry`.
"""

from __future__ import annotations

import inspect
import re
from abc import ABCMeta
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, cast, get_args, get_type_hints

import attrs
import pluggy

import mixar_core
from mixar.hooks import GROUP, HOOKS, Hooks, Part, hookimpl
from mixar.registry import BrokenPart, Plugin, Registry
from mixar.text import choices, one_line
from mixar_core.errors import UserError

__all__ = ["BrokenPart", "Part", "Plugin", "Registry", "evaluate", "hookimpl", "load_plugins", "plugin_manager"]

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
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
    "discriminator": "Discriminator",
    "optimizer": "Optimizer",
    "callback": "Callback",
}


def plugin_manager(*, blocked: Sequence[str] = (), option: str = "blocked") -> Registry:
    """Load every plugin of the entry-point group `mixar` but the `blocked` ones.

    A plugin that cannot be imported, has a misspelt hook, whose name another package's has, or whose parts were written
    for another interface, is left out and reported in `Registry.broken`; the others still load. A part that is not as
    it should be is left out alone: `Plugin.broken_parts`.

    Args:
        option: what messages call the way to block a plugin.

    Raises:
        UserError: a blocked name is unknown.
    """
    manager, plugins = load_plugins(blocked=blocked, option=option)
    kinds: dict[str, type] = {name: getattr(mixar_core, kind) for name, kind in _OWN_KINDS.items()}

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
        parts, broken = _sorted_out(offered(plugin, "mixar_parts"), kinds)
        return attrs.evolve(
            plugin,
            parts=parts,
            broken_parts=broken,
            recipe_folders=tuple(map(Path, offered(plugin, "mixar_recipe_folders"))),
            model_folders=tuple(map(Path, offered(plugin, "mixar_model_folders"))),
            preset_folders=tuple(map(Path, offered(plugin, "mixar_preset_folders"))),
        )

    plugins = [_unless_broken(plugin, with_kinds) for plugin in plugins]  # kinds first: any plugin has parts of them
    plugins = [_unless_broken(plugin, with_parts) for plugin in plugins]
    left_out = [plugin for plugin in installed_plugins(option) if plugin.name in blocked]
    return Registry(tuple(plugins), kinds, tuple(left_out), option)


def registry_without(registry: Registry | None, without_plugins: Sequence[str]) -> Registry:
    """The registry that a public function was given, or one of all plugins but these.

    Raises:
        UserError: both are given, or a name is unknown.
    """
    if isinstance(without_plugins, str):
        raise UserError(f'without_plugins "{without_plugins}": not a list of names')
    if registry is None:
        return plugin_manager(blocked=without_plugins, option="without_plugins")
    if without_plugins:
        raise UserError("without_plugins: a registry is given, too, which says already what is left out; give one")
    return registry


def _unless_broken(plugin: Plugin, take: Callable[[Plugin], Plugin]) -> Plugin:
    """What `take` makes of a plugin; what a third party's code raises takes no other plugin down."""
    try:
        return plugin if plugin.problem else take(plugin)
    except ModuleNotFoundError as error:
        return attrs.evolve(plugin, problem=f"{one_line(error)}; install what {plugin.package} requires")
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


def load_plugins(*, blocked: Sequence[str] = (), option: str = "blocked") -> tuple[pluggy.PluginManager, list[Plugin]]:
    """pluggy's manager with every plugin that can be imported, and all plugins, those that cannot with the reason.

    Raises:
        UserError: a blocked name is unknown.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    entries = {entry.name: entry for entry in entry_points(group=GROUP)}
    for name in blocked:
        if name not in entries:
            raise UserError(f'{option}: unknown plugin "{name}"; {choices(entries, name)}')
        manager.set_blocked(name)

    def load(plugin: Plugin) -> Plugin:
        module = entries[plugin.name].load()
        try:
            manager.register(module, name=plugin.name)
            _check_hooks(manager, module)
        except Exception:
            if manager.has_plugin(plugin.name):
                manager.unregister(name=plugin.name)
            raise
        return plugin

    return manager, [_unless_broken(p, load) for p in installed_plugins(option) if not manager.is_blocked(p.name)]


def installed_plugins(option: str) -> list[Plugin]:
    """Every plugin that is installed, not loaded; those whose name two packages use with that as their problem."""
    owners: dict[str, list[str]] = defaultdict(list)
    for entry in entry_points(group=GROUP):
        assert entry.dist is not None
        owners[entry.name].append(f"{entry.dist.name} {entry.dist.version}")
    plugins = []
    for name, owned in sorted(owners.items()):
        clash = f"{' and '.join(sorted(owned))} each have a plugin of this name; uninstall one, or {option} {name}"
        plugins += [Plugin(name, owner, clash if len(owned) > 1 else None) for owner in sorted(owned)]
    return plugins


def _check_hooks(manager: pluggy.PluginManager, module: ModuleType) -> None:
    callers = manager.get_hookcallers(module) or []
    if not callers:
        raise TypeError(f"{module.__name__} has no function marked @hookimpl; hooks: {', '.join(HOOKS)}")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        unknown = next(caller.name for caller in callers if not caller.has_spec())
        raise TypeError(f'unknown hook "{unknown}"; {choices(HOOKS, unknown)}') from error
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


# ---------------------------------------------------------------- parts


def _sorted_out(offered: Any, kinds: Mapping[str, type]) -> tuple[tuple[Part, ...], tuple[BrokenPart, ...]]:
    """What a plugin offers: parts that are as they should be, and the others with what is wrong with them."""
    offered, good, broken = list(offered), [], []
    labels = [(str(part.kind), str(part.name)) if isinstance(part, Part) else ("", "") for part in offered]
    count = Counter(labels)
    for part, label in zip(offered, labels, strict=True):
        try:
            _check_part(part, kinds)
            if count[label] > 1:
                raise TypeError(f'part {part.kind} "{part.name}": offered {count[label]} times')
        except Exception as error:  # a third party's classes may raise anything when they are looked at
            broken.append(BrokenPart(*label, str(error) if isinstance(error, TypeError) else one_line(error)))
        else:
            good.append(attrs.evolve(part))  # one of its own: two plugins may offer the same object
    return tuple(good), tuple(broken)


def _check_part(part: object, kinds: Mapping[str, type]) -> None:
    """TypeError where a part is not as it should be."""
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
            on_class = '; set it on the class, as opens = frozenset({"fill"})'
            raise TypeError(f"part {label}: opens is {opens!r}, not a set of doors; {choices(doors)}{on_class}")
    if not (isinstance(part.config, type) and attrs.has(part.config) and attrs.inspect(part.config).is_frozen):
        raise TypeError(f"part {label}: config {part.config!r} is not a frozen attrs class")
    reserved = {"type", "weights"} & {field.name for field in attrs.fields(part.config)}
    if reserved:
        raise TypeError(f"part {label}: config has a field {sorted(reserved)[0]}, which recipes use themselves")
    _check_types(label, part.config)


def _check_types(label: str, config: type, seen: Set[type] = frozenset()) -> None:
    """See that the types of a config's fields can be read, also of the attrs classes within it."""
    try:
        types = get_type_hints(config)
    except Exception as error:  # an annotation may be any expression
        way = "; import it outside of TYPE_CHECKING" if isinstance(error, NameError) else ""
        what = f"part {label}: config {config.__name__}: the type of a field cannot be read ({one_line(error)})"
        raise TypeError(f"{what}{way}") from error
    for each in {each for of in types.values() for each in (of, *get_args(of)) if isinstance(each, type)} - seen:
        if attrs.has(each):
            _check_types(label, each, {*seen, config, each})

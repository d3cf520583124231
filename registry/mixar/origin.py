"""Which package a part came from: noted beside a model, and asked where a name could mean several parts, or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen

from mixar.folder import read_provenance
from mixar.hooks import Part
from mixar.registry import OWN, Registry
from mixar.written import Text, bare
from mixar_core.errors import UserError

if TYPE_CHECKING:
    from mixar.recipe import Recipe


@frozen
class Origin:
    """Where a part of a model came from when it was made.

    Args:
        name: the part's, not qualified.
        plugin: its entry point's name. distribution, version: of the package.
    """

    name: str
    plugin: str
    distribution: str
    version: str


class NotedType(Text):
    """A part's type in the recipe of a model that says where the part came from."""

    origin: Origin


def origins(recipe: Recipe, kinds: Mapping[str, str], registry: Registry) -> dict[str, dict[str, str]]:
    """The origin of every part that a recipe chose, by its key; one of several callbacks is `callbacks.0`.

    Args:
        kinds: kind of part by recipe key.
    """
    noted = {}
    for key, kind in kinds.items():
        chosen = getattr(recipe, key)
        every = {f"{key}.{n}": one for n, one in enumerate(chosen)} if isinstance(chosen, tuple) else {key: chosen}
        for path, choice in every.items():
            if choice is not None:
                part = registry.part(kind, choice.type)
                plugin = registry.plugin_of(part)
                noted[path] = asdict(Origin(part.name, plugin.name, plugin.package, plugin.version))
    return noted


def as_mapping(choice: Any) -> Any:
    """A bare name, where a part is expected, is its type: `injector: none`. Anything else is itself."""
    return {"type": choice} if isinstance(choice, str) and isinstance(bare(choice), str) else choice


def settled(
    plain: Mapping[str, Any], kinds: Mapping[str, str], registry: Registry, *, read_from: Path | None = None
) -> dict[str, Any]:
    """A recipe's plain values with every part named as `Registry.name_of` does, where what is written means one part.

    Beside a model's provenance a bare name means the part that the model was made with, and no other package's. In a
    recipe that a plugin ships, a name of several means the plugin's own part, or else mixar's; so with models.

    Args:
        read_from: the recipe's file; None: a person wrote these.
    """
    noted, shipped = {}, None
    if read_from is not None:
        found = read_provenance(read_from.parent).get("parts") if read_from.name == "recipe.yaml" else None
        noted, shipped = _read(found), registry.shipped_by(read_from)
    packages = () if shipped is None else (shipped.package, OWN)

    def typed(choice: Any, path: str, kind: str) -> Any:
        choice = choice if path == "callbacks" else as_mapping(choice)
        if shipped is not None and isinstance(choice, Mapping) and isinstance(weights := choice.get("weights"), Text):
            own = registry.own_name("model", weights, shipped)
            choice = {**choice, "weights": Text(own, weights.folder, weights.own)}
        name = choice.get("type") if isinstance(choice, Mapping) else None
        if not isinstance(name, str) or type(name) not in (str, Text):
            return choice
        origin = noted.get(path)
        if origin is None or origin.name != name.rpartition(":")[2]:
            return {**choice, "type": Text(registry.settle(kind, name, *packages))}
        made = NotedType(_as_noted(kind, name, origin, registry))
        made.origin = origin
        return {**choice, "type": made}

    values = dict(plain)
    for key, kind in kinds.items():
        choice = values.get(key)
        if isinstance(choice, list):
            values[key] = [typed(each, f"{key}.{n}", kind) for n, each in enumerate(choice)]
        elif choice is not None:
            values[key] = typed(choice, key, kind)
    return values


def chosen_part(kind: str, name: Any, registry: Registry) -> Part:
    """The part of this name.

    Raises:
        UserError: there is none, or there are several; says what a model that has it was made with.
    """
    try:
        return registry.part(kind, str(name))
    except UserError as error:
        origin = getattr(name, "origin", None)
        there = origin is not None and origin.distribution in (
            plugin.package for plugin in (*registry.plugins, *registry.left_out)
        )
        if origin is None or there:  # what is wrong with a package that is there has been said
            raise
        package = f"the package {origin.distribution}, version {origin.version}"
        raise UserError(f"{error}; the model was made with that of {package}: install it") from error


def same_type(old: Any, new: Any) -> bool:
    """Whether a type that is written over another means the same part; what was settled is bare only if it was open."""
    return bool(old == new) or (isinstance(old, str) and isinstance(new, str) and new.endswith(f":{old}"))


def of_silence(kind: str, name: str, registry: Registry) -> dict[str, str]:
    """What a recipe that names no part means: mixar's own of that name, whoever else offers one."""
    return {"type": registry.settle(kind, name, OWN)}


def _as_noted(kind: str, name: str, origin: Origin, registry: Registry) -> str:
    """The name of the part that is noted, or one of none, where only others are called so by now."""
    if ":" in name:
        return registry.settle(kind, name)
    same = [part for part in registry.parts(kind) if part.name == name]
    for part in same:
        plugin = registry.plugin_of(part)
        if origin.distribution == plugin.package or origin.plugin == plugin.name:  # either may be called anew
            return registry.name_of(part)
    return f"{origin.plugin}:{name}" if same else name


def _read(noted: Any) -> dict[str, Origin]:
    """What a provenance says of parts, where it is as `origins` made it."""
    fields, found = ("name", "plugin", "distribution", "version"), {}
    for key, facts in noted.items() if isinstance(noted, Mapping) else ():
        if isinstance(facts, Mapping) and all(isinstance(facts.get(field), str) for field in fields):
            found[key] = Origin(*(facts[field] for field in fields))
    return found

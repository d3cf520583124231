"""What the installed plugins offer, found by name: a bare one, or `plugin:name` where plugins clash."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import attrs

from mixar import hub
from mixar.hooks import Part
from mixar.text import choices, comes_with
from mixar.written import path_of
from mixar_core.errors import UserError

#: the package whose parts are meant where a recipe says nothing
OWN = "mixar"
#: how names begin of what mixar-zoo ships, for who has not installed it
_ZOO = ("digits", "emoji64")
#: the folder of a model's own presets of sampling
PRESETS = "presets"


@attrs.frozen
class BrokenPart:
    """What a plugin offers and cannot be used; empty kind and name: it is not even a Part."""

    kind: str
    name: str
    problem: str


@attrs.frozen
class Plugin:
    """An installed plugin and what it brings.

    Args:
        name: its entry point's.
        distribution: the package's name and version.
        problem: why nothing of it is in use, if so.
        broken_parts: those that it offers beside `parts`, and that cannot be used.
    """

    name: str
    distribution: str
    problem: str | None = None
    parts: tuple[Part, ...] = ()
    broken_parts: tuple[BrokenPart, ...] = ()
    recipe_folders: tuple[Path, ...] = ()
    model_folders: tuple[Path, ...] = ()
    preset_folders: tuple[Path, ...] = ()

    @property
    def package(self) -> str:
        """The distribution's name."""
        return self.distribution.rpartition(" ")[0]

    @property
    def version(self) -> str:
        """The distribution's version."""
        return self.distribution.rpartition(" ")[2]


@attrs.frozen(eq=False)
class Registry:
    """Parts, recipes and models that the installed plugins offer. Made by `plugin_manager`.

    A name is bare, or qualified: `plugin:name`. Where several plugins offer one of a name, the bare one is refused.
    """

    plugins: tuple[Plugin, ...]
    #: kind of part -> the abstract class its components derive from
    kinds: Mapping[str, type]
    #: plugins that were asked to be left out, and how that was said
    left_out: tuple[Plugin, ...] = ()
    left_out_by: str = ""

    @property
    def broken(self) -> tuple[Plugin, ...]:
        """Plugins that could not be loaded, each with its `problem`."""
        return tuple(plugin for plugin in self.plugins if plugin.problem)

    def parts(self, kind: str) -> list[Part]:
        """All parts of a kind, by name."""
        return [part for part, _ in self._offers(kind)]

    def part(self, kind: str, name: str) -> Part:
        """The part of this kind and name.

        Raises:
            UserError: there is none, or the bare name of several; says what there is, and which could not be loaded.
        """
        fits = self._fitting(kind, name)
        if len(fits) > 1:
            ways = " or ".join(f"{plugin.name}:{part.name} (of {plugin.distribution})" for part, plugin in fits)
            raise UserError(f'{kind} "{name}": more than one package offers it; write {ways}')
        if not fits:
            offers = [(part.name, plugin.name) for part, plugin in self._offers(kind)]
            raise self._unknown(kind, name, offers, self.broken_like(name))
        return fits[0][0]

    def offers(self, kind: str, name: str) -> bool:
        """Whether there is a part of this kind and name, or several."""
        return bool(self._fitting(kind, name))

    def name_of(self, part: Part) -> str:
        """The name that means this part alone: the bare one, if no other plugin offers one of it."""
        alone = len(self._fitting(part.kind, part.name)) == 1
        return part.name if alone else f"{self.plugin_of(part).name}:{part.name}"

    def settle(self, kind: str, name: str, *packages: str) -> str:
        """A name as `name_of` writes it; of several parts that it could mean, the first package's that has one.

        What means no part, or still several, stays as it is.
        """
        fits = self._fitting(kind, name)
        if len(fits) > 1:
            fits = [offer for package in packages for offer in fits if offer[1].package == package]
        return self.name_of(fits[0][0]) if fits else name

    def plugin_of(self, part: Part) -> Plugin:
        """The plugin that offers a part of this registry."""
        return next(plugin for own, plugin in self._offers(part.kind) if own is part)

    def recipes(self) -> dict[str, list[Path]]:
        """Recipes by name (the file's, without .yaml), qualified where plugins clash."""
        return _by_name(self._recipes())

    def models(self) -> dict[str, list[Path]]:
        """Shipped models by name (the folder's), qualified where plugins clash."""
        return _by_name(self._models())

    def presets(self) -> dict[str, list[Path]]:
        """Presets of sampling by name (the file's, without .yaml), qualified where plugins clash."""
        return _by_name(self._presets())

    def shipped_by(self, file: Path) -> Plugin | None:
        """The plugin in whose folders of recipes, models or presets a file lies."""
        for plugin in self.plugins:
            folders = (*plugin.recipe_folders, *plugin.model_folders, *plugin.preset_folders)
            if any(file.resolve().is_relative_to(folder.resolve()) for folder in folders):
                return plugin
        return None

    def find_preset(self, name: str, model: Path | None = None) -> Path:
        """A preset's file: what a model's folder has of this name under presets/, or what a plugin brings.

        Raises:
            UserError: there is none, or several plugins have one of that name.
        """
        own = [(file.stem, "model", file) for file in sorted((model / PRESETS).glob("*.yaml"))] if model else []
        return self._only(name, [each for each in own if each[0] == name] or [*own, *self._presets()], "preset")

    def own_name(self, what: Literal["recipe", "model"], name: str, plugin: Plugin) -> str:
        """What a plugin means by a recipe's or model's bare name: its own, if it has one, whoever else has one."""
        known = self._models() if what == "model" else self._recipes()
        owners = [owner for own, owner, _ in known if own == name]
        return f"{plugin.name}:{name}" if len(owners) > 1 and plugin.name in owners else name

    def find_recipe(self, name_or_path: str | Path) -> Path:
        """A recipe's file, by its name or by its path (anything with a slash or ending in .yaml is a path).

        Raises:
            UserError: there is none, or several plugins have one of that name.
        """
        path = path_of(name_or_path)
        if path is None:
            return self._only(str(name_or_path), self._recipes(), "recipe")
        if path.is_dir() and not (path / "recipe.yaml").is_file():
            within = sorted(file.name for file in path.glob("*.yaml"))
            found = f"the recipes in it are {', '.join(within)}" if within else "it holds no recipe.yaml"
            raise UserError(f"recipe {path}: is a folder; {found}; of images mixar new makes recipes")
        path = path / "recipe.yaml" if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"recipe {path}: no such file")
        return path

    def find_model(self, name_or_path: str | Path) -> Path:
        """A model's folder, by its name, path or `hf://owner/name`; a bare word is a folder only if that is a model.

        Raises:
            UserError: there is none, or several plugins have one of that name.
        """
        if str(name_or_path).startswith(hub.PREFIX):
            return hub.fetch_model(str(name_or_path))
        path = path_of(name_or_path, holding="recipe.yaml")
        if path is None:
            return self._only(str(name_or_path), self._models(), "model")
        if not (path / "recipe.yaml").is_file():
            lacks = "a model or run folder has a recipe.yaml, this one has none" if path.is_dir() else "no such folder"
            lacks = "a file; a model is a folder, as training a recipe makes one" if path.is_file() else lacks
            raise UserError(f"model {path}: {lacks}")
        return path

    def broken_like(self, name: str) -> list[str]:
        """What to say of broken parts of this name; if there are none, of those that may be meant.

        One that has no name may always be.
        """
        bare = name.rpartition(":")[2]
        found = [
            (
                broken.name,
                f"plugin {plugin.name} of {plugin.distribution} offers one that cannot be used: {broken.problem}",
            )
            for plugin in self.plugins
            for broken in plugin.broken_parts
            if broken.name in ("", bare) or get_close_matches(bare, [broken.name.lower()])
        ]
        return [said for own, said in found if own == bare] or [said for _, said in found]

    def _offers(self, kind: str) -> list[tuple[Part, Plugin]]:
        offers = [(part, plugin) for plugin in self.plugins for part in plugin.parts if part.kind == kind]
        return sorted(offers, key=lambda offer: (offer[0].name, offer[1].name))

    def _fitting(self, kind: str, name: str) -> list[tuple[Part, Plugin]]:
        return [(part, plugin) for part, plugin in self._offers(kind) if _is_named(name, part.name, plugin.name)]

    def _recipes(self) -> list[tuple[str, str, Path]]:
        """Name, plugin and file of each; a file that two plugins have is listed once."""
        return _once(
            (file.stem, plugin.name, file)
            for plugin in self.plugins
            for folder in plugin.recipe_folders
            for file in folder.rglob("*.yaml")
        )

    def _models(self) -> list[tuple[str, str, Path]]:
        return _once(
            (file.parent.name, plugin.name, file.parent)
            for plugin in self.plugins
            for folder in plugin.model_folders
            for file in folder.glob("*/recipe.yaml")
        )

    def _presets(self) -> list[tuple[str, str, Path]]:
        return _once(
            (file.stem, plugin.name, file)
            for plugin in self.plugins
            for folder in plugin.preset_folders
            for file in folder.glob("*.yaml")
        )

    def _only(self, name: str, known: Sequence[tuple[str, str, Path]], what: str) -> Path:
        fits = [(own, plugin, path) for own, plugin, path in known if _is_named(name, own, plugin)]
        if not fits:
            raise self._unknown(what, name, [(own, plugin) for own, plugin, _ in known])
        if len(fits) > 1:
            apart = len({plugin for _, plugin, _ in fits}) == len(fits)
            ways = " or ".join(f"{plugin}:{own} ({path})" if apart else str(path) for own, plugin, path in fits)
            raise UserError(f'{what} "{name}" is there more than once; give {ways}')
        return fits[0][2]

    def _unknown(self, what: str, name: str, known: Iterable[tuple[str, str]], blamed: Sequence[str] = ()) -> UserError:
        plugin, _, bare = name.rpartition(":")
        qualified = [f"{owner}:{own}" for own, owner in known]
        same = [each for each in qualified if each.rpartition(":")[2] == bare]
        allowed = choices((same or qualified) if plugin else {own for own, _ in known}, name)
        zoo = any(p.package == "mixar-zoo" for p in (*self.plugins, *self.left_out))
        said = [
            *([comes_with("mixar_zoo")] if bare.startswith(_ZOO) and not zoo else []),
            *blamed,
            *(f"plugin {p.name} of {p.distribution} was not loaded: {p.problem}" for p in self.broken),
            *(f"plugin {p.name} of {p.distribution} is left out by {self.left_out_by}" for p in self.left_out),
        ]
        return UserError(f'unknown {what} "{name}"; {allowed}{"".join(f" ({each})" for each in said)}')


def _is_named(name: str, own: str, plugin: str) -> bool:
    return name in (own, f"{plugin}:{own}")


def _once(found: Iterable[tuple[str, str, Path]]) -> list[tuple[str, str, Path]]:
    kept: dict[tuple[str, Path], tuple[str, str, Path]] = {}
    for name, plugin, path in sorted(found):
        kept.setdefault((name, path.resolve()), (name, plugin, path))
    return list(kept.values())


def _by_name(found: Sequence[tuple[str, str, Path]]) -> dict[str, list[Path]]:
    """More than one path where one plugin has several of a name."""
    owners: dict[str, set[str]] = {}
    for name, plugin, _ in found:
        owners.setdefault(name, set()).add(plugin)
    paths: dict[str, list[Path]] = {}
    for name, plugin, path in found:
        paths.setdefault(name if len(owners[name]) == 1 else f"{plugin}:{name}", []).append(path)
    return paths

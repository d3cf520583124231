"""The house's rules about who imports whom, read from the source: docs/architecture.md shows the picture."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from attrs import frozen

ROOT = Path(__file__).parents[1]
#: what `mixar plugin new` copies: a plugin package that lies inside another package, and is none of its modules
TEMPLATE = ROOT / "registry/mixar/template"
#: where each import package lies; those of plugins/ come after the two that all build on
PACKAGES = {
    "mixar_core": ROOT / "mixar_core",
    "mixar": ROOT / "registry/mixar",
    "mixar_plugins": ROOT / "plugins/mixar_plugins",
    "my_plugin": TEMPLATE / "src/my_plugin",
    **{path.name: path for path in sorted((ROOT / "plugins").glob("*/src/*")) if path.is_dir()},
}
PLUGINS = PACKAGES.keys() - {"mixar_core", "mixar"}
#: what a plugin package may import beside mixar_core and mixar: the zoo trains and measures, and requires what it uses
ALLOWED = {"mixar_zoo": PLUGINS}
#: distributions whose import name is another one, or which bring it
DISTRIBUTIONS = {"IPython": "ipykernel", "PIL": "pillow", "yaml": "pyyaml"}
#: what takes long to import: never at the top of a file outside of mixar_eval, not even where it is required
HEAVY = {"timm", "torch_fidelity", "matplotlib"}
LONGEST = 400
#: the folder of mixar_plugins that parts of several kinds share
SHARED = "networks"


@frozen
class Import:
    """One import of a file: the module's full name, and whether it happens as soon as the file is imported."""

    module: str
    at_top: bool


@frozen
class Source:
    """A file of a package: `name` as it is imported, and what it imports."""

    path: Path
    name: str
    imports: tuple[Import, ...]

    @property
    def package(self) -> str:
        return self.name.split(".")[0]

    @property
    def folder(self) -> str:
        """The package's folder that it lies in; the face of a package, its `__init__`, is a folder of its own."""
        parts = self.path.relative_to(PACKAGES[self.package]).parts
        return parts[0] if len(parts) > 1 else "__init__" if parts == ("__init__.py",) else ""


def name_of(package: str, path: Path) -> str:
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    return ".".join((package, *(part for part in parts if part != "__init__")))


MODULES = {
    name_of(package, path): path
    for package, place in PACKAGES.items()
    for path in place.rglob("*.py")
    if package == "my_plugin" or TEMPLATE not in path.parents
}


def imports_of(tree: ast.Module, package: str) -> Iterator[Import]:
    """All imports of a file; those inside functions, and those for the type checker alone, are not `at_top`."""
    later: set[ast.AST] = set()
    for node in ast.walk(tree):
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if typing or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            later.update(ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node not in later) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{package}: a relative import, where the others write the full name"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield Import(inner if inner in MODULES else str(node.module), node not in later)


def read(name: str, path: Path) -> Source:
    return Source(path, name, tuple(imports_of(ast.parse(path.read_text(encoding="utf-8")), name)))


@pytest.fixture(scope="module")
def sources() -> list[Source]:
    return [read(name, path) for name, path in MODULES.items()]


def found(sources: list[Source], package: str) -> list[Source]:
    files = [source for source in sources if source.package == package]
    assert files, package
    return files


def where(source: Source, imported: Import) -> str:
    return f"{source.path.relative_to(ROOT)} imports {imported.module}"


def test_imports_go_one_way(sources: list[Source]) -> None:
    """mixar_core <- mixar <- plugin packages, of which none imports another (but the zoo)."""
    wrong = []
    for source in sources:
        below = {"mixar_core", source.package}
        if source.package != "mixar_core":
            below |= {"mixar"} | ALLOWED.get(source.package, set())
        for imported in source.imports:
            package = imported.module.split(".")[0]
            if package in PACKAGES and package not in below:
                wrong.append(where(source, imported))
    assert not wrong, "\n".join(wrong)


def test_a_component_needs_mixar_core_alone(sources: list[Source]) -> None:
    """A part can be read, and copied into another package, without knowing the registry: only `__init__` names both.

    Beside its own folder it may use `networks`, which several kinds of parts share, and which itself uses none of them.
    """
    wrong = []
    for source in found(sources, "mixar_plugins"):
        for imported in source.imports:
            package, *rest = imported.module.split(".")
            if source.folder == "__init__" or package not in PACKAGES or package == "mixar_core":
                continue
            if package != "mixar_plugins" or rest[0] not in (source.folder, SHARED):
                wrong.append(where(source, imported))
    assert not wrong, "\n".join(wrong)


def test_folders_of_mixar_core_make_no_circle(sources: list[Source]) -> None:
    folders = {source.name: source.folder for source in sources if source.package == "mixar_core"}
    needs: dict[str, set[str]] = {}
    for source in found(sources, "mixar_core"):
        needed = {folders[each.module] for each in source.imports if each.module in folders}
        needs.setdefault(source.folder, set()).update(needed - {source.folder})
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        pytest.fail(f"folders import each other: {' -> '.join(error.args[1])}")
    assert order.index("data") < order.index("training") < order.index("testing")


def required(package: str) -> tuple[set[str], set[str]]:
    """The distributions that come with a package, and those that come with its extras."""
    file = next(
        folder / "pyproject.toml" for folder in PACKAGES[package].parents if (folder / "pyproject.toml").exists()
    )
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    extras = [word for words in project.get("optional-dependencies", {}).values() for word in words]
    always, optional = (
        {re.split(r"[^\w-]", word)[0].replace("-", "_") for word in words}
        for words in (project["dependencies"], extras)
    )
    return always, optional


def test_what_is_imported_is_required(sources: list[Source]) -> None:
    """At the top of a file only what comes with its package; what comes with an extra is imported where it is used."""
    with_mixar, extras = required("mixar")
    wrong = []
    for package in PACKAGES:
        always, optional = required(package)
        for source in found(sources, package):
            for imported in source.imports:
                name = imported.module.split(".")[0]
                name = DISTRIBUTIONS.get(name, name)
                there = always | with_mixar | (set() if imported.at_top else optional | extras)
                if name not in there and name not in PACKAGES and name not in sys.stdlib_module_names:
                    wrong.append(where(source, imported))
    assert not wrong, "\n".join(wrong)


def test_what_is_slow_to_import_waits(sources: list[Source]) -> None:
    wrong = [
        where(source, imported)
        for source in sources
        for imported in source.imports
        if imported.at_top and source.package != "mixar_eval" and imported.module.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_no_file_is_too_long() -> None:
    places = [*PACKAGES.values(), ROOT / "tests", ROOT / "benchmarks"]
    files = {path for place in places for path in place.rglob("*.py")}
    lines = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: count for name, count in lines.items() if count > LONGEST} == {}


def test_these_rules_see_what_is_there(sources: list[Source]) -> None:
    """An import inside a function counts, but not as one at the top; a name is told from a module."""
    plugins = {
        "mixar_plugins",
        "mixar_adaptive",
        "mixar_diffusers",
        "mixar_eval",
        "mixar_fsq",
        "mixar_import",
        "mixar_page",
        "mixar_zoo",
    }
    assert {"mixar_core", "mixar", *plugins} <= PACKAGES.keys()
    code = (
        "import timm\nfrom mixar_core import errors\nfrom mixar_core.errors import UserError\n"
        "def later():\n    from torch_fidelity import x\n"
    )
    assert list(imports_of(ast.parse(code), "")) == [
        Import("timm", True),
        Import("mixar_core.errors", True),
        Import("mixar_core.errors", True),
        Import("torch_fidelity", False),
    ]
    assert sum(len(source.imports) for source in sources) > 500

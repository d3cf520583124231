"""A new plugin package, copied from the folder `template`: of that the files of the kinds that are wanted, renamed."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path

from mixar.plugins import Registry
from mixar.text import choices
from mixar_core.errors import UserError

TEMPLATE = Path(__file__).parent / "template"
_PACKAGE = TEMPLATE / "src/my_plugin"
#: kind -> the file of its part in the template
KINDS = {path.stem.replace("_", "-"): path for path in sorted(_PACKAGE.glob("[a-z]*.py"))}
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


def new_plugin(name: str, kinds: Sequence[str], folder: Path, registry: Registry) -> list[Path]:
    """Write a package with a working part of each kind; it appears whole or not at all.

    Args:
        name: of the distribution, the plugin and its parts, with hyphens; of the Python package, with underscores.
        kinds: of `KINDS`; each gets a part of that name.
        folder: must not be there.

    Returns:
        The files, as they lie below `folder`.

    Raises:
        UserError: the name is none or is taken, a kind has no template, the folder is there or cannot be written.
    """
    from mixar_core.storage import whole_folder  # later: the command's help lists `KINDS`, and waits for no torch

    name = _free_name(name, kinds, registry)
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} is there already; give another folder by --out")
    package, left_out = name.replace("-", "_"), [kind for kind in KINDS if kind not in kinds]
    words = {"my-plugin": name, "my_plugin": package, "MyPlugin": "".join(map(str.capitalize, name.split("-")))}
    written = []
    with whole_folder(folder) as new:
        for path in template_files():
            if path in (KINDS[kind] for kind in left_out):
                continue
            relative = Path(_renamed(path.relative_to(TEMPLATE).as_posix(), words))
            (new / relative).parent.mkdir(parents=True, exist_ok=True)
            text = _without(path.read_text(encoding="utf-8"), left_out if path.name in _LISTS else ())
            (new / relative).write_text(_renamed(text, words), encoding="utf-8")
            written.append(relative)
    return written


def template_files() -> list[Path]:
    """The template's, without what tools that looked at it left there."""
    found = sorted(path for path in TEMPLATE.rglob("*") if path.is_file())
    left = [any(part.startswith((".", "__pycache__")) for part in path.relative_to(TEMPLATE).parts) for path in found]
    return [path for path, of_tools in zip(found, left, strict=True) if not of_tools]


#: files that have a line, or two, for each kind
_LISTS = ("__init__.py", "README.md")


def _without(text: str, kinds: Sequence[str]) -> str:
    """Without the lines that speak of parts of these kinds."""
    spoken = [word for kind in kinds for word in (f'"{kind}"', f"`{kind}`", f"my_plugin.{kind.replace('-', '_')} ")]
    return "".join(line for line in text.splitlines(keepends=True) if not any(word in line for word in spoken))


def _renamed(text: str, words: dict[str, str]) -> str:
    return re.sub("|".join(words), lambda found: words[found[0]], text)


def _free_name(name: str, kinds: Sequence[str], registry: Registry) -> str:
    """The name with hyphens, if nothing that is installed has it."""
    if not _NAME.fullmatch(name) or iskeyword(name):
        raise UserError(f"plugin name {name!r}: needed: lower-case letters, digits and hyphens, a letter first")
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"--kind {kind}: there is no template for it; {choices(KINDS, kind)}")
    name = name.replace("_", "-")
    package, taken = name.replace("-", "_"), ""
    try:
        taken = f"a distribution {distribution(name).name} is installed"
    except PackageNotFoundError:
        if package in sys.stdlib_module_names or find_spec(package) is not None:
            taken = f"Python has a module {package} already"
        elif name in (plugin.name for plugin in registry.plugins):
            taken = "there is a plugin of that name"
        for kind in kinds:
            if name in (part.name for part in registry.parts(kind)):
                taken = f"there is a {kind} of that name"
    if taken:
        raise UserError(f"plugin name {name!r} is taken: {taken}")
    return name

"""Values as a person wrote them: text that knows where its paths are seen from, and words that may be numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from mixar import strict_yaml
from mixar.text import shortened, tell
from mixar_core.errors import UserError

_PATH_ENDINGS = (".safetensors", ".yaml", ".yml")


class Text(str):
    """Text of a recipe file or of the command line.

    Args:
        folder: absolute; where relative paths in it are seen from. None: the working directory.
        own: whether a person wrote it here. What a package ships or a run wrote names no folder by a bare word.
    """

    folder: Path
    own: bool

    def __new__(cls, text: str, folder: Path | None = None, own: bool = True) -> Text:
        """Text seen from `folder`."""
        made = super().__new__(cls, text)
        made.folder, made.own = folder or Path.cwd(), own
        return made


class Word(Text):
    """A word of the command line that YAML reads as null, a boolean or a number: as `value`, where that is wanted."""

    value: bool | int | float | None


def read_value(text: str, *, where: str) -> Any:
    """What a value on the command line means: never cut, and in quotes or brackets YAML.

    Text is taken whole, with ` #`, `: ` and spaces in it; a word that YAML reads as a number is a `Word`.

    Raises:
        UserError: a quote or bracket that is not closed, or something behind it.
    """
    if text.lstrip()[:1] in ("'", '"', "[", "{"):
        try:
            return placed(strict_yaml.load(text, where=where, comments=False), Path.cwd())
        except UserError as error:
            raise UserError(f"{error}; as text it has to be quoted: {json.dumps(text, ensure_ascii=False)}") from error
    if strict_yaml.is_text(text.strip()):
        return Text(text)
    word = Word(text)
    word.value = strict_yaml.load(text.strip(), where=where)
    return word


def placed(value: Any, folder: Path, *, own: bool = True) -> Any:
    """Plain values whose text is seen from `folder`; paths, tuples, numpy's and torch's values become plain."""
    if isinstance(value, Text):
        return value
    if isinstance(value, str | os.PathLike):
        return Text(os.fspath(value), folder, own)
    if isinstance(value, Mapping):
        return {bare(key): placed(item, folder, own=own) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [placed(item, folder, own=own) for item in value]
    return placed(plain_values(value, "value"), folder, own=own) if hasattr(value, "tolist") else value


def plain_values(values: Any, what: str) -> Any:
    """What numpy, torch or pandas hold as Python's own values; anything else as it is.

    Raises:
        UserError: it holds none that can be read: a tensor on the meta device, a sparse one.
    """
    try:
        return values.tolist() if hasattr(values, "tolist") else values
    except RuntimeError as error:
        raise UserError(f"{what}: a {type(values).__name__} whose values cannot be read: {error}") from error


def bare(value: Any) -> Any:
    """The plain value, without what is known of its writing."""
    if isinstance(value, Mapping):
        return {bare(key): bare(item) for key, item in value.items()}
    if isinstance(value, list):
        return [bare(item) for item in value]
    return value.value if isinstance(value, Word) else str(value) if isinstance(value, Text) else value


def located(text: str | Path) -> Path:
    """The absolute path that was meant: as seen from the recipe file that says it, or from the working directory.

    Recipes that people write were once read as seen from the working directory: where nothing is but there, it still
    is, with a word.

    Raises:
        UserError: it is empty, or no path.
    """
    from mixar_core.storage import user_path  # comes with torch, and the program's --help needs neither

    folder = text.folder if isinstance(text, Text) else Path.cwd()
    relative = user_path(text)
    path, working = folder / relative, Path.cwd() / relative
    if path != working and getattr(text, "own", False) and not path.exists() and working.exists():
        _tell_once(
            f"note: {path} is not there, so {working} is taken; paths in a recipe file are seen from that file: write "
            f"{os.path.relpath(working, folder)}"
        )
        path = working
    return path.resolve() if ".." in path.parts else path


_tell_once = cache(tell)


def path_of(text: str | Path, *, holding: str | None = None) -> Path | None:
    """The absolute path that is meant, or None where a name is.

    A Path is a path, and so is what has a slash or a recipe's or weights file's ending. Any other word is a path only
    to a folder that is `holding` this file.

    Raises:
        UserError: it is neither.
    """
    if not isinstance(text, str | Path):
        raise UserError(f"{shortened(repr(text))}: neither a name nor a path")
    if isinstance(text, Path) or "/" in text or text.startswith(("~", ".")) or text.endswith(_PATH_ENDINGS):
        return located(text)
    seen = text if isinstance(text, Text) else Text(text)
    is_folder = holding and seen and seen.own and os.path.isfile(seen.folder / seen / holding)
    return seen.folder / seen if is_folder else None

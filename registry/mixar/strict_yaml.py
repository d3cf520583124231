"""YAML without its surprises: 1e-4 is a number, `no` is a word, a key stands once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mixar.text import one_line
from mixar_core.errors import UserError

# YAML 1.2's core schema. PyYAML follows 1.1, where 1e-4 is text, `on` is true, 010 is eight and 1:30 is ninety.
_NUMBER = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
_SCALARS = {
    "null": re.compile(r"(?:~|null|Null|NULL|)$"),
    "bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"),
    "int": re.compile(r"[-+]?[0-9]+$"),
    "float": re.compile(rf"(?:{_NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
}
_RESOLVERS = {None: [(f"tag:yaml.org,2002:{name}", pattern) for name, pattern in _SCALARS.items()]}
_STANDS_FOR = "\ue000"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _RESOLVERS


class _NoComments(_Loader):
    """YAML on the command line, where no `#` begins a comment: the parser is not shown one."""

    def __init__(self, text: str) -> None:
        if _STANDS_FOR in text:
            raise yaml.YAMLError(f"the character U+{ord(_STANDS_FOR):X} cannot be in quotes or brackets")
        super().__init__(text.replace("#", _STANDS_FOR))

    def construct_scalar(self, node: Any) -> Any:
        return super().construct_scalar(node).replace(_STANDS_FOR, "#")


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = _RESOLVERS

    def ignore_aliases(self, data: Any) -> bool:
        """A value that stands twice is written twice."""
        return True


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str) or key in made:
            problem = f"key {key} stands twice" if isinstance(key, str) else f"key {key!r} is not text"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        made[key] = loader.construct_object(value_node, deep=True)
    return made


def _text(dumper: _Dumper, value: str) -> yaml.Node:
    # unquoted or in single quotes, PyYAML would write these line breaks so that they come back as spaces
    style = '"' if any(character in value for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _list(dumper: _Dumper, value: list[Any] | tuple[Any, ...]) -> yaml.Node:
    nested = any(isinstance(item, list | tuple | dict) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=not nested)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))  # PyYAML's own reads 010 as eight
_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, _list)
_Dumper.add_representer(tuple, _list)


def load(text: str, *, where: str, comments: bool = True) -> Any:
    """The value of a YAML text.

    Raises:
        UserError: not YAML; says where.
    """
    try:
        return yaml.load(text, Loader=_Loader if comments else _NoComments)  # both are SafeLoaders
    except (yaml.YAMLError, ValueError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise UserError(f"{where}: {place}{problem or f'not valid YAML: {one_line(error)}'}") from error


def is_text(word: str) -> bool:
    """Whether YAML reads an unquoted word as text, and not as null, a boolean or a number."""
    return not any(pattern.match(word) for pattern in _SCALARS.values())


def read(path: Path, *, where: str) -> Any:
    """The values in a file; `where` begins the error message.

    Raises:
        UserError: it cannot be read, or is not such YAML.
    """
    try:
        return load(path.read_text(encoding="utf-8"), where=where)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read: {error}") from error


def dump(value: Any) -> str:
    """YAML that `load` reads back as the same value; mappings keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)

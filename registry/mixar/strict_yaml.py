"""YAML without its surprises: 1e-4 is a number, `no` is a word, a key stands once."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

from mixar.text import one_line
from mixar_core.errors import UserError

# YAML 1.2's core schema. PyYAML follows 1.1, where 1e-4 is text, `on` is true, 010 is eight and 1:30 is ninety.
_SCALARS = (
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+0123456789."),
    ),
)
_STANDS_FOR = "\ue000"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


class _NoComments(_Loader):
    """YAML on the command line, where no `#` begins a comment: the parser is not shown one."""

    def __init__(self, text: str) -> None:
        if _STANDS_FOR in text:
            raise yaml.YAMLError(f"the character U+{ord(_STANDS_FOR):X} cannot be in quotes or brackets")
        super().__init__(text.replace("#", _STANDS_FOR))

    def construct_scalar(self, node: Any) -> Any:
        return super().construct_scalar(node).replace(_STANDS_FOR, "#")


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def ignore_aliases(self, data: Any) -> bool:
        """A value that stands twice is written twice."""
        return True


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Hashable, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key} stands twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(node.value)  # PyYAML's own reads 010 as eight


def _text(dumper: _Dumper, value: str) -> yaml.Node:
    # unquoted or in single quotes, PyYAML would write these line breaks so that they come back as spaces
    style = '"' if any(character in value for character in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


def _list(dumper: _Dumper, value: list[Any] | tuple[Any, ...]) -> yaml.Node:
    nested = any(isinstance(item, list | tuple | dict) for item in value)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=not nested)


for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_tag, re.compile(_pattern), _first)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Dumper.add_representer(str, _text)
_Dumper.add_multi_representer(str, _text)  # text that knows more of itself
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
    return not any(re.match(pattern, word) for _, pattern, _ in _SCALARS)


def dump(value: Any) -> str:
    """YAML that `load` reads back as the same value; mappings keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)

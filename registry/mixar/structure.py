"""Plain values from YAML to typed ones, strictly: no unknown key, no silent cast; every error with path and choices.

A field of a config class that holds a path says so: by the type `Path`, or for text by
`field(metadata={"path": True})`; text that only may be one by a function (text, absolute path) -> bool instead of True.
What a person wrote there becomes absolute: seen from the recipe file that says it, or else from the working directory.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs
from cattrs import ClassValidationError, Converter, ForbiddenExtraKeysError, IterableValidationError
from cattrs.cols import mapping_structure_factory
from cattrs.errors import IterableValidationNote
from cattrs.gen import make_dict_structure_fn, override

from mixar.text import choices, one_line, shortened
from mixar.written import Text, Word, bare, located
from mixar_core.errors import UserError
from mixar_core.storage import is_url


class Invalid(ValueError):
    """A value that does not fit; `problems` are lines of `path: what is wrong`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def structure(value: Any, cls: type, *, path: str = "") -> Any:
    """An instance of the attrs class `cls` from a mapping.

    Raises:
        Invalid: with every problem, not just the first.
    """
    try:
        return _CONVERTER.structure(value, cls)
    except Exception as error:  # validators of third parties' config classes may raise anything
        raise Invalid([_line(*found) for found in _problems(error, path)]) from error


def unstructure(value: Any) -> Any:
    """The plain values `structure` takes."""
    return _CONVERTER.unstructure(value)


def join(path: str, name: str) -> str:
    """a.b of a and b."""
    return f"{path}.{name}" if path else name


# ---------------------------------------------------------------- hooks


def flat(plain: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Values at any depth by their paths, `head.depth`."""
    values: dict[str, Any] = {}
    for key, value in plain.items():
        values |= flat(value, join(path, key)) if isinstance(value, Mapping) else {join(path, key): value}
    return values


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key was A, is B` for every value, at any depth, that is not the same."""
    old, new = flat(then), flat(now)
    return [
        f"{key} was {shortened(old.get(key))}, is {shortened(new.get(key))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _plain(allowed: type, what: str) -> Callable[[Any, Any], Any]:
    def check(value: Any, _: Any) -> Any:
        if type(value) is not allowed:  # bool is an int to isinstance
            raise TypeError(f"{_show(value)} is not {what}")
        return value

    return check


def _text(value: Any, _: Any) -> str:
    if type(value) not in (str, Text):
        hint = "; in quotes it would be" if isinstance(value, int | float | list | Mapping) else ""
        raise TypeError(f"{_show(value)} is not text{hint}")
    return str(value)


def _float(value: Any, _: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"{_show(value)} is not a number")
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return float(value)


def _path(value: Any, _: Any) -> Path:
    if not isinstance(value, str | Path):
        raise TypeError(f"{_show(value)} is not a path")
    return Path(_absolute(value)) if isinstance(value, Text) else Path(value)


def _literal(value: Any, cls: Any) -> Any:
    value = bare(value)
    for allowed in get_args(cls):
        if type(value) is type(allowed) and value == allowed:
            return value
    names = [str(allowed) for allowed in get_args(cls)]
    raise ValueError(f"{_show(value)} is not one of them; {choices(names, str(value))}")


def _class_hook(cls: type, converter: Converter) -> Callable[[Any, Any], Any]:
    fields = [field for field in attrs.fields(cls) if field.init]
    names, types = [field.name for field in fields], get_type_hints(cls)
    hooks: dict[str, Any] = {
        f.name: override(struct_hook=_field_hook(f, types.get(f.name, Any), converter)) for f in fields
    }
    fill: Callable[..., Any] = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **hooks
    )

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"{_show(value)} is not a mapping; {choices(names)}")
        return fill(value, cls)

    return hook


def _field_hook(field: attrs.Attribute[Any], cls: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    is_path = field.metadata.get("path")

    def hook(value: Any, _: Any) -> Any:
        value = wanted(value, cls)
        return converter.structure(_located(value, is_path) if is_path else value, cls)

    return hook


def wanted(value: Any, cls: Any) -> Any:
    """A word of the command line as it is written where text is wanted, and else as what YAML reads in it."""
    if not isinstance(value, Word):
        return value
    members = {*get_args(cls)} if _is_union(cls) else {cls}
    is_text = members & {str, Path} and not members & {bool, int, float}
    return value.text if is_text and not (value.value is None and NoneType in members) else value.value


def _located(value: Any, is_path: Any) -> Any:
    """What a person wrote with its paths made absolute, at any depth."""
    if isinstance(value, Mapping):
        return {key: _located(item, is_path) for key, item in value.items()}
    if isinstance(value, list):
        return [_located(item, is_path) for item in value]
    if not isinstance(value, Text) or is_url(value):
        return value
    if is_path is not True and not is_path(value, value.folder / os.path.expanduser(value)):
        return value
    return _absolute(value)


def _absolute(text: Text) -> str:
    """The path that was meant; what a shipped recipe says of a place where nothing is stays as it is."""
    path = located(text)
    return str(path if text.own or path.exists() else text)


def _sequence_hook(cls: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    kind, items = get_origin(cls) or cls, get_args(cls) or (Any, ...)
    one_type = kind is not tuple or (len(items) == 2 and items[1] is ...)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{_show(value)} is not a list")
        if not one_type and len(value) != len(items):
            raise ValueError(f"{_show(value)} has {len(value)} items, not {len(items)}")
        done, errors = [], []
        for index, item in enumerate(value):
            item_type = items[0] if one_type else items[index]
            try:
                done.append(converter.structure(item, item_type))
            except Exception as error:  # collected, and raised together below
                error.add_note(IterableValidationNote(f"item {index}", index, item_type))
                errors.append(error)
        if errors:
            raise IterableValidationError("items", errors, cls)
        return tuple(done) if kind is tuple else done

    return hook


def _mapping_hook(cls: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    fill, of = mapping_structure_factory(cls, converter), (get_args(cls) or (str, Any))[1]

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"{_show(value)} is not a mapping")
        return fill({key: wanted(item, of) for key, item in value.items()}, cls)

    return hook


def _union_hook(cls: Any, converter: Converter) -> Callable[[Any, Any], Any]:
    members = [member for member in get_args(cls) if member is not NoneType]
    optional = len(members) < len(get_args(cls))

    def hook(value: Any, _: Any) -> Any:
        if optional and value is None:
            return None
        if len(members) == 1:
            return converter.structure(value, members[0])
        reasons = []
        for member in members:
            try:
                return converter.structure(value, member)
            except Exception as error:  # the next member may fit
                reasons.append(one_line(error).partition(": ")[2])
        raise TypeError("; ".join(reasons))

    return hook


def _is_union(cls: Any) -> bool:
    return isinstance(cls, UnionType) or get_origin(cls) is Union


def _is_list(cls: Any) -> bool:
    return cls in (list, tuple) or get_origin(cls) in (list, tuple, Sequence)


def _is_mapping(cls: Any) -> bool:
    return cls is dict or get_origin(cls) in (dict, Mapping)


def _strict() -> Converter:
    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    converter.register_structure_hook(bool, _plain(bool, "true or false"))
    converter.register_structure_hook(int, _plain(int, "a whole number"))
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(float, _float)
    converter.register_structure_hook(Path, _path)
    converter.register_structure_hook_func(lambda cls: cls is Any, lambda value, _: bare(value))
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook_func(lambda cls: get_origin(cls) is Literal, _literal)
    converter.register_structure_hook_factory(_is_union, _union_hook)
    converter.register_structure_hook_factory(_is_list, _sequence_hook)
    converter.register_structure_hook_factory(_is_mapping, _mapping_hook)
    converter.register_structure_hook_factory(attrs.has, _class_hook)
    return converter


_CONVERTER = _strict()


def add_hooks(cls: type, load: Callable[[Any, Any], Any], dump: Callable[[Any], Any]) -> None:
    """Let a class be structured and unstructured in a way of its own."""
    _CONVERTER.register_structure_hook(cls, load)
    _CONVERTER.register_unstructure_hook(cls, dump)


# ---------------------------------------------------------------- errors in words


def _problems(error: BaseException, path: str) -> Iterator[tuple[str, str]]:
    """(path, message) of every leaf of a tree of validation errors."""
    if isinstance(error, ClassValidationError | IterableValidationError):
        noted, others = error.group_exceptions()
        for inner in others:
            yield from _problems(inner, path)
        for inner, note in noted:
            step = str(note.index) if isinstance(note, IterableValidationNote) else note.name
            yield from _problems(inner, join(path, step))
    elif isinstance(error, Invalid):
        yield from (("", problem) for problem in error.problems)
    elif isinstance(error, ForbiddenExtraKeysError):
        names = [field.name for field in attrs.fields(error.cl) if field.init]
        for key in sorted(error.extra_fields):
            yield join(path, key), f"unknown key; {choices(names, key)}"
    elif isinstance(error, KeyError):
        yield path, "required, and not there"
    else:
        message = one_line(error) if not isinstance(error, TypeError | ValueError | UserError) else str(error)
        # attrs' own validators begin with the field in quotes, ours with the path
        field = re.match(r"'(\w+)' (must be .*)", message)
        if field:
            path, message = join(path, field[1]), field[2]
        yield path, " ".join(message.split())


def _line(path: str, message: str) -> str:
    return f"{path}: {message}" if path and not message.startswith(f"{path}.") else message


def _show(value: Any) -> str:
    text = repr(bare(value))
    return text if len(text) <= 60 else text[:57] + "..."

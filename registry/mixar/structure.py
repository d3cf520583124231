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
from mixar.written import Text, bare, located
from mixar_core.errors import UserError
from mixar_core.storage import is_url

Hook = Callable[[Any, Any], Any]


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
        return CONVERTER.structure(value, cls)
    except Exception as error:  # validators of third parties' config classes may raise anything
        raise Invalid(list(_problems(error, path))) from error


def unstructure(value: Any) -> Any:
    """The plain values `structure` takes."""
    return CONVERTER.unstructure(value)


def flat(plain: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Values at any depth by their paths, `head.depth`."""
    values: dict[str, Any] = {}
    for key, value in plain.items():
        where = _join(path, key)
        values |= flat(value, where) if isinstance(value, Mapping) else {where: value}
    return values


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key was A, is B` for every value, at any depth, that is not the same."""
    old, new = flat(then), flat(now)
    return [
        f"{key} was {shortened(old.get(key))}, is {shortened(new.get(key))}"
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


# ---------------------------------------------------------------- hooks


def _scalar(cls: type, what: str, *others: type) -> Hook:
    def check(value: Any, _: Any) -> Any:
        value = bare(value)
        if type(value) not in (cls, *others):  # bool is an int to isinstance
            raise TypeError(f"{_show(value)} is not {what}")
        if cls is float and not math.isfinite(value):
            raise ValueError(f"{value} is not a finite number")
        return cls(value)

    return check


def _text(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{_show(value)} is not text" + ("" if value is None else "; in quotes it would be"))
    return str(value)


def _path(value: Any, _: Any) -> Path:
    if not isinstance(value, str | Path):
        raise TypeError(f"{_show(value)} is not a path")
    return Path(_located(value, True))


def _literal(value: Any, cls: Any) -> Any:
    value, names = bare(value), [str(allowed) for allowed in get_args(cls)]
    for allowed in get_args(cls):
        if type(value) is type(allowed) and value == allowed:
            return value
    raise ValueError(f"{_show(value)} is not one of them; {choices(names, str(value))}")


def _only_mapping(fill: Hook, hint: str = "") -> Hook:
    def hook(value: Any, cls: Any) -> Any:
        if not isinstance(value, Mapping):
            raise TypeError(f"{_show(value)} is not a mapping{hint}")
        return fill(value, cls)

    return hook


def _mapping_hook(cls: Any, converter: Converter) -> Hook:
    return _only_mapping(mapping_structure_factory(cls, converter))


def _class_hook(cls: type, converter: Converter) -> Hook:
    types = get_type_hints(cls)
    hooks: dict[str, Any] = {
        f.name: override(struct_hook=_path_hook(f.metadata["path"], types[f.name], converter))
        for f in attrs.fields(cls)
        if f.metadata.get("path")
    }
    fill: Hook = make_dict_structure_fn(
        cls, converter, _cattrs_forbid_extra_keys=True, _cattrs_detailed_validation=True, **hooks
    )
    return _only_mapping(fill, f"; {choices(_names(cls))}")


def _path_hook(is_path: Any, cls: Any, converter: Converter) -> Hook:
    def hook(value: Any, _: Any) -> Any:
        if bare(value) is None and NoneType in get_args(cls):
            return None
        return converter.structure(_located(value, is_path), cls)

    return hook


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
    path = located(value)
    return str(path) if value.own or path.exists() else value  # what is shipped may speak of what is not there yet


def _sequence_hook(cls: Any, converter: Converter) -> Hook:
    kind, items = get_origin(cls) or cls, get_args(cls) or (Any, ...)
    one_type = kind is not tuple or items[1:] == (...,)

    def hook(value: Any, _: Any) -> Any:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{_show(value)} is not a list")
        types = items[:1] * len(value) if one_type else items
        if len(value) != len(types):
            raise ValueError(f"{_show(value)} has {len(value)} items, not {len(types)}")
        done, errors = [], []
        for index, (item, of) in enumerate(zip(value, types, strict=True)):
            try:
                done.append(converter.structure(item, of))
            except Exception as error:  # collected, and raised together below
                error.add_note(IterableValidationNote(f"item {index}", index, of))
                errors.append(error)
        if errors:
            raise IterableValidationError("items", errors, cls)
        return tuple(done) if kind is tuple else done

    return hook


def _union_hook(cls: Any, converter: Converter) -> Hook:
    # any word is text, so that text comes last
    members = sorted({*get_args(cls)} - {NoneType}, key=lambda member: member in (str, Path))

    def hook(value: Any, _: Any) -> Any:
        if NoneType in get_args(cls) and bare(value) is None:
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


def _origin_in(*kinds: Any) -> Callable[[Any], bool]:
    return lambda cls: (get_origin(cls) or cls) in kinds


def _strict() -> Converter:
    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    converter.register_structure_hook(bool, _scalar(bool, "true or false"))
    converter.register_structure_hook(int, _scalar(int, "a whole number"))
    converter.register_structure_hook(float, _scalar(float, "a number", int))
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(Path, _path)
    converter.register_unstructure_hook(Path, str)
    converter.register_structure_hook_func(lambda cls: cls is Any, lambda value, _: bare(value))
    converter.register_structure_hook_func(_origin_in(Literal), _literal)
    converter.register_structure_hook_factory(_origin_in(Union, UnionType), _union_hook)
    converter.register_structure_hook_factory(_origin_in(list, tuple, Sequence), _sequence_hook)
    converter.register_structure_hook_factory(_origin_in(dict, Mapping), _mapping_hook)
    converter.register_structure_hook_factory(attrs.has, _class_hook)
    return converter


#: where a class that is structured in a way of its own registers its hooks
CONVERTER = _strict()


# ---------------------------------------------------------------- errors in words


def _problems(error: BaseException, path: str) -> Iterator[str]:
    """`path: message` of every leaf of a tree of validation errors."""
    if isinstance(error, ClassValidationError | IterableValidationError):
        noted, others = error.group_exceptions()
        for inner in others:
            yield from _problems(inner, path)
        for inner, note in noted:
            step = str(note.index) if isinstance(note, IterableValidationNote) else note.name
            yield from _problems(inner, _join(path, step))
    elif isinstance(error, Invalid):
        yield from error.problems
    elif isinstance(error, ForbiddenExtraKeysError):
        for key in sorted(error.extra_fields):
            yield f"{_join(path, key)}: unknown key; {choices(_names(error.cl), key)}"
    elif isinstance(error, KeyError):
        yield f"{path}: required, and not there"
    else:
        known = isinstance(error, TypeError | ValueError | UserError)
        message = " ".join(str(error).split()) if known else one_line(error)
        # attrs' own validators begin with the field in quotes, ours with the path
        if field := re.match(r"'(\w+)' (must be .*)", message):
            path, message = _join(path, field[1]), field[2]
        yield f"{path}: {message}" if path and not message.startswith(f"{path}.") else message


def _names(cls: type) -> list[str]:
    return [field.name for field in attrs.fields(cls) if field.init]


def _show(value: Any) -> str:
    return shortened(repr(bare(value)), limit=60)

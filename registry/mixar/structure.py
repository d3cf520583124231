"""Plain values from YAML to typed ones, strictly: no unknown key, no silent cast; every error with path and choices.

A field of a config class that holds a path says so: by the type `Path`, or for text by
`field(metadata={"path": True})`; text that only may be one by a function (text, absolute path) -> bool instead of True.
What a person wrote there becomes absolute: seen from the recipe file that says it, or else from the working directory.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from functools import partial
from keyword import iskeyword
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from mixar.text import choices, one_line, shortened
from mixar.written import Text, bare, located
from mixar_core.errors import UserError
from mixar_core.storage import is_url

_SCALARS = {bool: "true or false", int: "a whole number", float: "a number"}


class Invalid(ValueError):
    """A value that does not fit; `problems` are lines of `path: what is wrong`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


def structure(value: Any, cls: Any, *, path: str = "", is_path: Any = None) -> Any:
    """A value of the type `cls`, mostly an attrs class, from a plain one; what a `partial` makes is taken as it is.

    Args:
        path: of the value, to begin the problems with.
        is_path: what the field's metadata say under `path`.

    Raises:
        Invalid: with every problem, not just the first.
    """
    try:
        if isinstance(value, partial):
            return value()
        if is_path and not (bare(value) is None and NoneType in get_args(cls)):
            value = _located(value, is_path)
        return _read(value, cls, path)
    except Invalid:
        raise
    except Exception as error:  # validators of third parties' config classes may raise anything
        known = isinstance(error, TypeError | ValueError | UserError)
        message = " ".join(str(error).split()) if known else one_line(error)
        # attrs' own validators begin with the field in quotes, ours with the path
        if field := re.match(r"'(\w+)' (must be .*)", message):
            path, message = _join(path, field[1]), field[2]
        whole = not path or message.startswith(f"{path}.")
        raise Invalid([message if whole else f"{path}: {message}"]) from error


def unstructure(value: Any) -> dict[str, Any]:
    """The plain values that `structure` makes an attrs instance of."""

    def plain(_: Any, __: Any, item: Any) -> Any:
        return str(item) if isinstance(item, Path) else item.value if isinstance(item, Enum) else item

    def keyed(item: Any) -> Any:
        return {key_of(name): keyed(inner) for name, inner in item.items()} if isinstance(item, dict) else item

    values: dict[str, Any] = keyed(attrs.asdict(value, filter=lambda field, _: field.init, value_serializer=plain))
    return values


def key_of(name: Any) -> Any:
    """What a recipe calls a field: `from`, where Python's own words have an underscore behind them in a class."""
    return name[:-1] if isinstance(name, str) and name.endswith("_") and iskeyword(name[:-1]) else name


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


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _read(value: Any, cls: Any, path: str) -> Any:
    kind, args = get_origin(cls) or cls, get_args(cls)
    if kind in (Union, UnionType):
        return _first_that_fits(value, args, path)
    if attrs.has(kind):
        return _instance(value, kind, path)
    if kind in (dict, Mapping):
        _expect(isinstance(value, Mapping), value, "a mapping")
        key_type, item_type = args or (Any, Any)
        items = _each((_join(path, key), item, item_type, None) for key, item in value.items())
        return dict(zip(_each((path, key, key_type, None) for key in value), items, strict=True))
    if kind in (list, tuple, set, frozenset, Sequence):
        _expect(isinstance(value, list | tuple), value, "a list")
        types = args if kind is tuple and args[1:] != (...,) and args else (*args, Any)[:1] * len(value)
        if len(value) != len(types):
            raise ValueError(f"{_show(value)} has {len(value)} items, not {len(types)}")
        made = _each((_join(path, n), item, of, None) for n, (item, of) in enumerate(zip(value, types, strict=True)))
        return made if kind is Sequence else kind(made)
    if kind is Path:
        _expect(isinstance(value, str | Path), value, "a path")
        return Path(_located(value, True))
    if kind is str:
        _expect(isinstance(value, str), value, "text", "" if value is None else "; in quotes it would be")
        return str(value)
    value = bare(value)
    if kind is Any:
        return value
    if kind is Literal:
        fits = any(type(value) is type(allowed) and value == allowed for allowed in args)
        _expect(fits, value, "one of them", f"; {choices(map(str, args), str(value))}")
        return value
    if kind in _SCALARS:
        exact = type(value) in ((int, float) if kind is float else (kind,))  # bool is an int to isinstance
        _expect(exact, value, _SCALARS[kind])
        _expect(kind is not float or math.isfinite(value), value, "a finite number")
    return kind(value)


def _each(values: Iterable[tuple[str, Any, Any, Any]], problems: Sequence[str] = ()) -> list[Any]:
    """The values of a collection, each given as (path, plain value, type, `is_path`); or all problems, after these."""
    made, problems = [], [*problems]
    for path, value, cls, is_path in values:
        try:
            made.append(structure(value, cls, path=path, is_path=is_path))
        except Invalid as invalid:
            problems += invalid.problems
    if problems:
        raise Invalid(problems)
    return made


def _instance(value: Any, cls: type, path: str) -> Any:
    fields = {key_of(field.name): field for field in attrs.fields(cls) if field.init}
    _expect(isinstance(value, Mapping), value, "a mapping", f"; {choices(fields)}")
    unknown = sorted(str(key) for key in value.keys() - fields.keys())
    problems = [f"{_join(path, key)}: unknown key; {choices(fields, key)}" for key in unknown]
    lacking = [name for name, field in fields.items() if field.default is attrs.NOTHING and name not in value]
    problems += [f"{_join(path, name)}: required, and not there" for name in lacking]
    types, there = get_type_hints(cls), [field for name, field in fields.items() if name in value]
    items = (
        (_join(path, key_of(f.name)), value[key_of(f.name)], types.get(f.name, Any), f.metadata.get("path"))
        for f in there
    )
    return cls(**dict(zip((field.alias for field in there), _each(items, problems), strict=True)))


def _first_that_fits(value: Any, members: Sequence[Any], path: str) -> Any:
    if NoneType in members and bare(value) is None:
        return None
    # any word is text, so that text comes last
    members = sorted((member for member in members if member is not NoneType), key=lambda member: member in (str, Path))
    if len(members) == 1:
        return structure(value, members[0], path=path)
    reasons = []
    for member in members:
        try:
            return structure(value, member)
        except Invalid as invalid:
            reasons += invalid.problems
    raise TypeError("; ".join(reasons))


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
    # what is shipped may speak of what is not there yet, and a published model of data that stayed where they were
    return str(path) if value.own or path.exists() or value.folder != Path.cwd() else value


def _expect(fits: bool, value: Any, what: str, hint: str = "") -> None:
    if not fits:
        raise TypeError(f"{_show(value)} is not {what}{hint}")


def _show(value: Any) -> str:
    return shortened(repr(bare(value)), limit=60)

"""Plain values on top of others: what `extends` and `--set` do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixar.hub import is_file
from mixar.origin import as_mapping, same_type
from mixar.written import bare, placed, read_value
from mixar_core.errors import UserError


def merge(base: Mapping[str, Any], over: Mapping[str, Any], *, whole_parts: bool = True) -> dict[str, Any]:
    """`over` on top of `base`: mappings merge key by key, everything else is replaced.

    A part (a mapping with `type` or `weights`) is replaced as a whole where its type changes, and where `over` names a
    model, because the model brings type and settings with it; without `whole_parts` it is a mapping as any other.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not (whole_parts and _replaces(old, value)):
            value = merge(old, value, whole_parts=whole_parts)
        merged[key] = value
    return merged


def _replaces(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    weights = new.get("weights")
    names_a_model = isinstance(weights, str) and bare(weights) is not None and not is_file(weights)
    return names_a_model or not same_type(old.get("type"), new.get("type", old.get("type")))


def parse_overrides(overrides: Sequence[str] | Mapping[str, object], parts: Collection[str] = ()) -> dict[str, Any]:
    """Plain values of "a.b=value" strings, as a recipe would hold them; of one key given twice the last value.

    The order of different keys does not matter: what replaces a part is seen when all of them meet the recipe. Relative
    paths are seen from the working directory. A mapping holds values, not text to be read.

    Args:
        parts: keys of which a bare name is a part's type.
    """
    plain: dict[str, Any] = {}
    given = [overrides] if isinstance(overrides, str) else overrides
    if not isinstance(given, Mapping | list | tuple):
        raise UserError(f'overrides {given!r}: not {{"training.steps": 100}} and not ["training.steps=100"]')
    for item in given:
        if isinstance(given, Mapping):
            where, path, value = f"override {item}", str(item), placed(given[item], Path.cwd())
        else:
            where, (path, equals, text) = f"--set {item}", str(item).partition("=")
            if not equals:
                raise UserError(f'{where}: not of the form key.key=value, for example "training.steps=100"')
            value = read_value(text, where=where)
        value = as_mapping(value) if path.strip() in parts else value
        for key in reversed(path.strip().split(".")):
            if not key:
                raise UserError(f"{where}: a key is words with dots between them, for example training.steps")
            value = {key: value}
        plain = merge(plain, value, whole_parts=False)
    if "extends" in plain:
        raise UserError("--set extends: only a recipe file extends another; give that recipe's name instead")
    return plain

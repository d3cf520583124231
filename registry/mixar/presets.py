"""Presets of sampling: a sampler and settings under a name, in files that plugins bring and models carry.

A file `presets/NAME.yaml` holds what a recipe would, `summary:`, `sampler:`, `sampling:`, and no more but `precision:`,
which counts where a model is loaded with the preset. A recipe or `--set` that says `preset: NAME` means the sampler and
the sampling, where it says nothing itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from mixar import strict_yaml
from mixar.origin import of_silence, settled
from mixar.registry import Registry
from mixar.speed import Precision
from mixar.structure import Invalid, structure, unstructure
from mixar.text import choices
from mixar_core.errors import UserError, said_of
from mixar_core.model import SamplingConfig

#: what a file may hold
KEYS = ("summary", "sampler", "sampling", "precision")


def read_preset(path: Path, registry: Registry) -> dict[str, Any]:
    """What a preset says: its summary, its sampler with every setting, those of `sampling` that it names, and what is
    computed in, or None.

    Raises:
        UserError: the file cannot be read, or says something else.
    """
    where = f"preset {path}"
    plain = strict_yaml.read(path, where=where)
    found = plain if isinstance(plain, dict) else {}
    if unknown := [str(key) for key in found if key not in KEYS]:
        raise UserError(f"{where}: {unknown[0]}: unknown key; {choices(KEYS, unknown[0])}")
    if not found:
        raise UserError(f"{where}: holds no keys; {choices(KEYS)}")
    found = settled(found, {"sampler": "sampler"}, registry, read_from=path)
    sampler = of_silence("sampler", "cosine", registry) | dict(found.get("sampler") or {})
    sampling = found.get("sampling") or {}
    with said_of(f"{where}: sampler"):
        part = registry.part("sampler", str(sampler.pop("type")))
    try:
        settings = unstructure(structure(sampler, part.config, path="sampler"))
        structure(sampling, SamplingConfig, path="sampling")
    except Invalid as error:
        raise UserError(f"{where}: {error}") from error
    precision = found.get("precision")
    if precision not in (None, *get_args(Precision)):
        raise UserError(f"{where}: precision {precision!r}: not known; {choices(get_args(Precision), str(precision))}")
    return {
        "summary": str(found.get("summary") or ""),
        "sampler": {"type": registry.name_of(part), **settings},
        "sampling": dict(sampling),
        "precision": precision,
    }


def preset_of(
    name: str | None, registry: Registry, model: Path | None = None
) -> tuple[dict[str, Any], Precision | None]:
    """What a preset changes of a recipe, and what is computed in where it says it; of None, nothing.

    Args:
        model: the folder whose presets come first.
    """
    if name is None:
        return {}, None
    preset = read_preset(registry.find_preset(name, model), registry)
    return {key: preset[key] for key in ("sampler", "sampling")}, preset["precision"]


def with_preset(plain: Mapping[str, Any], registry: Registry, model: Path | None = None) -> dict[str, Any]:
    """A recipe's plain values with those of the preset that they name below their own.

    Args:
        model: the folder whose presets come first.
    """
    from mixar.recipe import merge

    own = dict(plain)
    name = own.pop("preset", None)
    return merge(preset_of(None if name is None else str(name), registry, model)[0], own)

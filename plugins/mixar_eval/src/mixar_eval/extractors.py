"""A part from what a command line says: its name, or `NAME:setting=value,setting=value`."""

from __future__ import annotations

import re
from typing import Any

import torch

from mixar.plugins import Registry
from mixar.structure import Invalid, structure
from mixar.written import read_value
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor

#: what measures where nothing is said: its weights come from a package registry, so that every machine has them
DEFAULT = "efficientnet-lite0"
_NEXT = re.compile(r",(?=\s*[A-Za-z_]\w*\s*=)")  # a comma ends a value only where another setting follows


def open_extractor(text: str, registry: Registry, *, device: torch.device | str = "cpu") -> FeatureExtractor:
    """The extractor of this name with these settings, on `device`.

    Args:
        text: `efficientnet-lite0`, or for example `inception:weights_file=/data/inception.pth`.
    """
    name, _, settings = text.partition(":")
    if not (registry.offers("extractor", name.strip()) or "=" in settings.partition(":")[0]):  # plugin:name
        second, _, settings = settings.partition(":")
        name = f"{name}:{second}" if second else name
    part = registry.part("extractor", name.strip())
    extractor: FeatureExtractor = part.component(part_config(part.config, settings, where=f"--extractor {text}"))
    return extractor.to(device).eval()


def part_config(cls: type, text: str, *, where: str) -> Any:
    """A part's config from `setting=value,setting=value`.

    Where a setting is text, what is written is taken as it stands: a path may have commas, ` #`, or be a number.
    """
    plain = {}
    for item in _NEXT.split(text) if text else ():
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise UserError(f"{where}: {item!r} is not of the form setting=value")
        if key.strip() in plain:
            raise UserError(f"{where}: {key.strip()} is given twice")
        plain[key.strip()] = read_value(value, where=where)
    try:
        return structure(plain, cls)
    except Invalid as invalid:
        raise UserError(f"{where}: {'; '.join(invalid.problems)}") from invalid

"""A feature extractor from what a command line says: a part's name, or `NAME:setting=value,setting=value`."""

from __future__ import annotations

import torch

from mixar import strict_yaml
from mixar.plugins import Registry
from mixar.structure import Invalid, structure
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor

#: what measures where nothing is said: its weights come from a package registry, so that every machine has them
DEFAULT = "efficientnet-lite0"


def open_extractor(text: str, registry: Registry, *, device: torch.device | str = "cpu") -> FeatureExtractor:
    """The extractor of this name with these settings, on `device`.

    Args:
        text: `efficientnet-lite0`, or for example `inception:weights_file=/data/inception.pth`; values as in YAML.

    Raises:
        UserError: there is no such part or setting, or its weights are missing.
    """
    name, colon, rest = text.partition(":")
    part = registry.part("extractor", name.strip())
    plain = {}
    for item in rest.split(",") if colon else ():
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--extractor {text}: {item!r} is not of the form setting=value")
        plain[key.strip()] = strict_yaml.load(value, where=f"--extractor {text}")
    try:
        config = structure(plain, part.config)
    except Invalid as invalid:
        raise UserError(f"--extractor {text}: {'; '.join(invalid.problems)}") from invalid
    extractor: FeatureExtractor = part.component(config)
    return extractor.to(device).eval()

"""Whether a part keeps the contract of its kind, and its settings survive being written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from mixar import strict_yaml
from mixar.plugins import Part
from mixar.structure import Invalid, structure, unstructure
from mixar_core.errors import UserError
from mixar_core.testing import check_part
from mixar_core.testing.report import Finding, expect, findings


def check(
    part: Part, settings: Mapping[str, Any], *, tell: Callable[[Finding], object] = lambda _: None
) -> list[Finding]:
    """What the contract of its kind finds, topic by topic; it runs to the end whatever it finds.

    Args:
        settings: plain values, as a recipe has them; what is not among them is as the config class says.
        tell: called with each finding as soon as it stands.

    Raises:
        UserError: these settings cannot be, the part refuses them, or its kind has no contract.
    """
    try:
        config = structure(settings, part.config)
    except Invalid as invalid:
        raise UserError(str(invalid)) from invalid
    return [
        *findings(partial(_check_written, config), begins="settings, written and read again", tell=tell),
        *findings(partial(check_part, part.component, config), tell=tell),
    ]


def written_and_read(config: Any) -> Any:
    """Settings as they come back from a recipe."""
    return structure(strict_yaml.load(strict_yaml.dump(unstructure(config)), where="settings"), type(config))


def _check_written(config: Any) -> None:
    read = written_and_read(config)
    expect(read == config, f"{read} comes back of {config}")

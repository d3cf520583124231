"""No guidance: plain MAR."""

from __future__ import annotations

from typing import ClassVar

from attrs import frozen

from mixar_core.injector import Door, GuidanceInjector
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import DiscreteTokens, Guidance


@frozen
class NoGuidanceConfig:
    """Nothing to set."""


class NoGuidance(GuidanceInjector):
    """Plain MAR: no discrete tokens, no door opened."""

    opens: ClassVar[frozenset[Door]] = frozenset()

    def __init__(self, config: NoGuidanceConfig, *, tokenizer: DiscreteTokenizer | None, width: int) -> None:
        super().__init__()

    def forward(self, tokens: DiscreteTokens) -> Guidance:
        """Empty guidance."""
        return Guidance()

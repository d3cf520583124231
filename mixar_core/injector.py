"""Guidance injectors: how discrete tokens enter the backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

from torch import nn

from mixar_core.types import DiscreteTokens, Guidance

Door = Literal["fill", "prefix", "memory"]


class GuidanceInjector(nn.Module, ABC):
    """Turns discrete tokens into `Guidance`.

    Registered as a Part, an injector is built as `Class(config, tokenizer=<DiscreteTokenizer or None>, width=D)`; the
    tokenizer is there to be asked (grid, codebook_size, code_width) and must not become a submodule.
    """

    #: The doors this injector opens. The backbone makes cross-attention blocks only where "memory" is among them.
    opens: ClassVar[frozenset[Door]]

    @property
    def needs_codes(self) -> bool:
        """Whether there is anything to inject: False only for plain MAR."""
        return bool(self.opens)

    @abstractmethod
    def forward(self, tokens: DiscreteTokens) -> Guidance:
        """Guidance with exactly the doors of `opens`: fill (B, N, D), prefix (B, P, D), memory (B, M, D)."""

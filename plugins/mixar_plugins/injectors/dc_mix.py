"""DC-Mix: discrete tokens take the place of the mask token (Eq. 9)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from attrs import frozen
from torch import nn

from mixar_core.errors import UserError
from mixar_core.injector import Door, GuidanceInjector
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import DiscreteTokens, Guidance


@frozen
class DCMixConfig:
    """How a code vector becomes as wide as the decoder.

    Args:
        projection: a learned linear map; the default pads with zeros and adds no parameter, as the paper's sizes tell.
    """

    projection: bool = False


class DCMix(GuidanceInjector):
    """DC-Mix: the code vector stands at masked positions of the decoder (Eq. 9)."""

    opens: ClassVar[frozenset[Door]] = frozenset({"fill"})

    def __init__(self, config: DCMixConfig, *, tokenizer: DiscreteTokenizer | None, width: int) -> None:
        super().__init__()
        if tokenizer is None:
            raise UserError("injector dc-mix needs a discrete_tokenizer; the recipe has none")
        self.width, code_width = width, tokenizer.code_width
        if code_width > width and not config.projection:
            raise UserError(
                f"injector dc-mix pads code vectors of length {code_width} to the decoder's width {width}; "
                "give a wider backbone or `projection: true`"
            )
        self.proj = nn.Linear(code_width, width) if config.projection else None

    def forward(self, tokens: DiscreteTokens) -> Guidance:
        """A fill (B, N, D): code vectors padded with zeros, or projected."""
        vectors_BNE = tokens.on_grid_BNE
        assert vectors_BNE is not None  # a recipe whose codes have no place is refused
        if self.proj is not None:
            return Guidance(fill_BND=self.proj(vectors_BNE))
        return Guidance(fill_BND=F.pad(vectors_BNE, (0, self.width - vectors_BNE.shape[2])))

"""A guidance injector: how codes enter the backbone."""

from __future__ import annotations

from attrs import frozen
from mixar_core import DiscreteTokenizer, DiscreteTokens, Guidance, GuidanceInjector, UserError
from torch import nn


@frozen
class MyPluginInjectorConfig:
    """How a code enters.

    Args:
        scale: what the projected vectors are multiplied with.
    """

    scale: float = 1.0


class MyPluginInjector(GuidanceInjector):
    """Code vectors, projected, stand in place of the mask token."""

    opens = frozenset({"fill"})

    def __init__(self, config: MyPluginInjectorConfig, *, tokenizer: DiscreteTokenizer | None, width: int) -> None:
        super().__init__()
        if tokenizer is None:
            raise UserError("injector my-plugin needs a discrete_tokenizer; the recipe has none")
        self.proj, self.scale = nn.Linear(tokenizer.code_width, width), config.scale

    def forward(self, tokens: DiscreteTokens) -> Guidance:
        """A fill (B, N, D) of the code vectors (B, N, E) on the grid."""
        return Guidance(fill_BND=self.scale * self.proj(tokens.on_grid_BNE))

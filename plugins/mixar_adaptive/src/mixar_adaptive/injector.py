"""Adaptive DC-Mix: between a code and a mask token, by how sure the prior was of the code."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import and_, gt, lt
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.injector import Door, GuidanceInjector
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import DiscreteTokens, Guidance

HIDDEN = 64
#: log-probabilities are looked at in quarters of a uniform draw's, and no further down than here
LOWEST = -8.0


@frozen
class AdaptiveDCMixConfig:
    """How much a code is trusted before anything is learned.

    Args:
        start: the gate of every code before training; near 1 is DC-Mix.
    """

    start: float = field(default=0.98, validator=and_(gt(0.0), lt(1.0)))


class AdaptiveDCMix(GuidanceInjector):
    """DC-Mix (Eq. 9) with a learned gate between the code vector and a learned mask token, by the code's confidence."""

    opens: ClassVar[frozenset[Door]] = frozenset({"fill"})
    follows: ClassVar[bool] = True

    def __init__(self, config: AdaptiveDCMixConfig, *, tokenizer: DiscreteTokenizer | None, width: int) -> None:
        super().__init__()
        if tokenizer is None:
            raise UserError("injector dc-mix-adaptive needs a discrete_tokenizer; the recipe has none")
        if tokenizer.code_width > width:
            raise UserError(
                f"injector dc-mix-adaptive pads code vectors of length {tokenizer.code_width} to the decoder's width "
                f"{width}; give a wider backbone"
            )
        if tokenizer.layout.kind not in ("grid", "depth"):
            raise UserError(
                f"injector dc-mix-adaptive needs codes on a grid, or on one of a depth; these are a {tokenizer.layout}"
            )
        self.width, self.depth = width, tokenizer.layout.depth
        #: nats of a place's codes if all were equally likely
        self.uniform = self.depth * math.log(tokenizer.codebook_size)
        #: the backbone's own mask token is never seen: the fill stands in its place
        self.mask_token = nn.Parameter(torch.empty(width))
        nn.init.normal_(self.mask_token, std=0.02)
        last = nn.Linear(HIDDEN, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, math.log(config.start / (1.0 - config.start)))
        self.gate_net = nn.Sequential(nn.Linear(3, HIDDEN), nn.GELU(), last)

    def forward(self, tokens: DiscreteTokens) -> Guidance:
        """A fill (B, N, D): gate * code vector, padded with zeros, + (1 - gate) * mask token."""
        vectors_BNE = tokens.on_grid_BNE
        assert vectors_BNE is not None  # a recipe whose codes have no place is refused
        padded_BND = F.pad(vectors_BNE, (0, self.width - vectors_BNE.shape[2]))
        gate_BN1 = self.gate(tokens)[..., None].to(padded_BND.dtype)
        return Guidance(fill_BND=torch.lerp(self.mask_token.to(padded_BND.dtype), padded_BND, gate_BN1))

    def gate(self, tokens: DiscreteTokens) -> Tensor:
        """How much each place's code is trusted: (B, N) in [0, 1], float32. Codes without confidence are certain."""
        confidence_BN = tokens.confidence_BN
        if confidence_BN is None:
            confidence_BN = tokens.vectors_BNE.new_zeros(tokens.vectors_BNE.shape[:2])
        log_p_BN = confidence_BN.float().unflatten(1, (-1, self.depth)).sum(dim=2)
        quarters_BN = (4.0 * log_p_BN / self.uniform).clamp(min=LOWEST)
        # all about of unit size, so that a gate that starts almost open learns as fast as the rest
        seen = (quarters_BN, 2.0 * log_p_BN.exp() - 1.0, torch.full_like(log_p_BN, 2.0 * tokens.known - 1.0))
        return self.gate_net(torch.stack(seen, dim=-1)).squeeze(-1).float().sigmoid()

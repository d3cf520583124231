"""Parts that one study needs and nobody else: other fills of DC-Mix, mixing in the encoder, HART's features whole."""

from __future__ import annotations

from functools import cache
from typing import ClassVar

import torch
from attrs import evolve, frozen
from torch import Tensor

from mixar import Part, Registry, plugin_manager
from mixar.registry import Plugin
from mixar_core.injector import Door
from mixar_core.masking import put, split_known, take
from mixar_core.types import Condition, DiscreteTokens, Guidance, MaskSplit
from mixar_plugins.backbones.masked import MaskedBackbone, MaskedConfig
from mixar_plugins.backbones.masked_state import MaskedState, Shared
from mixar_plugins.injectors.embedding import CodeEmbedding, CodeEmbeddingConfig
from mixar_plugins.tokenizers.hart import HARTResidual, HARTResidualConfig


class DCMixLearned(CodeEmbedding):
    """DC-Mix whose fill is a learned embedding of the code, instead of the tokenizer's own vector."""

    opens: ClassVar[frozenset[Door]] = frozenset({"fill"})

    def forward(self, tokens: DiscreteTokens) -> Guidance:
        """A fill (B, N, D)."""
        return Guidance(fill_BND=self.embedded(tokens.codes_BN))


class EarlyState(MaskedState):
    """A prediction is the training's pass: what others keep between passes does not fit an encoder of all tokens."""

    def _lean(self, shared: Shared, tokens_BNC: Tensor, visible_BU: Tensor, positions_BK: Tensor) -> Tensor:
        backbone, copies = self.backbone, len(tokens_BNC) // len(self.condition)
        condition = self.condition if copies == 1 else self.condition.guided()
        split, guidance = split_known(self.known_BN.repeat(copies, 1), self.known), self.guidance.repeat(copies)
        encoded = backbone.encode(tokens_BNC.to(backbone.dtype), split, condition, guidance)
        return take(backbone.decode(encoded, split, guidance), positions_BK)


@frozen
class EarlyConfig(MaskedConfig):
    """As of the backbone `masked`."""


class EarlyMixing(MaskedBackbone):
    """The codes stand at the masked positions of the encoder already, which then sees all positions."""

    reuses: ClassVar[frozenset[str]] = frozenset()

    def start(self, condition: Condition, guidance: Guidance, *, guided: bool) -> EarlyState:
        """Begin to sample."""
        return EarlyState(self, condition, guidance)

    def encoder_input(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Tensor:
        """[class buffer, all tokens]: (B, buffer + N, D)."""
        assert guidance.fill_BND is not None and guidance.prefix_BPD is None
        assert self.encoder_pos_embed_learned is not None  # there is an encoder
        buffer, positions = self.config.buffer, self.encoder_pos_embed_learned
        visible_BUD = self.z_proj(take(tokens_BNC, split.visible_BU))
        front = self.front(condition, None, visible_BUD.dtype)
        all_BND = put(guidance.fill_BND.to(visible_BUD.dtype), split.visible_BU, visible_BUD)
        return self.z_proj_ln(torch.cat([front, all_BND + positions[:, buffer:]], dim=1))

    def decoder_input(self, encoded: Tensor, split: MaskSplit, guidance: Guidance) -> Tensor:
        """The encoder's output, position by position."""
        return self.decoder_embed(encoded) + self.decoder_pos_embed_learned


class HARTFeatures(HARTResidual):
    """The features whole, of which HART's codes leave a residual: decoded by the same decoder, whatever the codes."""

    def summed(self, codes_BN: Tensor) -> Tensor:
        """Nothing: (B, E, h, w)."""
        return torch.zeros_like(super().summed(codes_BN))


@cache
def registry_with_parts() -> Registry:
    """All installed parts, and these."""
    parts = (
        Part("injector", "dc-mix-learned", DCMixLearned, CodeEmbeddingConfig),
        Part("backbone", "early-mixing", EarlyMixing, EarlyConfig),
        Part("continuous-tokenizer", "hart-features", HARTFeatures, HARTResidualConfig),
    )
    registry = plugin_manager()
    return evolve(registry, plugins=(*registry.plugins, Plugin("claims", "benchmarks 0", parts=parts)))

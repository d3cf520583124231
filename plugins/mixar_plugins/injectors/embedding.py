"""DC-SA and DC-CA: an embedding of the codebook, attended to as a prefix or as a memory."""

from __future__ import annotations

from typing import ClassVar

import torch
from attrs import frozen
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.injector import Door, GuidanceInjector
from mixar_core.tables import Table
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import DiscreteTokens, Guidance


@frozen
class CodeEmbeddingConfig:
    """Nothing to set: the embedding is as wide as the encoder and as long as the codebook."""


class CodeEmbedding(GuidanceInjector):
    """What both share: a learned vector a code plus a learned vector a position, (B, N, D)."""

    def __init__(self, config: CodeEmbeddingConfig, *, tokenizer: DiscreteTokenizer | None, width: int) -> None:
        super().__init__()
        if tokenizer is None:
            raise UserError("injectors dc-sa and dc-ca need a discrete_tokenizer; the recipe has none")
        self.embed = nn.Embedding(tokenizer.codebook_size, width)
        self.layout = tokenizer.layout
        self.pos_embed = nn.Parameter(torch.empty(1, tokenizer.layout.tokens, width))
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.pos_embed, std=0.02)

    def learned_tables(self) -> dict[str, Table]:
        """Of positions."""
        return {"pos_embed": Table(self.layout, dim=1)}

    def embedded(self, codes_BN: Tensor) -> Tensor:
        """(B, N) to (B, N, D)."""
        return self.embed(codes_BN) + self.pos_embed


class DCSA(CodeEmbedding):
    """DC-SA: embedded codes in front of the sequence, in self-attention with everyone."""

    opens: ClassVar[frozenset[Door]] = frozenset({"prefix"})

    def forward(self, tokens: DiscreteTokens) -> Guidance:
        """A prefix (B, N, D)."""
        return Guidance(prefix_BPD=self.embedded(tokens.codes_BN))


class DCCA(CodeEmbedding):
    """DC-CA: embedded codes as the memory of a cross-attention block after every block."""

    opens: ClassVar[frozenset[Door]] = frozenset({"memory"})

    def __init__(self, config: CodeEmbeddingConfig, *, tokenizer: DiscreteTokenizer | None, width: int) -> None:
        super().__init__(config, tokenizer=tokenizer, width=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, tokens: DiscreteTokens) -> Guidance:
        """A memory (B, N, D)."""
        return Guidance(memory_BMD=self.norm(self.embedded(tokens.codes_BN)))

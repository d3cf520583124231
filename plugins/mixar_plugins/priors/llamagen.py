"""LlamaGen (arXiv 2406.06525): Llama over codes in raster order, a class token first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import field, frozen, validators
from torch import Tensor, nn

from mixar_core.data.dataset import ImageDataset
from mixar_core.meta import constant
from mixar_core.noise import Noise
from mixar_core.tables import Table
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import Condition, Losses, TokenLayout
from mixar_plugins.networks.transformer import KeyValueCache, llama_block, rotary_angles, rotary_table, through
from mixar_plugins.priors.asked import count, not_negative, positive
from mixar_plugins.priors.next import NextConfig, NextPrior, NextState, check_head, cross_entropy
from mixar_plugins.priors.transformer import init_weights


@frozen(kw_only=True)
class LlamaConfig(NextConfig):
    """What Llamas over codes are told: as NextConfig, and

    Args:
        multiple_of: the MLP is 8/3 times as wide as the transformer, rounded up to a multiple of this.
    """

    multiple_of: int = field(default=256, validator=positive)


@frozen(kw_only=True)
class LlamaGenPriorConfig(LlamaConfig):
    """Defaults are LlamaGen-B and its published sampling. As LlamaConfig, and

    Args:
        guidance_interval: the first code and so many plus one after it are guided, the others not; None: all are.
    """

    guidance_scale: float = field(default=2.0, validator=not_negative)
    guidance_interval: int | None = field(default=None, validator=validators.optional(count))


class Llama(NextPrior):
    """Llama's network over a class token and codes.

    Rotary positions are those of the codes; the class token's are zero, so that its query and key vanish: every token
    looks at it with score 0.
    """

    config: LlamaConfig
    table: Tensor

    def __init__(
        self,
        config: LlamaConfig,
        *,
        tokenizer: DiscreteTokenizer,
        num_classes: int,
        data: ImageDataset | None = None,
    ) -> None:
        super().__init__(layout=tokenizer.layout, codebook_size=tokenizer.codebook_size, num_classes=num_classes)
        self.config = config
        width = config.width
        self.cls_embedding = nn.Embedding(num_classes + 1, width)  # the last is "no class"
        self.tok_embeddings = nn.Embedding(self.codebook_size, width)
        self.tok_dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            llama_block(width, config.heads, multiple_of=config.multiple_of, dropout=config.dropout)
            for _ in range(config.depth)
        )
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.output = nn.Linear(width, self.codebook_size, bias=False)
        self.register_buffer("table", class_first(self.layout, width // config.heads), persistent=False)
        self.apply(init_weights)

    def learned_tables(self) -> dict[str, Table]:
        """Of classes, then "no class"."""
        return {"cls_embedding.weight": Table(self.num_classes)}

    def begin(self, classes_R: Tensor, orders_BN: Tensor | None) -> NextState:
        return NextState(classes_R, len(self.layers), 1 + self.layout.tokens, orders_BN)

    def run(self, x_BTD: Tensor, table: Tensor, caches: Sequence[KeyValueCache] = ()) -> Tensor:
        """The transformer's vectors (B, T, D) of tokens, each after all before it."""
        return self.norm(through(self.layers, self.tok_dropout(x_BTD), table=table, caches=caches, causal=True))


class LlamaGenPrior(Llama):
    """In raster order, or whatever the order of the tokenizer's codes is."""

    config: LlamaGenPriorConfig

    def forward(self, codes_BK: Tensor, classes_B: Tensor) -> Tensor:
        """Logits (B, K + 1, V) of the first code and of those after each of these, the first K."""
        tokens = torch.cat([self.cls_embedding(classes_B)[:, None], self.tok_embeddings(codes_BK)], dim=1)
        return self.output(self.run(tokens, self.table[None, : tokens.shape[1]]))

    def logits(self, state: NextState, codes_BN: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        at = spans[-1][0]
        token_RD = self.tok_embeddings(state.both(codes_BN[:, at - 1])) if at else self.cls_embedding(state.classes_R)
        return self.output(self.run(token_RD[:, None], self.table[None, at : at + 1], state.caches))

    def guidance(self, cfg: float | None, spans: Sequence[tuple[int, int]]) -> list[tuple[float, ...]]:
        scale = self.config.guidance_scale if cfg is None else cfg
        until = len(spans) if self.config.guidance_interval is None else self.config.guidance_interval + 2
        return [(scale if scale > 1.0 and at < until else 1.0,) for at, _ in spans]

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        """Cross-entropy of every code after those before it."""
        classes_B = self.dropped(condition, codes_BN.device, noise)
        return cross_entropy(self(codes_BN[:, :-1], classes_B), codes_BN)


@constant
def class_first(layout: TokenLayout, width: int) -> Tensor:
    """The rotary table (1 + N, 2, width) of a class token, all zero, and of codes."""
    check_head(width, 4 if layout.kind == "grid" else 2)
    table = rotary_table(rotary_angles(layout, width))
    return torch.cat([torch.zeros_like(table[:1]), table])

"""RAR (arXiv 2411.00776): trained in random orders that become raster order, drawn in raster order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from attrs import field, frozen, validators
from torch import Tensor, nn

from mixar_core.blocks import Mlp
from mixar_core.data.dataset import ImageDataset
from mixar_core.noise import Noise
from mixar_core.tables import Table
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import Condition, Losses
from mixar_plugins.networks.transformer import MODULATION, CachedAttention, ModulatedBlock, ModulatedNorm, through
from mixar_plugins.priors.asked import not_negative, positive, share
from mixar_plugins.priors.next import NextConfig, NextPrior, NextState, cross_entropy
from mixar_plugins.priors.transformer import init_weights

#: rows that the released tables have beyond the tokens of an image; all but two, of the class token and the condition,
#: are never looked up
_POSITIONS, _TIMES = 1024, 100


@frozen(kw_only=True)
class RARConfig(NextConfig):
    """Defaults are RAR-B and its published sampling. As NextConfig, and

    Args:
        mlp_dim: hidden width of the MLPs. attention_dropout: of attention weights, in training.
        guidance_scale: of the last code; from 1 it rises as (1 - cos(pi progress^guidance_power)) / 2. 0: no guidance.
        guidance_power: 0: the scale is the same for every code.
        shuffled: share of images that are trained in a random order, the others in raster order. Published: it falls
            from 1 to 0 between two steps; a training is continued with a smaller one.
    """

    depth: int = field(default=24, validator=positive)
    heads: int = field(default=16, validator=positive)
    mlp_dim: int = field(default=3072, validator=positive)
    attention_dropout: float = field(default=0.1, validator=share)
    guidance_scale: float = field(default=16.0, validator=not_negative)
    guidance_power: float = field(default=2.75, validator=not_negative)
    shuffled: float = field(default=0.0, validator=validators.and_(validators.ge(0.0), validators.le(1.0)))


class NormedAttention(CachedAttention):
    """Attention whose queries and keys are normalised, a head each."""

    def __init__(self, width: int, heads: int, *, attention_dropout: float, dropout: float) -> None:
        super().__init__(width, heads, attention_dropout=attention_dropout, dropout=dropout)
        self.q_norm = nn.LayerNorm(width // heads, eps=1e-6)
        self.k_norm = nn.LayerNorm(width // heads, eps=1e-6)

    def prepared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.q_norm(q), self.k_norm(k)


class RARPrior(NextPrior):
    """RAR's transformer: [class token, condition, codes in an order], each told which position it is to predict."""

    config: RARConfig

    def __init__(
        self,
        config: RARConfig,
        *,
        tokenizer: DiscreteTokenizer,
        num_classes: int,
        data: ImageDataset | None = None,
    ) -> None:
        super().__init__(layout=tokenizer.layout, codebook_size=tokenizer.codebook_size, num_classes=num_classes)
        self.config = config
        width, tokens = config.width, self.layout.tokens
        #: codes, a mask token that nobody uses, classes, "no class"
        self.embeddings = nn.Embedding(self.codebook_size + 1 + num_classes + 1, width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, tokens + _POSITIONS, width))
        self.target_aware_pos_embed = nn.Parameter(torch.empty(1, tokens + _POSITIONS, width))
        self.timesteps_embeddings = nn.Parameter(torch.empty(1, tokens + _TIMES, width))
        for table in (self.cls_token, self.pos_embed, self.target_aware_pos_embed, self.timesteps_embeddings):
            nn.init.trunc_normal_(table, std=0.02)
        self.drop = nn.Dropout(config.dropout)

        def block() -> ModulatedBlock:
            rates = {"attention_dropout": config.attention_dropout, "dropout": config.dropout}
            attention = NormedAttention(width, config.heads, **rates)
            mlp = Mlp(width, config.mlp_dim, dropout=config.dropout)
            return ModulatedBlock(width, attention, mlp, lambda: nn.LayerNorm(width, eps=1e-6), MODULATION)

        self.blocks = nn.ModuleList(block() for _ in range(config.depth))
        self.norm = ModulatedNorm(width, ("scale", "shift"), eps=1e-6)
        self.head = nn.Linear(width, self.codebook_size)
        self.apply(init_weights)

    def learned_tables(self) -> dict[str, Table]:
        """Of classes, behind codes and the mask token; and of positions, behind the two first tokens."""
        tables = {name: Table(self.layout, dim=1, first=2) for name in ("pos_embed", "target_aware_pos_embed")}
        times = {"timesteps_embeddings": Table(self.layout, dim=1, first=2)}
        return {"embeddings.weight": Table(self.num_classes, first=self.codebook_size + 1)} | tables | times

    def begin(self, classes_R: Tensor, orders_BN: Tensor | None) -> NextState:
        return NextState(classes_R, len(self.blocks), 2 + self.layout.tokens, orders_BN)

    def forward(self, codes_BN: Tensor, classes_B: Tensor, orders_BN: Tensor | None = None) -> Tensor:
        """Logits (B, N + 1, V) of codes in this order (B, N), each after those before it; the last say nothing."""
        count, device = codes_BN.shape[1], codes_BN.device
        if orders_BN is None:
            orders_BN = torch.arange(count, device=device).expand(len(codes_BN), -1)
        tokens = torch.cat([self._first(classes_B), self.embeddings(codes_BN.gather(1, orders_BN))], dim=1)
        two_B2 = torch.arange(2, device=device).expand(len(codes_BN), -1)
        target_BTD = self.target_aware_pos_embed[0, 2 + orders_BN]
        target_BTD = torch.cat(
            [torch.zeros_like(target_BTD[:, :1]), target_BTD, torch.zeros_like(target_BTD[:, :1])], dim=1
        )
        x = tokens + self.pos_embed[0, torch.cat([two_B2, 2 + orders_BN], dim=1)] + target_BTD
        return self._run(x, classes_B, slice(0, count + 2), ())[:, 1:]

    def logits(self, state: NextState, codes_BN: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        at = spans[-1][0]
        tokens = self.embeddings(state.both(codes_BN[:, at - 1 : at])) if at else self._first(state.classes_R)
        here = slice(at + 1 if at else 0, at + 2)
        target_D = self.target_aware_pos_embed[:, 2 + at]
        x = tokens + self.pos_embed[:, here]
        x = torch.cat([x[:, :-1], x[:, -1:] + target_D], dim=1)
        return self._run(x, state.classes_R, here, state.caches)[:, -1:]

    def guidance(self, cfg: float | None, spans: Sequence[tuple[int, int]]) -> list[tuple[float, ...]]:
        scale = self.config.guidance_scale if cfg is None else cfg
        if scale == 0:
            return [(1.0,)] * len(spans)
        grown = [(1 - math.cos(math.pi * (at / len(spans)) ** self.config.guidance_power)) / 2 for at, _ in spans]
        return [((scale - 1) * share + 1,) for share in grown]

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        """Cross-entropy of every code after those before it, in a random order or in raster order."""
        batch, tokens, device = *codes_BN.shape, codes_BN.device
        classes_B = self.dropped(condition, device, noise)
        random_BN = noise.uniform((batch, tokens), device, name="orders").argsort(dim=1)
        shuffled_B1 = noise.uniform((batch, 1), device, name="prior.shuffled") < self.config.shuffled
        orders_BN = torch.where(shuffled_B1, random_BN, torch.arange(tokens, device=device))
        return cross_entropy(self(codes_BN, classes_B, orders_BN)[:, :-1], codes_BN.gather(1, orders_BN))

    def _condition(self, classes_B: Tensor) -> Tensor:
        return self.embeddings(classes_B + self.codebook_size + 1)[:, None]

    def _first(self, classes_B: Tensor) -> Tensor:
        return torch.cat([self.cls_token.expand(len(classes_B), -1, -1), self._condition(classes_B)], dim=1)

    def _run(self, x_BTD: Tensor, classes_B: Tensor, here: slice, caches: Sequence) -> Tensor:
        """Logits (B, T, V) of tokens that stand `here` in the sequence."""
        condition = self._condition(classes_B) + self.timesteps_embeddings[:, here]
        x = through(self.blocks, self.drop(x_BTD), condition_BTD=condition, caches=caches, causal=True)
        return self.head(self.norm(x, condition))

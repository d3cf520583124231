"""VAR (arXiv 2404.02905): next-scale prediction over a pyramid of codes; all codes of a scale are drawn at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from attrs import field, frozen
from torch import Tensor, nn

from mixar_core.data.dataset import ImageDataset
from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.tables import Table
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import Condition, Losses, TokenLayout
from mixar_plugins.networks.transformer import (
    CachedAttention,
    ModulatedBlock,
    ModulatedNorm,
    TanhMlp,
    scale_of,
    through,
)
from mixar_plugins.priors import schedules
from mixar_plugins.priors.asked import count, not_negative, positive, share, up_to_one
from mixar_plugins.priors.next import NextConfig, NextPrior, NextState, cross_entropy, filtered, guided
from mixar_plugins.priors.transformer import init_weights

#: how the released files cut a block's modulation, and the logarithm of the steepest attention
_ORDER, _STEEPEST = ("gate1", "gate2", "scale1", "scale2", "shift1", "shift2"), math.log(100.0)


@frozen(kw_only=True)
class VARPriorConfig(NextConfig):
    """Defaults are VAR-d16 and its published sampling. As NextConfig, and

    Args:
        guidance_scale: as published: logits of the last scale are conditional + this * (conditional - unconditional),
            and it rises linearly from 0 at the first; 0 is no guidance.
        label_smoothing: of the training loss.
        smooth: what the next scale sees is a mixture of code vectors, sharper from scale to scale, and not the code
            that is drawn (published as `more_smooth`, for looks).
    """

    width: int = field(default=1024, validator=positive)
    depth: int = field(default=16, validator=positive)
    heads: int = field(default=16, validator=positive)
    dropout: float = field(default=0.0, validator=share)
    guidance_scale: float = field(default=1.5, validator=not_negative)
    top_k: int = field(default=900, validator=count)
    top_p: float = field(default=0.96, validator=up_to_one)
    label_smoothing: float = field(default=0.0, validator=share)
    smooth: bool = False


class KeysWithoutBias(CachedAttention):
    """Queries and values have a bias."""

    def __init__(self, width: int, heads: int, *, dropout: float) -> None:
        super().__init__(width, heads, attention_dropout=0.0, dropout=dropout)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def split(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().split(x_BTD)
        q_bias, v_bias = (bias.view(1, self.heads, 1, -1) for bias in (self.q_bias, self.v_bias))
        return q + q_bias, k, v + v_bias


class UnitAttention(KeysWithoutBias):
    """Attention between unit vectors, times a learned steepness a head."""

    def __init__(self, width: int, heads: int, *, dropout: float) -> None:
        super().__init__(width, heads, dropout=dropout)
        self.steepness = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))

    def prepared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        # attention divides by the root of a head's width
        steepness = self.steepness.clamp(max=_STEEPEST).exp() * q.shape[-1] ** 0.5
        return (F.normalize(q, dim=-1) * steepness).to(k.dtype), F.normalize(k, dim=-1)


class VARState(NextState):
    """And the sum of the scales that are drawn, on the finest grid, (B, E, h, w)."""

    sum_BEhw: Tensor | None = None
    mixed_BKE: Tensor | None = None


class VARPrior(NextPrior):
    """VAR's transformer. A scale sees the class and the sum of all scales before it, averaged onto its grid.

    The sum is the tokenizer's, which has a pyramid of codes and says what each scale adds to it.
    """

    config: VARPriorConfig
    scale_N: Tensor

    def __init__(
        self,
        config: VARPriorConfig,
        *,
        tokenizer: DiscreteTokenizer,
        num_classes: int,
        data: ImageDataset | None = None,
    ) -> None:
        layout = self.checked("var", tokenizer)
        super().__init__(layout=layout, codebook_size=tokenizer.codebook_size, num_classes=num_classes)
        self.config = config
        self._tokenizer: Any = (tokenizer,)  # in a tuple, so that it is not registered as a submodule
        width, tokens, first = config.width, layout.tokens, layout.scales[0].tokens
        self.class_emb = nn.Embedding(num_classes + 1, width)  # the last is "no class"
        self.pos_start = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, first, width), std=0.02))
        self.pos_1LC = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width), std=0.02))
        self.lvl_embed = nn.Embedding(len(layout.scales), width)
        self.word_embed = nn.Linear(tokenizer.code_width, width)

        def block() -> ModulatedBlock:
            attention = UnitAttention(width, config.heads, dropout=config.dropout)
            mlp = TanhMlp(width, 4 * width, dropout=config.dropout)
            return ModulatedBlock(width, attention, mlp, lambda: _norm(width), _ORDER)

        self.blocks = nn.ModuleList(block() for _ in range(config.depth))
        self.norm = ModulatedNorm(width, ("scale", "shift"), eps=1e-6)
        self.head = nn.Linear(width, self.codebook_size)
        self.register_buffer("scale_N", scale_of(layout), persistent=False)
        self.apply(init_weights)

    @staticmethod
    def checked(name: str, tokenizer: DiscreteTokenizer) -> TokenLayout:
        """The pyramid of its codes.

        Raises:
            UserError: it has none, or does not say what each scale adds.
        """
        layout = tokenizer.layout
        if layout.kind != "pyramid" or not hasattr(tokenizer, "scale_vectors"):
            raise UserError(
                f"prior {name} predicts scale after scale; the codes are a {layout}: choose a pyramid tokenizer"
            )
        return layout

    def learned_tables(self) -> dict[str, Table]:
        """Of classes, then "no class"; and of positions."""
        return {"class_emb.weight": Table(self.num_classes), "pos_1LC": Table(self.layout, dim=1)}

    def spans(self, steps: int | None) -> list[tuple[int, int]]:
        """A scale a step."""
        return [*pairwise(accumulate((grid.tokens for grid in self.layout.scales), initial=0))]

    def guidance(self, cfg: float | None, spans: Sequence[tuple[int, int]]) -> list[tuple[float, ...]]:
        scale = self.config.guidance_scale if cfg is None else cfg
        return [(1.0 + scale * self.progress(step),) for step in range(len(spans))]

    def progress(self, scale: int) -> float:
        """How far a scale is from the first, 0, to the last, 1: so guidance rises, and mixtures become sharper."""
        last = len(self.layout.scales) - 1
        return scale / last if last else 1.0

    def top_k(self, scale: int) -> int:
        """Of a scale."""
        return self.config.top_k

    def begin(self, classes_R: Tensor, orders_BN: Tensor | None) -> VARState:
        return VARState(classes_R, len(self.blocks), self.layout.tokens, orders_BN)

    def forward(self, known_BTE: Tensor, classes_B: Tensor) -> Tensor:
        """Logits (B, N, V) of all codes; known_BTE, T = N - N_0, is the sum that every scale but the first sees."""
        class_B1D = self.class_emb(classes_B)[:, None]
        x = torch.cat([class_B1D + self.pos_start, self.word_embed(known_BTE)], dim=1) + self._places()
        mask = self.scale_N[:, None] >= self.scale_N
        return self.head(self.norm(through(self.blocks, x, condition_BTD=class_B1D, mask=mask), class_B1D))

    def logits(self, state: NextState, codes_BN: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        assert isinstance(state, VARState)
        class_R1D, (first, until) = self.class_emb(state.classes_R)[:, None], spans[-1]
        if len(spans) == 1:
            x = class_R1D + self.pos_start
        else:
            self.add(state, codes_BN, spans[:-1])
            shrunk_BEhw = self._tokenizer[0].quantizer.shrink(state.sum_BEhw, len(spans) - 1)
            known_BKE = shrunk_BEhw.flatten(2).transpose(1, 2)
            x = state.both(self.word_embed(known_BKE.to(class_R1D)))
        x = through(self.blocks, x + self._places()[:, first:until], condition_BTD=class_R1D, caches=state.caches)
        return self.head(self.norm(x, class_R1D))

    def step(
        self,
        state: NextState,
        codes_BN: Tensor,
        spans: Sequence[tuple[int, int]],
        scales: tuple[float, ...],
        temperature: float | None,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        assert isinstance(state, VARState)
        config, scale = self.config, len(spans) - 1
        temperature = config.temperature if temperature is None else temperature
        logits_BKV = guided(self.logits(state, codes_BN, spans), scales[0], len(codes_BN))
        drawn = self.draw(logits_BKV, temperature, self.top_k(scale), config.top_p, noise)
        if config.smooth:
            state.mixed_BKE = self.mixed(logits_BKV, scale, noise)
        return drawn

    def mixed(self, logits_BKV: Tensor, scale: int, noise: Noise) -> Tensor:
        """Code vectors (B, K, E), mixed by a softmax of logits and Gumbel noise, sharper from scale to scale."""
        progress, every_1V = self.progress(scale), torch.arange(self.codebook_size, device=logits_BKV.device)[None]
        kept_BKV = filtered(logits_BKV, top_k=self.top_k(scale), top_p=self.config.top_p)
        scores_BKV = kept_BKV * (1 + progress) + self.gumbel(logits_BKV, noise)
        weights_BKV = (scores_BKV / max(0.27 * (1 - 0.95 * progress), 0.005)).softmax(dim=-1)
        return weights_BKV @ self._vectors(every_1V, scale)

    def gumbel(self, like_BKV: Tensor, noise: Noise) -> Tensor:
        """Standard Gumbel noise for what the next scale sees, `smooth` being set."""
        return schedules.gumbel(noise.uniform(like_BKV.shape, like_BKV.device, name="prior.smooth"))

    def add(self, state: VARState, codes_BN: Tensor, spans: Sequence[tuple[int, int]]) -> None:
        """Add the last of these scales to the sum of those before it."""
        (first, until), scale = spans[-1], len(spans) - 1
        vectors_BKE = self._vectors(codes_BN[:, first:until], scale)
        if state.mixed_BKE is not None:  # codes that were given stay what they are
            vectors_BKE = torch.where(state.free_BN[:, first:until, None], state.mixed_BKE.to(vectors_BKE), vectors_BKE)
        spread_BEhw = self._tokenizer[0].spread(vectors_BKE, scale)
        state.sum_BEhw = spread_BEhw if state.sum_BEhw is None else state.sum_BEhw + spread_BEhw

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        """Cross-entropy of all codes of all scales, each after the scales before it."""
        classes_B = self.dropped(condition, codes_BN.device, noise)
        with torch.no_grad():
            known_BTE = self._tokenizer[0].quantizer.known_before(self._there(codes_BN)).to(codes_BN.device)
        return cross_entropy(self(known_BTE, classes_B), codes_BN, self.config.label_smoothing)

    def _vectors(self, codes_BK: Tensor, scale: int) -> Tensor:
        return self._tokenizer[0].scale_vectors(self._there(codes_BK), scale)

    def _there(self, codes: Tensor) -> Tensor:
        """Where the tokenizer is."""
        return codes.to(next(self._tokenizer[0].parameters()).device)

    def _places(self) -> Tensor:
        return self.pos_1LC + self.lvl_embed(self.scale_N)


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)

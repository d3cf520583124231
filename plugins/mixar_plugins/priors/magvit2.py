"""Open-MAGVIT2's prior (arXiv 2409.04410): raster order, and a second transformer that draws a code in two parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import field, frozen
from torch import Tensor, nn

from mixar_core.data.dataset import ImageDataset
from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.tables import Table
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import Condition, Losses
from mixar_plugins.networks.transformer import KeyValueCache, llama_block, through
from mixar_plugins.priors.asked import count, not_negative, positive, up_to_one
from mixar_plugins.priors.llamagen import LlamaConfig, class_first
from mixar_plugins.priors.next import NextPrior, NextState, cross_entropy, guided
from mixar_plugins.priors.transformer import init_weights


@frozen(kw_only=True)
class Magvit2PriorConfig(LlamaConfig):
    """Defaults are the 343M model and its published sampling. As LlamaConfig, for the first part of a code, and

    Args:
        first_bits: of a code are its first part, the others its second.
        factorised_depth: blocks of the transformer over a place's two parts.
        second_temperature, second_guidance_scale, second_top_k, second_top_p: the same settings for the second part.
    """

    width: int = field(default=1024, validator=positive)
    depth: int = field(default=24, validator=positive)
    heads: int = field(default=16, validator=positive)
    first_bits: int = field(default=6, validator=positive)
    factorised_depth: int = field(default=2, validator=positive)
    guidance_scale: float = field(default=1.9, validator=not_negative)
    second_guidance_scale: float = field(default=2.0, validator=not_negative)
    second_temperature: float = field(default=1.0, validator=not_negative)
    second_top_k: int = field(default=0, validator=count)
    second_top_p: float = field(default=1.0, validator=up_to_one)


class Magvit2Prior(NextPrior):
    """A Llama over places, then one over [what it says of a place, the code's first part] that draws both parts.

    The second one has the rotary table's first two rows: its context, as a class token, has no query and no key.
    """

    config: Magvit2PriorConfig
    table: Tensor

    def __init__(
        self,
        config: Magvit2PriorConfig,
        *,
        tokenizer: DiscreteTokenizer,
        num_classes: int,
        data: ImageDataset | None = None,
    ) -> None:
        super().__init__(layout=tokenizer.layout, codebook_size=tokenizer.codebook_size, num_classes=num_classes)
        self.config, self.first = config, 2**config.first_bits
        width, second = config.width, tokenizer.codebook_size // self.first
        if tokenizer.codebook_size % self.first or second < 2:
            raise UserError(
                f"prior.first_bits is {config.first_bits}; they must be some bits of a code, of which the discrete "
                f"tokenizer has {tokenizer.codebook_size}"
            )

        def blocks(depth: int) -> nn.ModuleList:
            multiple_of, dropout = config.multiple_of, config.dropout
            return nn.ModuleList(
                llama_block(width, config.heads, multiple_of=multiple_of, dropout=dropout) for _ in range(depth)
            )

        self.class_emb = nn.Embedding(num_classes + 1, width)  # the last is "no class"
        self.pre_emb, self.post_emb = nn.Embedding(self.first, width), nn.Embedding(second, width)
        self.tok_dropout = nn.Dropout(config.dropout)
        self.spatial_blocks, self.factorized_blocks = blocks(config.depth), blocks(config.factorised_depth)
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.ModuleList(nn.Linear(width, count, bias=False) for count in (self.first, second))
        self.register_buffer("table", class_first(self.layout, width // config.heads), persistent=False)
        self.apply(init_weights)

    def learned_tables(self) -> dict[str, Table]:
        """Of classes, then "no class"."""
        return {"class_emb.weight": Table(self.num_classes)}

    def begin(self, classes_R: Tensor, orders_BN: Tensor | None) -> NextState:
        return NextState(classes_R, len(self.spatial_blocks), 1 + self.layout.tokens, orders_BN)

    def parts(self, codes_BN: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of codes: the lower bits, the others."""
        return codes_BN % self.first, codes_BN // self.first

    def forward(self, codes_BN: Tensor, classes_B: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, N, .) of both parts of all codes, each after the codes before it, the second after the first."""
        class_B1D = self.class_emb(classes_B)[:, None]
        tokens = torch.cat([class_B1D, self._embedded(codes_BN[:, :-1])], dim=1)
        context_BND = self._places(tokens, slice(0, tokens.shape[1]))
        pairs = torch.stack([context_BND, self.pre_emb(self.parts(codes_BN)[0])], dim=2)
        out = self._within(pairs.flatten(0, 1)).unflatten(0, pairs.shape[:2])
        return self.head[0](out[:, :, 0]), self.head[1](out[:, :, 1])

    def logits(self, state: NextState, codes_BN: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        """What the first transformer says of the next place, (R, 1, D)."""
        at = spans[-1][0]
        token = state.both(self._embedded(codes_BN[:, at - 1 : at])) if at else self.class_emb(state.classes_R)[:, None]
        return self._places(token, slice(at, at + 1), state.caches)

    def guidance(self, cfg: float | None, spans: Sequence[tuple[int, int]]) -> list[tuple[float, ...]]:
        config = self.config
        scales = (config.guidance_scale, config.second_guidance_scale) if cfg is None else (cfg, cfg)
        return [tuple(scale if scale >= 1.0 else 1.0 for scale in scales)] * len(spans)

    def step(
        self,
        state: NextState,
        codes_BN: Tensor,
        spans: Sequence[tuple[int, int]],
        scales: tuple[float, ...],
        temperature: float | None,
        noise: Noise,
    ) -> tuple[Tensor, Tensor]:
        config, batch = self.config, len(codes_BN)
        caches = [KeyValueCache(2) for _ in self.factorized_blocks]
        temperatures = (config.temperature, config.second_temperature) if temperature is None else (temperature,) * 2
        context_R1D = self.logits(state, codes_BN, spans)
        logits_BKV = guided(self.head[0](self._within(context_R1D, caches)), scales[0], batch)
        pre_BK, pre_p_BK = self.draw(logits_BKV, temperatures[0], config.top_k, config.top_p, noise)
        token_R1D = state.both(self.pre_emb(pre_BK))
        logits_BKV = guided(self.head[1](self._within(token_R1D, caches)), scales[1], batch)
        filters = config.second_top_k, config.second_top_p
        post_BK, post_p_BK = self.draw(logits_BKV, temperatures[1], *filters, noise)
        return pre_BK + self.first * post_BK, pre_p_BK + post_p_BK

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        """Cross-entropy of both parts, added."""
        logits = self(codes_BN, self.dropped(condition, codes_BN.device, noise))
        pre, post = (cross_entropy(*each) for each in zip(logits, self.parts(codes_BN), strict=True))
        return Losses(pre.total + post.total, {"first": pre.total.detach(), "second": post.total.detach()})

    def _embedded(self, codes_BK: Tensor) -> Tensor:
        pre_BK, post_BK = self.parts(codes_BK)
        return self.pre_emb(pre_BK) + self.post_emb(post_BK)

    def _places(self, x_BTD: Tensor, here: slice, caches: Sequence[KeyValueCache] = ()) -> Tensor:
        table = self.table[None, here]
        return through(self.spatial_blocks, self.tok_dropout(x_BTD), table=table, caches=caches, causal=True)

    def _within(self, x_RTD: Tensor, caches: Sequence[KeyValueCache] = ()) -> Tensor:
        """The second transformer over the two tokens of a place, or those that come after what is held."""
        held = caches[0].length if caches else 0
        table = self.table[None, held : held + x_RTD.shape[1]]
        return self.norm(through(self.factorized_blocks, x_RTD, table=table, caches=caches, causal=True))

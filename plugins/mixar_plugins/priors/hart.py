"""HART's generator (arXiv 2410.10812): codes scale by scale as VAR, and what a head makes the last scale's residual of.

What it says of the last scale (`features`) conditions a small diffusion, which draws what the codes leave over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import field, frozen, validators
from torch import Tensor, nn

from mixar_core.data.dataset import ImageDataset
from mixar_core.errors import UserError
from mixar_core.tables import Table
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import Grid
from mixar_plugins.networks.time import TimeEmbedding
from mixar_plugins.networks.transformer import (
    GatedMlp,
    KeyValueCache,
    ModulatedBlock,
    ModulatedNorm,
    beside,
    half_turned_table,
    modulate,
    scale_of,
    through,
)
from mixar_plugins.priors.asked import count, not_negative, positive, up_to_one
from mixar_plugins.priors.next import NextPrior, NextState, check_head
from mixar_plugins.priors.transformer import init_weights
from mixar_plugins.priors.var import KeysWithoutBias, VARPrior, VARPriorConfig, VARState

BASE = 10000.0
#: from this scale on half as many codes may be drawn
FINE = 7


@frozen(kw_only=True)
class HARTPriorConfig(VARPriorConfig):
    """As VARPriorConfig, and

    Args:
        context_width: length of the vectors of the context, of a class one.
        mlp_width: of the gated MLPs; None: two thirds of four times as wide, rounded up to 256.
    """

    guidance_scale: float = field(default=4.5, validator=not_negative)
    top_k: int = field(default=600, validator=count)
    top_p: float = field(default=1.0, validator=up_to_one)
    smooth: bool = True
    context_width: int = field(default=1536, validator=positive)
    mlp_width: int | None = field(default=None, validator=validators.optional(positive))


class HARTAttention(KeysWithoutBias):
    """Number j of a head is turned with number j + width / 2; what attends is a quarter as steep as usual."""

    def prepared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return beside(0.25 * q), beside(k)


class HARTPrior(VARPrior):
    """HART's transformer over a context of vectors, of which the last one's place predicts the first scale.

    Drawn for a class, the context is one vector of it.
    """

    config: HARTPriorConfig

    def __init__(
        self,
        config: HARTPriorConfig,
        *,
        tokenizer: DiscreteTokenizer,
        num_classes: int,
        data: ImageDataset | None = None,
    ) -> None:
        layout = self.checked("hart", tokenizer)
        if layout.scales[0].tokens > 1 or len(layout.scales) == 1:
            raise UserError(f"prior hart draws one code and then larger scales of codes; these are a {layout}")
        check_head(config.width // config.heads, 4)
        NextPrior.__init__(self, layout=layout, codebook_size=tokenizer.codebook_size, num_classes=num_classes)
        self.config = config
        self._tokenizer = (tokenizer,)  # in a tuple, so that it is not registered as a submodule
        width = config.width
        hidden = config.mlp_width or -(-int(8 * width / 3) // 256) * 256
        self.class_emb = nn.Embedding(num_classes + 1, config.context_width)  # the last is "no class"
        self.context_norm = nn.RMSNorm(config.context_width, eps=1e-6)
        self.context_embed = nn.Linear(config.context_width, width)
        self.word_embed = nn.Linear(tokenizer.code_width, width)
        self.lvl_embed = TimeEmbedding(width)  # type: ignore[assignment]

        def block() -> ModulatedBlock:
            attention = HARTAttention(width, config.heads, dropout=config.dropout)
            mlp = GatedMlp(width, hidden, dropout=config.dropout)
            return ModulatedBlock(width, attention, mlp, lambda: nn.RMSNorm(width, eps=1e-6))

        self.blocks = nn.ModuleList(block() for _ in range(config.depth))
        self.norm = ModulatedNorm(width, ("scale", "shift"), eps=1e-6)
        self.norm.norm = nn.RMSNorm(width, eps=1e-6)  # type: ignore[assignment]
        self.head = nn.Linear(width, self.codebook_size)
        self.register_buffer("scale_N", scale_of(layout), persistent=False)
        self.apply(init_weights)

    def learned_tables(self) -> dict[str, Table]:
        """Of classes, then "no class"."""
        return {"class_emb.weight": Table(self.num_classes)}

    def progress(self, scale: int) -> float:
        """Of the last scale that of the one before it, as in the released code."""
        return super().progress(min(scale, max(0, len(self.layout.scales) - 2)))

    def top_k(self, scale: int) -> int:
        """Half of it for fine scales, as in the released code."""
        top_k = self.config.top_k
        return top_k if scale < FINE else max(min(1, top_k), top_k // 2)  # half of one is not all

    def context(self, vectors_RTF: Tensor) -> Tensor:
        """The context as tokens (R, T, D)."""
        return self.context_embed(self.context_norm(vectors_RTF))

    def enter(self, x: Tensor, scale: int | Tensor) -> Tensor:
        """Tokens (R, K, D) of a scale, or each of its own (K,), as the blocks see them."""
        scale = scale if isinstance(scale, Tensor) else torch.full((), scale, device=x.device)
        return x + self.lvl_embed(scale)

    def places(self, scale: int, after_R: Tensor) -> Tensor:
        """By what the tokens of a scale turn, (R, K, 2, width of a head), behind a context that ends at `after_R`."""
        grid, finest = self.layout.scales[scale], self.layout.scales[-1]
        row_K, column_K = _coordinates(grid, finest, after_R.device)
        width = self.config.width // self.config.heads
        frequencies = BASE ** -(torch.arange(0, width, 4, device=after_R.device) / width)
        angles = [(axis + after_R[:, None])[..., None] * frequencies for axis in (row_K, column_K)]
        return half_turned_table(torch.cat([half for half in angles for _ in range(2)], dim=-1))

    def places_of_context(self, positions_RT: Tensor) -> Tensor:
        """By what the context's tokens turn: (R, T, 2, width of a head)."""
        width = self.config.width // self.config.heads
        frequencies = BASE ** -(torch.arange(0, width, 2, device=positions_RT.device) / width)
        angles = positions_RT[..., None] * frequencies
        return half_turned_table(torch.cat([angles, angles], dim=-1))

    def run(self, x: Tensor, table: Tensor, caches: Sequence[KeyValueCache] = (), mask: Tensor | None = None) -> Tensor:
        """What the last block says of tokens that entered: (R, K, D)."""
        return through(self.blocks, x, table=table, mask=mask, caches=caches)

    def read(self, hidden: Tensor, context_RTD: Tensor) -> Tensor:
        """Logits (R, K, V); the largest of the context's numbers shift and scale what is read."""
        modulation = self.norm.modulation(context_RTD.amax(dim=1, keepdim=True))
        scale, shift = modulation.chunk(2, dim=-1)
        return self.head(modulate(self.norm.norm(hidden), shift, scale))

    def features(self, hidden: Tensor, vectors_RKE: Tensor) -> Tensor:
        """What the residual of these code vectors is drawn from, once it is normed: (R, K, D)."""
        return hidden + self.word_embed(vectors_RKE)

    def forward(self, known_BTE: Tensor, classes_B: Tensor) -> Tensor:
        """Logits (B, N, V) of all codes; known_BTE, T = N - N_0, is the sum that every scale but the first sees."""
        return self.read(
            *self.teach(self.class_emb(classes_B)[:, None], torch.zeros_like(classes_B)[:, None], known_BTE)
        )

    def teach(
        self, vectors_BTF: Tensor, positions_BT: Tensor, known_BKE: Tensor, kept_BK: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What the last block says, from the context's last token on, and the context as tokens.

        Args:
            known_BKE: the sums that all tokens behind the first scale see, or those that `kept_BK` names, int64.
        """
        context_BTD, after_B = self.context(vectors_BTF), positions_BT[:, -1]
        scales = range(1, len(self.layout.scales))
        table = torch.cat([self.places(scale, after_B) for scale in scales], dim=1)
        behind_K = self.scale_N[self.layout.scales[0].tokens :]
        scale_BK = behind_K.expand(len(known_BKE), -1)
        if kept_BK is not None:
            table = table.gather(1, kept_BK[..., None, None].expand(-1, -1, *table.shape[2:]))
            scale_BK = scale_BK.gather(1, kept_BK)
        x = torch.cat([self.enter(context_BTD, 0), self.word_embed(known_BKE) + self.lvl_embed(scale_BK)], dim=1)
        of = torch.cat([scale_BK.new_zeros(context_BTD.shape[1]), scale_BK[0]])
        hidden = self.run(x, torch.cat([self.places_of_context(positions_BT), table], dim=1), mask=of[:, None] >= of)
        return hidden[:, context_BTD.shape[1] - 1 :], context_BTD

    def logits(self, state: NextState, codes_BN: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
        assert isinstance(state, VARState)
        rows = state.classes_R
        context_RTD, start_R = self.context(self.class_emb(rows)[:, None]), torch.zeros_like(rows)
        if len(spans) == 1:
            hidden = self.run(self.enter(context_RTD, 0), self.places_of_context(start_R[:, None]), state.caches)
        else:
            scale = len(spans) - 1
            self.add(state, codes_BN, spans[:-1])
            known_BKE = self._tokenizer[0].quantizer.shrink(state.sum_BEhw, scale).flatten(2).transpose(1, 2)
            x = self.enter(state.both(self.word_embed(known_BKE.to(context_RTD))), scale)
            hidden = self.run(x, self.places(scale, start_R), state.caches)
        return self.read(hidden, context_RTD)


def _coordinates(grid: Grid, finest: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows and columns (K,) of a grid's tokens, stretched over the finest."""
    rows = torch.arange(grid.height, device=device) / grid.height * finest.height
    columns = torch.arange(grid.width, device=device) / grid.width * finest.width
    return rows.repeat_interleave(grid.width), columns.repeat(grid.height)

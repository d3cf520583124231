"""ACDiT's transformer (arXiv 2412.07720): it denoises a block of tokens, and sees the clean blocks before it.

So backbone and head are one network: what it says of a block is how to denoise it (`Z.denoise`), which the head
`denoising` calls.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from attrs import field, frozen
from attrs.validators import gt
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixar_core.backbone import Backbone, BackboneState
from mixar_core.errors import UserError
from mixar_core.masking import take
from mixar_core.meta import constant
from mixar_core.plan import Order
from mixar_core.types import Condition, Denoise, Guidance, MaskSplit, Step, TokenLayout, Z
from mixar_plugins.backbones.condition import init_as_mar, label_rows, never_again, only_fill, share
from mixar_plugins.networks.time import TimeEmbedding
from mixar_plugins.networks.transformer import (
    MODULATION,
    CachedAttention,
    KeyValueCache,
    ModulatedBlock,
    TanhMlp,
    beside,
    half_turned_table,
    modulate,
)

HEAD_WIDTH = 64


@frozen
class ACDiTConfig:
    """Sizes.

    Args:
        width, depth: of the transformer, whose heads are 64 wide (ACDiT-XL, H: 1152/28, 1280/32).
        mlp_ratio: width of its MLPs over its own.
        block: side of the square of tokens that are denoised together.
        patch_size: latents a token spans in each direction.
        label_dropout: share of labels dropped in training, for classifier-free guidance.
        activation_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
    """

    width: int = field(default=1152, validator=gt(0))
    depth: int = field(default=28, validator=gt(0))
    mlp_ratio: float = field(default=4.0, validator=gt(0.0))
    block: int = field(default=16, validator=gt(0))
    patch_size: int = field(default=1, validator=gt(0))
    label_dropout: float = field(default=0.1, validator=share)
    activation_checkpointing: bool = False

    def __attrs_post_init__(self) -> None:
        if self.width % HEAD_WIDTH:
            raise ValueError(f"width {self.width} is not a multiple of {HEAD_WIDTH}")


class ACDiTBackbone(Backbone):
    """Blocks through which clean tokens go as they are, and noised ones modulated by their time and the class."""

    masks: ClassVar[bool] = False
    denoises: ClassVar[bool] = True
    order: Order = "groups"
    #: positions block by block, and by what they turn, (N, 2, 64)
    place_N: Tensor
    table: Tensor

    def __init__(
        self,
        config: ACDiTConfig,
        *,
        layout: TokenLayout,
        token_dim: int,
        num_classes: int,
        memory: bool = False,
        condition_width: int = 0,
    ) -> None:
        super().__init__()
        only_fill("acdit", memory=memory, condition_width=condition_width)
        grid, side = layout.scales[0], config.block
        if layout.kind != "grid" or grid.height % side or grid.width % side:
            raise UserError(f"backbone acdit: block {side}; tokens are a {layout}, and must be a grid of whole blocks")
        self.config, self.layout, self.token_dim, self.num_classes = config, layout, token_dim, num_classes
        self.width, self.guidance_width = self.widths(config)
        self.patch_size, self.label_dropout = config.patch_size, config.label_dropout
        rows, columns = (range(0, length, side) for length in (grid.height, grid.width))
        self.groups = groups = tuple(
            tuple((row + i) * grid.width + column + j for i in range(side) for j in range(side))
            for row in rows
            for column in columns
        )
        width = config.width

        self.t_embedder = TimeEmbedding(width)
        #: the last row stands for "no class"
        self.class_emb = nn.Embedding(num_classes + 1, width)
        self.x_embedder = nn.Linear(token_dim, width, bias=False)
        self.layers = nn.ModuleList(self._block() for _ in range(config.depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, token_dim)
        self.register_buffer("place_N", torch.tensor(groups).flatten(), persistent=False)
        self.register_buffer("table", rotary_table(layout, groups), persistent=False)
        init_as_mar(self, [self.class_emb.weight])
        self.t_embedder.reset_parameters()
        # As DiT: a fresh block is the identity, and a fresh network says zero.
        for zeroed in (self.modulation, self.out, *(block.modulation for block in self.layers)):
            for parameter in zeroed.parameters():  # type: ignore[union-attr]
                nn.init.zeros_(parameter)

    def _block(self) -> ModulatedBlock:
        width = self.config.width
        mlp = TanhMlp(width, int(width * self.config.mlp_ratio), dropout=0.0)
        attention = HalfTurnedAttention(width, width // HEAD_WIDTH, attention_dropout=0.0, dropout=0.0)
        return ModulatedBlock(width, attention, mlp, lambda: nn.RMSNorm(width, eps=1e-6), MODULATION)

    def split(self, orders_BN: Tensor, ratio: float) -> MaskSplit:
        """Every token is predicted in each pass, block by block."""
        return MaskSplit(visible_BU=orders_BN[:, :0], masked_BK=self.place_N.expand(len(orders_BN), -1))

    def forward(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Z:
        """How to denoise all blocks, each from the clean ones before it."""
        positions_BK, class_B1D = split.masked_BK, self.class_of(condition)
        clean_BKC, tokens = take(tokens_BNC, positions_BK), positions_BK.shape[1]
        block_K = torch.arange(tokens, device=positions_BK.device) // self.config.block**2
        before, own = block_K < block_K[:, None], block_K == block_K[:, None]
        masks = before | own, torch.cat([before, own], dim=1)

        def both(layer: nn.Module, clean: Tensor, x: Tensor, told: Tensor) -> tuple[Tensor, Tensor]:
            cache = JoinedCache(2 * tokens)
            clean = layer(clean, None, self.table[None], masks[0], cache)
            return clean, layer(x, told, self.table[None], masks[1], cache)

        def predict(noised: Tensor, t: Tensor) -> Tensor:
            clean, (x, told) = self.embed(clean_BKC), self.enter(noised, t, positions_BK, class_B1D, guidance)
            for layer in self.layers:
                if self.config.activation_checkpointing and self.training:
                    clean, x = checkpoint(both, layer, clean, x, told, use_reentrant=False)
                else:
                    clean, x = both(layer, clean, x, told)
            return self.leave(x, told)

        return Z(
            class_B1D.expand(-1, tokens, -1), positions_BK, denoise=Denoise(predict, tokens // self.config.block**2)
        )

    def start(self, condition: Condition, guidance: Guidance, *, guided: bool) -> ACDiTState:
        """Begin to sample."""
        return ACDiTState(self, condition, guidance, guided=guided)

    def class_of(self, condition: Condition) -> Tensor:
        """(B, 1, D)."""
        class_B1D: Tensor = self.class_emb(label_rows(condition.labels_B, self.num_classes))[:, None]
        return class_B1D

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens (R, K, C), the numbers of a patch with its channels last, as in the released files: (R, K, D)."""
        if self.patch_size > 1:
            tokens = rearrange(tokens, "r k (c p q) -> r k (p q c)", p=self.patch_size, q=self.patch_size)
        return self.x_embedder(tokens)

    def enter(
        self, noised: Tensor, t: Tensor, positions_BK: Tensor, class_B1D: Tensor, guidance: Guidance
    ) -> tuple[Tensor, Tensor]:
        """What noised tokens (R, K, C) begin with, and what modulates them: time and class of every block.

        Raises:
            UserError: the guidance opens another door than its fill.
        """
        only_fill("acdit", guidance)
        x = self.embed(noised)
        if guidance.fill_BND is not None:
            x = x + take(guidance.fill_BND.to(x.dtype), positions_BK)
        return x, self.t_embedder(t) + class_B1D

    def leave(self, x: Tensor, told: Tensor) -> Tensor:
        """The noise that is predicted: (R, K, C)."""
        modulation = self.modulation(told).repeat_interleave(x.shape[1] // told.shape[1], dim=1)
        noise = self.out(modulate(self.norm(x), *modulation.chunk(2, dim=-1)))
        if self.patch_size > 1:
            noise = rearrange(noise, "r k (p q c) -> r k (c p q)", p=self.patch_size, q=self.patch_size)
        return noise


class ACDiTState(BackboneState):
    """Keys and values of the clean blocks that are known; with guidance, of both halves one after the other."""

    def __init__(self, backbone: ACDiTBackbone, condition: Condition, guidance: Guidance, *, guided: bool) -> None:
        self.backbone, self.guidance, self.copies = backbone, guidance, 2 if guided else 1
        self.class_B1D = backbone.class_of(condition.guided() if guided else condition)
        rows = len(self.class_B1D)
        self.caches = [KeyValueCache(backbone.layout.tokens, rows=rows) for _ in backbone.layers]

    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        """How to denoise the first block that is not known.

        Raises:
            UserError: the step draws known tokens anew.
        """
        never_again("acdit", step)
        backbone, (images, count), known = self.backbone, positions_BK.shape, self.caches[0].length
        table = backbone.table[None, known : known + count]

        def predict(noised: Tensor, t: Tensor) -> Tensor:
            rows = len(noised)
            guidance, positions = self.guidance.repeat(rows // images), positions_BK.repeat(rows // images, 1)
            x, told = backbone.enter(noised, t, positions, self.class_B1D[:rows], guidance)
            for layer, cache in zip(backbone.layers, self.caches, strict=True):
                x = layer(x, told, table, None, cache)
                cache.length = known
            return backbone.leave(x, told)

        cond, *uncond = self.class_B1D.expand(-1, count, -1).chunk(self.copies)
        return Z(cond, positions_BK, None if step.cfg == 1.0 else uncond[0], denoise=Denoise(predict))

    def reveal(self, positions_BK: Tensor, tokens_BKC: Tensor) -> None:
        """These tokens are known: those of whole blocks, the next ones."""
        backbone, count, known = self.backbone, positions_BK.shape[1], self.caches[0].length
        if known + count == backbone.layout.tokens:  # nothing is predicted from the last block
            return
        block = backbone.config.block**2
        block_T = torch.arange(known + count, device=tokens_BKC.device) // block
        mask = block_T <= block_T[known:, None] if count > block else None
        x, table = backbone.embed(tokens_BKC.repeat(self.copies, 1, 1)), backbone.table[None, known : known + count]
        for layer, cache in zip(backbone.layers, self.caches, strict=True):
            x = layer(x, None, table, mask, cache)


class JoinedCache(KeyValueCache):
    """What comes is joined to what was, so that gradients find both as they were."""

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep these, and give all."""
        if self._held is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self._held, (k, v), strict=True))
        self._held = k, v
        return k, v


class HalfTurnedAttention(CachedAttention):
    """Normed queries and keys, of which number j is turned with number j + 32."""

    def __init__(self, width: int, heads: int, *, attention_dropout: float, dropout: float) -> None:
        super().__init__(width, heads, attention_dropout=attention_dropout, dropout=dropout)
        self.q_norm, self.k_norm = (nn.RMSNorm(width // heads, eps=1e-6) for _ in range(2))

    def prepared(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Normed, and each number beside the one that it is turned with."""
        return beside(self.q_norm(q)), beside(self.k_norm(k))


@constant
def rotary_table(layout: TokenLayout, groups: tuple[tuple[int, ...], ...]) -> Tensor:
    """By what the 64 numbers of a head turn, each beside the one that it is turned with: (N, 2, 64), group by group.

    The first 32 have the row's angles and the others the column's, 16 twice; number j is turned with number j + 32.
    """
    grid, places_N = layout.scales[0], torch.arange(layout.tokens)
    angles = []
    for along, length in ((places_N // grid.width, grid.height), (places_N % grid.width, grid.width)):
        base = (int(8 * length / math.pi) // 100 + 1) * 100.0
        angles += 2 * [along[:, None] * base ** -torch.linspace(0.0, 1.0, HEAD_WIDTH // 4)]
    return half_turned_table(torch.cat(angles, dim=1))[torch.tensor(groups).flatten()]

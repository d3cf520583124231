"""l-DeTok's autoregressive transformer (arXiv 2507.15856): a token after the other, in raster or in random order.

A place of the sequence holds the token before, and the position that is to be predicted next.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from attrs import field, frozen
from attrs.validators import gt, in_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixar_core.backbone import Backbone, BackboneState
from mixar_core.blocks import Mlp
from mixar_core.masking import take
from mixar_core.plan import Order
from mixar_core.tables import Table
from mixar_core.types import Condition, Guidance, MaskSplit, Step, TokenLayout, Z
from mixar_plugins.backbones.causal import kept_first
from mixar_plugins.backbones.condition import class_vectors, init_as_mar, never_again, only_fill, share
from mixar_plugins.networks.transformer import MODULATION, CachedAttention, KeyValueCache, ModulatedBlock, modulate


@frozen
class DeTokARConfig:
    """Sizes and order.

    Args:
        width, depth, heads: of the transformer. mlp_ratio: width of its MLPs over its own.
        order: in which it is trained and can draw; random is any order.
        dropout, attention_dropout: of activations and of attention weights, in training.
        label_dropout: share of labels dropped in training, for classifier-free guidance.
        activation_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
    """

    width: int = field(default=768, validator=gt(0))
    depth: int = field(default=24, validator=gt(0))
    heads: int = field(default=12, validator=gt(0))
    mlp_ratio: float = field(default=4.0, validator=gt(0.0))
    order: Literal["raster", "random"] = field(default="random", validator=in_(("raster", "random")))
    dropout: float = field(default=0.1, validator=share)
    attention_dropout: float = field(default=0.1, validator=share)
    label_dropout: float = field(default=0.1, validator=share)
    activation_checkpointing: bool = False

    def __attrs_post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class DeTokARBackbone(Backbone):
    """Causal blocks that class and step modulate, between a start token and an output that the class modulates."""

    masks: ClassVar[bool] = False

    def __init__(
        self,
        config: DeTokARConfig,
        *,
        layout: TokenLayout,
        token_dim: int,
        num_classes: int,
        memory: bool = False,
        condition_width: int = 0,
    ) -> None:
        super().__init__()
        only_fill("detok-ar", memory=memory, condition_width=condition_width)
        self.config, self.layout, self.token_dim, self.num_classes = config, layout, token_dim, num_classes
        self.width, self.guidance_width = self.widths(config)
        self.label_dropout = config.label_dropout
        self.order: Order = "raster" if config.order == "raster" else "any"
        width, tokens = config.width, layout.tokens

        self.class_emb = nn.Embedding(num_classes, width) if num_classes else None
        #: stands for "no class", for classifier-free guidance
        self.fake_latent = nn.Parameter(torch.empty(1, width))
        self.bos_token = nn.Parameter(torch.empty(1, 1, width))
        #: of the token before, the start token's first; and of the one that is predicted
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + tokens, width))
        self.target_pos_embed = nn.Parameter(torch.empty(1, tokens, width))
        self.timesteps_embeddings = nn.Parameter(torch.empty(1, 1 + tokens, width))
        self.x_embedder = nn.Linear(token_dim, width)
        self.ln_pre = nn.LayerNorm(width, eps=1e-6)
        self.layers = nn.ModuleList(self._block() for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        classes = None if self.class_emb is None else self.class_emb.weight
        tables = [self.pos_embed, self.target_pos_embed, self.timesteps_embeddings]
        init_as_mar(self, [self.fake_latent, self.bos_token, classes, *tables])

    def _block(self) -> ModulatedBlock:
        c = self.config
        attention = CachedAttention(c.width, c.heads, attention_dropout=c.attention_dropout, dropout=c.dropout)
        mlp = Mlp(c.width, int(c.width * c.mlp_ratio), dropout=c.dropout)
        return ModulatedBlock(c.width, attention, mlp, lambda: nn.LayerNorm(c.width, eps=1e-6), MODULATION)

    def learned_tables(self) -> dict[str, Table]:
        """Of classes, and of positions."""
        of_class = {} if self.class_emb is None else {"class_emb.weight": Table(self.num_classes)}
        positions = {"pos_embed": Table(self.layout, dim=1, first=1), "target_pos_embed": Table(self.layout, dim=1)}
        return of_class | positions

    def forward(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Tensor:
        """z (B, K, D): of each masked token from the visible ones and the masked ones before it (teacher forcing)."""
        order_BN = torch.cat([split.visible_BU, split.masked_BK], dim=1)
        before_BT = order_BN[:, :-1]
        x = torch.cat([self.begin(len(order_BN)), self.known_tokens(take(tokens_BNC, before_BT), before_BT)], dim=1)
        steps = torch.arange(order_BN.shape[1], device=order_BN.device)
        mask = steps <= steps[:, None]
        z_BND = self.run(x, order_BN, steps, self.class_of(condition), guidance, mask)
        return z_BND[:, split.visible_BU.shape[1] :]

    def start(self, condition: Condition, guidance: Guidance, *, guided: bool) -> DeTokARState:
        """Begin to sample."""
        return DeTokARState(self, condition, guidance, guided=guided)

    def begin(self, images: int) -> Tensor:
        """What stands before the first token: (B, 1, D)."""
        return (self.bos_token + self.pos_embed[:, :1]).expand(images, -1, -1)

    def known_tokens(self, tokens_BKC: Tensor, positions_BK: Tensor) -> Tensor:
        """Continuous tokens that stand before others: (B, K, D)."""
        return self.x_embedder(tokens_BKC) + self.pos_embed[0, 1 + positions_BK]

    def class_of(self, condition: Condition) -> Tensor:
        """(B, 1, D)."""
        return class_vectors(self.class_emb, self.fake_latent, condition.labels_B)[:, None]

    def run(
        self,
        x: Tensor,
        next_BK: Tensor,
        steps: Tensor,
        class_B1D: Tensor,
        guidance: Guidance,
        mask: Tensor | None,
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        """z (B, K, D) of the tokens at `next_BK`, before each of which x stands, in these steps, int64 (K,).

        Raises:
            UserError: the guidance opens another door than its fill.
        """
        only_fill("detok-ar", guidance)
        x = x + self.target_pos_embed[0, next_BK]
        if guidance.fill_BND is not None:
            x = x + take(guidance.fill_BND.to(x.dtype), next_BK)
        x, told_BKD = self.ln_pre(x), class_B1D + self.timesteps_embeddings[0, steps]
        for index, block in enumerate(self.layers):
            if self.config.activation_checkpointing and self.training and not caches:
                x = checkpoint(block, x, told_BKD, None, mask, use_reentrant=False)
            else:
                x = block(x, told_BKD, None, mask, caches[index] if caches else None)
        return modulate(self.norm(x), *self.modulation(class_B1D).chunk(2, dim=-1))


class DeTokARState(BackboneState):
    """Keys and values of all places whose next token is known; with guidance, of both halves one after the other."""

    def __init__(self, backbone: DeTokARBackbone, condition: Condition, guidance: Guidance, *, guided: bool) -> None:
        self.backbone, self.guidance, self.copies = backbone, guidance, 2 if guided else 1
        self.class_B1D = backbone.class_of(condition.guided() if guided else condition)
        self.caches = [KeyValueCache(backbone.layout.tokens) for _ in backbone.layers]
        #: what stands at the next place
        self.last_B1D = backbone.begin(len(condition))
        self.started = False
        #: what was asked for last: where it is one token and is revealed, its keys and values are there already
        self.asked_BK = torch.empty(0)

    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        """z of these tokens, each as the next one. The cache is as it was.

        Raises:
            UserError: the step draws known tokens anew.
        """
        never_again("detok-ar", step)
        self.started, self.asked_BK = True, positions_BK
        count, known, device = positions_BK.shape[1], self.caches[0].length, positions_BK.device
        # each sees what is known and itself
        alone = torch.eye(count, dtype=torch.bool, device=device)
        mask = torch.cat([alone.new_ones(count, known), alone], dim=1)
        steps = torch.full((count,), known, device=device)
        halves = self._run(self.last_B1D.expand(-1, count, -1), positions_BK, steps, mask).chunk(self.copies)
        self._keep(known)
        return Z(halves[0], positions_BK, None if step.cfg == 1.0 else halves[-1])

    def reveal(self, positions_BK: Tensor, tokens_BKC: Tensor) -> None:
        """These tokens are known, and follow those that were in the order in which they are given.

        Raises:
            UserError: tokens are known from the start, and in raster order they are not the first ones.
        """
        backbone, (count, known) = self.backbone, (positions_BK.shape[1], self.caches[0].length)
        if backbone.order == "raster" and not self.started:
            positions_BK, tokens_BKC = kept_first("detok-ar", known, positions_BK, tokens_BKC)
        tokens_BKD = backbone.known_tokens(tokens_BKC, positions_BK)
        x, self.last_B1D = torch.cat([self.last_B1D, tokens_BKD[:, :-1]], dim=1), tokens_BKD[:, -1:]
        if count == 1 and positions_BK is self.asked_BK:
            self._keep(known + 1)
            return
        self.asked_BK = x
        steps = torch.arange(known, known + count, device=x.device)
        mask = torch.ones(count, known + count, dtype=torch.bool, device=x.device).tril(diagonal=known)
        self._run(x, positions_BK, steps, mask if count > 1 else None)

    def _keep(self, count: int) -> None:
        for cache in self.caches:
            cache.length = count

    def _run(self, x: Tensor, next_BK: Tensor, steps: Tensor, mask: Tensor | None) -> Tensor:
        x, next_BK = x.repeat(self.copies, 1, 1), next_BK.repeat(self.copies, 1)
        guidance = self.guidance.repeat(self.copies)
        return self.backbone.run(x, next_BK, steps, self.class_B1D, guidance, mask, self.caches)

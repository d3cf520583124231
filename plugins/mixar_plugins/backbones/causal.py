"""A causal transformer that predicts in any order: the causal rows of MAR's Table 1 (arXiv 2406.11838).

A prediction is a target token: it says which position is asked for, looks at all that is known, and is looked at by
nobody (RandAR's position instruction, arXiv 2412.01827, as a stream of its own, XLNet's, arXiv 1906.08237). So one
training pass predicts every token from those before it, any number of tokens can be predicted at a time, and what is
predicted leaves no trace until it is revealed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from attrs import field, frozen
from attrs.validators import gt, in_
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixar_core.backbone import Backbone, BackboneState
from mixar_core.errors import UserError
from mixar_core.masking import take
from mixar_core.plan import Order
from mixar_core.tables import Table
from mixar_core.types import Condition, Guidance, MaskSplit, Step, TokenLayout, Z
from mixar_plugins.backbones.condition import ConditionEmbedding, class_vectors, init_as_mar, never_again, share
from mixar_plugins.networks.transformer import CachedBlock, KeyValueCache, rotary_angles, rotary_table, rotate


@frozen
class CausalConfig:
    """Sizes, order and positions.

    Args:
        width, depth, heads: of the transformer. mlp_ratio: width of its MLPs over its own.
        order: in which it is trained and can draw; random is any order.
        positions: rotary (of a row and a column on a grid) or a learned vector each.
        buffer: class tokens in front of the sequence.
        dropout, attention_dropout: of activations and of attention weights, in training.
        label_dropout: share of labels dropped in training, for classifier-free guidance.
        patch_size: latents a token spans in each direction.
        activation_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
    """

    width: int = field(default=1024, validator=gt(0))
    depth: int = field(default=32, validator=gt(0))
    heads: int = field(default=16, validator=gt(0))
    order: Literal["raster", "random"] = field(default="random", validator=in_(("raster", "random")))
    positions: Literal["rotary", "learned"] = field(default="rotary", validator=in_(("rotary", "learned")))
    mlp_ratio: float = field(default=4.0, validator=gt(0.0))
    buffer: int = field(default=64, validator=gt(0))
    dropout: float = field(default=0.1, validator=share)
    attention_dropout: float = field(default=0.1, validator=share)
    label_dropout: float = field(default=0.1, validator=share)
    patch_size: int = field(default=1, validator=gt(0))
    activation_checkpointing: bool = False

    def __attrs_post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.positions == "rotary" and self.width // self.heads % 4:
            raise ValueError(
                f"positions: rotary; a head is {self.width // self.heads} wide, and must be a multiple of 4"
            )


class CausalBackbone(Backbone):
    """One stack of blocks over [prefix, condition, class buffer, known tokens in their order], and target tokens."""

    masks: ClassVar[bool] = False
    angles: Tensor | None

    def __init__(
        self,
        config: CausalConfig,
        *,
        layout: TokenLayout,
        token_dim: int,
        num_classes: int,
        memory: bool = False,
        condition_width: int = 0,
    ) -> None:
        super().__init__()
        self.config, self.layout, self.token_dim, self.num_classes = config, layout, token_dim, num_classes
        self.patch_size, self.label_dropout = config.patch_size, config.label_dropout
        self.width, self.guidance_width = self.widths(config)
        self.order: Order = "raster" if config.order == "raster" else "any"
        width = config.width

        self.class_emb = nn.Embedding(num_classes, width) if num_classes else None
        #: stands for "no class", for classifier-free guidance
        self.fake_latent = nn.Parameter(torch.empty(1, width))
        self.buffer_embed = nn.Parameter(torch.empty(1, config.buffer, width))
        self.z_proj = nn.Linear(token_dim, width)
        self.input_norm = nn.LayerNorm(width, eps=1e-6)
        #: what a target token starts from; rotary positions turn it, learned ones are added
        self.target_token = nn.Parameter(torch.empty(width))
        rotary = config.positions == "rotary"
        self.pos_embed = None if rotary else nn.Parameter(torch.empty(1, layout.tokens, width))
        angles = rotary_angles(layout, width // config.heads) if rotary else None
        self.register_buffer("angles", angles, persistent=False)
        self.layers = nn.ModuleList(
            CachedBlock(
                width,
                config.heads,
                config.mlp_ratio,
                attention_dropout=config.attention_dropout,
                dropout=config.dropout,
                memory_width=width if memory else None,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.reset_parameters()
        self.condition = ConditionEmbedding(condition_width, width) if condition_width else None

    def learned_tables(self) -> dict[str, Table]:
        """Of classes, and of learned positions."""
        of_class = {} if self.class_emb is None else {"class_emb.weight": Table(self.num_classes)}
        return of_class | ({} if self.pos_embed is None else {"pos_embed": Table(self.layout, dim=1)})

    def reset_parameters(self) -> None:
        """Initialise as MAR."""
        classes = None if self.class_emb is None else self.class_emb.weight
        init_as_mar(self, [self.fake_latent, self.buffer_embed, self.target_token, classes, self.pos_embed])

    def blocks(self) -> Iterator[nn.Module]:
        """Every block."""
        yield from self.layers

    def forward(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Tensor:
        """z (B, K, D): of each masked token from the visible ones and the masked ones before it (teacher forcing)."""
        known_BT = torch.cat([split.visible_BU, split.masked_BK[:, :-1]], dim=1)
        front_BTD = self.front(condition, guidance)
        known_BTD = self.known_tokens(take(tokens_BNC, known_BT), known_BT)
        x = torch.cat([front_BTD, known_BTD, self.target_tokens(split.masked_BK, guidance)], dim=1)
        front, first = front_BTD.shape[1], front_BTD.shape[1] + split.visible_BU.shape[1]
        context = torch.arange(front + known_BT.shape[1], device=x.device)
        targets = first + torch.arange(split.masked_BK.shape[1], device=x.device)
        # the front sees all of itself, a known token also what comes before it, a target what is known of it
        until = torch.cat([context.clamp(min=front - 1) + 1, targets])
        table = self.turned(front, torch.cat([known_BT, split.masked_BK], dim=1))
        z = self.run(x, guidance.memory_BMD, table, context < until[:, None], seen=len(context))
        return self.norm(z[:, len(context) :])

    def start(self, condition: Condition, guidance: Guidance, *, guided: bool) -> CausalState:
        """Begin to sample."""
        return CausalState(self, condition, guidance, guided=guided)

    def front(self, condition: Condition, guidance: Guidance) -> Tensor:
        """[prefix, condition, class buffer] as tokens: (B, P + T + buffer, D)."""
        class_BD = class_vectors(self.class_emb, self.fake_latent, condition.labels_B)
        tokens = [class_BD[:, None] + self.buffer_embed]
        if self.condition is not None:
            tokens.insert(0, self.condition(condition))
        if guidance.prefix_BPD is not None:
            tokens.insert(0, guidance.prefix_BPD.to(class_BD.dtype))
        return self.input_norm(torch.cat(tokens, dim=1))

    def known_tokens(self, tokens_BKC: Tensor, positions_BK: Tensor) -> Tensor:
        """Continuous tokens as they enter the transformer: (B, K, D)."""
        x = self.z_proj(tokens_BKC)
        if self.pos_embed is not None:
            x = x + self.pos_embed[0, positions_BK]
        return self.input_norm(x)

    def target_tokens(self, positions_BK: Tensor, guidance: Guidance) -> Tensor:
        """Tokens that ask for these positions, with what the codes say of them: (B, K, D)."""
        target = self.target_token.expand(*positions_BK.shape, -1)
        if self.pos_embed is not None:
            target = target + self.pos_embed[0, positions_BK]
        if self.angles is not None:
            angles = self.angles[positions_BK][:, :, None]
            target = rotate(target.unflatten(2, (self.config.heads, -1)), angles).flatten(2)
        if guidance.fill_BND is not None:
            target = target + take(guidance.fill_BND.to(target.dtype), positions_BK)
        return target

    def turned(self, front: int, positions_BK: Tensor) -> Tensor | None:
        """The rotary table of `front` tokens without a place (they are not turned) and of these positions."""
        if self.angles is None:
            return None
        angles = self.angles[positions_BK]
        return rotary_table(torch.cat([angles.new_zeros(angles.shape[0], front, angles.shape[2]), angles], dim=1))

    def run(
        self,
        x: Tensor,
        memory_BMD: Tensor | None,
        table: Tensor | None,
        mask: Tensor | None,
        caches: Sequence[KeyValueCache] = (),
        seen: int | None = None,
    ) -> Tensor:
        """Tokens (B, T, D) through all blocks; each has its cache, or there are none."""
        if memory_BMD is not None:
            memory_BMD = memory_BMD.to(x.dtype)
        for index, block in enumerate(self.layers):
            if self.config.activation_checkpointing and self.training and not caches:
                x = checkpoint(block, x, memory_BMD, table, mask, None, seen, use_reentrant=False)
            else:
                x = block(x, memory_BMD, table, mask, caches[index] if caches else None, seen)
        return x


def kept_first(name: str, first: int, positions_BK: Tensor, tokens_BKC: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens that are kept by a backbone that goes row by row, in that order: looked at once, before any is drawn.

    Raises:
        UserError: they are not those from position `first` on.
    """
    if positions_BK.is_meta:
        return positions_BK, tokens_BKC
    positions_BK, order_BK = positions_BK.sort(dim=1)
    next_K = torch.arange(first, first + positions_BK.shape[1], device=positions_BK.device)
    if not torch.equal(positions_BK, next_K.expand_as(positions_BK)):
        raise UserError(
            f"backbone {name} in raster order can keep the first tokens only, row by row; "
            "train it with `order: random`, or choose backbone masked"
        )
    return positions_BK, take(tokens_BKC, order_BK)


class CausalState(BackboneState):
    """Keys and values of the front and of what is known; with guidance, of both halves one after the other."""

    def __init__(self, backbone: CausalBackbone, condition: Condition, guidance: Guidance, *, guided: bool) -> None:
        self.backbone, self._guidance, self.copies = backbone, guidance, 2 if guided else 1
        self._memory_BMD = guidance.repeat(self.copies).memory_BMD
        front_BTD = backbone.front(condition.guided() if guided else condition, guidance.repeat(self.copies))
        self.front = front_BTD.shape[1]
        self.caches = [KeyValueCache(self.front + backbone.layout.tokens) for _ in backbone.layers]
        self.started = False
        backbone.run(front_BTD, self._memory_BMD, None, None, self.caches)

    @property
    def guidance(self) -> Guidance:
        """What the injector said last.

        Raises:
            UserError: it is replaced, and not only its fill: the others are in the cache.
        """
        return self._guidance

    @guidance.setter
    def guidance(self, guidance: Guidance) -> None:
        before = self._guidance
        if guidance.prefix_BPD is not before.prefix_BPD or guidance.memory_BMD is not before.memory_BMD:
            raise UserError(
                "backbone causal keeps what it saw: an injector that follows the sampling can change its fill only, "
                "and this one changes its prefix or memory; choose another injector or backbone masked"
            )
        self._guidance = guidance

    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        """z of these tokens, each from what is known alone. The cache is as it was.

        Raises:
            UserError: the step draws known tokens anew.
        """
        never_again("causal", step)
        self.started = True
        backbone, copies = self.backbone, 1 if step.cfg == 1.0 else 2
        positions = positions_BK.repeat(copies, 1)
        x = backbone.target_tokens(positions, self.guidance.repeat(copies))
        cond_BKD, *uncond = backbone.norm(self._run(x, positions, None, seen=0)).chunk(copies)
        return Z(cond_BKD, positions_BK, *uncond)

    def reveal(self, positions_BK: Tensor, tokens_BKC: Tensor) -> None:
        """These tokens are known, and follow those that were in the order in which they are given.

        Raises:
            UserError: tokens are known from the start, and in raster order they are not the first ones.
        """
        backbone, count = self.backbone, positions_BK.shape[1]
        if backbone.order == "raster" and not self.started:
            first = self.caches[0].length - self.front
            positions_BK, tokens_BKC = kept_first("causal", first, positions_BK, tokens_BKC)
        positions = positions_BK.repeat(self.copies, 1)
        x = backbone.known_tokens(tokens_BKC.repeat(self.copies, 1, 1), positions)
        before = torch.ones(count, self.caches[0].length + count, dtype=torch.bool, device=x.device)
        self._run(x, positions, before.tril(diagonal=self.caches[0].length) if count > 1 else None)

    def _run(self, x: Tensor, positions: Tensor, mask: Tensor | None, *, seen: int | None = None) -> Tensor:
        memory_BMD = None if self._memory_BMD is None else self._memory_BMD[: len(x)]
        table = self.backbone.turned(0, positions)
        return self.backbone.run(x, memory_BMD, table, mask, self.caches, seen)

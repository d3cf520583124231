"""FlowAR's transformer (arXiv 2412.15205): every scale of the latents from the smaller ones, all its tokens at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import gt, optional
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixar_core.backbone import Backbone, BackboneState
from mixar_core.errors import UserError
from mixar_core.masking import put, take
from mixar_core.plan import Order
from mixar_core.tables import Table
from mixar_core.types import Condition, Guidance, MaskSplit, Step, TokenLayout, Z
from mixar_plugins.backbones.condition import init_as_mar, label_rows, never_again, only_fill, share
from mixar_plugins.networks import flowar
from mixar_plugins.networks.transformer import KeyValueCache, scale_of


@frozen
class FlowARConfig:
    """Sizes of encoder and decoder, which both see all scales.

    Args:
        width, depth, heads: of the encoder. decoder_depth: of the decoder; None: as deep.
        mlp_ratio: width of an MLP over that of its block, before a gate takes a third of it.
        label_dropout: share of labels dropped in training, for classifier-free guidance.
        activation_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
    """

    width: int = field(default=1024, validator=gt(0))
    depth: int = field(default=16, validator=gt(0))
    heads: int = field(default=16, validator=gt(0))
    decoder_depth: int | None = field(default=None, validator=optional(gt(0)))
    mlp_ratio: float = field(default=4.0, validator=gt(0.0))
    label_dropout: float = field(default=0.1, validator=share)
    activation_checkpointing: bool = False

    def __attrs_post_init__(self) -> None:
        if self.width % self.heads or self.width // self.heads % 4:
            raise ValueError(f"a head is {self.width / self.heads:g} wide, and must be a multiple of 4")


class FlowARBackbone(Backbone):
    """MAR's halves without masks: a token sees its own scale's and the smaller ones' input.

    The input of a scale is the one before it, stretched over the finest grid and shrunk to the scale; that of the first
    is the class, which modulates every block, too.
    """

    masks: ClassVar[bool] = False
    order: Order = "groups"
    places: Tensor
    scale_N: Tensor

    def __init__(
        self,
        config: FlowARConfig,
        *,
        layout: TokenLayout,
        token_dim: int,
        num_classes: int,
        memory: bool = False,
        condition_width: int = 0,
    ) -> None:
        super().__init__()
        only_fill("flowar", memory=memory, condition_width=condition_width)
        if layout.kind != "pyramid":
            raise UserError(f"backbone flowar needs latents in a pyramid, and these are a {layout}")
        self.config, self.layout, self.token_dim, self.num_classes = config, layout, token_dim, num_classes
        self.width, self.guidance_width = self.widths(config)
        self.label_dropout, self.groups = config.label_dropout, layout.by_scale
        width = config.width

        #: the last row stands for "no class"
        self.class_emb = nn.Embedding(num_classes + 1, width)
        self.z_proj = nn.Linear(token_dim, width)
        self.z_proj_ln = nn.RMSNorm(width, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, layout.tokens, width))
        self.encoder_blocks = self._blocks(config.depth)
        self.encoder_norm = nn.RMSNorm(width, eps=1e-6)
        self.decoder_embed = nn.Linear(width, width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, layout.tokens, width))
        self.decoder_blocks = self._blocks(config.decoder_depth or config.depth)
        self.decoder_norm = nn.RMSNorm(width, eps=1e-6)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, layout.tokens, width))
        self.register_buffer("places", flowar.places(layout, width // config.heads), persistent=False)
        self.register_buffer("scale_N", scale_of(layout), persistent=False)
        init_as_mar(self, [self.class_emb.weight, *(getattr(self, name) for name in self._tables())])

    def learned_tables(self) -> dict[str, Table]:
        """Of positions."""
        return {name: Table(self.layout, dim=1) for name in self._tables()}

    def blocks(self) -> Iterator[nn.Module]:
        """Every block of encoder and decoder."""
        yield from self.encoder_blocks
        yield from self.decoder_blocks

    def forward(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Tensor:
        """z (B, K, D) of all tokens."""
        x = torch.cat([self.scale_input(n, tokens_BNC, condition) for n in range(len(self.layout.scales))], dim=1)
        no_larger_NN = self.scale_N[:, None] >= self.scale_N
        z_BND = self.run(x, condition, guidance, range(self.layout.tokens), no_larger_NN)
        return take(z_BND, split.masked_BK)

    def start(self, condition: Condition, guidance: Guidance, *, guided: bool) -> FlowARState:
        """Begin to sample."""
        return FlowARState(self, condition, guidance, guided=guided)

    def scale_input(self, index: int, tokens_BNC: Tensor, condition: Condition) -> Tensor:
        """What the tokens of scale `index` begin with: (B, its tokens, D)."""
        if index == 0:
            class_B1D = self.class_of(condition)
            return class_B1D.expand(-1, len(self.layout.by_scale[0]), -1)
        before, now, whole = (self.layout.scales[n] for n in (index - 1, index, -1))
        group = self.layout.by_scale[index - 1]
        map_BChw = tokens_BNC[:, group.start : group.stop].transpose(1, 2).unflatten(2, (before.height, before.width))
        map_BChw = F.interpolate(map_BChw, size=(whole.height, whole.width), mode="bicubic")
        return self.z_proj(
            F.interpolate(map_BChw, size=(now.height, now.width), mode="area").flatten(2).transpose(1, 2)
        )

    def class_of(self, condition: Condition) -> Tensor:
        """(B, 1, D)."""
        class_B1D: Tensor = self.class_emb(label_rows(condition.labels_B, self.num_classes))[:, None]
        return class_B1D

    def run(
        self,
        x: Tensor,
        condition: Condition,
        guidance: Guidance,
        positions: range,
        mask: Tensor | None,
        caches: list[KeyValueCache] | None = None,
    ) -> Tensor:
        """z (B, T, D) of what tokens at these positions begin with; with a cache each block looks at what came before.

        Raises:
            UserError: the guidance opens another door than its fill.
        """
        only_fill("flowar", guidance)
        class_B1D, table = self.class_of(condition), self.places[None, positions.start : positions.stop]
        places = slice(positions.start, positions.stop)
        x = self.z_proj_ln(x + self.encoder_pos_embed_learned[:, places])
        encoder, depth = self.encoder_blocks, len(self.encoder_blocks)
        x = self._through(encoder, x, class_B1D, table, mask, caches and caches[:depth])
        x = self.decoder_embed(self.encoder_norm(x)) + self.decoder_pos_embed_learned[:, places]
        if guidance.fill_BND is not None:
            x = x + guidance.fill_BND[:, places].to(x.dtype)
        x = self._through(self.decoder_blocks, x, class_B1D, table, mask, caches and caches[depth:])
        return self.decoder_norm(x) + self.diffusion_pos_embed_learned[:, places]

    def _through(
        self,
        blocks: nn.ModuleList,
        x: Tensor,
        class_B1D: Tensor,
        table: Tensor,
        mask: Tensor | None,
        caches: list[KeyValueCache] | None,
    ) -> Tensor:
        for index, block in enumerate(blocks):
            if self.config.activation_checkpointing and self.training and not caches:
                x = checkpoint(block, x, class_B1D, table, mask, use_reentrant=False)
            else:
                x = block(x, class_B1D, table, mask, caches[index] if caches else None)
        return x

    def _blocks(self, depth: int) -> nn.ModuleList:
        c = self.config
        return nn.ModuleList(flowar.block(c.width, c.heads, c.mlp_ratio, bias=True) for _ in range(depth))

    @staticmethod
    def _tables() -> list[str]:
        return [f"{part}_pos_embed_learned" for part in ("encoder", "decoder", "diffusion")]


class FlowARState(BackboneState):
    """Keys and values of the scales that are known, and z of the next one; with guidance, of both halves."""

    def __init__(self, backbone: FlowARBackbone, condition: Condition, guidance: Guidance, *, guided: bool) -> None:
        self.backbone, self.copies, self._guidance = backbone, 2 if guided else 1, guidance
        self.condition = condition.guided() if guided else condition
        tokens, device = backbone.layout.tokens, condition.labels_B.device
        self.tokens_BNC = torch.zeros(len(condition), tokens, backbone.token_dim, device=device)
        self.caches = [KeyValueCache(tokens) for _ in backbone.blocks()]
        #: tokens that are known; scales whose z was computed, and that of the last one
        self.known, self.scales, self.z_BKD = 0, 0, torch.empty(0)

    @property
    def guidance(self) -> Guidance:
        """What the injector said.

        Raises:
            UserError: it is replaced.
        """
        return self._guidance

    @guidance.setter
    def guidance(self, guidance: Guidance) -> None:
        raise UserError("backbone flowar keeps what it saw: choose an injector that does not follow the sampling")

    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        """z of tokens of the first scale that is not known.

        Raises:
            UserError: the step draws known tokens anew.
        """
        never_again("flowar", step)
        groups = self.backbone.layout.by_scale
        while groups[self.scales - 1].stop <= self.known or not self.scales:
            self._next(groups[self.scales])
        places_BK = positions_BK - groups[self.scales - 1].start
        halves = [take(half, places_BK) for half in self.z_BKD.chunk(self.copies)]
        return Z(halves[0], positions_BK, None if step.cfg == 1.0 else halves[-1])

    def _next(self, group: range) -> None:
        backbone = self.backbone
        tokens_BNC = self.tokens_BNC.repeat(self.copies, 1, 1)
        x = backbone.scale_input(self.scales, tokens_BNC, self.condition)
        guidance = self._guidance.repeat(self.copies)
        self.z_BKD = backbone.run(x, self.condition, guidance, group, None, self.caches)
        self.scales += 1

    def reveal(self, positions_BK: Tensor, tokens_BKC: Tensor) -> None:
        """These tokens are known: those of whole scales, from the first on."""
        self.tokens_BNC = put(self.tokens_BNC, positions_BK, tokens_BKC)
        self.known += positions_BK.shape[1]

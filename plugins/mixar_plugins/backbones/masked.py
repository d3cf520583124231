"""MAR's masked autoregressive transformer (Sec. 3.4 and 4.3), with three doors through which guidance comes in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from attrs import field, frozen
from attrs.validators import ge, gt, optional
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixar_core.backbone import Backbone
from mixar_core.blocks import Block, Dropout, is_compiled
from mixar_core.masking import put, take
from mixar_core.mixture import dc_mixture
from mixar_core.tables import Table
from mixar_core.types import Condition, Guidance, MaskSplit, TokenLayout
from mixar_plugins.backbones.condition import ConditionEmbedding, class_vectors, init_as_mar, share
from mixar_plugins.backbones.masked_state import MaskedState


@frozen
class MaskedConfig:
    """Sizes of encoder and decoder. What is None for the decoder is as for the encoder, as in all published models.

    Args:
        width, depth, heads: of the encoder; MAR-B 768/12/12, MAR-L 1024/16/16, MAR-H 1280/20/16. A depth of 0: there
            is none, and the decoder sees the visible tokens as they are (EAR).
        decoder_width, decoder_depth, decoder_heads: of the decoder.
        mlp_ratio: width of the MLPs over that of their blocks.
        buffer: class tokens in front of the sequence (MAR: 64).
        dropout, attention_dropout: MAR trains with 0.1 each. mlp_dropout: of the MLPs (DeTok: 0); None: as `dropout`.
        label_dropout: share of labels dropped in training, for classifier-free guidance (MAR: 0.1).
        patch_size: latents a token spans in each direction (1 in all published models).
        activation_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
    """

    width: int = field(default=1024, validator=gt(0))
    depth: int = field(default=16, validator=ge(0))
    heads: int = field(default=16, validator=gt(0))
    decoder_width: int | None = field(default=None, validator=optional(gt(0)))
    decoder_depth: int | None = field(default=None, validator=optional(gt(0)))
    decoder_heads: int | None = field(default=None, validator=optional(gt(0)))
    mlp_ratio: float = field(default=4.0, validator=gt(0.0))
    buffer: int = field(default=64, validator=gt(0))
    dropout: float = field(default=0.1, validator=share)
    attention_dropout: float = field(default=0.1, validator=share)
    mlp_dropout: float | None = field(default=None, validator=optional(share))
    label_dropout: float = field(default=0.1, validator=share)
    patch_size: int = field(default=1, validator=gt(0))
    activation_checkpointing: bool = False

    def __attrs_post_init__(self) -> None:
        for width, heads in (
            (self.width, self.heads),
            (self.decoder_width or self.width, self.decoder_heads or self.heads),
        ):
            if width % heads:
                raise ValueError(f"width {width} is not a multiple of heads {heads}")
        if not self.depth and not (self.decoder_depth and self.decoder_width in (None, self.width)):
            raise ValueError("depth 0: a decoder alone needs decoder_depth, and has one width")


class MaskedBackbone(Backbone):
    """MAR's transformer: an encoder over the visible tokens only, a decoder over all."""

    reuses = frozenset({"lazymar", "recap"})
    encoder_pos_embed_learned: Tensor | None
    diffusion_pos_embed_learned: Tensor | None

    def __init__(
        self,
        config: MaskedConfig,
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
        width, out_width = config.width, self.width
        length = config.buffer + layout.tokens
        encoder = config.depth > 0

        def norm(size: int, there: bool = True) -> nn.Module:
            return nn.LayerNorm(size, eps=1e-6) if there else nn.Identity()

        def positions(tokens: int, size: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(1, tokens, size))

        self.class_emb = nn.Embedding(num_classes, width) if num_classes else None
        #: stands for "no class", for classifier-free guidance
        self.fake_latent = nn.Parameter(torch.empty(1, width))
        self.z_proj = nn.Linear(token_dim, width)
        self.z_proj_ln = norm(width, encoder)
        self.encoder_pos_embed_learned = positions(length, width) if encoder else None
        self.encoder_blocks = self._blocks(width, config.heads, config.depth, memory)
        self.encoder_norm = norm(width, encoder)

        self.decoder_embed = nn.Linear(width, out_width) if encoder else nn.Identity()
        self.mask_token = nn.Parameter(torch.empty(1, 1, out_width))
        self.decoder_pos_embed_learned = positions(length, out_width)
        self.decoder_blocks = self._blocks(
            out_width, config.decoder_heads or config.heads, config.decoder_depth or config.depth, memory
        )
        self.decoder_norm = norm(out_width)
        self.diffusion_pos_embed_learned = positions(layout.tokens, out_width) if encoder else None
        self.reset_parameters()
        self.condition = ConditionEmbedding(condition_width, width) if condition_width else None

    @classmethod
    def widths(cls, config: MaskedConfig) -> tuple[int, int]:
        """That of the decoder, and that of the encoder."""
        return config.decoder_width or config.width, config.width

    def blocks(self) -> Iterator[nn.Module]:
        """Every block of encoder and decoder."""
        yield from self.encoder_blocks
        yield from self.decoder_blocks

    def learned_tables(self) -> dict[str, Table]:
        """Of classes, and of positions behind the class buffer's."""
        of_class = {} if self.class_emb is None else {"class_emb.weight": Table(self.num_classes)}
        positions = Table(self.layout, dim=1, first=self.config.buffer)
        of_encoder = {"encoder_pos_embed_learned": positions, "diffusion_pos_embed_learned": Table(self.layout, dim=1)}
        return of_class | {"decoder_pos_embed_learned": positions} | (of_encoder if self.config.depth else {})

    def reset_parameters(self) -> None:
        """Initialise as MAR."""
        embeddings = [
            self.fake_latent,
            self.mask_token,
            self.encoder_pos_embed_learned,
            self.decoder_pos_embed_learned,
            self.diffusion_pos_embed_learned,
            None if self.class_emb is None else self.class_emb.weight,
        ]
        init_as_mar(self, embeddings)

    def forward(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Tensor:
        """z (B, K, D) of the masked tokens."""
        x = self.decoder_input(self.encode(tokens_BNC, split, condition, guidance), split, guidance)
        places_BK = split.masked_BK + (x.shape[1] - self.layout.tokens)
        return self.z_of(self._run(self.decoder_blocks, x, guidance.memory_BMD, places_BK), split.masked_BK)

    def start(self, condition: Condition, guidance: Guidance, *, guided: bool) -> MaskedState:
        """Begin to sample."""
        return MaskedState(self, condition, guidance)

    def encode(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Tensor:
        """The encoder over [prefix, class buffer, visible tokens]: (B, P + buffer + U, D)."""
        x = self.encoder_input(tokens_BNC, split, condition, guidance)
        return self.encoder_norm(self._run(self.encoder_blocks, x, guidance.memory_BMD))

    def encoder_input(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Tensor:
        """What the encoder's first block sees."""
        visible_BUD = self.z_proj(take(tokens_BNC, split.visible_BU))
        front = self.front(condition, guidance.prefix_BPD, visible_BUD.dtype)
        return self.z_proj_ln(torch.cat([front, self.placed(visible_BUD, split.visible_BU)], dim=1))

    def front(self, condition: Condition, prefix_BPD: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What stands in front of the tokens: the condition's vectors, the prefix, the class buffer."""
        class_B1D = class_vectors(self.class_emb, self.fake_latent, condition.labels_B)[:, None].to(dtype)
        if self.encoder_pos_embed_learned is None:
            x = class_B1D.expand(-1, self.config.buffer, -1)
        else:
            x = class_B1D + self.encoder_pos_embed_learned[:, : self.config.buffer]
        if prefix_BPD is not None:
            x = torch.cat([prefix_BPD.to(x.dtype), x], dim=1)
        if self.condition is not None:
            x = torch.cat([self.condition(condition).to(x.dtype), x], dim=1)
        return x

    def placed(self, visible_BUD: Tensor, visible_BU: Tensor) -> Tensor:
        """Visible tokens with their positions."""
        if self.encoder_pos_embed_learned is None:
            return visible_BUD
        positions = self.encoder_pos_embed_learned[:, self.config.buffer :]
        return visible_BUD + take(positions.expand(len(visible_BU), -1, -1), visible_BU)

    def decode(self, encoded: Tensor, split: MaskSplit, guidance: Guidance) -> Tensor:
        """The decoder over [prefix, class buffer, all tokens]: z (B, N, D).

        Masked positions hold the mask token (Eq. 8), or `guidance.fill_BND` where there is one (Eq. 9).
        """
        x = self.decoder_input(encoded, split, guidance)
        return self.decoder_output(self._run(self.decoder_blocks, x, guidance.memory_BMD))

    def decoder_input(self, encoded: Tensor, split: MaskSplit, guidance: Guidance) -> Tensor:
        """What the decoder's first block sees: [prefix, class buffer, all tokens]."""
        buffer, tokens = self.config.buffer, self.layout.tokens
        x = self.decoder_embed(encoded)
        prefix = x.shape[1] - buffer - split.visible_BU.shape[1]
        head, visible_BUD = x[:, : prefix + buffer], x[:, prefix + buffer :]

        full_BND = self.mask_token.to(x.dtype).expand(x.shape[0], tokens, -1)
        if guidance.fill_BND is not None:
            full_BND = dc_mixture(full_BND, guidance.fill_BND.to(x.dtype), split.masked_BN)
        full_BND = put(full_BND, split.visible_BU, visible_BUD)

        positions = self.decoder_pos_embed_learned
        return torch.cat(
            [head[:, :prefix], head[:, prefix:] + positions[:, :buffer], full_BND + positions[:, buffer:]], dim=1
        )

    def decoder_output(self, x: Tensor) -> Tensor:
        """z (B, N, D) of what the decoder's last block gave."""
        z_BND = self.decoder_norm(x)[:, -self.layout.tokens :]
        return z_BND if self.diffusion_pos_embed_learned is None else z_BND + self.diffusion_pos_embed_learned

    def z_of(self, x: Tensor, positions_BK: Tensor) -> Tensor:
        """z (B, K, D) of what the decoder's last block gave for these tokens alone."""
        z_BKD, positions = self.decoder_norm(x), self.diffusion_pos_embed_learned
        return z_BKD if positions is None else z_BKD + take(positions.expand(len(x), -1, -1), positions_BK)

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are in."""
        return self.z_proj.weight.dtype

    def hold_bf16(self) -> None:
        """All weights in bfloat16: residuals then are, too, which autocast keeps in float32."""
        self.to(torch.bfloat16)

    def _blocks(self, width: int, heads: int, depth: int, memory: bool) -> nn.ModuleList:
        c = self.config
        blocks = [
            Block(
                width,
                heads,
                c.mlp_ratio,
                attention_dropout=c.attention_dropout,
                dropout=c.dropout,
                memory_width=c.width if memory else None,
            )
            for _ in range(depth)
        ]
        if c.mlp_dropout is not None:
            for block in blocks:
                block.mlp.drop = Dropout(c.mlp_dropout)
        return nn.ModuleList(blocks)

    def _run(
        self, blocks: nn.ModuleList, x: Tensor, memory_BMD: Tensor | None, only_BR: Tensor | None = None
    ) -> Tensor:
        """What the last block gives, with `only_BR` for the tokens at these places alone.

        A compiled one computes all: it would be compiled twice.
        """
        if memory_BMD is not None:
            memory_BMD = memory_BMD.to(x.dtype)
        for index, block in enumerate(blocks, 1):
            only = only_BR if index == len(blocks) and not is_compiled(block) else None
            if self.config.activation_checkpointing and self.training:
                x = checkpoint(block, x, memory_BMD, only, use_reentrant=False)
            else:
                x = block(x, memory_BMD, only)
        return x if only_BR is None or only is not None else take(x, only_BR)

"""MAR's masked autoregressive transformer (Sec. 3.4 and 4.3), with three doors through which guidance comes in."""

from __future__ import annotations

import torch
from attrs import field, frozen
from attrs.validators import and_, ge, gt, lt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixar_core.blocks import Block
from mixar_core.mixture import dc_mixture
from mixar_core.types import Grid, Guidance, MaskSplit

_share = and_(ge(0.0), lt(1.0))


@frozen
class BackboneConfig:
    """Sizes of encoder and decoder. What is None for the decoder is as for the encoder, as in all published models.

    Args:
        width, depth, heads: of the encoder; MAR-B 768/12/12, MAR-L 1024/16/16, MAR-H 1280/20/16.
        buffer: class tokens in front of the sequence (MAR: 64).
        dropout, attention_dropout: MAR trains with 0.1 each.
        label_dropout: share of labels dropped in training, for classifier-free guidance (MAR: 0.1).
        patch_size: latents a token spans in each direction (1 in all published models).
        activation_checkpointing: recompute activations in the backward pass: less memory, about a third more time.
    """

    width: int = field(default=1024, validator=gt(0))
    depth: int = field(default=16, validator=gt(0))
    heads: int = field(default=16, validator=gt(0))
    decoder_width: int | None = None
    decoder_depth: int | None = None
    decoder_heads: int | None = None
    mlp_ratio: float = field(default=4.0, validator=gt(0.0))
    buffer: int = field(default=64, validator=gt(0))
    dropout: float = field(default=0.1, validator=_share)
    attention_dropout: float = field(default=0.1, validator=_share)
    label_dropout: float = field(default=0.1, validator=_share)
    patch_size: int = field(default=1, validator=gt(0))
    activation_checkpointing: bool = False

    def __attrs_post_init__(self) -> None:
        for width, heads in (
            (self.width, self.heads),
            (self.decoder_width or self.width, self.decoder_heads or self.heads),
        ):
            if width % heads:
                raise ValueError(f"width {width} is not a multiple of heads {heads}")


class Backbone(nn.Module):
    """Encoder over the visible tokens only, decoder over all; one output vector z a token.

    Args:
        config: sizes.
        grid: the token grid. token_dim: numbers in a token, C * patch_size^2.
        num_classes: 0 for an unconditional model.
        memory: whether guidance comes with a `memory`; only then are there cross-attention blocks.
    """

    def __init__(
        self, config: BackboneConfig, *, grid: Grid, token_dim: int, num_classes: int, memory: bool = False
    ) -> None:
        super().__init__()
        self.config, self.grid, self.token_dim, self.num_classes = config, grid, token_dim, num_classes
        width, out_width = config.width, config.decoder_width or config.width
        length = config.buffer + grid.tokens

        self.class_emb = nn.Embedding(num_classes, width) if num_classes else None
        #: stands for "no class", for classifier-free guidance
        self.fake_latent = nn.Parameter(torch.empty(1, width))
        self.z_proj = nn.Linear(token_dim, width)
        self.z_proj_ln = nn.LayerNorm(width, eps=1e-6)
        self.encoder_pos_embed_learned = nn.Parameter(torch.empty(1, length, width))
        self.encoder_blocks = self._blocks(width, config.heads, config.depth, memory)
        self.encoder_norm = nn.LayerNorm(width, eps=1e-6)

        self.decoder_embed = nn.Linear(width, out_width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, out_width))
        self.decoder_pos_embed_learned = nn.Parameter(torch.empty(1, length, out_width))
        self.decoder_blocks = self._blocks(
            out_width, config.decoder_heads or config.heads, config.decoder_depth or config.depth, memory
        )
        self.decoder_norm = nn.LayerNorm(out_width, eps=1e-6)
        self.diffusion_pos_embed_learned = nn.Parameter(torch.empty(1, grid.tokens, out_width))
        self.reset_parameters()

    @property
    def width(self) -> int:
        """D, the length of z."""
        return self.config.decoder_width or self.config.width

    def reset_parameters(self) -> None:
        """Initialise as MAR: normal(0.02) for embeddings, Xavier-uniform for linear layers."""
        embeddings: list[Tensor] = [
            self.fake_latent,
            self.mask_token,
            self.encoder_pos_embed_learned,
            self.decoder_pos_embed_learned,
            self.diffusion_pos_embed_learned,
        ]
        if self.class_emb is not None:
            embeddings.append(self.class_emb.weight)
        for embedding in embeddings:
            nn.init.normal_(embedding, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, tokens_BNC: Tensor, split: MaskSplit, labels_B: Tensor, guidance: Guidance) -> Tensor:
        """z (B, N, D) of tokens (B, N, C). What stands at masked positions of `tokens_BNC` is never looked at.

        Args:
            labels_B: int64 in [0, num_classes), or NO_CLASS.
        """
        return self.decode(self.encode(tokens_BNC, split, labels_B, guidance), split, guidance)

    def encode(self, tokens_BNC: Tensor, split: MaskSplit, labels_B: Tensor, guidance: Guidance) -> Tensor:
        """The encoder over [prefix, class buffer, visible tokens]: (B, P + buffer + U, D)."""
        buffer = self.config.buffer
        visible_BUD = self.z_proj(take(tokens_BNC, split.visible_BU))
        class_B1D = self._class_embedding(labels_B)[:, None].to(visible_BUD.dtype)
        positions = self.encoder_pos_embed_learned
        batch = tokens_BNC.shape[0]
        x = torch.cat(
            [
                class_B1D + positions[:, :buffer],
                visible_BUD + take(positions[:, buffer:].expand(batch, -1, -1), split.visible_BU),
            ],
            dim=1,
        )
        if guidance.prefix_BPD is not None:
            x = torch.cat([guidance.prefix_BPD.to(x.dtype), x], dim=1)
        x = self._run(self.encoder_blocks, self.z_proj_ln(x), guidance.memory_BMD)
        return self.encoder_norm(x)

    def decode(self, encoded: Tensor, split: MaskSplit, guidance: Guidance) -> Tensor:
        """The decoder over [prefix, class buffer, all tokens]: z (B, N, D).

        Masked positions hold the mask token (Eq. 8), or `guidance.fill_BND` where there is one (Eq. 9).
        """
        buffer, tokens = self.config.buffer, self.grid.tokens
        x = self.decoder_embed(encoded)
        prefix = x.shape[1] - buffer - split.visible_BU.shape[1]
        head, visible_BUD = x[:, : prefix + buffer], x[:, prefix + buffer :]

        full_BND = self.mask_token.to(x.dtype).expand(x.shape[0], tokens, -1)
        if guidance.fill_BND is not None:
            full_BND = dc_mixture(full_BND, guidance.fill_BND.to(x.dtype), split.masked_BN)
        full_BND = full_BND.scatter(1, _rows(split.visible_BU, x.shape[2]), visible_BUD)

        positions = self.decoder_pos_embed_learned
        x = torch.cat(
            [head[:, :prefix], head[:, prefix:] + positions[:, :buffer], full_BND + positions[:, buffer:]], dim=1
        )
        x = self._run(self.decoder_blocks, x, guidance.memory_BMD)
        x = self.decoder_norm(x)[:, prefix + buffer :]
        return x + self.diffusion_pos_embed_learned

    def _class_embedding(self, labels_B: Tensor) -> Tensor:
        if self.class_emb is None:
            return self.fake_latent.expand(labels_B.shape[0], -1)
        embedded_BD = self.class_emb(labels_B.clamp(min=0))
        return torch.where(labels_B[:, None] >= 0, embedded_BD, self.fake_latent)

    def _blocks(self, width: int, heads: int, depth: int, memory: bool) -> nn.ModuleList:
        c = self.config
        return nn.ModuleList(
            Block(
                width,
                heads,
                c.mlp_ratio,
                attention_dropout=c.attention_dropout,
                dropout=c.dropout,
                memory_width=c.width if memory else None,
            )
            for _ in range(depth)
        )

    def _run(self, blocks: nn.ModuleList, x: Tensor, memory_BMD: Tensor | None) -> Tensor:
        if memory_BMD is not None:
            memory_BMD = memory_BMD.to(x.dtype)
        for block in blocks:
            if self.config.activation_checkpointing and self.training:
                x = checkpoint(block, x, memory_BMD, use_reentrant=False)
            else:
                x = block(x, memory_BMD)
        return x


def take(x_BND: Tensor, positions_BK: Tensor) -> Tensor:
    """The rows of (B, N, D) at positions (B, K): (B, K, D)."""
    return x_BND.gather(1, _rows(positions_BK, x_BND.shape[2]))


def _rows(positions_BK: Tensor, width: int) -> Tensor:
    return positions_BK[..., None].expand(-1, -1, width)

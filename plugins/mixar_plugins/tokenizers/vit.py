"""What tokenizers whose networks are vision transformers share (TiTok, l-DeTok)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from attrs import field, frozen
from einops import rearrange
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.types import Grid, ImageSize
from mixar_plugins.networks.transformer import CachedAttention, ModulatedBlock
from mixar_plugins.tokenizers.layers import positive


@frozen(kw_only=True, slots=False)  # without slots, so that a config may have another base beside it
class HalvesConfig:
    """Settings of an encoder and a decoder; the defaults are ViT-B's.

    Args:
        patch: pixels a patch spans.
        width, depth, heads: of the encoder. decoder_width, decoder_depth, decoder_heads: of the decoder.
    """

    patch: int = field(default=16, validator=positive)
    width: int = field(default=768, validator=positive)
    depth: int = field(default=12, validator=positive)
    heads: int = field(default=12, validator=positive)
    decoder_width: int = field(default=768, validator=positive)
    decoder_depth: int = field(default=12, validator=positive)
    decoder_heads: int = field(default=12, validator=positive)

    def __attrs_post_init__(self) -> None:
        for half, width, heads in (("", self.width, self.heads), ("decoder_", self.decoder_width, self.decoder_heads)):
            if width % heads:
                raise UserError(f"{half}heads is {heads}; it must divide {half}width, {width}")


class ViT(nn.Module):
    """Pre-norm blocks between two norms, (B, T, D) to (B, T, D).

    Args:
        norm, mlp: make a norm, and what stands beside attention in a block, for a width.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        *,
        norm: Callable[[int], nn.Module],
        mlp: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()

        def block() -> nn.Module:
            attention = CachedAttention(width, heads, attention_dropout=0.0, dropout=0.0)
            return ModulatedBlock(width, attention, mlp(width), lambda: norm(width))

        self.ln_pre, self.ln_post = norm(width), norm(width)
        self.transformer = nn.ModuleList(block() for _ in range(depth))

    def through(self, x_BTD: Tensor, table: Tensor | None = None) -> Tensor:
        """Norm, blocks, norm; `table` turns queries and keys, see CachedAttention."""
        x_BTD = self.ln_pre(x_BTD)
        for block in self.transformer:
            x_BTD = block(x_BTD, table=table)
        return self.ln_post(x_BTD)


class Pixels(nn.Module):
    """Vectors on a grid (B, D, h, w) to pixels (B, 3, H, W): each a patch, then a 3x3 convolution over the image."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.ffn = nn.Conv2d(width, 3 * patch**2, 1)
        self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    @property
    def last_layer(self) -> nn.Parameter:
        """What makes pixels."""
        weight: nn.Parameter = self.conv_out.get_parameter("weight")
        return weight

    def forward(self, x_BDhw: Tensor) -> Tensor:
        p = self.patch
        return self.conv_out(rearrange(self.ffn(x_BDhw), "b (p q c) h w -> b c (h p) (w q)", p=p, q=p))


def patches_of(image_size: ImageSize, patch: int, part: str) -> Grid:
    """The grid of an image's patches.

    Raises:
        UserError: the image size is no multiple of a patch.
    """
    pixels = Grid.of_pixels(image_size)
    if pixels.height % patch or pixels.width % patch or min(pixels.height, pixels.width) < patch:
        raise UserError(f"{part}: image_size {pixels.written} is not a multiple of its patch {patch}")
    return Grid(pixels.height // patch, pixels.width // patch)


def embedding(*shape: int) -> nn.Parameter:
    """Learned positions or tokens of width `shape[-1]`, of length about 1 at first, as published."""
    return nn.Parameter(torch.empty(shape).normal_(std=shape[-1] ** -0.5))

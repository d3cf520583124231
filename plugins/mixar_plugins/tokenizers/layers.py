"""What the convolutional tokenizers share: encoder, decoder, residual blocks, resampling. Names are the published."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from attrs import validators
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.types import Grid, ImageSize

#: `group` as published; `none` for small tokenizers, which train faster and sharper without.
Norm = Literal["group", "none"]
#: What a level does to the size at its end.
Resample = Literal["halve", "double"] | None

positive = validators.ge(1)
multipliers: Any = validators.and_(validators.min_len(1), validators.deep_iterable(positive))


def make_norm(kind: Norm, channels: int, *, affine: bool = True) -> nn.Module:
    """Group norm in gcd(channels, 32) groups (the published 32 wherever they divide the channels), or nothing."""
    return nn.Identity() if kind == "none" else nn.GroupNorm(math.gcd(channels, 32), channels, eps=1e-6, affine=affine)


def fast_layout(tokenizer: nn.Module, norm: Norm) -> None:
    """Without norms `channels_last` is 1.6x faster on CPU; a group norm would change the layout back and forth."""
    if norm == "none":
        tokenizer.to(memory_format=torch.channels_last)


def stride_of(channel_multipliers: Sequence[int], image_size: ImageSize, part: str) -> int:
    """Pixels a token spans, 2^(levels - 1).

    Raises:
        UserError: the image size is no multiple of it.
    """
    stride = 2 ** (len(channel_multipliers) - 1)
    pixels = Grid.of_pixels(image_size)
    if min(pixels.height, pixels.width) < stride or pixels.height % stride or pixels.width % stride:
        raise UserError(
            f"{part}: image_size {pixels.written} is not a multiple of its stride {stride} "
            f"({len(channel_multipliers)} channel_multipliers)"
        )
    return stride


def check_scales(scales: Sequence[ImageSize], image_size: ImageSize, stride: int, part: str) -> None:
    """Raise UserError unless the scales rise to the grid of an image's tokens."""
    pixels, grids = Grid.of_pixels(image_size), [Grid.of_pixels(scale) for scale in scales]
    sides = [[scale.height for scale in grids], [scale.width for scale in grids]]
    rising = all(side == sorted(side) and side[0] > 0 for side in sides) and len(set(grids)) == len(grids)
    last = Grid(pixels.height // stride, pixels.width // stride)
    if not rising or grids[-1] != last:
        asked = ", ".join(scale.written for scale in grids)
        raise UserError(f"{part}: scales are [{asked}]; they must rise to image_size / stride, {last.written}")


def encoder(conv_in: nn.Conv2d, levels: Sequence[nn.Module], mid: nn.Module, conv_out: nn.Conv2d) -> nn.Module:
    """Image (B, 3, H, W) to (B, out, h, w); `levels` from full resolution down."""
    norm = make_norm("group", conv_out.in_channels)
    down = nn.Sequential(*levels)
    return nn.Sequential(
        OrderedDict(conv_in=conv_in, down=down, mid=mid, norm_out=norm, act=nn.SiLU(), conv_out=conv_out)
    )


def decoder(
    conv_in: nn.Conv2d, mid: nn.Module, levels: Sequence[nn.Module], conv_out: nn.Conv2d, *, backwards: bool
) -> nn.Module:
    """(B, in, h, w) to image (B, 3, H, W); `levels` run to full resolution; `backwards`, `up` lists them from there."""
    norm = make_norm("group", conv_out.in_channels)
    up = Backwards(*levels[::-1]) if backwards else nn.Sequential(*levels)
    return nn.Sequential(OrderedDict(conv_in=conv_in, mid=mid, up=up, norm_out=norm, act=nn.SiLU(), conv_out=conv_out))


class Backwards(nn.Sequential):
    """Runs its last module first."""

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        for module in reversed(self):
            hidden_BCHW = module(hidden_BCHW)
        return hidden_BCHW


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input (through a 1x1 convolution where the width changes).

    Without `input_shortcut`, that convolution is applied to the block's own output instead: MaskBit's weights were
    trained so.
    """

    def __init__(self, width: int, out: int, norm: Norm, *, bias: bool = True, input_shortcut: bool = True) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, width)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1, bias=bias)
        self.norm2 = make_norm(norm, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=bias)
        self.input_shortcut = input_shortcut or width == out
        shortcut_from = width if self.input_shortcut else out
        self.nin_shortcut = nn.Identity() if width == out else nn.Conv2d(shortcut_from, out, 1, bias=bias)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden_BCHW)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        return residual + self.nin_shortcut(hidden_BCHW if self.input_shortcut else residual)


class HalvingConv(nn.Conv2d):
    """Half the size: a 3x3 convolution of stride 2, padded on the right and below alone."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return super().forward(F.pad(hidden_BCHW, (0, 1, 0, 1)))


class DoublingConv(nn.Conv2d):
    """Twice the size: nearest neighbours, then a 3x3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return super().forward(F.interpolate(hidden_BCHW, scale_factor=2.0, mode="nearest"))

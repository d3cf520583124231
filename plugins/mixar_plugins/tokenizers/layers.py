"""What the convolutional tokenizers share: encoder, decoder, residual blocks, resampling. Names are the published."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mixar_core.errors import UserError

#: `group` as published; `none` for small tokenizers, which train faster and sharper without.
Norm = Literal["group", "none"]
#: Makes a level of its index, 0 at full resolution, the width that enters it and the width that leaves it.
MakeLevel = Callable[[int, int, int], nn.Module]


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """Group norm in gcd(channels, 32) groups (the published 32 wherever they divide the channels), or nothing."""
    return nn.Identity() if kind == "none" else nn.GroupNorm(math.gcd(channels, 32), channels, eps=1e-6)


def stride_of(channel_multipliers: Sequence[int], image_size: int, part: str) -> int:
    """Pixels a token spans, 2^(levels - 1).

    Raises:
        UserError: the image size is no multiple of it.
    """
    stride = 2 ** (len(channel_multipliers) - 1)
    if image_size < stride or image_size % stride:
        raise UserError(
            f"{part}: image_size {image_size} is not a multiple of its stride {stride} "
            f"({len(channel_multipliers)} channel_multipliers)"
        )
    return stride


class Encoder(nn.Module):
    """Image (B, 3, H, W) to (B, out, h, w). `widths` are those of the levels, from full resolution down."""

    def __init__(
        self,
        conv_in: nn.Conv2d,
        widths: Sequence[int],
        make_level: MakeLevel,
        make_middle: Callable[[int], nn.Module],
        *,
        out: int,
        kernel: int,
    ) -> None:
        super().__init__()
        self.conv_in = conv_in
        steps = pairwise([conv_in.out_channels, *widths])
        self.down = nn.Sequential(*(make_level(index, *step) for index, step in enumerate(steps)))
        self.mid = make_middle(widths[-1])
        self.norm_out = make_norm("group", widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], out, kernel, padding=kernel // 2)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        hidden_BCHW = self.mid(self.down(self.conv_in(images_B3HW)))
        return self.conv_out(F.silu(self.norm_out(hidden_BCHW)))


class Decoder(nn.Module):
    """(B, channels, h, w) to image (B, 3, H, W). `up` runs to full resolution; `backwards`, it is listed from there."""

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        make_level: MakeLevel,
        make_middle: Callable[[int], nn.Module],
        *,
        backwards: bool,
    ) -> None:
        super().__init__()
        self.backwards = backwards
        self.conv_in = nn.Conv2d(channels, widths[-1], 3, padding=1)
        self.mid = make_middle(widths[-1])
        entering = [*widths[1:], widths[-1]]
        levels = [make_level(index, entering[index], widths[index]) for index in reversed(range(len(widths)))]
        self.up = nn.ModuleList(levels[::-1] if backwards else levels)
        self.norm_out = make_norm("group", widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        hidden_BCHW = self.mid(self.conv_in(hidden_BCHW))
        for level in reversed(self.up) if self.backwards else self.up:
            hidden_BCHW = level(hidden_BCHW)
        return self.conv_out(F.silu(self.norm_out(hidden_BCHW)))


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

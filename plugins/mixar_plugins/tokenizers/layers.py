"""What the convolutional tokenizers share: normalisation, resampling, and the check that an image fits the stride."""

from __future__ import annotations

import math
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from mixar_core.errors import UserError

#: `group` as published; `none` for small tokenizers, which train faster and sharper without.
Norm = Literal["group", "none"]


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """Group norm in gcd(channels, 32) groups (the published 32 wherever they divide the channels), or nothing."""
    return nn.Identity() if kind == "none" else nn.GroupNorm(math.gcd(channels, 32), channels, eps=1e-6)


def pad_for_stride_two(hidden_BCHW: Tensor) -> Tensor:
    """One zero column on the right and one row below: with a 3x3 convolution of stride 2, half the (even) size."""
    return F.pad(hidden_BCHW, (0, 1, 0, 1))


def double_size(hidden_BCHW: Tensor) -> Tensor:
    """Every pixel twice in each direction."""
    return F.interpolate(hidden_BCHW, scale_factor=2.0, mode="nearest")


def stride_of(channel_multipliers: tuple[int, ...], image_size: int, part: str) -> int:
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

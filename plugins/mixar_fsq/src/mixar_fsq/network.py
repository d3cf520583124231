"""The encoder and decoder of both tokenizers: strided convolutions with residual blocks between them."""

from __future__ import annotations

import math

import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import and_, deep_iterable, ge, min_len
from torch import Tensor, nn

from mixar_core import Grid, ImageSize, UserError


@frozen(kw_only=True)
class NetworkConfig:
    """Settings of encoder and decoder.

    Args:
        channels: width at full resolution.
        channel_multipliers: width of each level over `channels`; each level but the last halves the image.
        blocks: residual blocks of a level.
    """

    channels: int = field(default=64, validator=ge(1))
    channel_multipliers: tuple[int, ...] = field(default=(1, 2, 4, 4), validator=and_(min_len(1), deep_iterable(ge(1))))
    blocks: int = field(default=2, validator=ge(0))

    @property
    def stride(self) -> int:
        """Pixels a token spans in each direction."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.channels * factor for factor in self.channel_multipliers]

    def check(self, image_size: ImageSize) -> None:
        """Raise UserError where the image is not a whole number of tokens."""
        pixels = Grid.of_pixels(image_size)
        if pixels.height % self.stride or pixels.width % self.stride:
            levels = len(self.channel_multipliers)
            raise UserError(
                f"image_size {pixels.written} is not a multiple of the stride {self.stride} "
                f"({levels} channel_multipliers)"
            )


class Residual(nn.Module):
    """Two 3x3 convolutions, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return hidden_BCHW + self.conv2(F.silu(self.conv1(F.silu(hidden_BCHW))))


def encoder(config: NetworkConfig, out: int) -> nn.Sequential:
    """Images (B, 3, H, W) to (B, out, h, w); normalised once, before the last convolution."""
    widths = config.widths
    modules: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1)]
    for level, width in enumerate(widths):
        if level:
            modules.append(nn.Conv2d(widths[level - 1], width, 4, stride=2, padding=1))
        modules += [Residual(width) for _ in range(config.blocks)]
    norm = nn.GroupNorm(math.gcd(widths[-1], 32), widths[-1])
    return nn.Sequential(*modules, norm, nn.SiLU(), nn.Conv2d(widths[-1], out, 1))


def decoder(config: NetworkConfig, given: int) -> nn.Sequential:
    """Vectors (B, given, h, w) to images (B, 3, H, W)."""
    widths = config.widths[::-1]
    modules: list[nn.Module] = [nn.Conv2d(given, widths[0], 3, padding=1)]
    for level, width in enumerate(widths):
        if level:
            modules.append(nn.ConvTranspose2d(widths[level - 1], width, 4, stride=2, padding=1))
        modules += [Residual(width) for _ in range(config.blocks)]
    norm = nn.GroupNorm(math.gcd(widths[-1], 32), widths[-1])
    return nn.Sequential(*modules, norm, nn.SiLU(), nn.Conv2d(widths[-1], 3, 3, padding=1))

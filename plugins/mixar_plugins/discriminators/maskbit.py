"""MaskBit's discriminator (Weber et al. 2024, Appendix): blurred downsampling and group norm. Open-MAGVIT2's, too."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import ge, optional
from torch import Tensor, nn

from mixar_core.discriminator import Discriminator
from mixar_core.errors import UserError
from mixar_core.types import Grid, ImageSize

_POSITIVE_OR_NONE: Any = optional(ge(1))


@frozen
class MaskBitDiscriminatorConfig:
    """Sizes; defaults are MaskBit's.

    Args:
        channels: of the first stage; twice as many in each after it.
        stages: that halve the image.
        pool: logits a side at most: where features are more, the largest of neighbours count. None: as many as there
            are, as Open-MAGVIT2 has it.
    """

    channels: int = field(default=128, validator=ge(1))
    stages: int = field(default=4, validator=ge(1))
    pool: int | None = field(default=16, validator=_POSITIVE_OR_NONE)


class MaskBitDiscriminator(Discriminator):
    """MaskBit's: stages of convolution, blur, group norm. Images are judged one by one, whoever computes them."""

    def __init__(self, config: MaskBitDiscriminatorConfig, *, image_size: ImageSize) -> None:
        pixels = Grid.of_pixels(image_size)
        if min(pixels.height, pixels.width) < 2**config.stages:
            raise UserError(
                f"maskbit: image_size {pixels.written} cannot be halved {config.stages} times, one of `stages`"
            )
        super().__init__()
        self.config = config
        widths = [config.channels, *(config.channels * 2**n for n in range(config.stages))]
        self.block_in = nn.Sequential(nn.Conv2d(3, widths[0], 5, padding=2), nn.LeakyReLU(0.1))
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(widths[n], widths[n + 1], 3, padding=1),
                    Blur(),
                    nn.GroupNorm(math.gcd(widths[n + 1], 32), widths[n + 1]),
                    nn.LeakyReLU(0.1),
                )
                for n in range(config.stages)
            )
        )
        self.to_logits = nn.Sequential(
            nn.Conv2d(widths[-1], widths[-1], 1), nn.LeakyReLU(0.1), nn.Conv2d(widths[-1], 1, 5, padding=2)
        )

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Logits (B, 1, h, w)."""
        hidden_BCHW = self.blocks(self.block_in(images_B3HW))
        size, most = hidden_BCHW.shape[2:], self.config.pool
        if most is not None and max(size) > most:
            hidden_BCHW = F.adaptive_max_pool2d(hidden_BCHW, [min(side, most) for side in size])
        logits: Tensor = self.to_logits(hidden_BCHW)
        return logits


class Blur(nn.Module):
    """Half the size, rounded up: a binomial filter of 4 x 4 and stride 2, so that nothing aliases (Zhang 2019)."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        row = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
        self.register_buffer("kernel", torch.tensor([[[[a * b for b in row] for a in row]]]), persistent=False)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        height, width = hidden_BCHW.shape[2:]
        rows, columns = (2 + side % 2 for side in (height, width))  # what the last filter reaches beyond the map
        padding = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
        kernel = self.kernel.to(hidden_BCHW.dtype).expand(hidden_BCHW.shape[1], -1, -1, -1)
        return F.conv2d(F.pad(hidden_BCHW, padding), kernel, stride=2, groups=hidden_BCHW.shape[1])

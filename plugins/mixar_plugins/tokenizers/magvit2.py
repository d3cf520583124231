"""Open-MAGVIT2's tokenizer (arXiv 2409.04410): lookup-free codes of 18 bits between MAGVIT-v2's networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from attrs import field, frozen, validators
from einops import rearrange
from torch import Tensor, nn

from mixar_core.types import ImageSize
from mixar_plugins.tokenizers import layers
from mixar_plugins.tokenizers.autoencoder import Level
from mixar_plugins.tokenizers.quantized import QuantizedTokenizer
from mixar_plugins.tokenizers.quantizers import LookupFreeQuantizer, QuantizerWeights


@frozen(kw_only=True)
class Magvit2Config(QuantizerWeights):
    """Settings of Magvit2; the defaults are the published ImageNet tokenizer's.

    Args:
        bits: of a code: there are 2^bits codes.
        channels: width at full resolution.
        channel_multipliers: width of each level over `channels`; each level but the last halves the image.
        blocks: residual blocks of each level, and in the middle.
        commitment_weight, entropy_weight, entropy_temperature, entropy_gamma: see QuantizerWeights.
    """

    bits: int = field(default=18, validator=validators.and_(layers.positive, validators.le(20)))
    channels: int = field(default=128, validator=layers.positive)
    channel_multipliers: tuple[int, ...] = field(default=(1, 1, 2, 2, 4), validator=layers.multipliers)
    blocks: int = field(default=4, validator=layers.positive)
    entropy_weight: float = field(default=0.1, validator=validators.ge(0.0))


class Magvit2(QuantizedTokenizer):
    """Open-MAGVIT2's tokenizer: lookup-free codes, and a decoder whose norms follow the codes' statistics."""

    def __init__(self, config: Magvit2Config, *, image_size: ImageSize) -> None:
        stride = layers.stride_of(config.channel_multipliers, image_size, "magvit2")
        quantizer = LookupFreeQuantizer(config.bits, config, entropy_rule="exact", persistent=False)
        super().__init__(quantizer, image_size=image_size, stride=stride)
        self.config = config
        widths = [config.channels * factor for factor in config.channel_multipliers]
        entering, last = [config.channels, *widths], len(widths) - 1

        def level(n: int) -> Level:
            down = EvenHalvingConv if n < last else None
            return Level(entering[n], widths[n], "group", config.blocks, bias=False, downsample=down)

        self.encoder = layers.encoder(
            nn.Conv2d(3, config.channels, 3, padding=1, bias=False),
            [level(n) for n in range(len(widths))],
            middle(widths[-1], config.blocks),
            nn.Conv2d(widths[-1], config.bits, 1),
        )
        self.decoder = Magvit2Decoder(config, widths)
        self.quantizer = quantizer

    def encoded(self, images_B3HW: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the quantizer takes them, (B, E, h, w)."""
        return self.encoder(images_B3HW)

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        """Code vectors on the grid (B, E, h, w) to images (B, 3, H, W), not clamped."""
        return self.decoder(vectors_BEhw.contiguous())


def middle(width: int, blocks: int) -> nn.Module:
    """Residual blocks at the lowest resolution."""
    return nn.Sequential(*(layers.ResidualBlock(width, width, "group", bias=False) for _ in range(blocks)))


class Magvit2Decoder(nn.Module):
    """Code vectors (B, E, h, w) to images (B, 3, H, W); before each level features are normed and styled by them."""

    def __init__(self, config: Magvit2Config, widths: list[int]) -> None:
        super().__init__()
        entering = [*widths[1:], widths[-1]]

        def level(n: int) -> Level:
            up = DepthToSpace if n > 0 else None
            return Level(entering[n], widths[n], "group", config.blocks, bias=False, upsample=up)

        self.conv_in = nn.Conv2d(config.bits, widths[-1], 3, padding=1)
        self.mid = middle(widths[-1], config.blocks)
        self.up = nn.ModuleList(level(n) for n in range(len(widths)))
        self.adaptive = nn.ModuleList(AdaptiveNorm(width, config.bits) for width in entering)
        self.norm_out = layers.make_norm("group", widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, vectors_BEhw: Tensor) -> Tensor:
        hidden_BCHW = self.mid(self.conv_in(vectors_BEhw))
        for level, norm in zip(reversed(self.up), reversed(self.adaptive), strict=True):
            hidden_BCHW = level(norm(hidden_BCHW, vectors_BEhw))
        return self.conv_out(F.silu(self.norm_out(hidden_BCHW)))


class AdaptiveNorm(nn.Module):
    """Group norm whose scale is made of the codes' deviation over places, and whose shift of their mean."""

    def __init__(self, width: int, bits: int) -> None:
        super().__init__()
        self.norm = layers.make_norm("group", width, affine=False)
        self.gamma, self.beta = nn.Linear(bits, width), nn.Linear(bits, width)

    def forward(self, hidden_BCHW: Tensor, vectors_BEhw: Tensor) -> Tensor:
        places = vectors_BEhw.flatten(2)
        deviation = (places.var(dim=2) + 1e-6).sqrt() if places.shape[2] > 1 else torch.zeros_like(places[:, :, 0])
        scale, shift = self.gamma(deviation), self.beta(places.mean(dim=2))
        return self.norm(hidden_BCHW) * scale[:, :, None, None] + shift[:, :, None, None]


class EvenHalvingConv(nn.Conv2d):
    """Half the size: a 3x3 convolution of stride 2, padded on all sides."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2, padding=1)


class DepthToSpace(nn.Conv2d):
    """Twice the size: a 3x3 convolution to four times the channels, which are rows, columns and channels."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 4 * width, 3, padding=1)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return rearrange(super().forward(hidden_BCHW), "b (p q c) h w -> b c (h p) (w q)", p=2, q=2)

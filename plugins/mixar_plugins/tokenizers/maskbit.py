"""MaskBit's convolutional tokenizers: lookup-free (`lfq`) and lookup (`vq`: VQGAN+, and with `legacy` MaskGIT's).

Parameters carry the published names but for one: what is `quantize.` in a released file is `quantizer.` here, because
`quantize` is the abstract class's method (its importer renames).
"""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen, validators
from torch import Tensor, nn

from mixar_core.types import ImageSize
from mixar_plugins.tokenizers import layers
from mixar_plugins.tokenizers.quantized import QuantizedTokenizer
from mixar_plugins.tokenizers.quantizers import (
    BinarySphericalQuantizer,
    LookupFreeQuantizer,
    LookupQuantizer,
    Quantizer,
    QuantizerWeights,
)


@frozen(kw_only=True)
class ConvConfig(QuantizerWeights):
    """Settings that all tokenizers on ConvTokenizer share.

    Args:
        channels: width at full resolution.
        channel_multipliers: width of each level over `channels`; each level but the last halves the image.
        blocks: residual blocks a level.
        downsample: `conv`, a convolution of stride 2, or `pool`, the mean of four pixels (MaskGIT).
        norm: of the residual blocks; `none` for small tokenizers trained here.
        input_shortcut: where the width changes, add the block's input as usual, not its output again as published
            (see ResidualBlock); for tokenizers trained here.
        legacy: list the decoder's levels from full resolution down, as MaskGIT's file does; the function is the same.
        commitment_weight, entropy_weight, entropy_temperature, entropy_gamma: see QuantizerWeights.
    """

    channels: int = field(default=128, validator=layers.positive)
    channel_multipliers: tuple[int, ...] = field(default=(1, 1, 2, 2, 4), validator=layers.multipliers)
    blocks: int = field(default=2, validator=layers.positive)
    downsample: Literal["conv", "pool"] = "conv"
    norm: layers.Norm = field(default="group", validator=validators.in_(("group", "none")))
    input_shortcut: bool = False
    legacy: bool = False


@frozen(kw_only=True)
class LFQConfig(ConvConfig):
    """Settings of LFQTokenizer: those of ConvConfig and

    Args:
        bits: of a code: there are 2^bits codes (10 to 18 published).
        spherical: binary spherical quantization (BSQ): encoder outputs and code vectors have length 1.
    """

    bits: int = field(default=14, validator=validators.and_(layers.positive, validators.le(20)))
    spherical: bool = False


@frozen(kw_only=True)
class VQConfig(ConvConfig):
    """Settings of VQTokenizer: those of ConvConfig and

    Args:
        codebook_size: codes.
        code_width: length of a code vector.
    """

    codebook_size: int = field(default=4096, validator=layers.positive)
    code_width: int = field(default=64, validator=layers.positive)


class ConvTokenizer(QuantizedTokenizer):
    """Encoder, quantizer and decoder. The networks see pixels in [0, 1], as published; the interface's are [-1, 1]."""

    def __init__(self, config: ConvConfig, quantizer: Quantizer, *, image_size: ImageSize, part: str) -> None:
        stride = layers.stride_of(config.channel_multipliers, image_size, part)
        super().__init__(quantizer, image_size=image_size, stride=stride)
        self.config, code_width = config, quantizer.width
        widths = [config.channels * factor for factor in config.channel_multipliers]
        levels, last = range(len(widths)), len(widths) - 1
        encoded = [config.channels, *widths]  # what enters each level
        self.encoder = layers.encoder(
            nn.Conv2d(3, config.channels, 3, padding=1, bias=False),
            [Stage(encoded[n], widths[n], config, "halve" if n < last else None) for n in levels],
            Stage(widths[-1], widths[-1], config),
            nn.Conv2d(widths[-1], code_width, 1),
        )
        self.decoder = conv_decoder(config, code_width)
        self.quantizer = quantizer
        layers.fast_layout(self, config.norm)

    def encoded(self, images_B3HW: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the quantizer takes them, (B, E, h, w)."""
        return self.encoder((images_B3HW + 1) / 2)

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        """Code vectors on the grid (B, E, h, w) to images (B, 3, H, W), not clamped."""
        return self.decoder(vectors_BEhw.contiguous()) * 2 - 1


class LFQTokenizer(ConvTokenizer):
    """MaskBit's tokenizer: every token is a string of bits, its code vector their signs."""

    def __init__(self, config: LFQConfig, *, image_size: ImageSize) -> None:
        kind = BinarySphericalQuantizer if config.spherical else LookupFreeQuantizer
        super().__init__(config, kind(config.bits, config), image_size=image_size, part="lfq")


class VQTokenizer(ConvTokenizer):
    """VQGAN+ and MaskGIT's tokenizer: every token is the nearest vector of a learned codebook."""

    def __init__(self, config: VQConfig, *, image_size: ImageSize) -> None:
        quantizer = LookupQuantizer(config.codebook_size, config.code_width, config)
        super().__init__(config, quantizer, image_size=image_size, part="vq")


def conv_decoder(config: ConvConfig, code_width: int) -> nn.Module:
    """Vectors on a grid (B, E, h, w) to images (B, 3, H, W) in [0, 1], not clamped."""
    widths = [config.channels * factor for factor in config.channel_multipliers]
    decoded = [*widths[1:], widths[-1]]  # what enters each level
    return layers.decoder(
        nn.Conv2d(code_width, widths[-1], 3, padding=1),
        Stage(widths[-1], widths[-1], config),
        [Stage(decoded[n], widths[n], config, "double" if n else None) for n in reversed(range(len(widths)))],
        nn.Conv2d(widths[0], 3, 3, padding=1),
        backwards=config.legacy,
    )


class Stage(nn.Module):
    """Residual blocks at one resolution; then half or twice the size, or neither."""

    def __init__(self, width: int, out: int, config: ConvConfig, resample: layers.Resample = None) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(
            layers.ResidualBlock(
                width if index == 0 else out, out, config.norm, bias=False, input_shortcut=config.input_shortcut
            )
            for index in range(config.blocks)
        )
        self.down_conv: nn.Module = nn.Identity()
        self.upsample_conv: nn.Module = nn.Identity()
        if resample == "halve":
            self.down_conv = layers.HalvingConv(out) if config.downsample == "conv" else nn.AvgPool2d(2)
        elif resample == "double":
            self.upsample_conv = layers.DoublingConv(out)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        for block in self.res_blocks:
            hidden_BCHW = block(hidden_BCHW)
        return self.upsample_conv(self.down_conv(hidden_BCHW))

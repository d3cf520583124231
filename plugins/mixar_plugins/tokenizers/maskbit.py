"""MaskBit's convolutional tokenizers: lookup-free (`lfq`) and lookup (`vq`: VQGAN+, and with `legacy` MaskGIT's).

Parameters carry the published names but for one: what is `quantize.` in a released file is `quantizer.` here, because
`quantize` is the abstract class's method (its importer renames).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from attrs import field, frozen, validators
from torch import Tensor, nn

from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import Quantized
from mixar_plugins.tokenizers.layers import Norm, double_size, make_norm, pad_for_stride_two, stride_of
from mixar_plugins.tokenizers.quantizers import LookupFreeQuantizer, LookupQuantizer, Quantizer, QuantizerWeights

_positive = validators.ge(1)


@frozen(kw_only=True)
class ConvConfig(QuantizerWeights):
    """Settings that `lfq` and `vq` share.

    Args:
        channels: width at full resolution.
        channel_multipliers: width of each level over `channels`; each level but the last halves the image.
        blocks: residual blocks a level.
        downsample: `conv`, a convolution of stride 2, or `pool`, the mean of four pixels (MaskGIT).
        norm: of the residual blocks; `none` for small tokenizers trained here.
        input_shortcut: where the width changes, add the block's input as usual, not its output again as published
            (see ResidualBlock); for tokenizers trained here.
        legacy: list the decoder's levels from full resolution down, as MaskGIT's released file does. The function is
            the same.
        commitment_weight, entropy_weight, entropy_temperature, entropy_gamma: see QuantizerWeights.
    """

    channels: int = field(default=128, validator=_positive)
    channel_multipliers: tuple[int, ...] = field(
        default=(1, 1, 2, 2, 4), validator=validators.and_(validators.min_len(1), validators.deep_iterable(_positive))
    )
    blocks: int = field(default=2, validator=_positive)
    downsample: Literal["conv", "pool"] = field(default="conv", validator=validators.in_(("conv", "pool")))
    norm: Norm = field(default="group", validator=validators.in_(("group", "none")))
    input_shortcut: bool = False
    legacy: bool = False


@frozen(kw_only=True)
class LFQConfig(ConvConfig):
    """Settings of LFQTokenizer: those of ConvConfig and `bits`, bits a code (2^bits codes, 10 to 18 published)."""

    bits: int = field(default=14, validator=validators.and_(_positive, validators.le(20)))


@frozen(kw_only=True)
class VQConfig(ConvConfig):
    """Settings of VQTokenizer: those of ConvConfig and

    Args:
        codebook_size: codes.
        code_width: length of a code vector.
    """

    codebook_size: int = field(default=4096, validator=_positive)
    code_width: int = field(default=64, validator=_positive)


class ConvTokenizer(DiscreteTokenizer):
    """Encoder, quantizer and decoder. The networks see pixels in [0, 1], as published; the interface's are [-1, 1]."""

    def __init__(
        self,
        config: ConvConfig,
        quantizer: Quantizer,
        *,
        codebook_size: int,
        code_width: int,
        image_size: int,
        part: str,
    ) -> None:
        stride = stride_of(config.channel_multipliers, image_size, part)
        super().__init__(image_size=image_size, stride=stride, codebook_size=codebook_size, code_width=code_width)
        self.config = config
        self.encoder = ConvEncoder(config, code_width)
        self.decoder = ConvDecoder(config, code_width)
        self.quantizer = quantizer
        if config.norm == "none":  # 1.6x faster on CPU; a group norm would change the layout back and forth
            self.to(memory_format=torch.channels_last)

    def quantize(self, images_B3HW: Tensor) -> Quantized:
        """Encode and quantize; see Quantizer for the losses."""
        return self.quantizer(self.encoder((images_B3HW + 1) / 2))

    def code_vectors(self, codes_BN: Tensor) -> Tensor:
        """Code vectors (B, N, E) of codes (B, N)."""
        return self.quantizer.vectors(codes_BN)

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        """Code vectors on the grid (B, E, h, w) to images (B, 3, H, W), not clamped."""
        return self.decoder(vectors_BEhw.contiguous()) * 2 - 1


class LFQTokenizer(ConvTokenizer):
    """MaskBit's tokenizer: every token is a string of bits, its code vector their signs."""

    def __init__(self, config: LFQConfig, *, image_size: int) -> None:
        quantizer = LookupFreeQuantizer(config.bits, config)
        super().__init__(
            config,
            quantizer,
            codebook_size=2**config.bits,
            code_width=config.bits,
            image_size=image_size,
            part="lfq",
        )


class VQTokenizer(ConvTokenizer):
    """VQGAN+ and MaskGIT's tokenizer: every token is the nearest vector of a learned codebook."""

    def __init__(self, config: VQConfig, *, image_size: int) -> None:
        quantizer = LookupQuantizer(config.codebook_size, config.code_width, config)
        super().__init__(
            config,
            quantizer,
            codebook_size=config.codebook_size,
            code_width=config.code_width,
            image_size=image_size,
            part="vq",
        )


class ConvEncoder(nn.Module):
    """Image (B, 3, H, W), pixels in [0, 1], to (B, E, h, w)."""

    def __init__(self, config: ConvConfig, code_width: int) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList()
        width = config.channels
        for level, out in enumerate(widths):
            stage = Stage if level == len(widths) - 1 else _DOWN_STAGES[config.downsample]
            self.down.append(stage(width, out, config))
            width = out
        self.mid = Stage(width, width, config)
        self.norm_out = make_norm("group", width)
        self.conv_out = nn.Conv2d(width, code_width, 1)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        hidden = self.conv_in(pixels_B3HW)
        for stage in self.down:
            hidden = stage(hidden)
        return self.conv_out(F.silu(self.norm_out(self.mid(hidden))))


class ConvDecoder(nn.Module):
    """Code vectors (B, E, h, w) to image (B, 3, H, W), pixels in [0, 1] or a little outside."""

    def __init__(self, config: ConvConfig, code_width: int) -> None:
        super().__init__()
        self.legacy = config.legacy
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        width = widths[-1]
        self.conv_in = nn.Conv2d(code_width, width, 3, padding=1)
        self.mid = Stage(width, width, config)
        stages: list[Stage] = []
        for level, out in reversed(list(enumerate(widths))):
            stages.append((UpStage if level else Stage)(width, out, config))
            width = out
        self.up = nn.ModuleList(reversed(stages) if self.legacy else stages)
        self.norm_out = make_norm("group", width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, vectors_BEhw: Tensor) -> Tensor:
        hidden = self.mid(self.conv_in(vectors_BEhw))
        for stage in reversed(self.up) if self.legacy else self.up:
            hidden = stage(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class Stage(nn.Module):
    """Residual blocks at one resolution."""

    def __init__(self, width: int, out: int, config: ConvConfig) -> None:
        super().__init__()
        self.res_blocks = nn.ModuleList(
            ResidualBlock(width if index == 0 else out, out, config) for index in range(config.blocks)
        )

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        for block in self.res_blocks:
            hidden_BCHW = block(hidden_BCHW)
        return hidden_BCHW


class ConvDownStage(Stage):
    """A stage, then half the size by a convolution of stride 2."""

    def __init__(self, width: int, out: int, config: ConvConfig) -> None:
        super().__init__(width, out, config)
        self.down_conv = nn.Conv2d(out, out, 3, stride=2)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.down_conv(pad_for_stride_two(super().forward(hidden_BCHW)))


class PoolDownStage(Stage):
    """A stage, then half the size by the mean of four pixels."""

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return F.avg_pool2d(super().forward(hidden_BCHW), 2)


_DOWN_STAGES: dict[str, type[Stage]] = {"conv": ConvDownStage, "pool": PoolDownStage}


class UpStage(Stage):
    """A stage, then twice the size: nearest neighbours and a convolution."""

    def __init__(self, width: int, out: int, config: ConvConfig) -> None:
        super().__init__(width, out, config)
        self.upsample_conv = nn.Conv2d(out, out, 3, padding=1)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.upsample_conv(double_size(super().forward(hidden_BCHW)))


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input.

    Where the width changes, the published block does not add its input: its 1x1 shortcut is applied to the block's own
    output instead. The released weights were trained with that, so it is the default.
    """

    def __init__(self, width: int, out: int, config: ConvConfig) -> None:
        super().__init__()
        self.norm1 = make_norm(config.norm, width)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1, bias=False)
        self.norm2 = make_norm(config.norm, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.input_shortcut = config.input_shortcut or width == out
        shortcut_from = width if self.input_shortcut else out
        self.nin_shortcut = nn.Identity() if width == out else nn.Conv2d(shortcut_from, out, 1, bias=False)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden_BCHW)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        return residual + self.nin_shortcut(hidden_BCHW if self.input_shortcut else residual)

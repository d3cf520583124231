"""VAR's multi-scale residual tokenizer (arXiv 2404.02905)."""

from __future__ import annotations

import numpy as np
from attrs import field, frozen, validators

from mixar_core.types import ImageSize
from mixar_plugins.tokenizers import layers
from mixar_plugins.tokenizers.quantized import LatentCodesConfig, LatentCodesTokenizer
from mixar_plugins.tokenizers.quantizers import LookupQuantizer
from mixar_plugins.tokenizers.residual import OnPyramid, PyramidQuantizer


@frozen(kw_only=True)
class VARConfig(LatentCodesConfig):
    """Settings of VARTokenizer: those of LatentCodesConfig and

    Args:
        codebook_size: codes, the same for all scales.
        latent_channels: length of a code vector, too.
        scales: of the grids of codes, rising: the side of a square one, or [height, width]; the last is image_size over
            the stride.
        smoothing, smoothed: see PyramidQuantizer.
    """

    channels: int = field(default=160, validator=layers.positive)
    latent_channels: int = field(default=32, validator=layers.positive)
    codebook_size: int = field(default=4096, validator=layers.positive)
    scales: tuple[ImageSize, ...] = field(default=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16), validator=validators.min_len(1))
    smoothing: int = field(default=4, validator=layers.positive)
    smoothed: float = field(default=0.5, validator=validators.and_(validators.ge(0.0), validators.le(1.0)))


class VARTokenizer(OnPyramid, LatentCodesTokenizer):
    """VAR's tokenizer: a pyramid of codes, one codebook, scaled up by bicubic interpolation and smoothed."""

    pyramid: type[PyramidQuantizer] = PyramidQuantizer

    def __init__(self, config: VARConfig, *, image_size: ImageSize, part: str = "var") -> None:
        stride = layers.stride_of(config.channel_multipliers, image_size, part)
        layers.check_scales(config.scales, image_size, stride, part)
        quantizer = self.pyramid(
            [LookupQuantizer(config.codebook_size, config.latent_channels, config)],
            config.scales,
            config,
            upsample="bicubic",
            smoothing=config.smoothing,
            smooth_of=nearest_tick,
            smoothed=config.smoothed,
        )
        super().__init__(config, quantizer, image_size=image_size, kernel=3, part=part)


def nearest_tick(stage: int, stages: int, convolutions: int) -> int:
    """The convolution of a scale: the one whose tick in [0, 1] is nearest, the first of two that are equally near.

    In float64 as published: which of two is the nearer can depend on it.
    """
    margin = 1 / (3 if convolutions == 4 else 2) / convolutions
    ticks = np.linspace(margin, 1 - margin, convolutions)
    return int(np.argmin(np.abs(ticks - stage / max(1, stages - 1))))

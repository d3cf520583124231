"""Residual quantisation: several codes a place (RQ-VAE, arXiv 2203.01941), or a pyramid of scales (VAR, 2404.02905)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from attrs import field, frozen, validators
from torch import Tensor, nn

from mixar_core.types import Grid, ImageSize, TokenLayout
from mixar_plugins.tokenizers import layers
from mixar_plugins.tokenizers.maskbit import ConvTokenizer, VQConfig
from mixar_plugins.tokenizers.quantized import QuantizedTokenizer
from mixar_plugins.tokenizers.quantizers import LookupQuantizer, Quantizer, QuantizerWeights, in_place


class ResidualQuantizer(Quantizer):
    """Quantizers one after the other, each on what those before have left.

    Losses are means over the stages: `commitment` and `codebook` compare the encoder output with the sum up to a stage
    (RQ-VAE's Eq. 7, VAR's loss), the entropies are those of what the stage was given.

    Args:
        stages: a quantizer each, or one that all share.
        count: stages.
    """

    def __init__(self, stages: Sequence[Quantizer], count: int, weights: QuantizerWeights) -> None:
        super().__init__(stages[0].codes, stages[0].width, weights)
        self.stages, self.count = nn.ModuleList(stages), count

    def split(self, tokens: Tensor) -> Sequence[Tensor]:
        """Codes (B, N), or vectors (B, N, E), of each stage: (B, places, ...)."""
        raise NotImplementedError

    def join(self, stages: Sequence[Tensor]) -> Tensor:
        """The inverse of `split`."""
        raise NotImplementedError

    def shrink(self, left_BEhw: Tensor, stage: int) -> Tensor:
        """What a stage is given of what is left."""
        return left_BEhw

    def spread(self, vectors_BEhw: Tensor, stage: int) -> Tensor:
        """What a stage's vectors add to the sum."""
        return vectors_BEhw

    def vectors(self, codes: Tensor) -> Tensor:
        """Code vectors (B, N, E) of codes (B, N)."""
        return self.join([self.stage(index).vectors(part) for index, part in enumerate(self.split(codes))])

    def search(self, encoded_BEhw: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        sum_BEhw = torch.zeros_like(encoded_BEhw)
        codes, losses = [], []
        for index in range(self.count):
            stage, given_BEhw = self.stage(index), self.shrink(encoded_BEhw - sum_BEhw.detach(), index)
            given_RE, vectors_RE, stage_codes = stage.assign(given_BEhw)
            sum_BEhw = sum_BEhw + self.spread(in_place(vectors_RE, given_BEhw), index)
            codes.append(stage_codes)
            losses.append(stage.losses(given_RE, encoded_BEhw, sum_BEhw))
        means = {name: torch.stack([each[name] for each in losses]).mean() for name in losses[0]}
        return sum_BEhw, self.join(codes), means

    def stage(self, index: int) -> Quantizer:
        """The quantizer of a stage."""
        stage = self.stages[min(index, len(self.stages) - 1)]
        assert isinstance(stage, Quantizer)
        return stage


class DepthQuantizer(ResidualQuantizer):
    """All stages on the same places: `count` codes each."""

    def layout(self, grid: Grid) -> TokenLayout:
        return TokenLayout("depth", (grid,), depth=self.count)

    def split(self, tokens: Tensor) -> Sequence[Tensor]:
        return tokens.unflatten(1, (-1, self.count)).unbind(2)

    def join(self, stages: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(stages), dim=2).flatten(1, 2)


def evenly(stage: int, stages: int, convolutions: int) -> int:
    """Convolutions go to stages in equal runs."""
    return stage * convolutions // stages


class PyramidQuantizer(ResidualQuantizer):
    """Stages on grids from coarse to fine: what is left is averaged onto a stage's grid, its vectors scaled up again.

    Args:
        scales: the grids, a whole number for a square one, or (height, width); the last is the encoder output's.
        upsample: how vectors are scaled up.
        smoothing: 3x3 convolutions, each of which takes a share of what was scaled up (VAR's phi); 0: none.
        smooth_of: which of them a stage takes, of stage, stages and convolutions.
        smoothed: that share.
    """

    def __init__(
        self,
        stages: Sequence[Quantizer],
        scales: Sequence[ImageSize],
        weights: QuantizerWeights,
        *,
        upsample: Literal["bicubic", "nearest"],
        smoothing: int,
        smooth_of: Callable[[int, int, int], int] = evenly,
        smoothed: float = 0.5,
    ) -> None:
        super().__init__(stages, len(scales), weights)
        self.scales, self.upsample = tuple(Grid.of_pixels(scale) for scale in scales), upsample
        self.smooth = nn.ModuleList(nn.Conv2d(self.width, self.width, 3, padding=1) for _ in range(smoothing))
        self.smooth_of, self.smoothed = smooth_of, smoothed

    def layout(self, grid: Grid) -> TokenLayout:
        return TokenLayout("pyramid", self.scales)

    def split(self, tokens: Tensor) -> Sequence[Tensor]:
        return tokens.split([scale.tokens for scale in self.scales], dim=1)

    def join(self, stages: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(stages), dim=1)

    def shrink(self, left_BEhw: Tensor, stage: int) -> Tensor:
        scale = self.scales[stage]
        return F.interpolate(left_BEhw, size=(scale.height, scale.width), mode="area")

    def spread(self, vectors_BEhw: Tensor, stage: int) -> Tensor:
        if stage < self.count - 1:
            finest = self.scales[-1]
            vectors_BEhw = F.interpolate(vectors_BEhw, size=(finest.height, finest.width), mode=self.upsample)
        if not self.smooth:
            return vectors_BEhw
        smooth = self.smooth[self.smooth_of(stage, self.count, len(self.smooth))]
        return (1 - self.smoothed) * vectors_BEhw + self.smoothed * smooth(vectors_BEhw)

    def placed(self, vectors_BKE: Tensor, stage: int) -> Tensor:
        """What a stage's vectors (B, K, E), row by row on its grid, add to the sum: (B, E, h, w) on the finest grid."""
        scale = self.scales[stage]
        return self.spread(vectors_BKE.transpose(1, 2).unflatten(2, (scale.height, scale.width)), stage)

    def spreads(self, codes_BN: Tensor) -> Iterator[Tensor]:
        """What each scale adds to the sum, (B, E, h, w) each, from coarse to fine."""
        for stage, part_BNE in enumerate(self.split(self.vectors(codes_BN))):
            yield self.placed(part_BNE, stage)

    def on_grid(self, codes_BN: Tensor) -> Tensor:
        """The sum of all scales, (B, h * w, E)."""
        return torch.stack([*self.spreads(codes_BN)]).sum(dim=0).flatten(2).transpose(1, 2)

    def known_before(self, codes_BN: Tensor) -> Tensor:
        """The sum of the scales before each but the first, averaged onto its grid: (B, N - N_0, E), N_0 the first's."""
        sum_BEhw, known = None, []
        for stage, spread_BEhw in zip(range(1, self.count), self.spreads(codes_BN), strict=False):
            sum_BEhw = spread_BEhw if sum_BEhw is None else sum_BEhw + spread_BEhw
            known.append(self.shrink(sum_BEhw, stage).flatten(2).transpose(1, 2))
        return self.join(known) if known else self.vectors(codes_BN)[:, :0]


@frozen(kw_only=True)
class RVQConfig(VQConfig):
    """Settings of RVQTokenizer: those of VQConfig and

    Args:
        depth: codes a place.
        shared: one codebook for all of them; otherwise each has its own.
    """

    depth: int = field(default=4, validator=layers.positive)
    shared: bool = True


@frozen(kw_only=True)
class PyramidConfig(VQConfig):
    """Settings of PyramidTokenizer: those of VQConfig and

    Args:
        scales: of the grids of codes, rising: the side of a square one, or [height, width]; the last is image_size over
            the stride.
        shared: one codebook for all of them; otherwise each has its own.
        upsample, smoothing: see PyramidQuantizer.
    """

    scales: tuple[ImageSize, ...] = field(default=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16), validator=validators.min_len(1))
    shared: bool = True
    upsample: Literal["bicubic", "nearest"] = field(default="bicubic", validator=validators.in_(("bicubic", "nearest")))
    smoothing: int = field(default=4, validator=validators.ge(0))


def _codebooks(config: RVQConfig | PyramidConfig, count: int) -> list[LookupQuantizer]:
    books = 1 if config.shared else count
    return [LookupQuantizer(config.codebook_size, config.code_width, config) for _ in range(books)]


class RVQTokenizer(ConvTokenizer):
    """Residual quantisation on a grid: `depth` codes a place, whose vectors are summed."""

    def __init__(self, config: RVQConfig, *, image_size: ImageSize) -> None:
        quantizer = DepthQuantizer(_codebooks(config, config.depth), config.depth, config)
        super().__init__(config, quantizer, image_size=image_size, part="rvq")


class OnPyramid(QuantizedTokenizer):
    """What tokenizers with a pyramid of codes share; a prior that draws scale by scale asks for it by these names."""

    quantizer: PyramidQuantizer

    def vectors_on_grid(self, codes_BN: Tensor) -> Tensor:
        """The sum of all scales' vectors, (B, h * w, E)."""
        return self.quantizer.on_grid(codes_BN)

    def scale_vectors(self, codes_BK: Tensor, scale: int) -> Tensor:
        """Code vectors (B, K, E) of one scale's codes."""
        return self.quantizer.stage(scale).vectors(codes_BK)

    def spread(self, vectors_BKE: Tensor, scale: int) -> Tensor:
        """What one scale's vectors (B, K, E) add to the sum: (B, E, h, w) on the finest grid."""
        return self.quantizer.placed(vectors_BKE, scale)


class PyramidTokenizer(OnPyramid, ConvTokenizer):
    """Residual quantisation over scales: grids of codes from coarse to fine, whose vectors are scaled up and summed."""

    def __init__(self, config: PyramidConfig, *, image_size: ImageSize) -> None:
        stride = layers.stride_of(config.channel_multipliers, image_size, "pyramid")
        layers.check_scales(config.scales, image_size, stride, "pyramid")
        quantizer = PyramidQuantizer(
            _codebooks(config, len(config.scales)),
            config.scales,
            config,
            upsample=config.upsample,
            smoothing=config.smoothing,
        )
        super().__init__(config, quantizer, image_size=image_size, part="pyramid")

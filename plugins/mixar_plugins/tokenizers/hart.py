"""HART's hybrid tokenizer (arXiv 2410.10812): VAR's pyramid of codes, and what it leaves as a continuous residual."""

from __future__ import annotations

from typing import NamedTuple

from attrs import frozen
from torch import Tensor

from mixar_core.types import ImageSize
from mixar_plugins.tokenizers.residual import PyramidQuantizer
from mixar_plugins.tokenizers.var import VARConfig, VARTokenizer


@frozen(kw_only=True)
class HARTConfig(VARConfig):
    """Settings of VARConfig."""


class Hybrid(NamedTuple):
    """An image as HART sees it, vectors on the finest grid (B, E, h, w) each.

    Args:
        codes_BN: of all scales.
        before_BEhw: the sum of all scales but the last. rest_BEhw: what the features are above it.
        last_BEhw: the last scale's vectors. rest - last is the residual that the generator predicts.
    """

    codes_BN: Tensor
    before_BEhw: Tensor
    rest_BEhw: Tensor
    last_BEhw: Tensor

    @property
    def residual_BEhw(self) -> Tensor:
        """What the codes do not say."""
        return self.rest_BEhw - self.last_BEhw


class HybridPyramid(PyramidQuantizer):
    """A pyramid whose last scale is smoothed in training alone."""

    def spread(self, vectors_BEhw: Tensor, stage: int) -> Tensor:
        if stage == self.count - 1 and not self.training:
            return vectors_BEhw
        return super().spread(vectors_BEhw, stage)


class HARTTokenizer(VARTokenizer):
    """HART's tokenizer: VAR's, in which the last scale's vectors and a continuous residual make up the features."""

    quantizer: HybridPyramid
    pyramid = HybridPyramid

    def __init__(self, config: HARTConfig, *, image_size: ImageSize) -> None:
        super().__init__(config, image_size=image_size, part="hart")

    def hybrid(self, images_B3HW: Tensor) -> Hybrid:
        """Codes and residual of images: `decode_vectors(before + last + residual)` decodes all of it."""
        features_BEhw = self.encoded(images_B3HW).float()
        _, codes_BN, _ = self.quantizer.search(features_BEhw)
        *before, last_BEhw = self.quantizer.spreads(codes_BN)
        before_BEhw = sum(before, features_BEhw.new_zeros(()).expand_as(features_BEhw))
        return Hybrid(codes_BN, before_BEhw, features_BEhw - before_BEhw, last_BEhw)

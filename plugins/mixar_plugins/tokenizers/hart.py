"""HART's hybrid tokenizer (arXiv 2410.10812): VAR's pyramid of codes, and what it leaves as a continuous residual."""

from __future__ import annotations

from copy import copy

import torch
from attrs import field, frozen, validators
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import ImageSize, Posterior, Quantized
from mixar_plugins.tokenizers.kl import LOGVAR_RANGE
from mixar_plugins.tokenizers.quantized import QuantizedTokenizer
from mixar_plugins.tokenizers.residual import PyramidQuantizer
from mixar_plugins.tokenizers.var import VARConfig, VARTokenizer


@frozen(kw_only=True)
class HARTConfig(VARConfig):
    """Settings of HARTTokenizer: those of VARConfig and

    Args:
        codes_alone: share of the images that are decoded from their codes alone in training, the others with their
            residual, too (HART: half of all batches). Drawn as dropout is, from torch's own generator.
    """

    codes_alone: float = field(default=1.0, validator=validators.and_(validators.ge(0.0), validators.le(1.0)))


class HybridPyramid(PyramidQuantizer):
    """A pyramid whose last scale is smoothed in training alone."""

    def spread(self, vectors_BEhw: Tensor, stage: int) -> Tensor:
        if stage == self.count - 1 and not self.training:
            return vectors_BEhw
        return super().spread(vectors_BEhw, stage)


class HARTTokenizer(VARTokenizer):
    """HART's tokenizer: VAR's, whose codes and a continuous residual (HARTResidual) make up the features."""

    config: HARTConfig
    quantizer: HybridPyramid
    pyramid = HybridPyramid

    def __init__(self, config: HARTConfig, *, image_size: ImageSize) -> None:
        super().__init__(config, image_size=image_size, part="hart")

    def quantize(self, images_B3HW: Tensor) -> Quantized:
        """Encode and quantize. What is decoded in training are the features themselves where the residual is added."""
        if not self.training or self.config.codes_alone == 1.0:
            return super().quantize(images_B3HW)
        features_BEhw = self.encoded(images_B3HW)
        found = self.quantizer(features_BEhw)
        alone_B = torch.rand(len(images_B3HW), device=images_B3HW.device) < self.config.codes_alone
        vectors_BEhw = torch.where(alone_B[:, None, None, None], found.vectors_BEhw, features_BEhw)
        return Quantized(vectors_BEhw, found.codes_BN, found.losses)


@frozen
class HARTResidualConfig:
    """Settings of HARTResidual.

    Args:
        latent_mean, latent_std: where the latents' statistics start, until `mixar measure` measures them; 0.6 is what
            HART's head divides by.
    """

    latent_mean: float = 0.0
    latent_std: float = field(default=0.6, validator=validators.gt(0.0))


class HARTResidual(ContinuousTokenizer):
    """What the codes of a discrete tokenizer leave over of its encoder's features (HART, Sec. 3.1).

    It has no network of its own: its encoder and its decoder are those of `tokenizer`, which any tokenizer is whose
    codes have places, HART's being the one that is trained for it. Latents are of no width: the residual itself.
    """

    needs_codes = True
    _codes_BN: Tensor | None = None

    def __init__(self, config: HARTResidualConfig, *, image_size: ImageSize, tokenizer: DiscreteTokenizer) -> None:
        if not isinstance(tokenizer, QuantizedTokenizer) or tokenizer.layout.grid is None:
            has = f"{type(tokenizer).__name__} has codes in a {tokenizer.layout}"
            raise UserError(f"hart-residual: needs features that codes on a grid are made of; {has}")
        super().__init__(image_size=image_size, stride=tokenizer.stride, latent_channels=tokenizer.code_width)
        self.config = config
        self._tokenizer = (tokenizer,)  # in a tuple, so that it is not registered as a submodule
        self.latent_mean_C.fill_(config.latent_mean)
        self.latent_std_C.fill_(config.latent_std)

    def beside(self, codes_BN: Tensor | None) -> HARTResidual:
        """The same weights and statistics, of images with these codes (B, N)."""
        one = copy(self)
        one._codes_BN = codes_BN
        return one

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        """Features minus the sum of the codes' vectors; of the images' own codes where there are no others."""
        (tokenizer,), codes_BN = self._tokenizer, self._codes_BN
        features_BEhw = tokenizer.encoded(images_B3HW).float()
        if codes_BN is None:
            codes_BN = tokenizer.quantizer(features_BEhw).codes_BN
        residual_BEhw = tokenizer.quantizer.prepare(features_BEhw) - self.summed(codes_BN)
        return Posterior(residual_BEhw, torch.full_like(residual_BEhw, LOGVAR_RANGE[0]))

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        """Images (B, 3, H, W) of the codes' vectors and the residual (B, E, h, w), summed."""
        if self._codes_BN is None:
            raise UserError("hart-residual: a residual is decoded with codes, and there are none")
        return self._tokenizer[0].decode_vectors(self.summed(self._codes_BN) + latents_BChw)

    def summed(self, codes_BN: Tensor) -> Tensor:
        """The codes' vectors on the grid: (B, E, h, w)."""
        vectors_BNE, grid = self._tokenizer[0].vectors_on_grid(codes_BN), self.layout.scales[0]
        return vectors_BNE.transpose(1, 2).unflatten(2, (grid.height, grid.width))

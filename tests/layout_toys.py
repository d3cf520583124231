"""The smallest tokenizers whose tokens have no place in the image, for tests of what takes any layout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from mixar import Part, hookimpl
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import Grid, Posterior, Quantized, TokenLayout
from mixar_plugins.tokenizers.quantizers import LookupQuantizer, QuantizerWeights

MIXAR_INTERFACE = 2


@frozen
class LengthConfig:
    """How many tokens an image has, and what stands for one."""

    length: int = 6
    codebook_size: int = 16


class SequenceTokenizer(DiscreteTokenizer):
    """Like TiTok's: every token looks at the whole image, and every pixel at all tokens."""

    def __init__(self, config: LengthConfig, *, image_size: int) -> None:
        super().__init__(image_size=image_size, stride=4, codebook_size=config.codebook_size, code_width=3)
        self.length = config.length
        pixels = 3 * image_size**2
        self.down, self.up = nn.Linear(pixels, 3 * self.length), nn.Linear(3 * self.length, pixels)
        self.quantizer = LookupQuantizer(config.codebook_size, 3, QuantizerWeights())

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout("sequence", (Grid(1, self.length),))

    def quantize(self, images_B3HW: Tensor) -> Quantized:
        return self.quantizer(self.down(images_B3HW.flatten(1)).unflatten(1, (3, 1, self.length)))

    def code_vectors(self, codes_BN: Tensor) -> Tensor:
        return self.quantizer.vectors(codes_BN)

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        return self.up(vectors_BEhw.flatten(1)).unflatten(1, (3, self.image_size, self.image_size))


class SphereSequence(ContinuousTokenizer):
    """A sequence of latents, each on the unit sphere (of what is normalised by nothing)."""

    def __init__(self, config: LengthConfig, *, image_size: int) -> None:
        super().__init__(image_size=image_size, stride=4, latent_channels=3)
        self.length = config.length
        pixels = 3 * image_size**2
        self.down, self.up = nn.Linear(pixels, 3 * self.length), nn.Linear(3 * self.length, pixels)

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout("sequence", (Grid(1, self.length),))

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        mean = F.normalize(self.down(images_B3HW.flatten(1)).unflatten(1, (3, 1, self.length)), dim=1)
        return Posterior(mean, torch.full_like(mean, -20.0))

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        return self.up(latents_BChw.flatten(1)).unflatten(1, (3, self.image_size, self.image_size))

    def project(self, latents: Tensor) -> Tensor:
        return F.normalize(latents, dim=-1)


@hookimpl
def mixar_parts() -> list[Part]:
    return [
        Part("discrete-tokenizer", "toy-sequence", SequenceTokenizer, LengthConfig),
        Part("continuous-tokenizer", "toy-sphere", SphereSequence, LengthConfig),
    ]

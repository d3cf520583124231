"""Tokenizers: an image to tokens, and back. One abstract class a kind, continuous and discrete."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from mixar_core.noise import Noise
from mixar_core.types import Grid, ImageSize, Posterior, Quantized, TokenLayout


class Tokenizer(nn.Module, ABC):
    """What both kinds share. Images are float (B, 3, H, W) in [-1, 1], of `image_size` pixels.

    Registered as a Part, a tokenizer is built as `Class(config, image_size=...)`.
    """

    meta_safe: ClassVar[bool] = True
    """Whether it runs on torch's `meta` device, where recipes are checked without values; False: it is not tried."""
    squares_only: ClassVar[bool] = False
    """Whether it is refused where a recipe's `image_size` is (height, width) and no one number."""

    image_size: ImageSize
    """The side of a square, or (height, width)."""
    stride: int
    """Pixels a token spans in each direction."""
    brings_weights: ClassVar[bool] = False
    """Whether its constructor loads what it has learned, so that a recipe that keeps it frozen names no weights."""

    @property
    def layout(self) -> TokenLayout:
        """Where an image's tokens stand: on a grid of `image_size / stride`, unless a tokenizer says otherwise."""
        pixels = Grid.of_pixels(self.image_size)
        return TokenLayout("grid", (Grid(pixels.height // self.stride, pixels.width // self.stride),))

    @property
    def last_layer(self) -> nn.Parameter | None:
        """The weight that makes pixels, by whose gradient an adversarial loss is weighed; None: it cannot be."""
        return None


def sample_posterior(posterior: Posterior, noise: Noise | None) -> Tensor:
    """The posterior's mean, or with `noise` a sample: mean + exp(logvar / 2) * eps."""
    mean = posterior.mean_BChw
    if noise is None:
        return mean
    eps = noise.normal(mean.shape, mean.device, name="posterior")
    return mean + torch.exp(0.5 * posterior.logvar_BChw) * eps.to(mean.dtype)


class ContinuousTokenizer(Tokenizer):
    """Image <-> latents (B, C, h, w), h x w being `layout.shape`: its grid, or of other layouts a row of all tokens.

    The backbone sees them normalised, (raw - mean) / std per channel.

    The statistics are buffers, so they travel with the weights: no magic scale anywhere else.
    """

    latent_mean_C: Tensor
    latent_std_C: Tensor
    needs_codes: ClassVar[bool] = False
    """Whether its latents are what an image's codes leave over. It is then built with `tokenizer`, the discrete one."""

    def __init__(self, *, image_size: ImageSize, stride: int, latent_channels: int) -> None:
        super().__init__()
        self.image_size, self.stride, self.latent_channels = image_size, stride, latent_channels
        self.register_buffer("latent_mean_C", torch.zeros(latent_channels))
        self.register_buffer("latent_std_C", torch.ones(latent_channels))

    @property
    def encoder_layer(self) -> nn.Parameter | None:
        """The weight of the encoder's last layer, by whose gradient an alignment is weighed; None: the latents' is."""
        return None

    def beside(self, codes_BN: Tensor | None) -> ContinuousTokenizer:
        """The tokenizer of images with these codes: itself, unless its latents are what they leave (`needs_codes`).

        Without codes that one encodes by the images' own, and raises UserError where it is to decode.
        """
        return self

    @abstractmethod
    def posterior(self, images_B3HW: Tensor) -> Posterior:
        """The encoder's Gaussian over raw latents, (B, C, h, w)."""

    @abstractmethod
    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) to images (B, 3, H, W), not clamped."""

    def encode(self, images_B3HW: Tensor, noise: Noise | None = None) -> Tensor:
        """Normalised latents (B, C, h, w): the posterior's mean, or with `noise` a sample of it."""
        return self.normalise(self.sample_posterior(self.posterior(images_B3HW), noise))

    sample_posterior = staticmethod(sample_posterior)

    def reconstruct(self, images_B3HW: Tensor, *, noise: Noise) -> tuple[Posterior, Tensor, Tensor]:
        """What training compares: the posterior, what is sampled of it, and the images that this is decoded to.

        One that is trained to restore what is masked or noised overrides it; latents may then be of fewer tokens.
        """
        posterior = self.posterior(images_B3HW)
        raw_BChw = self.sample_posterior(posterior, noise)
        return posterior, raw_BChw, self.decode_raw(raw_BChw)

    def normalise(self, raw_BChw: Tensor) -> Tensor:
        """(raw - mean) / std, per channel."""
        return (raw_BChw - self.latent_mean_C[:, None, None]) / self.latent_std_C[:, None, None]

    def project(self, latents: Tensor) -> Tensor:
        """What a sampled token (..., C), normalised, becomes before it is known: itself, unless it lies on a sphere."""
        return latents

    def decode(self, latents_BChw: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) to images (B, 3, H, W), clamped to [-1, 1]."""
        raw = latents_BChw * self.latent_std_C[:, None, None] + self.latent_mean_C[:, None, None]
        return self.decode_raw(raw).clamp(-1.0, 1.0)


class DiscreteTokenizer(Tokenizer):
    """Image <-> codes (B, N), int64 in [0, codebook_size), as `layout` has them; a code has a vector of length E."""

    def __init__(self, *, image_size: ImageSize, stride: int, codebook_size: int, code_width: int) -> None:
        super().__init__()
        self.image_size, self.stride = image_size, stride
        self.codebook_size, self.code_width = codebook_size, code_width

    @abstractmethod
    def quantize(self, images_B3HW: Tensor) -> Quantized:
        """Encode and quantize. In training mode the losses hold at least `quantizer`, the sum to train on."""

    @abstractmethod
    def code_vectors(self, codes_BN: Tensor) -> Tensor:
        """Code vectors (B, N, E) of codes (B, N)."""

    @abstractmethod
    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        """Vectors on the grid (B, E, h, w) to images (B, 3, H, W), not clamped; of a sequence h = 1 and w = N."""

    def vectors_on_grid(self, codes_BN: Tensor) -> Tensor:
        """One vector a place of `layout.grid`: (B, h * w, E). Those of a depth are summed; a pyramid says how it sums.

        Raises:
            TypeError: codes of this layout have no place.
        """
        vectors_BNE, layout = self.code_vectors(codes_BN), self.layout
        if layout.kind == "depth":
            return vectors_BNE.unflatten(1, (-1, layout.depth)).sum(dim=2)
        if layout.kind != "grid":
            raise TypeError(f"codes in a {layout} have no vectors on a grid")
        return vectors_BNE

    def encode(self, images_B3HW: Tensor) -> Tensor:
        """Codes (B, N) of images (B, 3, H, W)."""
        return self.quantize(images_B3HW).codes_BN

    def decode(self, codes_BN: Tensor) -> Tensor:
        """Images (B, 3, H, W), clamped to [-1, 1], of codes (B, N)."""
        grid = self.layout.grid
        vectors_BNE = self.code_vectors(codes_BN) if grid is None else self.vectors_on_grid(codes_BN)
        grid = grid or self.layout.shape
        vectors_BEhw = vectors_BNE.transpose(1, 2).unflatten(2, (grid.height, grid.width))
        return self.decode_vectors(vectors_BEhw).clamp(-1.0, 1.0)

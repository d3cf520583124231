"""Tokens from frozen tokenizers: encoded with each batch, or once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from mixar_core.noise import Noise
from mixar_core.precision import full_precision
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import ImageBatch, Posterior, TokenBatch


@frozen(eq=False)
class CachedTokens:
    """All that training needs of images: the raw posterior (float32), the codes, the labels.

    `posterior` is None without a continuous tokenizer, `codes_BN` (int64) without a discrete one. The posterior, not a
    sample of it, so that every step draws anew; one of no width (logvar -inf) where a sample is all there is.
    """

    posterior: Posterior | None
    codes_BN: Tensor | None
    labels_B: Tensor

    def __len__(self) -> int:
        return self.labels_B.shape[0]

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> CachedTokens:
        """Two tensors of a posterior, if there is one, then codes, if there are some, then labels."""
        posterior = Posterior(tensors[0], tensors[1]) if len(tensors) > 2 else None
        return cls(posterior, tensors[-2] if len(tensors) % 2 == 0 else None, tensors[-1])

    def tensors(self) -> list[Tensor]:
        """What `of` takes; each has a row an image."""
        posterior = () if self.posterior is None else (self.posterior.mean_BChw, self.posterior.logvar_BChw)
        codes = () if self.codes_BN is None else (self.codes_BN,)
        return [*posterior, *codes, self.labels_B]

    def rows(self, index: Any) -> CachedTokens:
        """The rows at `index`, whatever a tensor takes in brackets."""
        return self.of([tensor[index] for tensor in self.tensors()])

    def to(self, device: torch.device) -> CachedTokens:
        """The same on another device."""
        return self.of([tensor.to(device, non_blocking=True) for tensor in self.tensors()])

    def pin_memory(self) -> CachedTokens:
        """The same in pinned memory, from where a GPU fetches it while it computes. (Loaders call it by this name.)"""
        return self.of([tensor.pin_memory() for tensor in self.tensors()])


class FrozenTokenizers(nn.Module):
    """The tokenizers of an objective on tokens, either of them or both, frozen."""

    def __init__(self, continuous: ContinuousTokenizer | None, discrete: DiscreteTokenizer | None) -> None:
        super().__init__()
        if continuous is None and discrete is None:
            raise ValueError("neither tokenizer given")
        self.continuous, self.discrete = continuous, discrete
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def encode(self, images: ImageBatch) -> CachedTokens:
        """Both encoders' outputs, in float32 whatever the run's precision."""
        with full_precision(images.images_B3HW.device):
            codes_BN = None if self.discrete is None else self.discrete.encode(images.images_B3HW)
            continuous = None if self.continuous is None else self.continuous.beside(codes_BN)
            posterior = None if continuous is None else continuous.posterior(images.images_B3HW)
        return CachedTokens(posterior, codes_BN, images.labels_B)

    @torch.no_grad()
    def draw(self, cached: CachedTokens, *, noise: Noise) -> TokenBatch:
        """Tokens of encoded images: a sample of the posterior, normalised; the codes as they are.

        Without a continuous tokenizer the latents have no channels: (B, 0, h, w).
        """
        if self.continuous is not None:
            assert cached.posterior is not None
            latents_BChw = self.continuous.normalise(self.continuous.sample_posterior(cached.posterior, noise))
        else:
            assert self.discrete is not None
            shape = self.discrete.layout.shape
            latents_BChw = torch.zeros(len(cached), 0, shape.height, shape.width, device=cached.labels_B.device)
        return TokenBatch(latents_BChw, cached.codes_BN, cached.labels_B)

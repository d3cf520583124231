"""Feature extractors: images to vectors (for distances between sets) and to maps (for perceptual losses)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
from attrs import frozen
from torch import Tensor, nn

from mixar_core.storage import state_sha256


@frozen(eq=False)
class Outputs:
    """What an extractor makes of a batch in one pass, float32: vectors (B, F), and logits (B, L) if it classifies."""

    features_BF: Tensor
    logits_BL: Tensor | None = None


class FeatureExtractor(nn.Module, ABC):
    """A frozen network. Images are float (B, 3, H, W) in [-1, 1], of any size; it resizes as it needs.

    Registered as a Part, it is built as `Class(config)`, weights and all.
    """

    feature_dim: int
    """Length F of a feature vector."""
    logit_dim: int = 0
    """Number L of classes it tells apart, for the Inception Score; 0: it does not classify."""
    is_inception: bool = False
    """Whether its vectors are those of the Inception network that defines FID, as far as its architecture goes."""
    has_published_weights: bool = False
    """Whether its weights are, by checksum, the ones that published figures were made with."""

    @property
    def gives_fid(self) -> bool:
        """Whether a Frechet distance between its vectors is the FID of papers, and not just a distance like it."""
        return self.is_inception and self.has_published_weights

    @property
    def label(self) -> str:
        """What reports call it; names each setting that changes its vectors."""
        return type(self).__name__

    @property
    def identity(self) -> str:
        """Its label and the beginning of a digest of its weights: vectors of equal identity, and no others, compare."""
        return f"{self.label}, weights sha256:{self.weights_digest()[:16]}"

    def weights_digest(self) -> str:
        """A sha256 in hex, over its weights' names, types, shapes and values; or that of the file they are from."""
        return state_sha256(self)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode: statistics of its norms are part of its weights."""
        return super().train(False)

    @abstractmethod
    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Feature vectors (B, F), float32."""

    @abstractmethod
    def maps(self, images_B3HW: Tensor) -> list[Tensor]:
        """Feature maps (B, F_i, H_i, W_i) from shallow to deep, differentiable with respect to the images."""

    def outputs(self, images_B3HW: Tensor) -> Outputs:
        """Feature vectors (B, F) as of `forward`, and logits (B, L) where `logit_dim` is not 0, in one pass."""
        return Outputs(self(images_B3HW))


def psnr_B(images_B3HW: Tensor, decoded_B3HW: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, (B,), in dB, with both as 8-bit files have them: clipped to [0, 1].

    An exact copy counts as 100 dB.
    """
    difference = (decoded_B3HW.clamp(-1.0, 1.0) - images_B3HW) / 2.0
    return -10.0 * difference.square().mean(dim=(1, 2, 3)).clamp_min(1e-10).log10()


def perceptual_distance_B(extractor: FeatureExtractor, images_B3HW: Tensor, decoded_B3HW: Tensor) -> Tensor:
    """Distance of each pair of images in an extractor's feature maps, (B,), float32.

    As LPIPS without learned weights (Zhang et al. 2018, Eq. 1): at each place of a map both feature vectors are brought
    to length 1; their squared distance, averaged over places, then over maps.
    """
    with torch.no_grad():
        targets = extractor.maps(images_B3HW)
    distances = [
        (_unit(mine) - _unit(target)).square().sum(dim=1).mean(dim=(1, 2))
        for mine, target in zip(extractor.maps(decoded_B3HW), targets, strict=True)
    ]
    return torch.stack(distances).mean(dim=0)


def _unit(map_BFHW: Tensor) -> Tensor:
    map_BFHW = map_BFHW.float()
    # The small number is under the root: the gradient of a norm at 0 is not finite.
    return map_BFHW / (map_BFHW.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()

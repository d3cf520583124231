"""Feature extractors: images to vectors (for distances between sets) and to maps (for perceptual losses)."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class FeatureExtractor(nn.Module, ABC):
    """A frozen network. Images are float (B, 3, H, W) in [-1, 1], of any size; it resizes as it needs.

    Registered as a Part, it is built as `Class(config)`, weights and all.
    """

    #: Length F of a feature vector.
    feature_dim: int

    @abstractmethod
    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Feature vectors (B, F), float32."""

    @abstractmethod
    def maps(self, images_B3HW: Tensor) -> list[Tensor]:
        """Feature maps (B, F_i, H_i, W_i) from shallow to deep, differentiable with respect to the images."""

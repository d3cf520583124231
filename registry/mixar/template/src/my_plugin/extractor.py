"""A feature extractor: images to vectors that distances are measured in, and to maps for perceptual losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from attrs import field, frozen
from attrs.validators import ge
from mixar_core import FeatureExtractor
from torch import Tensor


@frozen
class MyPluginExtractorConfig:
    """Sizes.

    Args:
        filters: of a level.
        levels: at each of which the image is half as large as before.
    """

    filters: int = field(default=16, validator=ge(1))
    levels: int = field(default=3, validator=ge(1))


class MyPluginExtractor(FeatureExtractor):
    """Random filters of 3 x 3 pixels, always the same ones, at several scales."""

    filters: Tensor

    def __init__(self, config: MyPluginExtractorConfig) -> None:
        super().__init__()
        self.config, self.feature_dim = config, config.filters * config.levels
        random = torch.randn(config.filters, 3, 3, 3, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
        self.register_buffer("filters", (random / 27**0.5).to(torch.get_default_device()))

    @property
    def label(self) -> str:
        """What reports call it."""
        return f"my-plugin ({self.config.filters} filters, {self.config.levels} levels)"

    def maps(self, images_B3HW: Tensor) -> list[Tensor]:
        """Maps (B, F_i, H_i, W_i) from the finest to the coarsest, float32 also under autocast."""
        maps = []
        with torch.autocast(images_B3HW.device.type, enabled=False):
            scaled_B3HW = images_B3HW.float()
            for _ in range(self.config.levels):
                maps.append(F.gelu(F.conv2d(scaled_B3HW, self.filters, padding=1)))
                scaled_B3HW = F.avg_pool2d(scaled_B3HW, 2)
        return maps

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """The means of all maps: (B, F)."""
        return torch.cat([map_BFHW.mean(dim=(2, 3)) for map_BFHW in self.maps(images_B3HW)], dim=1)

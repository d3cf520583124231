"""A continuous tokenizer: images to latents, and back."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge
from mixar_core import ContinuousTokenizer, ImageSize, Posterior
from torch import Tensor, nn


@frozen
class MyPluginContinuousTokenizerConfig:
    """Sizes of encoder and decoder.

    Args:
        stride: pixels that a latent spans in each direction.
        latent_channels: numbers of a latent.
        width: channels of the hidden layers.
    """

    stride: int = field(default=4, validator=ge(1))
    latent_channels: int = field(default=4, validator=ge(1))
    width: int = field(default=64, validator=ge(1))


class MyPluginContinuousTokenizer(ContinuousTokenizer):
    """A small convolutional autoencoder with a Gaussian bottleneck."""

    def __init__(self, config: MyPluginContinuousTokenizerConfig, *, image_size: ImageSize) -> None:
        stride, channels, width = config.stride, config.latent_channels, config.width
        super().__init__(image_size=image_size, stride=stride, latent_channels=channels)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, stride, stride),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, 2 * channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
        )
        self.to_pixels = nn.ConvTranspose2d(width, 3, stride, stride)

    @property
    def last_layer(self) -> nn.Parameter:
        """By whose gradient the loss of a discriminator is weighed."""
        return self.to_pixels.weight

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        """Images (B, 3, H, W) in [-1, 1] to a Gaussian over latents (B, C, h, w)."""
        mean_BChw, logvar_BChw = self.encoder(images_B3HW).chunk(2, dim=1)
        return Posterior(mean_BChw, logvar_BChw.clamp(-30.0, 20.0))

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        """Latents (B, C, h, w) to images (B, 3, H, W)."""
        images_B3HW: Tensor = self.to_pixels(self.decoder(latents_BChw))
        return images_B3HW

"""A discriminator: tells images from reconstructions while a tokenizer is trained."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge
from mixar_core import Discriminator, Grid, ImageSize, UserError
from torch import Tensor, nn


@frozen
class MyPluginDiscriminatorConfig:
    """Sizes of the network.

    Args:
        width: channels of the first layer.
        layers: each of which halves the image.
    """

    width: int = field(default=32, validator=ge(1))
    layers: int = field(default=2, validator=ge(1))


class MyPluginDiscriminator(Discriminator):
    """Convolutions that judge each patch of an image by itself."""

    def __init__(self, config: MyPluginDiscriminatorConfig, *, image_size: ImageSize) -> None:
        super().__init__()
        pixels = Grid.of_pixels(image_size)
        if min(pixels.height, pixels.width) < 2**config.layers:
            raise UserError(
                f"discriminator my-plugin: {config.layers} layers are too many for images of {pixels.written}"
            )
        layers: list[nn.Module] = []
        channels, width = 3, config.width
        for _ in range(config.layers):
            layers += [nn.Conv2d(channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            channels, width = width, 2 * width
        self.net = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Logits (B, 1, h, w), high where a patch looks real."""
        logits_B1hw: Tensor = self.net(images_B3HW)
        return logits_B1hw

"""The patch discriminator of pix2pix (Isola et al. 2017), as VQGAN, latent diffusion and Open-MAGVIT2 train with it."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import ge
from torch import Tensor, nn

from mixar_core.discriminator import Discriminator
from mixar_core.errors import UserError
from mixar_core.types import Grid, ImageSize

#: a layer's width is at most so many times the first one's
WIDEST = 8


@frozen
class PatchGANConfig:
    """Sizes; defaults are VQGAN's.

    Args:
        channels: of the first layer; twice as many in each after it, up to 8 times.
        layers: that halve the image. With 3, a logit sees 70 x 70 pixels; with 2, 34 x 34; with 1, 16 x 16.
    """

    channels: int = field(default=64, validator=ge(1))
    layers: int = field(default=3, validator=ge(1))


class PatchGAN(Discriminator):
    """pix2pix's: convolutions of 4 x 4 with batch norm, and a logit for each overlapping patch.

    Batch norm normalises over what a process computes at once, in evaluation too: it keeps no moving statistics, which
    would mix images and reconstructions. So a run depends on `training.micro_batch` and on the number of processes.
    """

    def __init__(self, config: PatchGANConfig, *, image_size: ImageSize) -> None:
        least, pixels = 3 * 2**config.layers, Grid.of_pixels(image_size)
        if min(pixels.height, pixels.width) < least:
            raise UserError(
                f"patchgan: image_size {pixels.written} is too small for {config.layers} layers; least: {least}"
            )
        super().__init__()
        widths = [config.channels * min(2**n, WIDEST) for n in range(config.layers + 1)]
        modules: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n in range(1, config.layers + 1):
            stride = 2 if n < config.layers else 1
            modules += [
                nn.Conv2d(widths[n - 1], widths[n], 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(widths[n], track_running_stats=False),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*modules, nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.apply(_begin)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Logits (B, 1, h, w)."""
        return self.main(images_B3HW)


def _begin(module: nn.Module) -> None:
    """pix2pix's initial weights; biases of convolutions stay torch's."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)

"""The KL autoencoder of latent diffusion, in the two forms that MAR and VA-VAE publish.

| published file | latent_channels | decoder_attention | latent_mean, latent_std |
|---|---|---|---|
| KL-16 (MAR) | 16 | () | 0, 1 / 0.2325: MAR multiplies latents by 0.2325 |
| VA-VAE f16d32 (LightningDiT) | 32 | (16,) | stored per channel beside its weights |

All other settings are the defaults. Parameters carry the published names, so that a released file maps one to one; the
two statistics buffers are ours alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from attrs import field, frozen, validators
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.tokenizer import ContinuousTokenizer
from mixar_core.types import Grid, ImageSize, Posterior, TokenLayout
from mixar_plugins.tokenizers import layers
from mixar_plugins.tokenizers.autoencoder import Sizes, decoder_of, encoder_of

#: What the log-variance is clamped to, as published.
LOGVAR_RANGE = (-30.0, 20.0)


@frozen
class KLConfig:
    """Settings of KLAutoencoder.

    Args:
        latent_channels: channels of a latent, C.
        channels: width at full resolution.
        channel_multipliers: width of each level over `channels`; each level but the last halves the image.
        blocks: residual blocks of an encoder level; a decoder level has one more.
        encoder_attention: strides (1, 2, 4, ...) at which every encoder block is followed by attention.
        decoder_attention: the same for the decoder.
        mid_attention: attention between the two middle blocks of each half.
        norm: of the residual blocks; `none` for small tokenizers trained here.
        latent_mean, latent_std: where the latents' statistics start: a tokenizer trained here measures its own.
        scales: sides of the grids of a pyramid, the last of which is the latents' own and the others its averages
            (FlowAR: 1, 2, 4, 8, 16); (): the grid alone.
    """

    latent_channels: int = field(default=16, validator=layers.positive)
    channels: int = field(default=128, validator=layers.positive)
    channel_multipliers: tuple[int, ...] = field(default=(1, 1, 2, 2, 4), validator=layers.multipliers)
    blocks: int = field(default=2, validator=layers.positive)
    encoder_attention: tuple[int, ...] = (16,)
    decoder_attention: tuple[int, ...] = ()
    mid_attention: bool = True
    norm: layers.Norm = field(default="group", validator=validators.in_(("group", "none")))
    latent_mean: float = 0.0
    latent_std: float = field(default=1.0, validator=validators.gt(0.0))
    scales: tuple[ImageSize, ...] = ()


class KLAutoencoder(ContinuousTokenizer):
    """Convolutional autoencoder with a Gaussian bottleneck: MAR's KL-16 and VA-VAE."""

    def __init__(self, config: KLConfig, *, image_size: ImageSize) -> None:
        stride = layers.stride_of(config.channel_multipliers, image_size, "kl")
        allowed = [2**level for level in range(len(config.channel_multipliers))]
        for key in ("encoder_attention", "decoder_attention"):
            if unknown := set(getattr(config, key)).difference(allowed):
                raise UserError(f"kl: {key} names stride {min(unknown)}; its levels have strides {allowed}")
        super().__init__(image_size=image_size, stride=stride, latent_channels=config.latent_channels)
        self.config, self.grids = config, tuple(Grid.of_pixels(scale) for scale in config.scales)
        if config.scales:
            layers.check_scales(config.scales, image_size, stride, "kl")
        channels = config.latent_channels

        def sizes(attention: tuple[int, ...]) -> Sizes:
            levels = (config.channels, config.channel_multipliers, config.blocks)
            return Sizes(*levels, attention, config.mid_attention, config.norm)

        self.encoder = encoder_of(sizes(config.encoder_attention), 2 * channels)
        self.decoder = decoder_of(sizes(config.decoder_attention), channels)
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        self.latent_mean_C.fill_(config.latent_mean)
        self.latent_std_C.fill_(config.latent_std)
        layers.fast_layout(self, config.norm)

    @property
    def layout(self) -> TokenLayout:
        """A grid, or the pyramid of `scales`."""
        return TokenLayout("pyramid", self.grids) if self.grids else super().layout

    @property
    def last_layer(self) -> nn.Parameter:
        """Of the decoder: what makes pixels."""
        weight: nn.Parameter = self.decoder.get_parameter("conv_out.weight")
        return weight

    @property
    def encoder_layer(self) -> nn.Parameter:
        """What comes before `quant_conv`, as in VA-VAE's released code."""
        weight: nn.Parameter = self.encoder.get_parameter("conv_out.weight")
        return weight

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        """The encoder's Gaussian over raw latents (B, C, h, w), in the images' dtype even under autocast."""
        moments = self.quant_conv(self.encoder(images_B3HW)).to(images_B3HW.dtype)
        mean_BChw, logvar_BChw = moments.chunk(2, dim=1)
        logvar_BChw = logvar_BChw.clamp(*LOGVAR_RANGE)
        if self.grids:  # the variance of a mean over the places that it covers
            fewer = (grid.tokens / self.grids[-1].tokens for grid in self.grids)
            logvar_BChw = self._pyramid(logvar_BChw.exp(), *fewer).log()
            mean_BChw = self._pyramid(mean_BChw)
        return Posterior(mean_BChw, logvar_BChw)

    def normalise(self, raw_BChw: Tensor) -> Tensor:
        """(raw - mean) / std, per channel; of a pyramid, coarser scales are averages of the finest one's sample."""
        if not self.grids:
            return super().normalise(raw_BChw)
        return self._pyramid(super().normalise(self._finest(raw_BChw)))

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) to images (B, 3, H, W), not clamped; of a pyramid, from its finest scale."""
        return self.decoder(self.post_quant_conv(self._finest(latents_BChw) if self.grids else latents_BChw))

    def _finest(self, pyramid_BC1N: Tensor) -> Tensor:
        grid = self.grids[-1]
        return pyramid_BC1N[:, :, 0, -grid.tokens :].unflatten(2, (grid.height, grid.width))

    def _pyramid(self, map_BChw: Tensor, *factors: float) -> Tensor:
        """(B, C, 1, N): averages of a map at every scale, each times its factor."""
        sizes = ((grid.height, grid.width) for grid in self.grids)
        maps = [F.interpolate(map_BChw, size=size, mode="area").flatten(2) for size in sizes]
        maps = [scale * factor for scale, factor in zip(maps, factors, strict=True)] if factors else maps
        return torch.cat(maps, dim=2)[:, :, None]

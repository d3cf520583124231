"""The KL autoencoder of latent diffusion, in the two forms that MAR and VA-VAE publish.

| published file | latent_channels | decoder_attention | latent_mean, latent_std |
|---|---|---|---|
| KL-16 (MAR) | 16 | () | 0, 1 / 0.2325: MAR multiplies latents by 0.2325 |
| VA-VAE f16d32 (LightningDiT) | 32 | (16,) | stored per channel beside its weights |

All other settings are the defaults. Parameters carry the published names, so that a released file maps one to one; the
two statistics buffers are ours alone.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from attrs import field, frozen, validators
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.tokenizer import ContinuousTokenizer
from mixar_core.types import ImageSize, Posterior
from mixar_plugins.tokenizers import layers

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


class KLAutoencoder(ContinuousTokenizer):
    """Convolutional autoencoder with a Gaussian bottleneck: MAR's KL-16 and VA-VAE."""

    def __init__(self, config: KLConfig, *, image_size: ImageSize) -> None:
        stride = layers.stride_of(config.channel_multipliers, image_size, "kl")
        allowed = [2**level for level in range(len(config.channel_multipliers))]
        for key in ("encoder_attention", "decoder_attention"):
            if unknown := set(getattr(config, key)).difference(allowed):
                raise UserError(f"kl: {key} names stride {min(unknown)}; its levels have strides {allowed}")
        super().__init__(image_size=image_size, stride=stride, latent_channels=config.latent_channels)
        self.config = config
        channels, widths = config.latent_channels, [config.channels * factor for factor in config.channel_multipliers]
        levels, last = range(len(widths)), len(widths) - 1
        encoded, decoded = [config.channels, *widths], [*widths[1:], widths[-1]]  # what enters each level

        def down(n: int) -> Level:
            resample: layers.Resample = "halve" if n < last else None
            return Level(encoded[n], widths[n], config.norm, config.blocks, 2**n in config.encoder_attention, resample)

        def up(n: int) -> Level:
            resample: layers.Resample = "double" if n > 0 else None
            attention = 2**n in config.decoder_attention
            return Level(decoded[n], widths[n], config.norm, config.blocks + 1, attention, resample)

        def middle() -> nn.Module:
            first = layers.ResidualBlock(widths[-1], widths[-1], config.norm)
            attention = Attention(widths[-1]) if config.mid_attention else nn.Identity()
            second = layers.ResidualBlock(widths[-1], widths[-1], config.norm)
            return nn.Sequential(OrderedDict(block_1=first, attn_1=attention, block_2=second))

        self.encoder = layers.encoder(
            nn.Conv2d(3, config.channels, 3, padding=1),
            [down(n) for n in levels],
            middle(),
            nn.Conv2d(widths[-1], 2 * channels, 3, padding=1),
        )
        self.decoder = layers.decoder(
            nn.Conv2d(channels, widths[-1], 3, padding=1),
            middle(),
            [up(n) for n in reversed(levels)],
            nn.Conv2d(widths[0], 3, 3, padding=1),
            backwards=True,
        )
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        self.latent_mean_C.fill_(config.latent_mean)
        self.latent_std_C.fill_(config.latent_std)
        if config.norm == "none":  # 1.6x faster on CPU; a group norm would change the layout back and forth
            self.to(memory_format=torch.channels_last)

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
        return Posterior(mean_BChw, logvar_BChw.clamp(*LOGVAR_RANGE))

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) to images (B, 3, H, W), not clamped."""
        return self.decoder(self.post_quant_conv(latents_BChw))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention or none; then half, twice or the same size."""

    def __init__(
        self, width: int, out: int, norm: layers.Norm, blocks: int, attention: bool, resample: layers.Resample
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(layers.ResidualBlock(width if i == 0 else out, out, norm) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(out) for _ in range(blocks if attention else 0))
        self.downsample = self.upsample = nn.Sequential()
        if resample == "halve":
            self.downsample = nn.Sequential(OrderedDict(conv=layers.HalvingConv(out)))
        elif resample == "double":
            self.upsample = nn.Sequential(OrderedDict(conv=layers.DoublingConv(out)))

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            hidden_BCHW = block(hidden_BCHW)
            if self.attn:
                hidden_BCHW = self.attn[index](hidden_BCHW)
        return self.upsample(self.downsample(hidden_BCHW))


class Attention(nn.Module):
    """Self-attention of one head over all positions, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = layers.make_norm("group", width)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        normed = self.norm(hidden_BCHW)
        # A head axis of length one: the fused kernels want (B, heads, N, C).
        query, key, value = (conv(normed).flatten(2).transpose(1, 2)[:, None] for conv in (self.q, self.k, self.v))
        mixed_B1NC = F.scaled_dot_product_attention(query, key, value)
        mixed_BCHW = mixed_B1NC[:, 0].transpose(1, 2).unflatten(2, hidden_BCHW.shape[-2:])
        return hidden_BCHW + self.proj_out(mixed_BCHW)

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
from mixar_core.types import Posterior
from mixar_plugins.tokenizers.layers import Norm, double_size, make_norm, pad_for_stride_two, stride_of

#: What the log-variance is clamped to, as published.
LOGVAR_RANGE = (-30.0, 20.0)

_positive = validators.ge(1)


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
        latent_mean: where the latents' statistics start: a tokenizer trained here measures its own.
        latent_std: likewise.
    """

    latent_channels: int = field(default=16, validator=_positive)
    channels: int = field(default=128, validator=_positive)
    channel_multipliers: tuple[int, ...] = field(
        default=(1, 1, 2, 2, 4), validator=validators.and_(validators.min_len(1), validators.deep_iterable(_positive))
    )
    blocks: int = field(default=2, validator=_positive)
    encoder_attention: tuple[int, ...] = (16,)
    decoder_attention: tuple[int, ...] = ()
    mid_attention: bool = True
    norm: Norm = field(default="group", validator=validators.in_(("group", "none")))
    latent_mean: float = 0.0
    latent_std: float = field(default=1.0, validator=validators.gt(0.0))


class KLAutoencoder(ContinuousTokenizer):
    """Convolutional autoencoder with a Gaussian bottleneck: MAR's KL-16 and VA-VAE."""

    def __init__(self, config: KLConfig, *, image_size: int) -> None:
        stride = stride_of(config.channel_multipliers, image_size, "kl")
        allowed = [2**level for level in range(len(config.channel_multipliers))]
        for key in ("encoder_attention", "decoder_attention"):
            if unknown := set(getattr(config, key)).difference(allowed):
                raise UserError(f"kl: {key} names stride {min(unknown)}; its levels have strides {allowed}")
        super().__init__(image_size=image_size, stride=stride, latent_channels=config.latent_channels)
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.latent_mean_C.fill_(config.latent_mean)
        self.latent_std_C.fill_(config.latent_std)
        if config.norm == "none":  # 1.6x faster on CPU; a group norm would change the layout back and forth
            self.to(memory_format=torch.channels_last)

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        """The encoder's Gaussian over raw latents (B, C, h, w), in the images' dtype even under autocast."""
        moments = self.quant_conv(self.encoder(images_B3HW)).to(images_B3HW.dtype)
        mean_BChw, logvar_BChw = moments.chunk(2, dim=1)
        return Posterior(mean_BChw, logvar_BChw.clamp(*LOGVAR_RANGE))

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) to images (B, 3, H, W), not clamped."""
        return self.decoder(self.post_quant_conv(latents_BChw))


class Encoder(nn.Module):
    """Image (B, 3, H, W) to moments (B, 2 C, h, w)."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        width = config.channels
        for level, out in enumerate(widths):
            attention = 2**level in config.encoder_attention
            last = level == len(widths) - 1
            self.down.append(DownLevel(width, out, config.blocks, attention, config.norm, resample=not last))
            width = out
        self.mid = Middle(width, config)
        self.norm_out = make_norm("group", width)
        self.conv_out = nn.Conv2d(width, 2 * config.latent_channels, 3, padding=1)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        hidden = self.conv_in(images_B3HW)
        for level in self.down:
            hidden = level(hidden)
        return self.conv_out(F.silu(self.norm_out(self.mid(hidden))))


class Decoder(nn.Module):
    """Latents (B, C, h, w) to image (B, 3, H, W). `up` is listed from full resolution down, and run backwards."""

    def __init__(self, config: KLConfig) -> None:
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.channel_multipliers]
        width = widths[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = Middle(width, config)
        levels: list[UpLevel] = []
        for level, out in reversed(list(enumerate(widths))):
            attention = 2**level in config.decoder_attention
            levels.append(UpLevel(width, out, config.blocks + 1, attention, config.norm, resample=level > 0))
            width = out
        self.up = nn.ModuleList(reversed(levels))
        self.norm_out = make_norm("group", width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, latents_BChw: Tensor) -> Tensor:
        hidden = self.mid(self.conv_in(latents_BChw))
        for level in reversed(self.up):
            hidden = level(hidden)
        return self.conv_out(F.silu(self.norm_out(hidden)))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention or none."""

    def __init__(self, width: int, out: int, blocks: int, attention: bool, norm: Norm) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(width if i == 0 else out, out, norm) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(out) for _ in range(blocks if attention else 0))

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            hidden_BCHW = block(hidden_BCHW)
            if self.attn:
                hidden_BCHW = self.attn[index](hidden_BCHW)
        return hidden_BCHW


class DownLevel(Level):
    """A level of the encoder, halving the size at its end unless it is the last."""

    def __init__(self, width: int, out: int, blocks: int, attention: bool, norm: Norm, *, resample: bool) -> None:
        super().__init__(width, out, blocks, attention, norm)
        self.downsample = Downsample(out) if resample else nn.Identity()

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.downsample(super().forward(hidden_BCHW))


class UpLevel(Level):
    """A level of the decoder, doubling the size at its end unless it is the last."""

    def __init__(self, width: int, out: int, blocks: int, attention: bool, norm: Norm, *, resample: bool) -> None:
        super().__init__(width, out, blocks, attention, norm)
        self.upsample = Upsample(out) if resample else nn.Identity()

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.upsample(super().forward(hidden_BCHW))


class Middle(nn.Module):
    """Two residual blocks at the lowest resolution with attention between them."""

    def __init__(self, width: int, config: KLConfig) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(width, width, config.norm)
        self.attn_1 = Attention(width) if config.mid_attention else nn.Identity()
        self.block_2 = ResidualBlock(width, width, config.norm)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(hidden_BCHW)))


class Downsample(nn.Module):
    """Half the size, by a convolution of stride 2 padded on the right and below alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.conv(pad_for_stride_two(hidden_BCHW))


class Upsample(nn.Module):
    """Twice the size: nearest neighbours, then a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        return self.conv(double_size(hidden_BCHW))


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to the input (through a 1x1 convolution where the width changes)."""

    def __init__(self, width: int, out: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, width)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        self.norm2 = make_norm(norm, out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.nin_shortcut = nn.Identity() if width == out else nn.Conv2d(width, out, 1)

    def forward(self, hidden_BCHW: Tensor) -> Tensor:
        residual = self.conv1(F.silu(self.norm1(hidden_BCHW)))
        residual = self.conv2(F.silu(self.norm2(residual)))
        return self.nin_shortcut(hidden_BCHW) + residual


class Attention(nn.Module):
    """Self-attention of one head over all positions, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = make_norm("group", width)
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

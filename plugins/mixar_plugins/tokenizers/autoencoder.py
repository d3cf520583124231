"""The convolutional autoencoder of latent diffusion, of which KL-16, VA-VAE, LlamaGen, VAR and HART have one each."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch.nn.functional as F
from attrs import frozen
from torch import Tensor, nn

from mixar_plugins.tokenizers import layers


@frozen
class Sizes:
    """Of one half.

    Args:
        channels, multipliers: width at full resolution, and that of each level over it.
        blocks: residual blocks of an encoder level; a decoder level has one more.
        attention: strides (1, 2, 4, ...) at which every block is followed by attention.
        mid_attention: attention between the two middle blocks.
        norm: of the residual blocks.
    """

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    mid_attention: bool = True
    norm: layers.Norm = "group"

    @property
    def widths(self) -> list[int]:
        """Of each level, from full resolution down."""
        return [self.channels * factor for factor in self.multipliers]


def encoder_of(sizes: Sizes, out: int) -> nn.Module:
    """Image (B, 3, H, W) to (B, out, h, w)."""
    widths = sizes.widths
    entering = [sizes.channels, *widths]

    def level(n: int) -> Level:
        down = layers.HalvingConv if n < len(widths) - 1 else None
        attention = 2**n in sizes.attention
        return Level(entering[n], widths[n], sizes.norm, sizes.blocks, attention=attention, downsample=down)

    return layers.encoder(
        nn.Conv2d(3, sizes.channels, 3, padding=1),
        [level(n) for n in range(len(widths))],
        middle(sizes),
        nn.Conv2d(widths[-1], out, 3, padding=1),
    )


def decoder_of(sizes: Sizes, latent: int) -> nn.Module:
    """(B, latent, h, w) to image (B, 3, H, W)."""
    widths = sizes.widths
    entering = [*widths[1:], widths[-1]]

    def level(n: int) -> Level:
        up = layers.DoublingConv if n > 0 else None
        attention = 2**n in sizes.attention
        return Level(entering[n], widths[n], sizes.norm, sizes.blocks + 1, attention=attention, upsample=up)

    return layers.decoder(
        nn.Conv2d(latent, widths[-1], 3, padding=1),
        middle(sizes),
        [level(n) for n in reversed(range(len(widths)))],
        nn.Conv2d(widths[0], 3, 3, padding=1),
        backwards=True,
    )


def middle(sizes: Sizes) -> nn.Module:
    """What stands between encoder and decoder levels: two residual blocks, and attention between them."""
    width = sizes.widths[-1]
    first = layers.ResidualBlock(width, width, sizes.norm)
    attention = Attention(width) if sizes.mid_attention else nn.Identity()
    second = layers.ResidualBlock(width, width, sizes.norm)
    return nn.Sequential(OrderedDict(block_1=first, attn_1=attention, block_2=second))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention or none; then another size, or the same.

    Args:
        downsample, upsample: what changes the size, made for a width.
    """

    def __init__(
        self,
        width: int,
        out: int,
        norm: layers.Norm,
        blocks: int,
        *,
        attention: bool = False,
        bias: bool = True,
        downsample: Callable[[int], nn.Module] | None = None,
        upsample: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        widths = [width, *[out] * (blocks - 1)]
        self.block = nn.ModuleList(layers.ResidualBlock(each, out, norm, bias=bias) for each in widths)
        self.attn = nn.ModuleList(Attention(out) for _ in range(blocks if attention else 0))
        self.downsample = nn.Sequential() if downsample is None else nn.Sequential(OrderedDict(conv=downsample(out)))
        self.upsample = nn.Sequential() if upsample is None else nn.Sequential(OrderedDict(conv=upsample(out)))

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

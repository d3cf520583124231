"""Tokenizers of an encoder, a quantizer and a decoder; and those among them whose networks are latent diffusion's."""

from __future__ import annotations

from abc import abstractmethod

from attrs import field, frozen, validators
from torch import Tensor, nn

from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import ImageSize, Quantized, TokenLayout
from mixar_plugins.tokenizers import layers
from mixar_plugins.tokenizers.autoencoder import Sizes, decoder_of, encoder_of
from mixar_plugins.tokenizers.quantizers import Quantizer, QuantizerWeights


class QuantizedTokenizer(DiscreteTokenizer):
    """`encoded`, then the quantizer, then `decode_vectors`."""

    quantizer: Quantizer
    decoder: nn.Module

    def __init__(self, quantizer: Quantizer, *, image_size: ImageSize, stride: int) -> None:
        super().__init__(
            image_size=image_size, stride=stride, codebook_size=quantizer.codes, code_width=quantizer.width
        )

    @abstractmethod
    def encoded(self, images_B3HW: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the quantizer takes them, (B, E, h, w)."""

    @property
    def layout(self) -> TokenLayout:
        """Where the quantizer puts its codes."""
        return self.quantizer.layout(super().layout.scales[0])

    @property
    def last_layer(self) -> nn.Parameter:
        """Of the decoder: what makes pixels."""
        weight: nn.Parameter = self.decoder.get_parameter("conv_out.weight")
        return weight

    def quantize(self, images_B3HW: Tensor) -> Quantized:
        """Encode and quantize; see Quantizer for the losses."""
        return self.quantizer(self.encoded(images_B3HW))

    def code_vectors(self, codes_BN: Tensor) -> Tensor:
        """Code vectors (B, N, E) of codes (B, N)."""
        return self.quantizer.vectors(codes_BN)


@frozen(kw_only=True)
class LatentCodesConfig(QuantizerWeights):
    """Settings that all tokenizers on LatentCodesTokenizer share.

    Args:
        channels: width at full resolution.
        channel_multipliers: width of each level over `channels`; each level but the last halves the image.
        blocks: residual blocks of an encoder level; a decoder level has one more.
        attention: after every block of the lowest resolution, and between the two in the middle.
        norm: of the residual blocks; `none` for small tokenizers trained here.
        latent_channels: of what the encoder gives, before a convolution makes it as wide as a code vector.
        commitment_weight, entropy_weight, entropy_temperature, entropy_gamma: see QuantizerWeights.
    """

    channels: int = field(default=128, validator=layers.positive)
    channel_multipliers: tuple[int, ...] = field(default=(1, 1, 2, 2, 4), validator=layers.multipliers)
    blocks: int = field(default=2, validator=layers.positive)
    attention: bool = True
    norm: layers.Norm = field(default="group", validator=validators.in_(("group", "none")))
    latent_channels: int = field(default=256, validator=layers.positive)
    entropy_weight: float = field(default=0.0, validator=validators.ge(0.0))


class LatentCodesTokenizer(QuantizedTokenizer):
    """Codes between latent diffusion's encoder and decoder, with a convolution on each side of the quantizer.

    Args:
        kernel: of these convolutions.
        part: what messages call it.
    """

    def __init__(
        self, config: LatentCodesConfig, quantizer: Quantizer, *, image_size: ImageSize, kernel: int, part: str
    ) -> None:
        stride = layers.stride_of(config.channel_multipliers, image_size, part)
        super().__init__(quantizer, image_size=image_size, stride=stride)
        self.config, width, latent = config, quantizer.width, config.latent_channels
        levels = (config.channels, config.channel_multipliers, config.blocks)
        attention = (stride,) if config.attention else ()
        sizes = Sizes(*levels, attention, config.attention, config.norm)
        self.encoder = encoder_of(sizes, latent)
        self.decoder = decoder_of(sizes, latent)
        self.quantizer = quantizer
        self.quant_conv = nn.Conv2d(latent, width, kernel, padding=kernel // 2)
        self.post_quant_conv = nn.Conv2d(width, latent, kernel, padding=kernel // 2)
        layers.fast_layout(self, config.norm)

    def encoded(self, images_B3HW: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the quantizer takes them, (B, E, h, w)."""
        return self.quant_conv(self.encoder(images_B3HW))

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        """Code vectors on the grid (B, E, h, w) to images (B, 3, H, W), not clamped."""
        return self.decoder(self.post_quant_conv(vectors_BEhw.contiguous()))

"""A discrete tokenizer: images to codes, and back."""

from __future__ import annotations

import torch
from attrs import field, frozen
from attrs.validators import and_, ge, le
from mixar_core import DiscreteTokenizer, ImageSize, Quantized
from torch import Tensor, nn


@frozen
class MyPluginDiscreteTokenizerConfig:
    """Sizes and losses.

    Args:
        stride: pixels that a code spans in each direction.
        bits: of a code: there are 2^bits codes.
        width: channels of the hidden layers.
        commitment: weight of the loss that draws what is quantized towards its signs.
        balance: weight of the loss that lets each bit be 1 as often as 0.
    """

    stride: int = field(default=4, validator=ge(1))
    bits: int = field(default=6, validator=and_(ge(1), le(20)))
    width: int = field(default=64, validator=ge(1))
    commitment: float = field(default=0.25, validator=ge(0.0))
    balance: float = field(default=0.1, validator=ge(0.0))


class MyPluginDiscreteTokenizer(DiscreteTokenizer):
    """A code is a string of bits, and its vector their signs."""

    powers: Tensor

    def __init__(self, config: MyPluginDiscreteTokenizerConfig, *, image_size: ImageSize) -> None:
        stride, bits, width = config.stride, config.bits, config.width
        super().__init__(image_size=image_size, stride=stride, codebook_size=2**bits, code_width=bits)
        self.config = config
        self.register_buffer("powers", 2 ** torch.arange(bits), persistent=False)
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, stride, stride),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, bits, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(bits, width, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
        )
        self.to_pixels = nn.ConvTranspose2d(width, 3, stride, stride)

    @property
    def last_layer(self) -> nn.Parameter:
        """By whose gradient the loss of a discriminator is weighed."""
        return self.to_pixels.weight

    def quantize(self, images_B3HW: Tensor) -> Quantized:
        """Images (B, 3, H, W) in [-1, 1] to vectors (B, E, h, w), codes (B, N) and losses; gradients pass the signs."""
        raw_BEhw = self.encoder(images_B3HW).float()
        ones_BEhw = (raw_BEhw > 0).long()
        vectors_BEhw = 2.0 * ones_BEhw - 1.0
        codes_BN = (ones_BEhw * self.powers[:, None, None]).sum(dim=1).flatten(1)
        commitment = (raw_BEhw - vectors_BEhw).square().mean()
        balance = raw_BEhw.tanh().mean(dim=(0, 2, 3)).square().mean()
        total = self.config.commitment * commitment + self.config.balance * balance
        losses = {"quantizer": total, "commitment": commitment.detach(), "balance": balance.detach()}
        return Quantized(raw_BEhw + (vectors_BEhw - raw_BEhw).detach(), codes_BN, losses)

    def code_vectors(self, codes_BN: Tensor) -> Tensor:
        """Vectors (B, N, E) of codes (B, N)."""
        return 2.0 * ((codes_BN[..., None] & self.powers) != 0).float() - 1.0

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        """Vectors (B, E, h, w) to images (B, 3, H, W)."""
        images_B3HW: Tensor = self.to_pixels(self.decoder(vectors_BEhw))
        return images_B3HW

"""TiTok (arXiv 2406.07550): an image as a short sequence of tokens, discrete (`titok`) or continuous (`titok-vae`)."""

from __future__ import annotations

import torch
from attrs import field, frozen, validators
from torch import Tensor, nn

from mixar_core.blocks import Mlp
from mixar_core.errors import UserError
from mixar_core.tokenizer import ContinuousTokenizer, Tokenizer
from mixar_core.types import Grid, ImageSize, Posterior, TokenLayout
from mixar_plugins.tokenizers import layers
from mixar_plugins.tokenizers.kl import LOGVAR_RANGE
from mixar_plugins.tokenizers.maskbit import ConvConfig, conv_decoder
from mixar_plugins.tokenizers.quantized import QuantizedTokenizer
from mixar_plugins.tokenizers.quantizers import LookupQuantizer, QuantizerWeights
from mixar_plugins.tokenizers.vit import HalvesConfig, Pixels, ViT, embedding, patches_of


@frozen(kw_only=True, slots=False)
class SequenceConfig(HalvesConfig):
    """Settings of both kinds: those of HalvesConfig and

    Args:
        tokens: of an image.
    """

    tokens: int = field(default=64, validator=layers.positive)


@frozen(kw_only=True)
class TiTokConfig(QuantizerWeights, SequenceConfig):
    """Settings of TiTok: those of SequenceConfig and

    Args:
        codebook_size: codes. code_width: length of a code vector.
        normalised: what is quantized has length 1, and so have code vectors.
        legacy: the first release's design (L-32, B-64, S-128): the decoder says which of MaskGIT's codes stand at each
            place, and MaskGIT's decoder makes pixels of their mean. Otherwise it makes pixels itself.
        proxy_codes, proxy_width: MaskGIT's codebook. proxy_channels, proxy_multipliers, proxy_blocks: its decoder.
        commitment_weight, entropy_weight, entropy_temperature, entropy_gamma: see QuantizerWeights.
    """

    codebook_size: int = field(default=4096, validator=layers.positive)
    code_width: int = field(default=12, validator=layers.positive)
    normalised: bool = True
    legacy: bool = True
    proxy_codes: int = field(default=1024, validator=layers.positive)
    proxy_width: int = field(default=256, validator=layers.positive)
    proxy_channels: int = field(default=128, validator=layers.positive)
    proxy_multipliers: tuple[int, ...] = field(default=(1, 1, 2, 2, 4), validator=layers.multipliers)
    proxy_blocks: int = field(default=2, validator=layers.positive)
    entropy_weight: float = field(default=0.0, validator=validators.ge(0.0))


@frozen(kw_only=True)
class TiTokVAEConfig(SequenceConfig):
    """Settings of TiTokVAE: those of SequenceConfig and

    Args:
        latent_channels: of a token, C.
    """

    latent_channels: int = field(default=16, validator=layers.positive)


class SequenceTokenizer(Tokenizer):
    """Tokens in a sequence, without a place in the image."""

    config: SequenceConfig
    decoder: nn.Module

    @property
    def layout(self) -> TokenLayout:
        """A sequence."""
        return TokenLayout("sequence", (Grid(1, self.config.tokens),))

    @property
    def last_layer(self) -> nn.Parameter:
        """Of the decoder: what makes pixels."""
        assert isinstance(self.decoder, TiTokDecoder)
        return self.decoder.end.last_layer


class TiTok(SequenceTokenizer, QuantizedTokenizer):
    """TiTok: codes in a sequence. The networks see pixels in [0, 1]."""

    def __init__(self, config: TiTokConfig, *, image_size: ImageSize) -> None:
        grid = patches_of(image_size, config.patch, "titok")
        sizes = (config.codebook_size, config.code_width, config)
        quantizer = LookupQuantizer(*sizes, entropy_rule="exact", normalised=config.normalised)
        super().__init__(quantizer, image_size=image_size, stride=config.patch)
        self.config = config
        self.encoder = TiTokEncoder(config, grid, config.code_width, scrambled=config.legacy)
        self.quantizer = quantizer
        end = proxy_pixels(config) if config.legacy else Pixels(config.decoder_width, config.patch)
        self.decoder = TiTokDecoder(config, grid, config.code_width, end)

    def encoded(self, images_B3HW: Tensor) -> Tensor:
        """Images (B, 3, H, W) as the quantizer takes them, (B, E, 1, N)."""
        return self.encoder((images_B3HW + 1) / 2)

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        """Code vectors in a row (B, E, 1, N) to images (B, 3, H, W), not clamped."""
        return self.decoder(vectors_BEhw) * 2 - 1


class TiTokVAE(SequenceTokenizer, ContinuousTokenizer):
    """TiTok with continuous tokens in a sequence. The networks see pixels in [0, 1]."""

    def __init__(self, config: TiTokVAEConfig, *, image_size: ImageSize) -> None:
        grid = patches_of(image_size, config.patch, "titok-vae")
        super().__init__(image_size=image_size, stride=config.patch, latent_channels=config.latent_channels)
        self.config = config
        self.encoder = TiTokEncoder(config, grid, 2 * config.latent_channels, scrambled=False)
        end = Pixels(config.decoder_width, config.patch)
        self.decoder = TiTokDecoder(config, grid, config.latent_channels, end)

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        """The encoder's Gaussian over raw latents (B, C, 1, N), in the images' dtype even under autocast."""
        mean, logvar = self.encoder((images_B3HW + 1) / 2).to(images_B3HW.dtype).chunk(2, dim=1)
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        """Raw latents (B, C, 1, N) to images (B, 3, H, W), not clamped."""
        return self.decoder(latents_BChw) * 2 - 1


class TiTokViT(ViT):
    """A half's transformer over a class token, places of the image, and tokens, with positions of all three."""

    def __init__(self, width: int, depth: int, heads: int, grid: Grid, tokens: int) -> None:
        super().__init__(
            width,
            depth,
            heads,
            norm=lambda width: nn.LayerNorm(width, eps=1e-5),
            mlp=lambda width: Mlp(width, 4 * width, dropout=0.0),
        )
        self.grid = grid
        self.class_embedding = embedding(1, width)
        self.positional_embedding = embedding(grid.tokens + 1, width)
        self.latent_token_positional_embedding = embedding(tokens, width)

    def both(self, places_BND: Tensor, tokens_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """What the transformer makes of places (B, h * w, D) and tokens (B, N, D)."""
        first = self.class_embedding.to(places_BND.dtype).expand(places_BND.shape[0], 1, -1)
        places_BTD = torch.cat([first, places_BND], dim=1) + self.positional_embedding
        tokens_BTD = tokens_BTD + self.latent_token_positional_embedding
        _, places_BND, tokens_BTD = self.through(torch.cat([places_BTD, tokens_BTD], dim=1)).split(
            [1, places_BND.shape[1], tokens_BTD.shape[1]], dim=1
        )
        return places_BND, tokens_BTD


class TiTokEncoder(TiTokViT):
    """Images (B, 3, H, W) to (B, out, 1, N).

    Args:
        scrambled: tokens (N, D) are read as if they stood in memory as (D, N): the first release was trained so.
    """

    def __init__(self, config: SequenceConfig, grid: Grid, out: int, *, scrambled: bool) -> None:
        super().__init__(config.width, config.depth, config.heads, grid, config.tokens)
        self.scrambled = scrambled
        self.latent_tokens = embedding(config.tokens, config.width)
        self.patch_embed = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.conv_out = nn.Conv2d(config.width, out, 1)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        patches_BND = self.patch_embed(images_B3HW).flatten(2).transpose(1, 2)
        wanted = self.latent_tokens.to(patches_BND.dtype).expand(patches_BND.shape[0], -1, -1)
        _, tokens_BND = self.both(patches_BND, wanted)
        batch, tokens, width = tokens_BND.shape
        tokens_BDN = tokens_BND.reshape(batch, width, tokens) if self.scrambled else tokens_BND.transpose(1, 2)
        return self.conv_out(tokens_BDN[:, :, None])


class TiTokDecoder(TiTokViT):
    """(B, C, 1, N) to images (B, 3, H, W); `end` makes pixels of vectors on the grid (B, D, h, w)."""

    def __init__(self, config: SequenceConfig, grid: Grid, channels: int, end: Pixels | ProxyPixels) -> None:
        super().__init__(config.decoder_width, config.decoder_depth, config.decoder_heads, grid, config.tokens)
        self.mask_token = embedding(1, 1, config.decoder_width)
        self.decoder_embed = nn.Linear(channels, config.decoder_width)
        self.end = end

    def forward(self, tokens_BC1N: Tensor) -> Tensor:
        return self.end(self.on_grid(tokens_BC1N))

    def on_grid(self, tokens_BC1N: Tensor) -> Tensor:
        """What the end is given, (B, D, h, w)."""
        tokens_BND = self.decoder_embed(tokens_BC1N[:, :, 0].transpose(1, 2))
        masks = self.mask_token.to(tokens_BND.dtype).expand(tokens_BND.shape[0], self.grid.tokens, -1)
        places_BND, _ = self.both(masks, tokens_BND)
        return places_BND.transpose(1, 2).unflatten(2, (self.grid.height, self.grid.width))


class ProxyPixels(nn.Module):
    """The first release's end: probabilities of another tokenizer's codes, whose mean vector its decoder decodes."""

    def __init__(self, width: int, codes: int, proxy: ConvConfig, proxy_width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.Tanh(), nn.Conv2d(2 * width, codes, 1))
        self.codes = nn.Embedding(codes, proxy_width)
        self.decoder = conv_decoder(proxy, proxy_width)

    @property
    def last_layer(self) -> nn.Parameter:
        """What makes pixels."""
        weight: nn.Parameter = self.decoder.get_parameter("conv_out.weight")
        return weight

    def forward(self, x_BDhw: Tensor) -> Tensor:
        share_BVhw = self.ffn(x_BDhw).softmax(dim=1)
        return self.decoder(torch.einsum("bvhw,ve->behw", share_BVhw, self.codes.weight.to(share_BVhw.dtype)))


def proxy_pixels(config: TiTokConfig) -> ProxyPixels:
    """The legacy end of these settings.

    Raises:
        UserError: its decoder enlarges by another factor than a patch.
    """
    if (stride := 2 ** (len(config.proxy_multipliers) - 1)) != config.patch:
        raise UserError(f"titok: proxy_multipliers makes {stride} pixels of a place, patch is {config.patch}")
    proxy = ConvConfig(
        channels=config.proxy_channels,
        channel_multipliers=config.proxy_multipliers,
        blocks=config.proxy_blocks,
        legacy=True,
    )
    return ProxyPixels(config.decoder_width, config.proxy_codes, proxy, config.proxy_width)

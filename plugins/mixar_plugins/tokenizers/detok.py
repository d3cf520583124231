"""l-DeTok (arXiv 2507.15856): a ViT autoencoder that is trained to restore masked patches and noised latents."""

from __future__ import annotations

import math
from typing import Literal

import torch
from attrs import field, frozen, validators
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.masking import take
from mixar_core.meta import constant
from mixar_core.noise import Noise
from mixar_core.tokenizer import ContinuousTokenizer
from mixar_core.types import Grid, ImageSize, Posterior
from mixar_plugins.networks.transformer import GatedMlp
from mixar_plugins.tokenizers import layers
from mixar_plugins.tokenizers.kl import LOGVAR_RANGE
from mixar_plugins.tokenizers.vit import HalvesConfig, Pixels, ViT, embedding, patches_of


@frozen(kw_only=True)
class DeTokConfig(HalvesConfig):
    """Settings of DeTok: those of HalvesConfig and

    Args:
        latent_channels: of a token, C.
        mask_ratio: in training, a share of patches drawn from -0.1 to this is hidden from the encoder; below 0: none.
        gamma: in training, latents are mixed with noise of this deviation, in shares from 0 to 1; 0: they are not.
        noise: `interpolated`: the share that is noise is no latent; `additive`: noise is added.
    """

    latent_channels: int = field(default=16, validator=layers.positive)
    mask_ratio: float = field(default=0.7, validator=validators.and_(validators.ge(0.0), validators.lt(1.0)))
    gamma: float = field(default=3.0, validator=validators.ge(0.0))
    noise: Literal["interpolated", "additive"] = "interpolated"

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        for half, width, heads in (("", self.width, self.heads), ("decoder_", self.decoder_width, self.decoder_heads)):
            if width // heads % 4:
                raise UserError(f"{half}width / {half}heads is {width // heads}; it must be a multiple of 4")


class DeTok(ContinuousTokenizer):
    """l-DeTok's tokenizer: a ViT autoencoder with a Gaussian bottleneck, trained as a denoiser of its latents."""

    def __init__(self, config: DeTokConfig, *, image_size: ImageSize) -> None:
        grid = patches_of(image_size, config.patch, "detok")
        super().__init__(image_size=image_size, stride=config.patch, latent_channels=config.latent_channels)
        self.config = config
        self.encoder = DeTokEncoder(config, grid)
        self.decoder = DeTokDecoder(config, grid)

    @property
    def last_layer(self) -> nn.Parameter:
        """Of the decoder: what makes pixels."""
        return self.decoder.pixels.last_layer

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        """The encoder's Gaussian over raw latents (B, C, h, w), in the images' dtype even under autocast."""
        return self._posterior(images_B3HW, None)

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) to images (B, 3, H, W), not clamped."""
        return self.decoder(latents_BChw.flatten(2).transpose(1, 2), None)

    def reconstruct(self, images_B3HW: Tensor, *, noise: Noise) -> tuple[Posterior, Tensor, Tensor]:
        """In training, of a random part of the patches, through noised latents; see the paper's section 3.

        Returns:
            the posterior of the visible patches and what is sampled of it, (B, C, 1, K) each, and images (B, 3, H, W).
        """
        if not self.training:
            return super().reconstruct(images_B3HW, noise=noise)
        ratio = -0.1 + noise.scalar(name="detok.ratio") * (self.config.mask_ratio + 0.1)
        return self.restored(images_B3HW, max(0.0, ratio), noise=noise)

    def restored(self, images_B3HW: Tensor, ratio: float, *, noise: Noise) -> tuple[Posterior, Tensor, Tensor]:
        """The same with this share of the patches hidden, 0 <= ratio < 1."""
        config, images, tokens = self.config, images_B3HW.shape[0], self.layout.tokens
        order_BN = noise.uniform((images, tokens), images_B3HW.device, name="detok.mask").argsort(dim=1)
        posterior = self._posterior(images_B3HW, order_BN[:, : math.ceil(tokens * (1 - ratio))])
        raw_BC1K = self.sample_posterior(posterior, noise)
        latents_BKC = raw_BC1K[:, :, 0].transpose(1, 2)
        if config.gamma:
            level_B11 = noise.uniform((images, 1, 1), images_B3HW.device, name="detok.level")
            eps_BKC = noise.normal(latents_BKC.shape, images_B3HW.device, name="detok.noise")
            latents_BKC = self.noised(latents_BKC, level_B11, eps_BKC)
        return posterior, raw_BC1K, self.decoder(latents_BKC, order_BN.argsort(dim=1))

    def noised(self, latents_BKC: Tensor, level_B11: Tensor, eps_BKC: Tensor) -> Tensor:
        """Latents at a noise level in [0, 1], one an image (Eq. 2)."""
        kept = latents_BKC if self.config.noise == "additive" else (1 - level_B11) * latents_BKC
        return kept + level_B11 * self.config.gamma * eps_BKC

    def _posterior(self, images_B3HW: Tensor, visible_BK: Tensor | None) -> Posterior:
        """Of all patches on their grid, or of the visible ones in a row."""
        moments = self.encoder(images_B3HW, visible_BK).to(images_B3HW.dtype).transpose(1, 2)
        grid = self.layout.shape if visible_BK is None else Grid(1, visible_BK.shape[1])
        mean_BChw, logvar_BChw = moments.unflatten(2, (grid.height, grid.width)).chunk(2, dim=1)
        return Posterior(mean_BChw, logvar_BChw.clamp(*LOGVAR_RANGE))


@constant
def turning_table(grid: Grid, width: int) -> Tensor:
    """What turns a head of `width` numbers at each place, see `rotary_table`: (N, 2, width).

    The published one: frequencies are listed twice and then taken in neighbouring pairs, whose two numbers so turn by
    different angles. Places run from 0 to 1 along each side.
    """
    quarter = width // 4
    frequencies = 2 * math.pi * torch.logspace(math.log10(7.0), math.log10(7e-4), quarter, dtype=torch.float64)
    rows = torch.arange(grid.height, dtype=torch.float64) / max(1, grid.height - 1)
    columns = torch.arange(grid.width, dtype=torch.float64) / max(1, grid.width - 1)
    of_rows, of_columns = (places[:, None] * frequencies.repeat(2) for places in (rows, columns))
    angles_hwD = torch.cat(
        [of_rows[:, None].expand(-1, grid.width, -1), of_columns.expand(grid.height, -1, -1)], dim=-1
    )
    angles_ND = angles_hwD.flatten(0, 1)
    sign_D = torch.tensor([-1.0, 1.0]).repeat(width // 2)
    return torch.stack([angles_ND.cos(), sign_D * angles_ND.sin()], dim=1).float()


class DeTokViT(ViT):
    """A half's transformer, with its positions."""

    table_N2D: Tensor

    def __init__(self, width: int, depth: int, heads: int, grid: Grid) -> None:
        super().__init__(
            width,
            depth,
            heads,
            norm=lambda width: nn.RMSNorm(width, eps=1e-6),
            mlp=lambda width: GatedMlp(width, int(8 / 3 * width), dropout=0.0, bias=True),
        )
        self.positional_embedding = embedding(1, grid.tokens, width)
        self.register_buffer("table_N2D", turning_table(grid, width // heads), persistent=False)


class DeTokEncoder(DeTokViT):
    """Images (B, 3, H, W) to moments (B, N or K, 2 C) of all patches or of those that are visible."""

    def __init__(self, config: DeTokConfig, grid: Grid) -> None:
        super().__init__(config.width, config.depth, config.heads, grid)
        self.patch_embed = nn.Conv2d(3, config.width, config.patch, stride=config.patch)
        self.latent_head = nn.Linear(config.width, 2 * config.latent_channels)

    def forward(self, images_B3HW: Tensor, visible_BK: Tensor | None) -> Tensor:
        x_BND = self.patch_embed(images_B3HW).flatten(2).transpose(1, 2) + self.positional_embedding
        table = self.table_N2D[None]
        if visible_BK is not None:
            x_BND, table = take(x_BND, visible_BK), self.table_N2D[visible_BK]
        return self.latent_head(self.through(x_BND, table))


class DeTokDecoder(DeTokViT):
    """Latents (B, N or K, C) to images (B, 3, H, W)."""

    def __init__(self, config: DeTokConfig, grid: Grid) -> None:
        super().__init__(config.decoder_width, config.decoder_depth, config.decoder_heads, grid)
        self.grid = grid
        self.mask_token = embedding(1, 1, config.decoder_width)
        self.decoder_embed = nn.Linear(config.latent_channels, config.decoder_width)
        self.pixels = Pixels(config.decoder_width, config.patch)

    def forward(self, latents_BKC: Tensor, back_BN: Tensor | None) -> Tensor:
        """`back_BN`: where each place is found among the latents, followed by mask tokens; None: all are in place."""
        x_BND = self.decoder_embed(latents_BKC)
        if back_BN is not None:
            hidden = back_BN.shape[1] - x_BND.shape[1]
            masks = self.mask_token.to(x_BND.dtype).expand(x_BND.shape[0], hidden, -1)
            x_BND = take(torch.cat([x_BND, masks], dim=1), back_BN)
        x_BND = self.through(x_BND + self.positional_embedding, self.table_N2D[None])
        return self.pixels(x_BND.transpose(1, 2).unflatten(2, (self.grid.height, self.grid.width)))

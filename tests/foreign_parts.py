"""Library modules wrapped as they are, as a plugin of somebody who knows nothing of torch's `meta` device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from attrs import field, frozen
from torch import Tensor, nn

from mixar import Part, hookimpl
from mixar_core import (
    MASKED_CODE,
    Condition,
    ContinuousTokenizer,
    DiscretePrior,
    DiscreteTokenizer,
    DrawnCodes,
    ImageDataset,
    Losses,
    Noise,
    Posterior,
    Quantized,
)

MIXAR_INTERFACE = 2


@frozen
class FSQConfig:
    """The levels of each channel."""

    levels: tuple[int, ...] = (4, 3)
    fault: bool = False


class LibraryFSQ(DiscreteTokenizer):
    """A convolution each way, and vector-quantize-pytorch's FSQ, whose constructor reads a tensor's value."""

    def __init__(self, config: FSQConfig, *, image_size: int) -> None:
        from vector_quantize_pytorch import FSQ

        fsq = FSQ(list(config.levels))
        super().__init__(
            image_size=image_size, stride=4, codebook_size=fsq.codebook_size, code_width=len(config.levels)
        )
        self.fsq = fsq
        self.encoder = nn.Conv2d(3, self.code_width, 4, stride=4)
        self.decoder = nn.ConvTranspose2d(self.code_width, 3, 4, stride=4)
        if config.fault:
            self.encoder = self.encoders[0]

    def quantize(self, images_B3HW: Tensor) -> Quantized:
        vectors_BEhw, codes_Bhw = self.fsq(self.encoder(images_B3HW))
        return Quantized(vectors_BEhw, codes_Bhw.flatten(1).long(), {"quantizer": vectors_BEhw.new_zeros(())})

    def code_vectors(self, codes_BN: Tensor) -> Tensor:
        return self.fsq.indices_to_codes(codes_BN)

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        return self.decoder(vectors_BEhw)


@frozen
class CausalConfig:
    """The width of the transformer."""

    width: int = 8


class LibraryCausalPrior(DiscretePrior):
    """Torch's TransformerEncoder under a causal mask, at whose values it looks in every pass."""

    meta_safe = False

    def __init__(
        self, config: CausalConfig, *, tokenizer: DiscreteTokenizer, num_classes: int, data: ImageDataset | None
    ) -> None:
        super().__init__(layout=tokenizer.layout, codebook_size=tokenizer.codebook_size, num_classes=num_classes)
        layer = nn.TransformerEncoderLayer(config.width, 2, 16, dropout=0.0, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.codes = nn.Embedding(self.codebook_size, config.width)
        self.classes = nn.Embedding(num_classes + 1, config.width)  # the last is "no class"
        self.places = nn.Parameter(torch.randn(self.layout.tokens, config.width))
        self.logits = nn.Linear(config.width, self.codebook_size)

    def logits_BNV(self, codes_BN: Tensor, condition: Condition) -> Tensor:
        """Of each code, from those before it; (B, N + 1) of codes (B, N)."""
        labels_B = torch.where(condition.labels_B < 0, self.num_classes, condition.labels_B)
        first_B1D = self.classes(labels_B)[:, None]
        hidden_BND = torch.cat([first_B1D, self.codes(codes_BN)], dim=1)
        count = hidden_BND.shape[1]
        mask = torch.ones(count, count, dtype=torch.bool, device=hidden_BND.device).triu(1)
        return self.logits(self.transformer(hidden_BND + self.places[:count], mask=mask))

    def sample_steps(
        self, condition: Condition, *, noise: Noise, steps=None, cfg=None, temperature=None, given_BN=None
    ) -> Iterator[DrawnCodes]:
        labels_B = condition.labels_B
        uniform_BN = noise.uniform((len(labels_B), self.layout.tokens), labels_B.device)
        codes_BN = torch.full_like(uniform_BN, MASKED_CODE, dtype=torch.int64) if given_BN is None else given_BN
        for at in range(self.layout.tokens):
            below_BV = self.logits_BNV(codes_BN[:, :at], condition)[:, -1].softmax(dim=-1).cumsum(dim=-1)
            drawn_B = (uniform_BN[:, at, None] > below_BV).sum(dim=-1).clamp_max(self.codebook_size - 1)
            codes_BN = codes_BN.clone()
            codes_BN[:, at] = torch.where(codes_BN[:, at] == MASKED_CODE, drawn_B, codes_BN[:, at])
            yield DrawnCodes(codes_BN)

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        logits_BNV = self.logits_BNV(codes_BN[:, :-1], condition)
        return Losses(F.cross_entropy(logits_BNV.flatten(0, 1), codes_BN.flatten()))


@frozen
class PretrainedConfig:
    """The folder of an autoencoder that was trained elsewhere."""

    path: Path = field()


class Pretrained(ContinuousTokenizer):
    """An autoencoder of diffusers that the constructor loads."""

    brings_weights = True

    def __init__(self, config: PretrainedConfig, *, image_size: int) -> None:
        from diffusers import AutoencoderKL

        model = AutoencoderKL.from_pretrained(config.path, local_files_only=True, low_cpu_mem_usage=False)
        stride = 2 ** (len(model.config.block_out_channels) - 1)
        super().__init__(image_size=image_size, stride=stride, latent_channels=model.config.latent_channels)
        self.model = model

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        found = self.model.encode(images_B3HW).latent_dist
        return Posterior(found.mean, found.logvar)

    def decode_raw(self, latents_BChw: Tensor) -> Tensor:
        return self.model.decode(latents_BChw).sample


@hookimpl
def mixar_parts() -> list[Part]:
    return [
        Part("discrete-tokenizer", "library-fsq", LibraryFSQ, FSQConfig),
        Part("prior", "library-causal", LibraryCausalPrior, CausalConfig),
        Part("continuous-tokenizer", "pretrained", Pretrained, PretrainedConfig),
    ]


def write_autoencoder(folder: Path, *, seed: int = 0) -> None:
    """A small AutoencoderKL with random weights, 4 pixels a latent, as `save_pretrained` leaves it."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            block_out_channels=[4, 4, 8],
            norm_num_groups=4,
            latent_channels=2,
        )
        model.save_pretrained(folder)

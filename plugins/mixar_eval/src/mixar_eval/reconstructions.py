"""One tokenizer over a set of images: what it makes of each, how far off that is, and what its tokens are like."""

from __future__ import annotations

from collections import defaultdict

import torch
from attrs import frozen
from torch import Tensor

from mixar_core.data.streams import seed_of
from mixar_core.distributed import Processes, gathered
from mixar_core.noise import Noise
from mixar_core.perceptual import FeatureExtractor, perceptual_distance_B, psnr_B, ssim_B
from mixar_core.pictures import to_uint8
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer, Tokenizer
from mixar_core.types import Posterior
from mixar_eval.features import as_saved
from mixar_eval.tokens import CodeCounter, CodeUsage, LatentCounter, LatentStatistics


@frozen(eq=False)
class Reconstructed:
    """How a set's reconstructions compare with their originals, image by image (A,), and their features (A, F)."""

    psnr_A: Tensor
    ssim_A: Tensor
    perceptual_A: Tensor
    features_AF: Tensor


@frozen(eq=False)
class Measured:
    """A tokenizer over a set: each way to reconstruct by name, and its codes or its latents."""

    ways: dict[str, Reconstructed]
    codes: CodeUsage | None = None
    latents: LatentStatistics | None = None


class TokenizerMeter:
    """Measures one tokenizer, batch by batch.

    A discrete one reconstructs from its `codes`; a continuous one from the posterior's `mean`, and from a `sample` of
    it, which is what a generative model is trained to draw.

    Args:
        tokenizer, extractor: on the device that images are on.
        seed: of the samples; an image's depends on its position in the set alone.
    """

    def __init__(self, tokenizer: Tokenizer, extractor: FeatureExtractor, *, seed: int) -> None:
        self.tokenizer, self.extractor, self.seed = tokenizer, extractor, seed
        self.codes = CodeCounter(tokenizer) if isinstance(tokenizer, DiscreteTokenizer) else None
        self.latents = LatentCounter(tokenizer) if isinstance(tokenizer, ContinuousTokenizer) else None
        self._rows: dict[str, list[tuple[Tensor, ...]]] = defaultdict(list)

    @torch.no_grad()
    def add(self, images_B3HW: Tensor, positions_B: Tensor) -> dict[str, Tensor]:
        """Take in a batch of images as saved (see as_saved), at these positions of the set.

        Returns:
            each way's reconstructions, uint8.
        """
        found = {}
        for way, decoded_B3HW in self._decoded(images_B3HW, positions_B).items():
            found[way] = to_uint8(decoded_B3HW)
            saved_B3HW = as_saved(found[way])
            self._rows[way].append(
                (
                    psnr_B(images_B3HW, saved_B3HW).cpu(),
                    ssim_B(images_B3HW, saved_B3HW).cpu(),
                    perceptual_distance_B(self.extractor, images_B3HW, saved_B3HW).cpu(),
                    self.extractor(saved_B3HW).float().cpu(),
                )
            )
        return found

    def measured(self, total: int, processes: Processes) -> Measured:
        """What all processes found, of `total` images shared out as `sharding.share` does."""
        ways = {
            way: Reconstructed(*(gathered(torch.cat(parts), total, processes) for parts in zip(*rows, strict=True)))
            for way, rows in self._rows.items()
        }
        return Measured(
            ways,
            None if self.codes is None else self.codes.usage(processes),
            None if self.latents is None else self.latents.statistics(processes),
        )

    def _decoded(self, images_B3HW: Tensor, positions_B: Tensor) -> dict[str, Tensor]:
        tokenizer = self.tokenizer
        if isinstance(tokenizer, DiscreteTokenizer):
            assert self.codes is not None
            codes_BN = tokenizer.encode(images_B3HW)
            self.codes.add(codes_BN)
            return {"codes": tokenizer.decode(codes_BN)}
        assert isinstance(tokenizer, ContinuousTokenizer) and self.latents is not None
        posterior = tokenizer.posterior(images_B3HW)
        self.latents.add(posterior)
        mean_BChw, logvar_BChw = posterior.mean_BChw, posterior.logvar_BChw
        samples = [
            tokenizer.sample_posterior(
                Posterior(mean_BChw[row : row + 1], logvar_BChw[row : row + 1]),
                Noise.seeded(seed_of(self.seed, position)),
            )
            for row, position in enumerate(positions_B.tolist())
        ]
        return {"mean": tokenizer.decode_raw(mean_BChw), "sample": tokenizer.decode_raw(torch.cat(samples))}

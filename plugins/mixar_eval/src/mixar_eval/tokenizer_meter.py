"""One tokenizer over a set of images: what it makes of each, how far off that is, and what its codes or latents are
like."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from mixar_core.data.streams import seed_of
from mixar_core.distributed import Processes
from mixar_core.noise import Noise
from mixar_core.perceptual import FeatureExtractor, perceptual_distance_B, psnr_B, ssim_B
from mixar_core.pictures import to_uint8
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer, Tokenizer
from mixar_core.types import Posterior
from mixar_eval.features import as_saved


@frozen(eq=False)
class Reconstructed:
    """How a set's reconstructions compare with their originals, image by image (A,), and their features (A, F)."""

    psnr_A: Tensor
    ssim_A: Tensor
    perceptual_A: Tensor
    features_AF: Tensor


@frozen(eq=False)
class TokenizerScores:
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
        self._positions: list[int] = []

    @torch.no_grad()
    def add(self, images_B3HW: Tensor, positions_B: Tensor) -> dict[str, Tensor]:
        """Take in a batch of images as saved (see as_saved), at these positions of the set.

        Returns:
            each way's reconstructions, uint8.
        """
        found = {}
        self._positions += positions_B.tolist()
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

    def scores(self, processes: Processes) -> TokenizerScores:
        """What all processes found, in the order of the images' positions."""
        told = processes.all_gather((self._positions, {way: _joined(rows) for way, rows in self._rows.items()}))
        order_A = torch.tensor([position for positions, _ in told for position in positions]).argsort()
        ways = dict.fromkeys(way for _, found in told for way in found)
        columns = {way: _joined([found[way] for _, found in told if way in found]) for way in ways}
        return TokenizerScores(
            {way: Reconstructed(*(column[order_A] for column in columns[way])) for way in ways},
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


def _joined(rows: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(column) for column in zip(*rows, strict=True))


@frozen
class CodeUsage:
    """How a set's codes are spread over the codebook.

    Args:
        codebook_size: codes there are. used: different codes that occur. codes: tokens counted.
        entropy_bits: of a code, as the codes were counted; log2(codebook_size) where all are as frequent.
        bits_per_image: what an image's codes cost, each at log2(codebook_size) bits.
    """

    codebook_size: int
    used: int
    codes: int
    entropy_bits: float
    bits_per_image: float

    @property
    def share_used(self) -> float:
        """Of the codebook; below 1 also where the set has too few codes to use them all."""
        return self.used / self.codebook_size

    @property
    def perplexity(self) -> float:
        """How many codes, all as frequent, would have this entropy."""
        return 2.0**self.entropy_bits


@frozen(eq=False)
class LatentStatistics:
    """How a sample of the posterior is spread, channel by channel (C,), float64, over images and places.

    Args:
        mean_C, std_C: of raw latents.
        normalised_mean_C, normalised_std_C: of what the backbone sees, (raw - mean) / std with the statistics that the
            tokenizer keeps: 0 and 1 where those are right for these images.
        kl_nats: of an image's posterior from a standard normal, a mean over images: about what its latents tell.
        values_per_image: numbers of an image's latent, C * h * w.
    """

    mean_C: Tensor
    std_C: Tensor
    normalised_mean_C: Tensor
    normalised_std_C: Tensor
    kl_nats: float
    values_per_image: int

    @property
    def kl_bits(self) -> float:
        """The same in bits."""
        return self.kl_nats / math.log(2.0)


class CodeCounter:
    """Counts codes batch by batch."""

    def __init__(self, tokenizer: DiscreteTokenizer) -> None:
        self.tokens = tokenizer.grid.tokens
        self.counts_V = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)

    def add(self, codes_BN: Tensor) -> None:
        """Count a batch's codes."""
        self.counts_V += torch.bincount(codes_BN.flatten().cpu(), minlength=len(self.counts_V))

    def usage(self, processes: Processes) -> CodeUsage:
        """Of all codes that all processes counted."""
        counts_V = processes.sum(self.counts_V).cpu().double()
        share_V = counts_V[counts_V > 0] / counts_V.sum()
        return CodeUsage(
            codebook_size=len(counts_V),
            used=len(share_V),
            codes=int(counts_V.sum()),
            entropy_bits=float(-(share_V * share_V.log2()).sum()) + 0.0,
            bits_per_image=self.tokens * math.log2(len(counts_V)),
        )


class LatentCounter:
    """Sums up posteriors batch by batch."""

    def __init__(self, tokenizer: ContinuousTokenizer) -> None:
        self.kept_2C = torch.stack([tokenizer.latent_mean_C, tokenizer.latent_std_C]).cpu().double()
        self.values = tokenizer.latent_channels * tokenizer.grid.tokens
        #: sums of a sample's first and second moments
        self.sums_2C = torch.zeros(2, tokenizer.latent_channels, dtype=torch.float64)
        #: images, places (of all of them), and the sum of their KL divergences
        self.totals_3 = torch.zeros(3, dtype=torch.float64)

    def add(self, posterior: Posterior) -> None:
        """Take in a batch's posteriors."""
        mean, logvar = posterior.mean_BChw.cpu().double(), posterior.logvar_BChw.cpu().double()
        second = mean.square() + logvar.exp()
        self.sums_2C += torch.stack([mean.sum(dim=(0, 2, 3)), second.sum(dim=(0, 2, 3))])
        kl = float(Posterior(mean, logvar).kl_B().sum())
        self.totals_3 += torch.tensor([len(mean), mean.numel() / mean.shape[1], kl], dtype=torch.float64)

    def statistics(self, processes: Processes) -> LatentStatistics:
        """Of all posteriors that all processes took in."""
        images, places, kl = processes.sum(self.totals_3).cpu().tolist()
        mean_C, second_C = processes.sum(self.sums_2C).cpu() / places
        std_C = (second_C - mean_C.square()).clamp_min(0.0).sqrt()
        kept_mean_C, kept_std_C = self.kept_2C
        return LatentStatistics(
            mean_C=mean_C,
            std_C=std_C,
            normalised_mean_C=(mean_C - kept_mean_C) / kept_std_C,
            normalised_std_C=std_C / kept_std_C,
            kl_nats=kl / images,
            values_per_image=self.values,
        )

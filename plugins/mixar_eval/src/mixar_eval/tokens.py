"""What a tokenizer makes of many images: how much of a codebook it uses, how its latents are spread."""

from __future__ import annotations

import math

import torch
from attrs import frozen
from torch import Tensor

from mixar_core.distributed import Processes, summed
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import Posterior


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
        counts_V = summed(self.counts_V, processes).double()
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
        images, places, kl = summed(self.totals_3, processes).tolist()
        mean_C, second_C = summed(self.sums_2C, processes) / places
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

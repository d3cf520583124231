"""One tokenizer over a set of images: what it makes of each, how far off that is, and what its codes or latents are
like."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mixar_core.data.streams import seed_of
from mixar_core.distributed import Processes
from mixar_core.noise import Noise
from mixar_core.perceptual import FeatureExtractor, perceptual_distance_B, psnr_B
from mixar_core.pictures import to_uint8
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer, Tokenizer
from mixar_core.types import Posterior
from mixar_eval.features import as_saved
from mixar_eval.ssim import ssim_B


class TokenizerMeter:
    """Measures one tokenizer, batch by batch.

    A discrete one reconstructs from its `codes`; a continuous one from the posterior's `mean`, and from a `sample` of
    it, which is what a generative model is trained to draw.

    Args:
        tokenizer, extractor: on the device that images are on.
        seed: of the samples; an image's depends on its position in the set alone.
        discrete: whose codes a continuous one's latents may need.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        extractor: FeatureExtractor,
        *,
        seed: int,
        discrete: DiscreteTokenizer | None = None,
    ) -> None:
        self.extractor, self.seed = extractor, seed
        self.counter: CodeCounter | LatentCounter
        if isinstance(tokenizer, DiscreteTokenizer):
            self.counter = CodeCounter(tokenizer)
        else:
            assert isinstance(tokenizer, ContinuousTokenizer)
            self.counter = LatentCounter(tokenizer, discrete if tokenizer.needs_codes else None)
        self._parts: list[tuple[list[int], dict[str, dict[str, Tensor]]]] = []

    @torch.no_grad()
    def add(self, images_B3HW: Tensor, positions_B: Tensor) -> dict[str, Tensor]:
        """Take in a batch of images as saved (see as_saved), at these positions of the set.

        Returns:
            each way's reconstructions, uint8.
        """
        decoded, measured = {}, {}
        for way, decoded_B3HW in self.counter.decoded(images_B3HW, positions_B, self.seed).items():
            decoded[way] = to_uint8(decoded_B3HW)
            pair = images_B3HW, as_saved(decoded[way])
            rows = {
                "psnr": psnr_B(*pair),
                "ssim": ssim_B(*pair),
                "perceptual": perceptual_distance_B(self.extractor, *pair),
                "features": self.extractor(pair[1]).float(),
            }
            measured[way] = {name: column.cpu() for name, column in rows.items()}
        self._parts.append((positions_B.tolist(), measured))
        return decoded

    def ways(self, processes: Processes) -> dict[str, dict[str, Tensor]]:
        """What all processes measured of each way to reconstruct, in the order of the images' positions.

        Returns:
            of every image (A,): psnr, ssim, perceptual; and the reconstructions' features (A, F).
        """
        parts = [part for some in processes.all_gather(self._parts) for part in some]
        order_A = torch.tensor([position for positions, _ in parts for position in positions]).argsort()
        return {
            way: {name: torch.cat([found[way][name] for _, found in parts])[order_A] for name in columns}
            for way, columns in parts[0][1].items()
        }


class CodeCounter:
    """Counts codes batch by batch."""

    name = "codes"

    def __init__(self, tokenizer: DiscreteTokenizer) -> None:
        self.tokenizer = tokenizer
        self.counts_V = torch.zeros(tokenizer.codebook_size, dtype=torch.int64)

    def decoded(self, images_B3HW: Tensor, positions_B: Tensor, seed: int) -> dict[str, Tensor]:
        """Reconstructions of a batch, whose codes are counted."""
        codes_BN = self.tokenizer.encode(images_B3HW)
        self.add(codes_BN)
        return {"codes": self.tokenizer.decode(codes_BN)}

    def add(self, codes_BN: Tensor) -> None:
        """Count a batch's codes."""
        self.counts_V += torch.bincount(codes_BN.flatten().cpu(), minlength=len(self.counts_V))

    def found(self, processes: Processes) -> dict[str, Any]:
        """How the codes that all processes counted are spread over the codebook.

        Returns:
            `codes` tokens, of which `used` are different; `share_used` of the codebook, below 1 also where there are
            too few codes to use them all; `entropy_bits` of a code, log2(codebook_size) where all are as frequent;
            `perplexity`: how many codes, all as frequent, would have this entropy; `bits_per_image`: what an image's
            codes cost, each at log2(codebook_size) bits.
        """
        counts_V = processes.sum(self.counts_V).cpu().double()
        share_V = counts_V[counts_V > 0] / counts_V.sum()
        entropy_bits = float(-(share_V * share_V.log2()).sum()) + 0.0  # and not -0.0
        return {
            "codebook_size": len(counts_V),
            "used": len(share_V),
            "codes": int(counts_V.sum()),
            "entropy_bits": entropy_bits,
            "bits_per_image": self.tokenizer.layout.tokens * math.log2(len(counts_V)),
            "share_used": len(share_V) / len(counts_V),
            "perplexity": 2.0**entropy_bits,
        }


class LatentCounter:
    """Sums up posteriors batch by batch, beside the images' own codes if the latents need `discrete`'s."""

    name = "latents"

    def __init__(self, tokenizer: ContinuousTokenizer, discrete: DiscreteTokenizer | None = None) -> None:
        self.tokenizer, self.discrete = tokenizer, discrete
        #: sums of a sample's first and second moments
        self.sums_2C = torch.zeros(2, tokenizer.latent_channels, dtype=torch.float64)
        #: images, places (of all of them), and the sum of their KL divergences
        self.totals_3 = torch.zeros(3, dtype=torch.float64)

    def decoded(self, images_B3HW: Tensor, positions_B: Tensor, seed: int) -> dict[str, Tensor]:
        """Reconstructions of a batch, whose posteriors are taken in."""
        tokenizer = self.tokenizer.beside(None if self.discrete is None else self.discrete.encode(images_B3HW))
        posterior = tokenizer.posterior(images_B3HW)
        self.add(posterior)
        each = zip(posterior.mean_BChw.split(1), posterior.logvar_BChw.split(1), positions_B.tolist(), strict=True)
        samples = [
            tokenizer.sample_posterior(Posterior(mean, logvar), Noise.seeded(seed_of(seed, position)))
            for mean, logvar, position in each
        ]
        ways = {"mean": posterior.mean_BChw, "sample": torch.cat(samples)}
        return {way: tokenizer.decode_raw(latents_BChw) for way, latents_BChw in ways.items()}

    def add(self, posterior: Posterior) -> None:
        """Take in a batch's posteriors."""
        mean, logvar = posterior.mean_BChw.cpu().double(), posterior.logvar_BChw.cpu().double()
        second = mean.square() + logvar.exp()
        self.sums_2C += torch.stack([mean.sum(dim=(0, 2, 3)), second.sum(dim=(0, 2, 3))])
        kl = float(Posterior(mean, logvar).kl_B().sum())
        self.totals_3 += torch.tensor([len(mean), mean.numel() / mean.shape[1], kl], dtype=torch.float64)

    def found(self, processes: Processes) -> dict[str, Any]:
        """How a sample of the posteriors that all processes took in is spread, over images and places.

        Returns:
            `mean` and `std` of each raw channel; `normalised_mean`, `normalised_std`: of what the backbone sees, (raw -
            mean) / std with the statistics that the tokenizer keeps: 0 and 1 where those are right for these images;
            `kl_nats`, `kl_bits`: of an image's posterior from a standard normal, a mean over images: about what its
            latents tell; `values_per_image`: numbers of an image's latent, C * h * w.
        """
        images, places, kl = processes.sum(self.totals_3).cpu().tolist()
        mean_C, second_C = processes.sum(self.sums_2C).cpu() / places
        std_C = (second_C - mean_C.square()).clamp_min(0.0).sqrt()
        kept_mean_C, kept_std_C = (side.cpu() for side in (self.tokenizer.latent_mean_C, self.tokenizer.latent_std_C))
        return {
            "values_per_image": self.tokenizer.latent_channels * self.tokenizer.layout.tokens,
            "kl_nats": kl / images,
            "kl_bits": kl / images / math.log(2.0),
            "mean": mean_C.tolist(),
            "std": std_C.tolist(),
            "normalised_mean": ((mean_C - kept_mean_C) / kept_std_C).tolist(),
            "normalised_std": (std_C / kept_std_C).tolist(),
        }

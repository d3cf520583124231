"""How much of its code book, or of its latents, a tokenizer uses: what many steps show together, and none alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mixar_core.types import Posterior

#: A channel is in use where at least this share of its variance is that of the posterior's mean: the rest is noise.
IN_USE = 0.01


class CodeUsage(nn.Module):
    """Counts how often each code was met. It is in no checkpoint: a window begins with the process, as means do."""

    counts_V: Tensor

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        self.register_buffer("counts_V", torch.zeros(codebook_size), persistent=False)

    @torch.no_grad()
    def add(self, codes_BN: Tensor) -> None:
        """Count the codes of a batch."""
        self.counts_V.index_add_(0, codes_BN.flatten(), self.counts_V.new_ones(codes_BN.numel()))

    @torch.no_grad()
    def take(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`codes_used`, `codes_perplexity` of what all processes counted, and begin anew; nothing where none did.

        codes_used: different codes met, as a share of how many would have been if all were equally likely: what a
        window can show of a large codebook is less than all of it. codes_perplexity: exp of the entropy, from 1 to
        codebook_size: of so many codes, equally likely, the entropy would be the same.
        """
        counts_V = reduce(self.counts_V.double())
        self.counts_V.zero_()
        total = counts_V.sum().item()
        if not total:
            return {}
        expected = -len(counts_V) * math.expm1(total * math.log1p(-1.0 / len(counts_V))) if len(counts_V) > 1 else 1.0
        entropy = torch.special.entr(counts_V / total).sum().item()
        return {"codes_used": counts_V.count_nonzero().item() / expected, "codes_perplexity": math.exp(entropy)}


class LatentUsage(nn.Module):
    """Adds up mean and variance of latents, channel by channel; kept as CodeUsage is."""

    sums_4C: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("sums_4C", torch.zeros(4, channels), persistent=False)

    @torch.no_grad()
    def add(self, posterior: Posterior) -> None:
        """Add what the encoder said of a batch: how many, the mean, its square, and the variance."""
        mean = posterior.mean_BChw.float()
        moments = (torch.ones_like(mean), mean, mean.square(), posterior.logvar_BChw.float().exp())
        self.sums_4C += torch.stack([moment.sum(dim=(0, 2, 3)) for moment in moments])

    @torch.no_grad()
    def take(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """`latent_std`, `channels_used` over all processes, and begin anew; nothing where nothing was added.

        latent_std: of a sample of the raw latents, a root mean square over the channels. channels_used: the share of
        them that carry more than noise (IN_USE).
        """
        count_C, first_C, second_C, noise_C = reduce(self.sums_4C.double())
        self.sums_4C.zero_()
        if not count_C[0].item():
            return {}
        signal_C = (second_C / count_C - (first_C / count_C).square()).clamp_min(0.0)
        total_C = signal_C + noise_C / count_C
        used_C = signal_C > IN_USE * total_C
        return {"latent_std": total_C.mean().sqrt().item(), "channels_used": used_C.double().mean().item()}


def under(name: str, figures: Mapping[str, float]) -> dict[str, float]:
    """Figures by the name of the part that they are of: `discrete_tokenizer/codes_used`."""
    return {f"{name}/{figure}": value for figure, value in figures.items()}

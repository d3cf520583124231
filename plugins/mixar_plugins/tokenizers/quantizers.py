"""What a quantizer is: lookup-free (bits), binary spherical, lookup (a learned codebook). `residual` makes several."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from attrs import field, frozen, validators
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mixar_core.meta import constant
from mixar_core.precision import full_precision
from mixar_core.types import Grid, Quantized, TokenLayout

#: Probabilities are raised to this before their logarithm, as published. It is why a token's entropy is not just the
#: sum of its bits': many codes of a large codebook lie below it.
LOG_FLOOR = 1e-5
#: Entries of the tokens x codes table that are held at once; more are recomputed in the backward pass.
TABLE_ENTRIES = 2**24
#: How small probabilities count in the entropy loss. `clamped`, MaskBit: the logarithm of each is cut at LOG_FLOOR.
#: `exact`, LlamaGen and Open-MAGVIT2: of a token it is not, and LOG_FLOOR is added to each of the batch.
EntropyRule: TypeAlias = Literal["clamped", "exact"]


@frozen
class QuantizerWeights:
    """Weights of a quantizer's losses.

    Args:
        commitment_weight: weight of pulling the encoder's output to its code.
        entropy_weight: weight of the entropy loss (surely one code a token, all codes over the batch); 0: none.
        entropy_temperature: temperature of the softmax over codes in it.
        entropy_gamma: weight of the batch's entropy against the token's.
    """

    commitment_weight: float = field(default=0.25, validator=validators.ge(0.0))
    entropy_weight: float = field(default=0.02, validator=validators.ge(0.0))
    entropy_temperature: float = field(default=0.01, validator=validators.gt(0.0))
    entropy_gamma: float = field(default=1.0, validator=validators.ge(0.0))


class Quantizer(nn.Module):
    """What all share: encoder output (B, E, h, w) to `Quantized`. Losses are float32, under autocast too.

    One that gives each place the code nearest to it says what `vectors`, `nearest` and `entropy_totals` are; any other,
    such as one made of several, its own `layout`, `vectors` and `search`.

    The losses are `quantizer` (the sum to train on) and its terms, weighted: `commitment`, `entropy`, for a lookup also
    `codebook`; and, unweighted, `per_sample_entropy` and `average_entropy` in nats. The entropies are zero outside
    training, and where their weight is zero.
    """

    def __init__(
        self, codes: int, width: int, weights: QuantizerWeights, *, entropy_rule: EntropyRule = "clamped"
    ) -> None:
        super().__init__()
        self.codes, self.width, self.weights = codes, width, weights
        self.entropy_rule: EntropyRule = entropy_rule

    def layout(self, grid: Grid) -> TokenLayout:
        """Where the codes of an encoder output on this grid stand."""
        return TokenLayout("grid", (grid,))

    def vectors(self, codes: Tensor) -> Tensor:
        """Code vectors (..., E) of codes (...)."""
        raise NotImplementedError

    def prepare(self, encoded_BEhw: Tensor) -> Tensor:
        """What is quantized, of the encoder output: itself, unless codes lie on a sphere."""
        return encoded_BEhw

    def nearest(self, encoded_RE: Tensor) -> Tensor:
        """Codes (R,) nearest to encoder outputs (R, E)."""
        raise NotImplementedError

    def entropy_totals(self, encoded_RE: Tensor) -> tuple[Tensor, Tensor]:
        """With p = softmax(-squared distance / temperature) of a token: its entropy () and p (V,), both summed."""
        raise NotImplementedError

    def forward(self, encoded_BEhw: Tensor) -> Quantized:
        with full_precision(encoded_BEhw.device):  # at a temperature of 0.01 bfloat16 rounds affinities by whole units
            exact_BEhw = self.prepare(encoded_BEhw.float())
            found_BEhw, codes_BN, losses = self.search(exact_BEhw)
        # Straight through: the value is the code vector's, to the bit, the gradient the encoder's.
        # Contiguous, so that the decoder's memory layout is its weights' choice.
        vectors_BEhw = (found_BEhw.detach() + (exact_BEhw - exact_BEhw.detach())).contiguous()
        return Quantized(vectors_BEhw.to(encoded_BEhw.dtype), codes_BN, losses)

    def compile(self, *args: object, **kwargs: object) -> None:
        """Nothing: torch.compile cannot make the frozen value that `forward` returns, and fails on it."""

    def search(self, encoded_BEhw: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What stands for the encoder output (B, E, h, w), its codes (B, N), losses; all of float32."""
        encoded_RE, vectors_RE, codes_BN = self.assign(encoded_BEhw)
        return in_place(vectors_RE, encoded_BEhw), codes_BN, self.losses(encoded_RE, encoded_RE, vectors_RE)

    def assign(self, encoded_BEhw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The places as rows (R, E), the code vectors (R, E) nearest to them, and their codes (B, h * w)."""
        encoded_RE = encoded_BEhw.permute(0, 2, 3, 1).flatten(0, 2)
        codes_R = self.nearest(encoded_RE.detach())
        return encoded_RE, self.vectors(codes_R), codes_R.unflatten(0, (encoded_BEhw.shape[0], -1))

    def losses(self, rows_RE: Tensor, wanted: Tensor, found: Tensor) -> dict[str, Tensor]:
        """All losses: the entropies of these rows, and the distance between what was wanted and what was found."""
        weights = self.weights
        commitment = weights.commitment_weight * F.mse_loss(wanted, found.detach())
        per_sample = average = rows_RE.new_zeros(())
        if self.training and weights.entropy_weight:
            exact = self.entropy_rule == "exact"
            per_sample, average = code_entropies(self.entropy_totals, rows_RE, codes=self.codes, exact=exact)
            average = weights.entropy_gamma * average
        entropy = weights.entropy_weight * (per_sample - average)
        return {
            "quantizer": commitment + entropy,
            "commitment": commitment,
            "entropy": entropy,
            "per_sample_entropy": per_sample,
            "average_entropy": average,
        }


class LookupFreeQuantizer(Quantizer):
    """Each of `bits` channels is quantized to its sign; bit k of a code is whether channel k is positive.

    Args:
        persistent: what it computes for itself is in the state dict, as in MaskBit's released files.
    """

    bits_to_indices: Tensor
    codebook: Tensor

    def __init__(
        self,
        bits: int,
        weights: QuantizerWeights,
        *,
        entropy_rule: EntropyRule = "clamped",
        persistent: bool = True,
    ) -> None:
        super().__init__(2**bits, bits, weights, entropy_rule=entropy_rule)
        powers = torch.tensor([2**bit for bit in range(bits)], dtype=torch.int32)
        self.register_buffer("bits_to_indices", powers, persistent=persistent)
        self.register_buffer("codebook", _signs(bits), persistent=persistent)

    def vectors(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.codebook)

    def nearest(self, encoded_RE: Tensor) -> Tensor:
        return ((encoded_RE > 0) * self.bits_to_indices).sum(dim=-1)

    def entropy_totals(self, encoded_RE: Tensor) -> tuple[Tensor, Tensor]:
        # Bits are independent, so p of a code is p of its low bits times p of its high bits: two small softmaxes. Only
        # the clamped logarithm needs the whole table, and no exponential or logarithm is taken in it.
        low = self.width // 2
        log_low_RX, log_high_RY = (
            torch.log_softmax(2 * half @ self.codebook[: 2**size, :size].T / self.weights.entropy_temperature, dim=-1)
            for half, size in ((encoded_RE[:, :low], low), (encoded_RE[:, low:], self.width - low))
        )
        low_RX, high_RY = log_low_RX.exp(), log_high_RY.exp()
        if self.entropy_rule == "exact":  # without the clamp no table is needed: entropies of independent halves add up
            entropy = -(low_RX * log_low_RX).sum() - (high_RY * log_high_RY).sum()
            return entropy, (high_RY.T @ low_RX).flatten()
        log_RYX = (log_high_RY[:, :, None] + log_low_RX[:, None, :]).clamp_min(math.log(LOG_FLOOR))
        entropy = -(high_RY * (log_RYX @ low_RX[:, :, None])[:, :, 0]).sum()
        return entropy, (high_RY.T @ low_RX).flatten()


class BinarySphericalQuantizer(LookupFreeQuantizer):
    """The same on the unit sphere: what is quantized has length 1, and so have code vectors (BSQ, arXiv 2406.07548)."""

    def __init__(self, bits: int, weights: QuantizerWeights, *, entropy_rule: EntropyRule = "clamped") -> None:
        super().__init__(bits, weights, entropy_rule=entropy_rule)
        self.codebook.mul_(bits**-0.5)

    def prepare(self, encoded_BEhw: Tensor) -> Tensor:
        return F.normalize(encoded_BEhw, dim=1)


class LookupQuantizer(Quantizer):
    """The nearest of `codes` learned vectors of length `width`.

    Args:
        normalised: what is quantized has length 1, and so have code vectors.
    """

    def __init__(
        self,
        codes: int,
        width: int,
        weights: QuantizerWeights,
        *,
        entropy_rule: EntropyRule = "clamped",
        normalised: bool = False,
    ) -> None:
        super().__init__(codes, width, weights, entropy_rule=entropy_rule)
        self.normalised = normalised
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def prepare(self, encoded_BEhw: Tensor) -> Tensor:
        return F.normalize(encoded_BEhw, dim=1) if self.normalised else encoded_BEhw

    def vectors(self, codes: Tensor) -> Tensor:
        vectors = self.embedding(codes)
        return F.normalize(vectors, dim=-1) if self.normalised else vectors

    def nearest(self, encoded_RE: Tensor) -> Tensor:
        return self._affinity(encoded_RE).argmax(dim=-1)

    def entropy_totals(self, encoded_RE: Tensor) -> tuple[Tensor, Tensor]:
        logits_RV = self._affinity(encoded_RE) / self.weights.entropy_temperature
        if self.entropy_rule == "exact":
            log_RV = logits_RV.log_softmax(dim=-1)
            return -(log_RV.exp() * log_RV).sum(), log_RV.exp().sum(dim=0)
        probability_RV = logits_RV.softmax(dim=-1)
        return _entropy(probability_RV).sum(), probability_RV.sum(dim=0)

    def _affinity(self, encoded_RE: Tensor) -> Tensor:
        """Minus the squared distance to every code, up to a constant a token: (R, V)."""
        codebook_VE = F.normalize(self.embedding.weight, dim=-1) if self.normalised else self.embedding.weight
        return 2 * encoded_RE @ codebook_VE.T - codebook_VE.square().sum(dim=-1)

    def losses(self, rows_RE: Tensor, wanted: Tensor, found: Tensor) -> dict[str, Tensor]:
        losses = super().losses(rows_RE, wanted, found)
        codebook = F.mse_loss(found, wanted.detach())
        return {**losses, "quantizer": losses["quantizer"] + codebook, "codebook": codebook}


@constant
def _signs(bits: int) -> Tensor:
    """The bits of every code as 1 and -1: (2**bits, bits)."""
    codes_V1 = torch.arange(2**bits, dtype=torch.int32)[:, None]
    return ((codes_V1 >> torch.arange(bits, dtype=torch.int32)) & 1).float() * 2 - 1


def in_place(rows_RE: Tensor, like_BEhw: Tensor) -> Tensor:
    """Rows (R, E), a place each, as (B, E, h, w)."""
    images, _, *size = like_BEhw.shape
    return rows_RE.unflatten(0, (images, *size)).permute(0, 3, 1, 2)


def code_entropies(
    totals: Callable[[Tensor], tuple[Tensor, Tensor]], encoded_RE: Tensor, *, codes: int, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean entropy of the tokens' distributions over codes, and entropy of the mean distribution, in nats: () each.

    Args:
        totals: Quantizer.entropy_totals, of encoder outputs (R, E) over `codes` codes.
        exact: see EntropyRule.
    """
    pieces = encoded_RE.split(max(1, TABLE_ENTRIES // codes))
    if len(pieces) > 1:
        totals = partial(checkpoint, totals, use_reentrant=False, preserve_rng_state=False)
    entropies, probabilities = zip(*map(totals, pieces), strict=True)
    tokens = encoded_RE.shape[0]
    mean_V = torch.stack(probabilities).sum(dim=0) / tokens
    average = -(mean_V * (mean_V + LOG_FLOOR).log()).sum() if exact else _entropy(mean_V)
    return torch.stack(entropies).sum() / tokens, average


def _entropy(probability_XV: Tensor) -> Tensor:
    """-sum p log max(p, LOG_FLOOR) over the last axis."""
    return -(probability_XV * probability_XV.clamp_min(LOG_FLOOR).log()).sum(dim=-1)

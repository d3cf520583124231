"""The frozen values that travel between rooms, and the legend of shape letters.

Shape letters (a tensor's name ends in them, `codes_BN`):

    B  images of a batch                 N  tokens of an image, row by row: h * w
    H  W  pixels                         h  w  the token grid's height and width
    C  channels of a continuous latent   E  length of a code vector
    D  width of the backbone             S  splits of a code     V  codes of one split
    K  masked tokens (one count a batch) U  visible tokens, U = N - K
    P  prefix tokens   M  memory tokens  R  rows handed to the head
    A  images of a set                   F  length of a feature vector   L  classes of an extractor
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from attrs import frozen
from torch import Tensor

#: The label that stands for "no class": what a dropped label becomes, and what an unconditional model is given.
NO_CLASS = -1


@frozen
class Grid:
    """A token grid of `height` x `width`."""

    height: int
    width: int

    @property
    def tokens(self) -> int:
        """Number of tokens, N = h * w."""
        return self.height * self.width

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"


@frozen(eq=False)
class ImageBatch:
    """Images as they leave the loader: `images_B3HW` float in [-1, 1], `labels_B` int64 (NO_CLASS allowed)."""

    images_B3HW: Tensor
    labels_B: Tensor

    def __len__(self) -> int:
        return self.images_B3HW.shape[0]

    def rows(self, index: Tensor | slice) -> ImageBatch:
        """The rows at `index`."""
        return ImageBatch(self.images_B3HW[index], self.labels_B[index])


@frozen(eq=False)
class TokenBatch:
    """What both tokenizers made of a batch: normalised latents, codes (None without a discrete tokenizer), labels."""

    latents_BChw: Tensor
    codes_BN: Tensor | None
    labels_B: Tensor

    def __len__(self) -> int:
        return self.latents_BChw.shape[0]


@frozen(eq=False)
class DiscreteTokens:
    """The discrete tokens an injector sees: indices (int64) and their code vectors (float)."""

    codes_BN: Tensor
    vectors_BNE: Tensor


@frozen(eq=False)
class Guidance:
    """What an injector hands the backbone: three optional doors (see docs/architecture.md).

    `fill_BND` stands at masked positions in the decoder instead of the mask token (DC-Mix, Eq. 9); `prefix_BPD` is
    put in front of the sequence and attended to by everyone (DC-SA); `memory_BMD` is attended to by one cross-attention
    block after every self-attention block (DC-CA). None of them at all is plain MAR.
    """

    fill_BND: Tensor | None = None
    prefix_BPD: Tensor | None = None
    memory_BMD: Tensor | None = None

    def repeat(self, times: int) -> Guidance:
        """The same guidance for a batch that is `times` copies of itself, one after the other (for CFG)."""

        def copies(door: Tensor | None) -> Tensor | None:
            return None if door is None else door.repeat(times, 1, 1)

        return Guidance(copies(self.fill_BND), copies(self.prefix_BPD), copies(self.memory_BMD))


@frozen(eq=False)
class MaskSplit:
    """Which tokens are visible and which are masked, as ascending position indices (int64).

    The counts are the same for every image of the batch, so no shape depends on a value.
    """

    visible_BU: Tensor
    masked_BK: Tensor

    @property
    def masked_BN(self) -> Tensor:
        """The same split as a boolean map, True where masked."""
        size = self.visible_BU.shape[1] + self.masked_BK.shape[1]
        map_BN = torch.zeros(self.masked_BK.shape[0], size, dtype=torch.bool, device=self.masked_BK.device)
        return map_BN.scatter(1, self.masked_BK, True)


@frozen(eq=False)
class Posterior:
    """A diagonal Gaussian over raw latents, as a continuous tokenizer's encoder gives it: (B, C, h, w) each."""

    mean_BChw: Tensor
    logvar_BChw: Tensor

    def kl_B(self) -> Tensor:
        """KL divergence from a standard normal, summed over C, h, w, in nats: (B,)."""
        square = self.mean_BChw**2 + self.logvar_BChw.exp() - 1.0 - self.logvar_BChw
        return 0.5 * square.sum(dim=(1, 2, 3))


@frozen(eq=False)
class Quantized:
    """What a discrete tokenizer's quantizer returns: vectors with straight-through gradients, codes, named losses."""

    vectors_BEhw: Tensor
    codes_BN: Tensor
    losses: Mapping[str, Tensor]


class Losses(NamedTuple):
    """A training loss: the scalar to differentiate, and named detached scalars for the log.

    A tuple, unlike the others here: FSDP looks into those for what a module's output needs on the way back.
    """

    total: Tensor
    terms: Mapping[str, Tensor] = MappingProxyType({})

"""The frozen values that travel between rooms, and the legend of shape letters.

Shape letters (a tensor's name ends in them, `codes_BN`):

    B  images of a batch                 N  tokens of an image, row by row: h * w
    H  W  pixels                         h  w  the token grid's height and width
    C  channels of a continuous latent   E  length of a code vector
    D  width of the backbone             S  splits of a code     V  codes of one split
    K  masked tokens, or those of a step (one count a batch)   U  visible tokens, U = N - K
    P  prefix tokens   M  memory tokens  T  vectors of a condition, or tokens of any sequence
    A  images of a set                   F  length of a feature vector   L  classes of an extractor
    R  rows of anything
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Literal, NamedTuple, TypeAlias

import torch
from attrs import field, frozen
from attrs.validators import ge, in_, min_len
from torch import Tensor

#: The label that stands for "no class": what a dropped label becomes, and what an unconditional model is given.
NO_CLASS = -1

#: An image's pixels: the side of a square, or (height, width). A square is always the one number.
ImageSize: TypeAlias = int | tuple[int, int]


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

    @classmethod
    def of_pixels(cls, size: ImageSize) -> Grid:
        """The grid of an image's pixels."""
        return cls(size, size) if isinstance(size, int) else cls(*size)

    @property
    def image_size(self) -> ImageSize:
        """What a tokenizer or a data set of images of so many pixels is told."""
        return self.height if self.height == self.width else (self.height, self.width)

    @property
    def written(self) -> str:
        """So many pixels as recipes write them, for messages: `16`, or `[16, 24]` for height and width."""
        return str(self.height) if self.height == self.width else f"[{self.height}, {self.width}]"


@frozen
class TokenLayout:
    """Where the N tokens of an image stand. Codes are (B, N) in every layout.

    Args:
        kind: `grid`: row by row. `depth`: a grid with `depth` tokens a place, those of a place in a row (residual
            quantisation). `pyramid`: grids from coarse to fine, one after the other (VAR, HART). `sequence`: no place
            in the image (TiTok).
        scales: one grid; of a pyramid, all of them; of a sequence, one of 1 x length.
        depth: tokens a place, of `depth`.
    """

    kind: Literal["grid", "depth", "pyramid", "sequence"] = field(
        validator=in_(("grid", "depth", "pyramid", "sequence"))
    )
    scales: tuple[Grid, ...] = field(validator=min_len(1))
    depth: int = field(default=1, validator=ge(1))

    def __attrs_post_init__(self) -> None:
        if self.kind != "pyramid" and len(self.scales) > 1:
            raise ValueError(f"{len(self.scales)} scales of a {self.kind}; only a pyramid has several")
        if self.kind != "depth" and self.depth > 1:
            raise ValueError(f"depth {self.depth} of a {self.kind}; only a depth has several tokens a place")

    @property
    def tokens(self) -> int:
        """Number of tokens, N."""
        return self.depth * sum(grid.tokens for grid in self.scales)

    @property
    def grid(self) -> Grid | None:
        """The grid (of a pyramid the finest) on which every token's vector has a place; a sequence has none."""
        return None if self.kind == "sequence" else self.scales[-1]

    @property
    def by_scale(self) -> tuple[range, ...]:
        """The positions of each scale's tokens."""
        ends = [self.depth * sum(grid.tokens for grid in self.scales[:n]) for n in range(len(self.scales) + 1)]
        return tuple(range(*pair) for pair in pairwise(ends))

    @property
    def shape(self) -> Grid:
        """h x w of latents (B, C, h, w) of this layout: the grid, or one row of all tokens."""
        return self.scales[0] if self.kind == "grid" else Grid(1, self.tokens)

    def __str__(self) -> str:
        scales = ", ".join(map(str, self.scales))
        return {
            "grid": f"grid {scales}",
            "depth": f"grid {scales} of depth {self.depth}",
            "pyramid": f"pyramid {scales}",
        }.get(self.kind, f"sequence of {self.tokens}")


@frozen(eq=False)
class Condition:
    """What images are drawn for: a class each, or vectors such as a text encoder gives, or both.

    Args:
        labels_B: int64, in [0, num_classes) or NO_CLASS.
        vectors_BTF: float, or None where there are only labels.
        mask_BT: bool, True where a vector counts; None: all do.
    """

    labels_B: Tensor
    vectors_BTF: Tensor | None = None
    mask_BT: Tensor | None = None

    def __len__(self) -> int:
        return self.labels_B.shape[0]

    def dropped(self, where_B: Tensor) -> Condition:
        """Without its condition where `where_B` (bool) says so: no class, and no vector counts."""
        labels_B = self.labels_B.masked_fill(where_B, NO_CLASS)
        if self.vectors_BTF is None:
            return Condition(labels_B)
        mask_BT = self.counting_BT() & ~where_B[:, None]
        return Condition(labels_B, self.vectors_BTF, mask_BT)

    def guided(self) -> Condition:
        """A batch of twice the length, for classifier-free guidance: as it is, then all dropped."""
        none = self.dropped(torch.ones_like(self.labels_B, dtype=torch.bool))
        labels_B = torch.cat([self.labels_B, none.labels_B])
        if self.vectors_BTF is None or none.mask_BT is None:
            return Condition(labels_B)
        return Condition(labels_B, self.vectors_BTF.repeat(2, 1, 1), torch.cat([self.counting_BT(), none.mask_BT]))

    def counting_BT(self) -> Tensor:
        """`mask_BT`, or one that is True everywhere; there must be vectors."""
        assert self.vectors_BTF is not None
        shape = self.vectors_BTF.shape[:2]
        return self.labels_B.new_ones(shape, dtype=torch.bool) if self.mask_BT is None else self.mask_BT


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
    """The discrete tokens an injector sees.

    Args:
        codes_BN: int64. vectors_BNE: their code vectors, float.
        on_grid_BNE: the vectors that stand on the latents' grid, N its tokens: those same of a grid of codes, summed of
            a pyramid and of a depth. None of a sequence.
        confidence_BN: log-probability that the prior gave each code, 0 for a code that is certain; None: all are.
        known: share of the continuous tokens that are known, in [0, 1).
    """

    codes_BN: Tensor
    vectors_BNE: Tensor
    on_grid_BNE: Tensor | None = None
    confidence_BN: Tensor | None = None
    known: float = 0.0


@frozen(eq=False)
class DrawnCodes:
    """What a prior draws or predicts.

    Args:
        codes_BN: int64; MASKED_CODE where a step of sampling has not drawn it yet.
        confidence_BN: float32 log-probability of each code as it was drawn, 0 where it was given; None: not known.
        features_BND: the prior's own output vectors, for what is conditioned on them; None: it has none.
        truth_BN: of `predict`, float32 log-probability of the true codes where they were hidden, 0 elsewhere; None: not
            known. While sampling no code is certain, so what learns to trust must not meet certain ones in training.
    """

    codes_BN: Tensor
    confidence_BN: Tensor | None = None
    features_BND: Tensor | None = None
    truth_BN: Tensor | None = None


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

    @property
    def doors(self) -> dict[str, Tensor]:
        """What comes in, by the names of the doors: fill, prefix, memory."""
        doors = {"fill": self.fill_BND, "prefix": self.prefix_BPD, "memory": self.memory_BMD}
        return {door: tensor for door, tensor in doors.items() if tensor is not None}

    def repeat(self, times: int) -> Guidance:
        """The same guidance for a batch that is `times` copies of itself, one after the other (for CFG)."""
        doors = (self.fill_BND, self.prefix_BPD, self.memory_BMD)
        return Guidance(*(None if tensor is None else tensor.repeat(times, 1, 1) for tensor in doors))


@frozen(eq=False)
class MaskSplit:
    """Which tokens are visible and which are masked, as position indices (int64).

    Ascending, or where a backbone predicts one after the other in the order in which it does. The counts are the same
    for every image of the batch, so no shape depends on a value.
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


@frozen(eq=False)
class Denoise:
    """A backbone that is the head's network, too.

    Args:
        predict: of noised tokens (R, K, C) and their timesteps int64 (R, groups), what it predicts of them, (R, K, C).
            R are the images of `Z.cond_BKD`, and then, where there are some, of `Z.uncond_BKD`.
        groups: the K tokens are so many equally large groups, one after the other; a group's tokens share a timestep.
    """

    predict: Callable[[Tensor, Tensor], Tensor]
    groups: int = 1


class Z(NamedTuple):
    """What a backbone says of the tokens it was asked for, and all that a head may look at.

    Args:
        cond_BKD: an output vector for each token. uncond_BKD: what guidance moves away from; None: no guidance.
        positions_BK: where these tokens stand, int64.
        tokens_BNC: the continuous tokens that are known, whatever stands elsewhere; known_BN: bool, which these are.
        denoise: of a backbone that is the head's network, too; None: the head has its own.
    """

    cond_BKD: Tensor
    positions_BK: Tensor
    uncond_BKD: Tensor | None = None
    tokens_BNC: Tensor | None = None
    known_BN: Tensor | None = None
    denoise: Denoise | None = None


@frozen
class Step:
    """How a step of sampling draws its tokens; the plan says which.

    Args:
        cfg: classifier-free guidance scale, 1 for none.
        temperature: scale of the head's noise, 0 and above.
        head_steps: of the head's sampler; None: as its config says.
        solver: the head's, by name; None: as its config says.
        refresh: whether a backbone that can reuse what it computed before is to compute all anew.
        reuse: the method by which later steps may reuse this one's work, and this one, without `refresh`, that of
            earlier ones (`Backbone.reuses`); None: none.
        share: of its tokens that a method of reuse computes anew, where it has a choice, 0 to 1.
        redraw: the tokens are known already; they are forgotten and drawn once more.
        detail: a share of the tokens, 0 to 1, that takes so many head steps: those whose z varies most along its
            length (see `head.detail_of`); None: all alike.
    """

    cfg: float = 1.0
    temperature: float = 1.0
    head_steps: int | None = None
    solver: str | None = None
    refresh: bool = True
    reuse: str | None = None
    share: float = 1.0
    redraw: bool = False
    detail: tuple[float, int] | None = None


class Losses(NamedTuple):
    """A training loss: the scalar to differentiate, and named detached scalars for the log.

    A tuple, unlike the others here: FSDP looks into those for what a module's output needs on the way back.
    """

    total: Tensor
    terms: Mapping[str, Tensor] = MappingProxyType({})

"""Continuous heads: the distribution of a step's tokens, given the backbone's vectors z for them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from attrs import evolve
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.graphs import Graphed
from mixar_core.masking import put, take
from mixar_core.noise import Noise
from mixar_core.types import Step, Z


class ContinuousHead(nn.Module, ABC):
    """p(x | z) of the K tokens of a step: each x of length `token_dim` (C * patch_size^2), z of length D.

    A head that draws each token for itself looks at `z.cond_BKD` and flattens inside; one that draws them together
    also at `z.positions_BK`, and at what is known. Registered as a Part, a head is built as
    `Class(config, token_dim=..., width=D, layout=TokenLayout)`, the layout being that of the continuous tokens.
    """

    meta_safe: ClassVar[bool] = True
    """Whether it runs on torch's `meta` device, where recipes are checked without values; False: it is not tried."""
    token_dim: int
    """C, the length of a token."""
    together: ClassVar[bool] = False
    """Whether what is drawn for one token depends on the z of others, which then must not know what it is not to know.

    That of a backbone which predicts every token in one pass (`masks` False) knows the tokens before its own.
    """
    groups: Sequence[Sequence[int]] | None = None
    """Of one that is `together`: it never draws tokens of two of these together; None: it knows no groups.

    A backbone of the same groups fits it, though it predicts every token in one pass.
    """
    denoises: ClassVar[bool] = False
    """Whether it has no network of its own and calls `Z.denoise`, which only some backbones give."""
    graphable: ClassVar[bool] = False
    """Whether `sample` runs its loop by `graphs`, where it has them."""
    graphs: Graphed | None = None
    """CUDA graphs that the loop of `sample` is captured in; None: it runs as it is written."""
    deterministic: ClassVar[bool] = False
    """Whether it draws nothing, like one that predicts the mean: then another seed gives the same tokens."""

    @abstractmethod
    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        """Loss of each token (B, K), in float32 whatever the autocast. B counts images (rows of `noise`).

        Losses of two heads are of different kinds, and cannot be compared.
        """

    def check(self, step: Step) -> None:
        """Refuse what this head cannot do in a step: for `sample`, and for a recipe before it is trained.

        Raises:
            UserError: `step.solver`, `step.head_steps` or `step.temperature` is none of this head's.
        """

    def hold_bf16(self) -> None:
        """Hold weights in bfloat16 from now on, for sampling; by default autocast casts them at every product."""

    @abstractmethod
    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        """Draw the tokens (B, K, C), float32.

        `z.uncond_BKD` is what guidance of the scale `step.cfg` moves away from; None, or a scale of 1, means none.

        Raises:
            UserError: as `check`.
        """


def parts_of(head: ContinuousHead, step: Step, tokens: int) -> list[tuple[int, Step]]:
    """How many of a step's tokens are drawn by which step: one part, or of a step with `detail` two, it first.

    Raises:
        UserError: as `head.check`; or tokens that are drawn together are to be drawn in two parts.
    """
    found = [(tokens, step)]
    if step.detail is not None:
        if head.together or head.denoises:
            raise UserError(f"the head {type(head).__name__} draws the tokens of a step together: no detail of some")
        count, rest = round(step.detail[0] * tokens), evolve(step, detail=None)
        found = [(count, evolve(rest, head_steps=step.detail[1])), (tokens - count, rest)]
    for _, part in found:
        head.check(part)
    return [(count, part) for count, part in found if count]


def sample_parts(head: ContinuousHead, z: Z, step: Step, *, noise: Noise) -> Tensor:
    """`head.sample`, part by part: (B, K, C)."""
    if step.detail is None:
        return head.sample(z, step, noise=noise)
    order_BK, drawn, done = detail_of(z.cond_BKD).argsort(dim=1, descending=True, stable=True), [], 0
    for count, part in parts_of(head, step, order_BK.shape[1]):
        rows_BR, done = order_BK[:, done : done + count], done + count
        uncond_BRD = None if z.uncond_BKD is None else take(z.uncond_BKD, rows_BR)
        places_BR = z.positions_BK.gather(1, rows_BR)
        of = z._replace(cond_BKD=take(z.cond_BKD, rows_BR), uncond_BKD=uncond_BRD, positions_BK=places_BR)
        drawn.append(head.sample(of, part, noise=noise))
    drawn_BKC = torch.cat(drawn, dim=1)
    return put(torch.empty_like(drawn_BKC), order_BK, drawn_BKC)


def detail_of(z_BKD: Tensor) -> Tensor:
    """How much each z varies along its length (B, K): its spectrum's magnitudes, the higher frequencies weighing up to
    twice as much (GtR, arXiv 2510.17171, frequency-weighted token selection)."""
    spectrum = torch.fft.rfft(z_BKD.float()).abs()
    return (spectrum * torch.linspace(1.0, 2.0, spectrum.shape[-1], device=z_BKD.device)).sum(dim=-1)

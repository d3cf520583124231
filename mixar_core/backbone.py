"""Backbones: the autoregressive model of continuous tokens, with three doors through which guidance comes in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from mixar_core.blocks import blocks_in
from mixar_core.errors import UserError
from mixar_core.masking import masked_count, split_by_order
from mixar_core.plan import Order, Plan
from mixar_core.types import Condition, Guidance, MaskSplit, Step, TokenLayout, Z


class Backbone(nn.Module, ABC):
    """Output vectors z (B, K, D) for tokens that are to be predicted, from those that are known.

    Registered as a Part, a backbone is built as `Class(config, layout=TokenLayout, token_dim=..., num_classes=...,
    memory=..., condition_width=...)`: `memory` says whether guidance comes with one, `condition_width` how long a
    condition's vectors are (0: there are only labels).
    """

    meta_safe: ClassVar[bool] = True
    """Whether it runs on torch's `meta` device, where recipes are checked without values; False: it is not tried."""
    layout: TokenLayout
    """Where the tokens stand, N in all."""
    token_dim: int
    """C, the length of a token: the tokenizer's channels times `patch_size` squared."""
    num_classes: int
    """Classes of the data; 0: there are none."""
    width: int
    """D, the length of z and of a fill."""
    guidance_width: int
    """The length of a prefix's and a memory's vectors."""
    label_dropout: float = 0.1
    """Share of conditions that are dropped in training, for classifier-free guidance."""
    patch_size: int = 1
    """Latents a token spans in each direction."""
    order: Order = "any"
    """The order in which it can predict: any, "raster", row by row only, or "groups", group by group only."""
    groups: Sequence[Sequence[int]] | None = None
    """Of order "groups": the positions that it predicts together, in turn. z knows earlier groups only."""
    masks: ClassVar[bool] = True
    """Whether it learns from masks of every ratio (`masking`) or predicts every token in each pass."""
    denoises: ClassVar[bool] = False
    """Whether it is the head's network, too: what it says is `Z.denoise`, and `cond_BKD` of it alone says little."""
    reuses: ClassVar[frozenset[str]] = frozenset()
    """Names of the methods of `Step.reuse` that its state knows."""

    @classmethod
    def widths(cls, config: Any) -> tuple[int, int]:
        """`width` and `guidance_width` that a backbone with these settings will have."""
        return config.width, config.width

    def split(self, orders_BN: Tensor, ratio: float) -> MaskSplit:
        """What a training step predicts (`masked_BK`) and from what: orders end with what is known first.

        One that does not mask predicts every token, in the order in which `masked_BK` names them.
        """
        if not self.masks:
            return MaskSplit(visible_BU=orders_BN[:, :0], masked_BK=orders_BN.flip(1))
        return split_by_order(orders_BN, masked_count(ratio, self.layout.tokens))

    @abstractmethod
    def forward(self, tokens_BNC: Tensor, split: MaskSplit, condition: Condition, guidance: Guidance) -> Tensor | Z:
        """z (B, K, D) of the masked tokens, or all that a head may look at, where it is more (`Z.denoise`).

        What a prediction must not know is never looked at.
        """

    @abstractmethod
    def start(self, condition: Condition, guidance: Guidance, *, guided: bool) -> BackboneState:
        """Begin to sample: no token is known. `guided`: whether a step will ask for guidance (a cfg other than 1)."""

    def hold_bf16(self) -> None:
        """Hold weights in bfloat16 from now on, for sampling; by default autocast casts them at every product."""

    def blocks(self) -> Iterator[nn.Module]:
        """The blocks that are compiled one by one, and recomputed one by one under activation checkpointing."""
        yield from blocks_in(self)


class BackboneState(ABC):
    """A batch that is being sampled: what is known of it, and both halves of the guidance."""

    guidance: Guidance
    """What the injector said last; it is replaced before a step by an injector that follows the sampling."""

    @abstractmethod
    def predict(self, positions_BK: Tensor, step: Step) -> Z:
        """z of these tokens, from what is known but for themselves; `uncond_BKD` where `step.cfg` is not 1.

        Asking changes nothing, but that tokens of a step that redraws are forgotten; to be asked for once, then.

        Raises:
            UserError: it cannot draw known tokens anew.
        """

    @abstractmethod
    def reveal(self, positions_BK: Tensor, tokens_BKC: Tensor) -> None:
        """From now on these tokens (B, K, C) are known. K may be any number, the same for all images."""


def check_plan(plan: Plan, backbone: Backbone) -> None:
    """See that a backbone can follow a sampler's plan.

    Raises:
        UserError: it cannot; says what it can.
    """
    most = max((planned.positions_BK.shape[1] for planned in plan.steps), default=0)
    if backbone.order == "raster" and most > 1:
        raise UserError(f"sampler: {most} tokens in one step; the backbone predicts row by row, one token a step")
    if backbone.groups is not None:
        planned_K, sizes = ([*map(len, g)] for g in ([p.positions_BK[0] for p in plan.steps], backbone.groups))
        if planned_K != sizes:
            raise UserError(f"sampler: steps of {planned_K} tokens; the backbone predicts groups of {sizes}")
    if unknown := sorted({planned.step.reuse or "" for planned in plan.steps} - {"", *backbone.reuses}):
        known = f"allowed: {', '.join(sorted(backbone.reuses))}" if backbone.reuses else "it reuses nothing"
        raise UserError(f"sampler: reuse {unknown[0]}, which the backbone {type(backbone).__name__} has not; {known}")

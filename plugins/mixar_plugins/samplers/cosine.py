"""MAR's sampler: tokens in an order, few at first and many at last, guidance that grows with what is known."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from attrs import field, frozen
from attrs.validators import ge, in_, optional
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.masking import cfg_at_step, masked_after_step, random_orders
from mixar_core.noise import Noise
from mixar_core.plan import Plan, PlannedStep, Sampler, Task
from mixar_core.types import Step, TokenLayout

OrderName = Literal["random", "raster", "subsample", "halton"]


@frozen
class CosineConfig:
    """How tokens are shared out over the steps.

    Args:
        order: random: each image its own. raster: row by row. subsample: every fourth token of each direction first,
            then those between. halton: a fixed order that spreads out evenly (Halton's sequence in bases 2 and 3).
        tokens_per_step: as many in each step, whatever `sampling.steps` says; None: MaskGIT's cosine schedule, as MAR.
    """

    order: OrderName = field(default="random", validator=in_(("random", "raster", "subsample", "halton")))
    tokens_per_step: int | None = field(default=None, validator=optional(ge(1)))


class CosineSampler(Sampler):
    """MAR's plan: an order, the cosine schedule, guidance linear in the share of tokens known."""

    def __init__(self, config: CosineConfig) -> None:
        self.config = config
        self.raster = config.order == "raster" and config.tokens_per_step == 1

    def plan(self, task: Task, *, noise: Noise) -> Plan:
        """A plan for this task.

        Raises:
            UserError: the backbone goes row by row, and this plan does not; or the order needs a grid.
        """
        config, tokens = self.config, task.layout.tokens
        if task.order == "raster" and not self.raster:
            raise UserError(
                f"sampler: order {config.order}, tokens_per_step {config.tokens_per_step}; the backbone predicts row "
                "by row: order raster, tokens_per_step 1"
            )
        reveal_BN = reveal_order(config.order, task, noise=noise)
        if task.known_BK is not None:  # what is known is passed over; the others keep their order
            known_BN = torch.zeros_like(reveal_BN, dtype=torch.bool).scatter(1, task.known_BK, True)
            last_BN = known_BN.gather(1, reveal_BN).int().argsort(dim=1, stable=True)
            reveal_BN = reveal_BN.gather(1, last_BN)[:, : tokens - task.known_BK.shape[1]]
        total = reveal_BN.shape[1]
        if config.tokens_per_step is None:
            left = [total, *masked_after_step(total, task.steps)] if total else []
        else:
            left = [*range(total, 0, -config.tokens_per_step), 0]
        steps = []
        for before, after in pairwise(left):
            if after < before:
                positions_BK = reveal_BN[:, total - before : total - after].sort(dim=1).values
                cfg = cfg_at_step(task.cfg, tokens, after, task.cfg_schedule)
                steps.append(
                    PlannedStep(positions_BK, Step(cfg=cfg, temperature=task.temperature, head_steps=task.head_steps))
                )
        return Plan(steps)


def reveal_order(order: OrderName, task: Task, *, noise: Noise) -> Tensor:
    """Positions in the order in which they are revealed: (B, N) int64.

    Raises:
        UserError: the order needs a grid, and the layout has none.
    """
    if order == "random":  # the orders of `masking` end with what is known first
        return random_orders(task.images, task.layout.tokens, noise=noise, device=task.device).flip(1)
    fixed = {"raster": raster, "subsample": subsample, "halton": halton}[order](task.layout)
    return torch.tensor(fixed, device=task.device).expand(task.images, -1)


def raster(layout: TokenLayout) -> list[int]:
    """Row by row."""
    return list(range(layout.tokens))


def subsample(layout: TokenLayout) -> list[int]:
    """The places of every fourth row and column, then of every second, then all others; row by row within each."""
    height, width = _grid(layout, "subsample")
    places = [(row, column) for row in range(height) for column in range(width)]

    def coarseness(place: tuple[int, int]) -> int:
        return next((n for n, stride in enumerate((4, 2)) if place[0] % stride == 0 == place[1] % stride), 2)

    return [row * width + column for row, column in sorted(places, key=coarseness)]


def halton(layout: TokenLayout) -> list[int]:
    """Halton's points in bases 2 and 3, each place where it is first met (Halton-MaskGIT, arXiv 2503.17076)."""
    height, width = _grid(layout, "halton")
    order: dict[int, None] = {}
    index = 0
    while len(order) < height * width:
        row, column = math.floor(_radical_inverse(index, 2) * height), math.floor(_radical_inverse(index, 3) * width)
        order.setdefault(row * width + column)
        index += 1
    return list(order)


def _radical_inverse(index: int, base: int) -> float:
    value, share = 0.0, 1.0
    while index:
        share /= base
        value += share * (index % base)
        index //= base
    return value


def _grid(layout: TokenLayout, order: str) -> tuple[int, int]:
    if layout.kind != "grid" or layout.grid is None:
        raise UserError(f"sampler.order: {order}; it needs tokens on a grid, and these are a {layout}")
    return layout.grid.height, layout.grid.width

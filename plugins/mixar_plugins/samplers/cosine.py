"""MAR's sampler: tokens in an order, few at first and many at last, guidance that grows with what is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import torch
from attrs import field, frozen
from attrs.validators import ge, in_, optional
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.masking import cfg_at_step, masked_after_step, passing_over, random_orders
from mixar_core.noise import Noise
from mixar_core.plan import Plan, PlannedStep, Sampler, Task
from mixar_core.types import Grid, Step, TokenLayout
from mixar_plugins.networks.orders import halton

#: by name, the share of the way down that is left in step s, where the last is n
FALLS: dict[str, Callable[[int, int], float]] = {
    "linear": lambda s, n: (n - s) / n,
    "cosine": lambda s, n: (math.cos(math.pi * s / n) + 1.0) / 2.0,
    "two-stage": lambda s, n: 1.0 if s < n / 2 else 0.0,
}
OrderName = Literal["random", "raster", "subsample", "halton"]


@frozen
class CosineConfig:
    """How tokens are shared out over the steps.

    Args:
        order: random: each image its own. raster: row by row. subsample: every second row and column first, and of
            these every second first, and so on. halton: spread out evenly at every moment. These two need a grid.
        tokens_per_step: as many in each step, whatever `sampling.steps` says; None: MaskGIT's cosine schedule, as MAR.
        head_steps_end: head steps of the last step; `sampling.head_steps` falls to it (DiSA: 50 to 5). None: they stay.
        head_steps_fall: how, as DiSA's released code has it. two-stage: at half of the steps, at once.
        solver: the head's, for all steps; None: as the head's settings say.
        cfg_by: linear guidance grows with the share of tokens that are known after a step (MAR), or before it, so that
            the first step has none (l-DeTok's autoregression).
        cfg_interval: guidance only while the share of tokens that are not known is in (low, high], else none
            (arXiv 2404.07724; of masks eMIGM, arXiv 2503.07197); None: always.
    """

    order: OrderName = field(default="random", validator=in_(("random", "raster", "subsample", "halton")))
    tokens_per_step: int | None = field(default=None, validator=optional(ge(1)))
    head_steps_end: int | None = field(default=None, validator=optional(ge(1)))
    head_steps_fall: Literal["linear", "cosine", "two-stage"] = field(default="linear", validator=in_(FALLS))
    solver: str | None = None
    cfg_by: Literal["after", "before"] = field(default="after", validator=in_(("after", "before")))
    cfg_interval: tuple[float, float] | None = None

    def __attrs_post_init__(self) -> None:
        low, high = self.cfg_interval or (0.0, 1.0)
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(f"cfg_interval is {[low, high]}; it rises, within 0 and 1")


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
        reveal_BN = passing_over(self.reveal(task, noise=noise), task.known_BK)
        total = reveal_BN.shape[1]
        left = self.left(total, task.steps) if total else []
        steps = []
        for index, (before, after) in enumerate(pairwise(left)):
            if after < before:
                positions_BK = reveal_BN[:, total - before : total - after].sort(dim=1).values
                low, high = config.cfg_interval or (0.0, 1.0)
                guided, left_then = low < before / tokens <= high, after if config.cfg_by == "after" else before
                step = Step(
                    cfg=cfg_at_step(task.cfg, tokens, left_then, task.cfg_schedule) if guided else 1.0,
                    temperature=task.temperature,
                    head_steps=head_steps(task, config.head_steps_end, config.head_steps_fall, index, len(left) - 1),
                    solver=config.solver,
                )
                steps.append(PlannedStep(positions_BK, self.refined(step, index, len(left) - 1)))
        return Plan(steps)

    def reveal(self, task: Task, *, noise: Noise) -> Tensor:
        """Positions in the order in which they are revealed: (B, N) int64."""
        return reveal_order(self.config.order, task, noise=noise)

    def left(self, total: int, steps: int) -> list[int]:
        """How many of `total` tokens are left before the first and after every step."""
        if self.config.tokens_per_step is None:
            return [total, *masked_after_step(total, steps)]
        return [*range(total, 0, -self.config.tokens_per_step), 0]

    def refined(self, step: Step, index: int, steps: int) -> Step:
        """Step `index` of `steps` as a sampler that builds on this one wants it."""
        return step


def head_steps(task: Task, last: int | None, fall: str, index: int, steps: int) -> int | None:
    """Of step `index` of `steps`, falling from `task.head_steps` (DiSA, arXiv 2505.20297, and its released code).

    Args:
        last: to what they fall; None: they do not. fall: how, one of FALLS.

    Raises:
        UserError: they are to fall, and it is not said from where.
    """
    first = task.head_steps
    if last is None:
        return first
    if first is None or first < last:
        raise UserError(
            f"sampler.head_steps_end: {last}; head steps fall to it from sampling.head_steps, which is {first}"
        )
    return last + int(FALLS[fall](index, max(1, steps - 1)) * (first - last))


def reveal_order(order: OrderName, task: Task, *, noise: Noise) -> Tensor:
    """Positions in the order in which they are revealed: (B, N) int64.

    Raises:
        UserError: the order needs a grid, and the layout has none.
    """
    if order == "random":  # the orders of `masking` end with what is known first
        return random_orders(task.images, task.layout.tokens, noise=noise, device=task.device).flip(1)
    return torch.tensor(fixed_order(order, task.layout), device=task.device).expand(task.images, -1)


@lru_cache(maxsize=32)
def fixed_order(order: OrderName, layout: TokenLayout) -> tuple[int, ...]:
    """Positions in an order that is the same for every image.

    Raises:
        UserError: the order needs a grid, and the layout has none.
    """
    if order == "raster":
        return tuple(range(layout.tokens))
    if layout.kind != "grid":
        raise UserError(f"sampler.order: {order}; it needs tokens on a grid, and these are a {layout}")
    grid = layout.scales[0]
    return tuple(subsample(grid) if order == "subsample" else halton(grid))


def subsample(grid: Grid) -> list[int]:
    """Coarse to fine as VQGAN's order of this name (arXiv 2012.09841): the places of even row and column first, then
    even row and odd column, odd and even, both odd; and each of these four the same way within."""
    bits = max(grid.height, grid.width).bit_length()

    def coarseness(position: int) -> list[tuple[int, int]]:
        row, column = divmod(position, grid.width)
        return [(row >> bit & 1, column >> bit & 1) for bit in range(bits)]

    return sorted(range(grid.tokens), key=coarseness)

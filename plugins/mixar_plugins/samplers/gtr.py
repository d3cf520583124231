"""Generation then reconstruction: a checkerboard in many small steps, then what lies between in few large ones."""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from attrs import evolve, field, frozen
from attrs.validators import and_, ge, le
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.plan import Plan, PlannedStep, Task
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler, reveal_order

#: where stages end, as shares of the tokens: every second diagonal of the first half, that half, all
ENDS = (0.25, 0.5, 1.0)


@frozen
class GtRConfig(CosineConfig):
    """Settings of `cosine`, of which `order` and `tokens_per_step` stay as they are, and

    Args:
        shares: of the steps, for each of the three stages (24, 6 and 2 of 32).
        detail: a share of the last stage's tokens that takes as many head steps as the first step of all: those whose
            z varies most (as published: 0.1).
    """

    shares: tuple[float, float, float] = field(default=(0.75, 0.1875, 0.0625))
    detail: float = field(default=0.0, validator=and_(ge(0.0), le(1.0)))

    def __attrs_post_init__(self) -> None:
        CosineConfig.__attrs_post_init__(self)
        if min(self.shares) < 0.0 or sum(self.shares) <= 0.0:
            raise ValueError(f"shares is {list(self.shares)}; they are shares of the steps, not below 0, and not all 0")
        if self.order != "random" or self.tokens_per_step is not None:
            raise ValueError("order and tokens_per_step: the sampler gtr has an order and steps of its own")


class GtRSampler(CosineSampler):
    """GtR's stages: tokens of even row + column first, a quarter and a quarter; then the other half in few steps."""

    config: GtRConfig

    def plan(self, task: Task, *, noise: Noise) -> Plan:
        """A plan for this task.

        Raises:
            UserError: the tokens stand on no grid; or some are to have more head steps, and it is not said how many.
        """
        plan, share, done = super().plan(task, noise=noise), self.config.detail, 0
        if not share:
            return plan
        if task.head_steps is None:
            raise UserError(f"sampler.detail: {share:g}; these tokens take sampling.head_steps, which is None")
        steps, total = [], sum(planned.positions_BK.shape[1] for planned in plan.steps)
        for planned in plan.steps:
            last = done >= round(ENDS[1] * total)
            step = evolve(planned.step, detail=(share, task.head_steps)) if last else planned.step
            steps.append(PlannedStep(planned.positions_BK, step))
            done += planned.positions_BK.shape[1]
        return Plan(steps)

    def reveal(self, task: Task, *, noise: Noise) -> Tensor:
        """Stage by stage, at random within each: (B, N) int64.

        Raises:
            UserError: the tokens stand on no grid.
        """
        if task.layout.kind != "grid":
            raise UserError(f"sampler gtr: it needs tokens on a grid, and these are a {task.layout}")
        width = task.layout.scales[0].width
        diagonal = [sum(divmod(position, width)) for position in range(task.layout.tokens)]
        stages = [(0, 2, 1, 2)[each % 4] for each in diagonal]
        order_BN = reveal_order("random", task, noise=noise)
        stage_BN = torch.tensor(stages, device=task.device)[order_BN]
        return order_BN.gather(1, stage_BN.argsort(dim=1, stable=True))

    def left(self, total: int, steps: int) -> list[int]:
        """Each stage in even steps, at least one; where these are more than `steps`, the first ones are one."""
        shares, gone = self.config.shares, [0]
        ends = [round(share * steps / sum(shares)) for share in accumulate(shares)]
        for (begin, end), (first, last) in zip(
            pairwise([0, *(round(share * total) for share in ENDS)]), pairwise([0, *ends]), strict=True
        ):
            count = min(end - begin, max(1, last - first))
            gone += [begin + (end - begin) * (step + 1) // count for step in range(count)]
        return [total - tokens for tokens in (0, *gone[1:][-steps:])]

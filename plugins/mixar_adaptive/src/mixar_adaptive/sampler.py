"""Cost by complexity: the tokens of confident codes in few steps, the others later and with more."""

from __future__ import annotations

from itertools import pairwise

from attrs import evolve, field, frozen
from attrs.validators import and_, ge, le, optional
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.masking import cfg_at_step, passing_over, random_orders
from mixar_core.noise import Noise
from mixar_core.plan import Plan, PlannedStep, Sampler, Task
from mixar_core.types import Step

_share = and_(ge(0.0), le(1.0))


@frozen
class AdaptiveConfig:
    """How the steps are shared out. Shares are of the tokens to be drawn, rounded to whole tokens.

    Args:
        confident: share that is drawn first: in each image the tokens whose codes the prior was surest of.
        confident_steps: at most how many of `sampling.steps` they take; the other tokens have the rest, evenly. Of one
            step all, they are drawn with the others.
        confident_head_steps: how many steps of the head they take, no more than `sampling.head_steps` where that is
            set; None: as the others.
        redraw: share, with the least sure codes, that is forgotten in the end and drawn once more, in a step of its own
            after those of `sampling.steps`.
    """

    confident: float = field(default=0.5, validator=_share)
    confident_steps: int = field(default=1, validator=ge(1))
    confident_head_steps: int | None = field(default=None, validator=optional(ge(1)))
    redraw: float = field(default=0.0, validator=_share)


class AdaptiveSampler(Sampler):
    """Tokens in the order of their codes' confidence, the surest first and in few steps."""

    def __init__(self, config: AdaptiveConfig) -> None:
        self.config = config

    def plan(self, task: Task, *, noise: Noise) -> Plan:
        """A plan for this task: a function of settings, confidence and noise alone, of each image for itself.

        Where codes have no confidence, or there are none, all are equally sure, and the order is random.

        Raises:
            UserError: the backbone goes row by row.
        """
        if task.order == "raster":
            raise UserError("sampler adaptive: orders tokens by confidence; the backbone predicts row by row")
        config, order_BT = self.config, order_by_confidence(task, noise)
        total = order_BT.shape[1]
        sure, again = round(config.confident * total), round(config.redraw * total)
        first = min(config.confident_steps, sure, task.steps - (sure < total))
        sure = sure if first else 0
        rest = min(task.steps - first, total - sure)

        plain = Step(temperature=task.temperature, head_steps=task.head_steps)
        head_steps = [steps for steps in (config.confident_head_steps, task.head_steps) if steps is not None]
        quick = evolve(plain, head_steps=min(head_steps, default=None))

        def planned(step: Step, start: int, end: int, left: int) -> PlannedStep:
            cfg = cfg_at_step(task.cfg, task.layout.tokens, left, task.cfg_schedule)
            return PlannedStep(order_BT[:, start:end].sort(dim=1).values, evolve(step, cfg=cfg))

        steps = [planned(quick, a, b, total - b) for a, b in pairwise(evenly(0, sure, first))]
        steps += [planned(plain, a, b, total - b) for a, b in pairwise(evenly(sure, total, rest))]
        if again:
            steps.append(planned(evolve(plain, redraw=True), total - again, total, 0))
        return Plan(steps)


def order_by_confidence(task: Task, noise: Noise) -> Tensor:
    """Positions (B, T) of the tokens to be drawn, those with the surest codes first; equally sure ones at random."""
    order_BN = random_orders(task.images, task.layout.tokens, noise=noise, device=task.device)
    if task.confidence_BN is not None:
        by_confidence = task.confidence_BN.gather(1, order_BN).argsort(dim=1, descending=True, stable=True)
        order_BN = order_BN.gather(1, by_confidence)
    return passing_over(order_BN, task.known_BK)


def evenly(start: int, end: int, steps: int) -> list[int]:
    """Where each of so many steps begins, and where the last ends; none is empty, as there are tokens for each."""
    return [start + (end - start) * index // steps for index in range(steps + 1)] if steps else [start]

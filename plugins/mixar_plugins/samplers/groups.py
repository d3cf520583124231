"""A step for each group of tokens that a backbone predicts together, or for each scale of a pyramid (FlowAR, ACDiT)."""

from __future__ import annotations

from typing import Literal

import torch
from attrs import field, frozen
from attrs.validators import ge, in_, optional

from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.plan import Plan, PlannedStep, Sampler, Task
from mixar_core.types import Step
from mixar_plugins.samplers.cosine import FALLS, head_steps


@frozen
class GroupsConfig:
    """How groups are drawn. Linear guidance rises evenly from 1 in the first step, as in FlowAR; of one it is full.

    Args:
        head_steps_end, head_steps_fall, solver: as of the sampler `cosine`.
    """

    head_steps_end: int | None = field(default=None, validator=optional(ge(1)))
    head_steps_fall: Literal["linear", "cosine", "two-stage"] = field(default="linear", validator=in_(FALLS))
    solver: str | None = None


class GroupsSampler(Sampler):
    """A plan whose steps are the backbone's groups; of a backbone without groups, the scales of the tokens."""

    groups = True

    def __init__(self, config: GroupsConfig) -> None:
        self.config = config

    def plan(self, task: Task, *, noise: Noise) -> Plan:
        """A plan for this task.

        Raises:
            UserError: tokens are given, or the backbone goes row by row.
        """
        if task.order == "raster":
            raise UserError("sampler groups draws many tokens at once, and the backbone predicts row by row")
        if task.known_BK is not None and task.known_BK.shape[1]:
            raise UserError("sampler groups draws whole groups: tokens cannot be kept")
        groups, config = task.groups or task.layout.by_scale, self.config
        last, steps = len(groups) - 1, []
        for index, group in enumerate(groups):
            rises = index / last if task.cfg_schedule == "linear" and last else 1.0
            step = Step(
                cfg=1.0 + (task.cfg - 1.0) * rises,
                temperature=task.temperature,
                head_steps=head_steps(task, config.head_steps_end, config.head_steps_fall, index, len(groups)),
                solver=config.solver,
            )
            positions_BK = torch.tensor([*group], device=task.device).expand(task.images, -1)
            steps.append(PlannedStep(positions_BK, step))
        return Plan(steps)

"""Plans and samplers: which tokens a step of sampling draws, and how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from attrs import field, frozen
from attrs.validators import ge
from torch import Tensor

from mixar_core.noise import Noise
from mixar_core.types import Step, TokenLayout

#: the order in which a backbone can predict: any, only row by row, or only group by group (`Backbone.groups`)
Order = Literal["any", "raster", "groups"]


@frozen(eq=False)
class PlannedStep:
    """One step: the positions (B, K) int64 of its tokens, K of 1 or more, and how they are drawn."""

    positions_BK: Tensor
    step: Step


@frozen(eq=False)
class Plan:
    """All steps of sampling a batch. Together they name every token that is not known yet."""

    steps: Sequence[PlannedStep]

    def __len__(self) -> int:
        return len(self.steps)


@frozen(eq=False)
class Task:
    """What a plan is wanted for.

    Args:
        images: B. layout: of the continuous tokens. device: where index tensors are made.
        steps: autoregressive steps at most, 1 or more; of a sampler whose own settings count them, no bound.
        cfg, cfg_schedule, temperature, head_steps: as in SamplingConfig; a cfg of 1 where there is no condition.
        order: what the backbone can do; groups: of `order` groups, the positions of each, one after the other.
        known_BK: positions of the tokens that are given, int64, equally many in every image; None: none is.
        confidence_BN: log-probability of the codes that stand on each token's place, where there are such codes.
    """

    images: int
    layout: TokenLayout
    device: torch.device
    steps: int = field(validator=ge(1))
    cfg: float = 1.0
    cfg_schedule: Literal["linear", "constant"] = "linear"
    temperature: float = 1.0
    head_steps: int | None = None
    order: Order = "any"
    known_BK: Tensor | None = None
    confidence_BN: Tensor | None = None
    groups: Sequence[Sequence[int]] | None = None


class Sampler(ABC):
    """Makes plans. Registered as a Part, a sampler is built as `Class(config)`."""

    raster: bool = False
    """Whether it promises plans of one token a step, row by row, where `Task.order` is "raster".

    A backbone that predicts in that order alone can follow them. One that does not promise it refuses such a task.
    """
    groups: bool = False
    """Whether it promises plans of one step a group, in order, where `Task.order` is "groups"."""

    @abstractmethod
    def plan(self, task: Task, *, noise: Noise) -> Plan:
        """A plan for this task.

        Raises:
            UserError: it does not fit, for one an order that the backbone does not know.
        """

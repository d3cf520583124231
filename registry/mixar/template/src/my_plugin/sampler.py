"""A sampler: which tokens a step draws, and how."""

from __future__ import annotations

from attrs import field, frozen
from attrs.validators import and_, ge, le
from mixar_core import Noise, Plan, PlannedStep, Sampler, Step, Task, UserError


@frozen
class MyPluginSamplerConfig:
    """When guidance begins.

    Args:
        unguided: share of the tokens that are drawn before there is any guidance.
    """

    unguided: float = field(default=0.0, validator=and_(ge(0.0), le(0.9)))


class MyPluginSampler(Sampler):
    """A random order, the same number of tokens in each step."""

    def __init__(self, config: MyPluginSamplerConfig) -> None:
        self.config = config

    def plan(self, task: Task, *, noise: Noise) -> Plan:
        """A plan for any layout, and for tokens that are given; the backbone must predict in any order."""
        if task.order != "any":
            raise UserError("sampler my-plugin draws in random order; the backbone predicts row by row only")
        tokens = task.layout.tokens
        keys_BN = noise.uniform((task.images, tokens), task.device)
        given = 0
        if task.known_BK is not None:  # what is given comes last, and is left out
            given = task.known_BK.shape[1]
            keys_BN = keys_BN.scatter(1, task.known_BK, 2.0)
        order_BN = keys_BN.argsort(dim=1)[:, : tokens - given]
        known, steps = given, []
        for positions_BK in order_BN.tensor_split(min(task.steps, max(tokens - given, 1)), dim=1):
            if positions_BK.shape[1] == 0:
                continue
            known += positions_BK.shape[1]
            share = known / tokens if task.cfg_schedule == "linear" else 1.0
            cfg = 1.0 + (task.cfg - 1.0) * share if known > self.config.unguided * tokens else 1.0
            step = Step(cfg=cfg, temperature=task.temperature, head_steps=task.head_steps)
            steps.append(PlannedStep(positions_BK, step))
        return Plan(steps)

"""An optimizer: what moves the weights after every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from attrs import field, frozen
from attrs.validators import gt
from mixar_core import Optimizer, Weight

if TYPE_CHECKING:
    from mixar_core.training.settings import TrainingConfig


@frozen
class MyPluginOptimizerConfig:
    """What `training:` does not say.

    Args:
        momentum_decay: how fast the momentum grows; see torch.optim.NAdam.
    """

    momentum_decay: float = field(default=0.004, validator=gt(0.0))


class MyPluginOptimizer(Optimizer):
    """Adam with Nesterov momentum and decoupled weight decay: torch's NAdam."""

    def __init__(self, config: MyPluginOptimizerConfig) -> None:
        self.config = config

    def make(self, weights: Sequence[Weight], training: TrainingConfig) -> Sequence[torch.optim.Optimizer]:
        """One, with two groups: what is decayed, and what is not. The learning rate is set before every step."""
        pairs = ((True, training.weight_decay), (False, 0.0))
        groups = [
            {"params": [weight.parameter for weight in weights if weight.decayed == decayed], "weight_decay": decay}
            for decayed, decay in pairs
        ]
        return [
            torch.optim.NAdam(
                [group for group in groups if group["params"]],
                lr=training.learning_rate,
                betas=training.betas,
                eps=training.epsilon,
                momentum_decay=self.config.momentum_decay,
                decoupled_weight_decay=True,
            )
        ]

"""Schedule-free AdamW (Defazio et al., 2024): an average of the iterates in place of a falling learning rate."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from attrs import field, frozen
from attrs.validators import ge
from torch import Tensor
from torch.optim import Optimizer as TorchOptimizer

from mixar_core.errors import UserError
from mixar_core.training.optimizer import Optimizer, Weight, groups_of
from mixar_core.training.settings import TrainingConfig


@frozen
class ScheduleFreeConfig:
    """How its average is taken; the first of `training.betas` says where between both gradients are (paper: 0.9).

    Args:
        power: a step's weight in the average grows with so high a power of its number.
        rate_power: and with so high a power of the largest learning rate so far, so that warm-up counts less.
    """

    power: float = field(default=0.0, validator=ge(0.0))
    rate_power: float = field(default=2.0, validator=ge(0.0))


class ScheduleFree(Optimizer):
    """AdamW without a schedule, of the package schedulefree (`pip install 'mixar[schedulefree]'`).

    Gradients are taken at y = (1 - beta) z + beta x, with z the iterates and x their average (Eq. 3 to 5). x is what is
    measured, what the moving average follows and what is written; checkpoints hold y and z.

    Raises:
        UserError: the package is not installed, or `training:` has no such first beta.
    """

    counters: ClassVar[tuple[str, ...]] = ("k", "weight_sum", "lr_max")

    def __init__(self, config: ScheduleFreeConfig) -> None:
        self.config = config
        try:
            self.package = importlib.import_module("schedulefree")
        except ImportError as error:
            raise UserError("needs the package schedulefree: pip install 'mixar[schedulefree]'") from error

    def make(self, weights: Sequence[Weight], training: TrainingConfig) -> Sequence[TorchOptimizer]:
        """The package's AdamW, in the mode in which it steps; its own modes are not used."""
        if training.betas[0] == 0.0:
            raise UserError("training.betas: the first must be above 0")
        optimizer = self.package.AdamWScheduleFree(
            groups_of(weights, training),
            lr=training.scale_lr(training.learning_rate),
            betas=training.betas,
            eps=training.epsilon,
            r=self.config.power,
            weight_lr_power=self.config.rate_power,
        )
        optimizer.train()
        return [optimizer]

    def evaluated(self, parameter: Tensor, kept: Mapping[str, Tensor], group: Mapping[str, Any]) -> Tensor:
        """x, from y and z."""
        return parameter.lerp(kept["z"], 1.0 - 1.0 / group["betas"][0]) if "z" in kept else parameter

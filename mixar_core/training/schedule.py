"""The learning rate as a function of the step: MAR's two schedules, and those of torch.optim.lr_scheduler by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import SGD, lr_scheduler

from mixar_core.errors import UserError

if TYPE_CHECKING:
    from mixar_core.training.settings import TrainingConfig

#: a name, or a mapping of `type` and the settings of a torch scheduler
Schedule = str | Mapping[str, Any]

OWN = ("constant", "cosine")
_REFUSED = {
    "ReduceLROnPlateau": "it follows a measurement, and a rate is a function of the step here, so that runs resume",
    "LambdaLR": "it takes a function",
    "MultiplicativeLR": "it takes a function",
    "SequentialLR": "it is made of other schedulers",
    "ChainedScheduler": "it is made of other schedulers",
}
#: learning rates among their settings, scaled as `learning_rate` is
_RATES = ("max_lr", "base_lr", "eta_min")
#: what follows the run's length where it is not given: the setting, and steps less than those after warm-up
_LENGTHS = {"OneCycleLR": ("total_steps", 0), "CosineAnnealingLR": ("T_max", 1)}
#: what is none of a recipe's: the rate alone is scheduled, and nothing is a function
_NOT_OURS = ("optimizer", "last_epoch", "scale_fn", "cycle_momentum", "base_momentum", "max_momentum")


def lr_at(step: int, config: TrainingConfig, *, steps: int, warmup: int) -> float:
    """Learning rate of step `step` (from 0) of `steps`, of the schedules `constant` and `cosine`.

    Linear over `warmup` steps, reaching the full rate at the last of them, and then constant, or half a cosine that
    reaches `min_lr` at the last step.
    """
    peak, end = config.scale_lr(config.learning_rate), config.scale_lr(config.min_lr)
    if step < warmup:
        return peak * (step + 1) / warmup
    if config.schedule == "constant":
        return peak
    share = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return end + (peak - end) * 0.5 * (1.0 + math.cos(math.pi * share))


def check_schedule(schedule: Schedule) -> None:
    """See that a schedule is one that there is, and that its settings have the names that they have in torch.

    Raises:
        ValueError: it is not; one line with what is allowed.
    """
    name, settings = _parts(schedule)
    if name in OWN and not settings:
        return
    if reason := _REFUSED.get(name):
        raise ValueError(f"'schedule' must be another than {name}: {reason}; allowed: {', '.join(_names())}")
    if name not in _names():
        raise ValueError(f"'schedule' must be one of {', '.join(_names())}: not {name or 'without a type'}")
    if name in OWN:
        raise ValueError(f"'schedule' must be {name} alone, which has no settings here: {', '.join(settings)}")
    parameters = _parameters(name)
    unknown, lacking = settings.keys() - parameters.keys(), parameters.keys() - settings.keys()
    if unknown:
        raise ValueError(f"'schedule' must be {name} with {', '.join(parameters)}: not {', '.join(sorted(unknown))}")
    for key, rate in ((key, settings[key]) for key in _RATES if isinstance(settings.get(key), int | float)):
        if rate < 0:
            raise ValueError(f"'schedule' must be {name} with a {key} of 0 or more: not {rate}")
    needed = [key for key in parameters if parameters[key].default is inspect.Parameter.empty]
    needed = [key for key in needed if key != _LENGTHS.get(name, ("",))[0]]
    for key in needed:
        if key in lacking:
            form = ", ".join([f"type: {name}", *(f"{each}: ..." for each in needed)])
            raise ValueError(f"'schedule' must be {name} with its {key}, which is required: {{{form}}}")


def follows_length(schedule: Schedule) -> bool:
    """Whether the rate of a step depends on how many steps a run has."""
    name, settings = _parts(schedule)
    return name == "cosine" or (name in _LENGTHS and not {_LENGTHS[name][0], "epochs"} & settings.keys())


class LearningRate:
    """The rate of each step of a run, whatever the schedule; the same whether a run was resumed or not.

    A torch scheduler is asked for the steps after warm-up: it is stepped from the first of them on, so that its state
    is what it would be in a run that never stopped. Warm-up is linear, up to its first rate.

    Raises:
        UserError: the scheduler refuses its settings, or is shorter than the run.
    """

    def __init__(self, config: TrainingConfig, *, steps: int, warmup: int) -> None:
        self.config, self.steps, self.warmup = config, steps, warmup
        self.name, self.settings = _parts(config.schedule)
        if self.name not in OWN:
            self._start()
            self._first = self._rate
            self(warmup + 1)  # a setting may be wrong, and not before a step
            long, needed = getattr(self._scheduler, "total_steps", None), steps - warmup
            if long is not None and long < needed:
                raise UserError(f"training.schedule: {self.name} ends after {long} steps, and {needed} follow warm-up")

    def __call__(self, step: int) -> float:
        """Of step `step`, from 0; cheapest in order."""
        if self.name in OWN:
            return lr_at(step, self.config, steps=self.steps, warmup=self.warmup)
        if step < self.warmup:
            return self._first * (step + 1) / self.warmup
        if step - self.warmup < self._done:
            self._start()
        with self._refusing():
            while self._done < step - self.warmup:
                self._scheduler.step()
                self._done += 1
            return self._rate

    @property
    def _rate(self) -> float:
        return float(self._optimizer.param_groups[0]["lr"])

    def _start(self) -> None:
        config, settings = self.config, dict(self.settings)
        settings |= {
            key: config.scale_lr(settings[key]) for key in _RATES if isinstance(settings.get(key), int | float)
        }
        if follows_length(config.schedule):
            key, less = _LENGTHS[self.name]
            settings[key] = max(1, self.steps - self.warmup - less)
        if "cycle_momentum" in _signature(self.name):
            settings["cycle_momentum"] = False
        weight = torch.nn.Parameter(torch.zeros((), device="cpu"))
        self._optimizer, self._done = SGD([weight], lr=config.scale_lr(config.learning_rate)), 0
        with self._refusing():
            self._scheduler = getattr(lr_scheduler, self.name)(self._optimizer, **settings)
            _ = self._rate
        self._optimizer.step()  # torch warns of a scheduler that is stepped before its optimizer

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except ZeroDivisionError as error:
            raise UserError(f"training.schedule: {self.name}: a setting is zero, by which it divides") from error
        except (ValueError, TypeError, ArithmeticError) as error:
            raise UserError(f"training.schedule: {self.name}: {error}") from error


def _parts(schedule: Schedule) -> tuple[str, dict[str, Any]]:
    """Name and settings."""
    if isinstance(schedule, str):
        return schedule, {}
    return str(schedule.get("type", "")), {key: value for key, value in schedule.items() if key != "type"}


def _names() -> list[str]:
    found = vars(lr_scheduler).items()
    kinds = [name for name, kind in found if inspect.isclass(kind) and issubclass(kind, lr_scheduler.LRScheduler)]
    return [*OWN, *sorted(name for name in kinds if name != "LRScheduler" and name[0] != "_" and name not in _REFUSED)]


def _signature(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(getattr(lr_scheduler, name)).parameters


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    return {key: parameter for key, parameter in _signature(name).items() if key not in _NOT_OURS}

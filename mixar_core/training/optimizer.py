"""Optimizers: what moves the weights, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer as TorchOptimizer

from mixar_core.blocks import sharded_blocks
from mixar_core.errors import UserError
from mixar_core.training.settings import TrainingConfig


@frozen(eq=False)
class Weight:
    """A trained parameter, and what an optimizer may want to know of it.

    Args:
        decayed: whether weight decay is for it.
        hidden: whether it is a matrix inside a block of what is trained: no embedding or table, and not of the layers
            by which tokens come in and go out.
    """

    name: str
    parameter: nn.Parameter
    decayed: bool = True
    hidden: bool = False


class Optimizer(ABC):
    """Moves the weights after every step, by torch optimizers.

    Registered as a Part, an optimizer is built as `Class(config)`. Learning rate, betas, epsilon and weight decay are
    those of `training:`. Tensors in the state of its torch optimizers are kept in checkpoints.
    """

    config: Any
    #: numbers in its torch optimizers' groups that change from step to step, so that checkpoints must keep them, too
    counters: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def make(self, weights: Sequence[Weight], training: TrainingConfig) -> Sequence[TorchOptimizer]:
        """Torch optimizers that together have each weight once. `lr` of their groups is set before every step.

        Raises:
            UserError: it can do nothing for these weights.
        """

    def fingerprint(self) -> dict[str, Any]:
        """What a resumed run must share with the one it goes on with."""
        return {"optimizer": str(self.config)}

    def evaluated(self, parameter: Tensor, kept: Mapping[str, Tensor], group: Mapping[str, Any]) -> Tensor:
        """What is measured, averaged and written of a parameter, whose state is `kept`: as a rule it itself."""
        return parameter


@frozen
class AdamWConfig:
    """AdamW has no settings but those of `training:`."""


class AdamW(Optimizer):
    """Adam with decoupled weight decay, as MAR, MaskBit and most of the field train."""

    def __init__(self, config: AdamWConfig | None = None) -> None:
        self.config = config or AdamWConfig()

    def fingerprint(self) -> dict[str, Any]:
        """Nothing: runs begun before there were others say nothing either."""
        return {}

    def make(self, weights: Sequence[Weight], training: TrainingConfig) -> Sequence[TorchOptimizer]:
        """One of torch's."""
        return [torch_adamw(weights, training)]


def groups_of(weights: Sequence[Weight], training: TrainingConfig) -> list[dict[str, Any]]:
    """Groups of parameters for a torch optimizer, those with weight decay first; none is empty."""
    groups = [
        {"params": [w.parameter for w in weights if w.decayed], "weight_decay": training.weight_decay},
        {"params": [w.parameter for w in weights if not w.decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def torch_adamw(weights: Sequence[Weight], training: TrainingConfig) -> TorchAdamW:
    """torch's AdamW.

    The fused kernel is asked for everywhere: on a CPU it was measured 3 times as fast as the others.
    """
    rate = training.scale_lr(training.learning_rate)
    return TorchAdamW(groups_of(weights, training), lr=rate, betas=training.betas, eps=training.epsilon, fused=True)


class Updates:
    """An optimizer at work on a module's weights: one for the engine, whatever it is made of.

    Args:
        excluded: as in `decay_groups`.
    """

    def __init__(
        self, optimizer: Optimizer, module: nn.Module, training: TrainingConfig, excluded: Collection[str] = ()
    ) -> None:
        self.optimizer, weights = optimizer, weights_of(module, excluded)
        self.parameters = {weight.name: weight.parameter for weight in weights}
        self.torch = [*optimizer.make(weights, training)]
        found = [(id(p), each, group) for each in self.torch for group in each.param_groups for p in group["params"]]
        if sorted(p for p, _, _ in found) != sorted(map(id, self.parameters.values())):
            raise ValueError(f"{type(optimizer).__name__} does not have each weight once")
        self._owner = {p: (each, group) for p, each, group in found}
        self._evaluates = type(optimizer).evaluated is not Optimizer.evaluated

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all torch optimizers."""
        return [group for each in self.torch for group in each.param_groups]

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for each in self.torch:
            each.zero_grad(set_to_none=True)

    def step(self, rate: float) -> None:
        """Move the weights along their gradients, at this learning rate."""
        for group in self.param_groups:
            group["lr"] = rate
        for each in self.torch:
            each.step()

    @torch.no_grad()
    def evaluated(self) -> dict[str, Tensor]:
        """Weights by name, where others are measured, averaged and written than gradients are taken at; or none."""
        if not self._evaluates:
            return {}
        return {
            name: self.optimizer.evaluated(p.detach(), self._kept(p), self._owner[id(p)][1])
            for name, p in self.parameters.items()
        }

    # ---------------------------------------------------------------- its state

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds: `exp_avg.head.weight`, sharing memory; counters by their group, `k.group-0`."""
        kept = ((name, key, value) for name, p in self.parameters.items() for key, value in self._kept(p).items())
        tensors = {f"{key}.{name}": value for name, key, value in kept if isinstance(value, Tensor)}
        return tensors | {
            f"{key}.group-{index}": torch.tensor(group[key], dtype=torch.float64)
            for index, group in enumerate(self.param_groups)
            for key in self.optimizer.counters
        }

    def expect(self, stored: Mapping[str, Tensor]) -> None:
        """Make room for tensors like these, so that a checkpoint can be loaded into `state()`."""
        for entry, like in stored.items():
            key, _, name = entry.partition(".")
            if name in self.parameters:
                parameter = self.parameters[name]
                moment = like.shape == parameter.shape and key != "step"
                zeros = torch.zeros_like(parameter) if moment else torch.zeros(like.shape, device=parameter.device)
                self._owner[id(parameter)][0].state[parameter][key] = zeros.detach()

    def take(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what was loaded into `state()`: its tensors are in place, the counters are not."""
        for index, group in enumerate(self.param_groups):
            for key in self.optimizer.counters:
                group[key] = type(group[key])(state[f"{key}.group-{index}"].item())

    def _kept(self, parameter: nn.Parameter) -> Mapping[str, Tensor]:
        kept: Mapping[str, Tensor] = self._owner[id(parameter)][0].state.get(parameter, {})
        return kept


def weights_of(module: nn.Module, excluded: Collection[str] = ()) -> list[Weight]:
    """The trained parameters of a module; those that weight decay is for come first."""
    blocks = sharded_blocks(module)
    layers = (layer for block in blocks for layer in block.modules() if not isinstance(layer, nn.Embedding))
    hidden = {id(p) for layer in layers for p in layer.parameters(recurse=False) if p.ndim == 2}
    return [
        Weight(name, parameter, decayed, id(parameter) in hidden)
        for decayed, named in zip((True, False), decay_groups(module, excluded), strict=True)
        for name, parameter in named
    ]


def decay_groups(
    module: nn.Module, excluded: Collection[str] = ()
) -> tuple[list[tuple[str, nn.Parameter]], list[tuple[str, nn.Parameter]]]:
    """Named trainable parameters with and without weight decay.

    MAR's rule: none for vectors (biases, norms), nor for what `excluded` names, its head. An entry of `excluded` is a
    parameter's name, or a module's for all of its parameters.

    Raises:
        ValueError: an entry names nothing.
    """
    decayed: list[tuple[str, nn.Parameter]] = []
    free: list[tuple[str, nn.Parameter]] = []
    met: set[str] = set()
    for name, parameter in module.named_parameters():
        owners = {entry for entry in excluded if is_of(name, entry)}
        met |= owners
        if parameter.requires_grad:
            (free if owners or parameter.ndim < 2 else decayed).append((name, parameter))
    if unknown := set(excluded) - met:
        raise ValueError(f"no parameter of {type(module).__name__} is named {', '.join(sorted(unknown))}")
    return decayed, free


def is_of(name: str, entry: str) -> bool:
    """Whether a parameter is meant by its own name or by that of a module that it is in."""
    return name == entry or name.startswith(f"{entry}.")


def freeze(module: nn.Module, entries: Collection[str]) -> None:
    """Let the parameters that these names mean, as in `is_of`, stay as they are.

    Raises:
        UserError: a name means none, or no parameter is left to train.
    """
    parameters = dict(module.named_parameters())
    for entry in entries:
        met = [parameter for name, parameter in parameters.items() if is_of(name, entry)]
        if not met:
            parts = ", ".join(name for name, _ in module.named_children())
            raise UserError(f"{entry}: no parameter's name begins so; what is trained has {parts}, and what is in them")
        for parameter in met:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise UserError("leaves nothing to train")


def make_optimizer(
    module: nn.Module,
    config: TrainingConfig,
    excluded: Collection[str] = (),
    optimizer: Optimizer | None = None,
) -> Updates:
    """An optimizer, AdamW where none is given, at work on `module`."""
    return Updates(optimizer or AdamW(), module, config, excluded)


def lr_at(step: int, config: TrainingConfig, *, steps: int, warmup: int) -> float:
    """Learning rate of step `step` (from 0) of `steps`.

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

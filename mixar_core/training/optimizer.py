"""Optimizers: what moves the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import torch
from attrs import frozen
from torch import Tensor, nn
from torch.optim import AdamW as TorchAdamW
from torch.optim import Optimizer as TorchOptimizer

from mixar_core.blocks import sharded_blocks
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
    decayed: bool
    hidden: bool


class Optimizer(ABC):
    """Moves the weights after every step, by torch optimizers.

    Registered as a Part, an optimizer is built as `Class(config)`. Learning rate, betas, epsilon and weight decay are
    those of `training:`. Tensors in the state of its torch optimizers are kept in checkpoints.
    """

    config: Any
    """A resumed run must have an equal one."""
    counters: ClassVar[tuple[str, ...]] = ()
    """Numbers in its torch optimizers' groups that change from step to step; checkpoints keep them, too."""

    @abstractmethod
    def make(self, weights: Sequence[Weight], training: TrainingConfig) -> Sequence[TorchOptimizer]:
        """Torch optimizers that together have each weight once. `lr` of their groups is set before every step.

        Raises:
            UserError: it can do nothing for these weights.
        """

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

    def make(self, weights: Sequence[Weight], training: TrainingConfig) -> Sequence[TorchOptimizer]:
        """torch's. The fused kernel is asked for everywhere: on a CPU it was measured 3 times as fast as the others."""
        rate, groups = training.scale_lr(training.learning_rate), groups_of(weights, training)
        return [TorchAdamW(groups, lr=rate, betas=training.betas, eps=training.epsilon, fused=True)]


def groups_of(weights: Sequence[Weight], training: TrainingConfig) -> list[dict[str, Any]]:
    """Groups of parameters for a torch optimizer, those with weight decay first; none is empty."""
    decayed, free = ([w.parameter for w in weights if w.decayed == kind] for kind in (True, False))
    pairs = ((decayed, training.weight_decay), (free, 0.0))
    return [{"params": parameters, "weight_decay": decay} for parameters, decay in pairs if parameters]


class Updates:
    """An optimizer at work on a module's weights: one for the engine, whatever it is made of.

    Args:
        excluded: as in `weights_of`.
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
        evaluated = self.optimizer.evaluated
        if type(self.optimizer).evaluated is Optimizer.evaluated:
            return {}
        return {n: evaluated(p.detach(), self._kept(p), self._owner[id(p)][1]) for n, p in self.parameters.items()}

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
    """The trained parameters of a module.

    Weight decay goes by MAR's rule: none for vectors (biases, norms), nor for what `excluded` names, its head. An entry
    of `excluded` is a parameter's name, or a module's for all of its parameters.

    Raises:
        ValueError: an entry names nothing.
    """
    layers = (layer for block in sharded_blocks(module) for layer in block.modules())
    hidden = {id(p) for layer in layers if not isinstance(layer, nn.Embedding) for p in layer.parameters(recurse=False)}
    weights, met = [], set()
    for name, p in module.named_parameters():
        owners = {entry for entry in excluded if name == entry or name.startswith(entry + ".")}
        met |= owners
        if p.requires_grad:
            weights.append(Weight(name, p, not owners and p.ndim > 1, id(p) in hidden and p.ndim == 2))
    if unknown := set(excluded) - met:
        raise ValueError(f"no parameter of {type(module).__name__} is named {', '.join(sorted(unknown))}")
    return weights

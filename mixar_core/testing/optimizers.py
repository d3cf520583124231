"""The contract of optimizers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mixar_core.blocks import Block
from mixar_core.testing.common import expect, expect_equal, measured, normal, topic
from mixar_core.training.optimizer import Optimizer, Updates
from mixar_core.training.settings import TrainingConfig


class _Network(nn.Module):
    """Has what weights differ by: a table, blocks of matrices and vectors, a convolution, a layer without decay."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.mix = nn.Embedding(5, 8), nn.Conv1d(8, 8, 3, padding=1)
        self.blocks = nn.ModuleList(Block(8, 2, 2.0, attention_dropout=0.0, dropout=0.0) for _ in range(2))
        self.head, self.frozen = nn.Linear(8, 3), nn.Linear(3, 3).requires_grad_(False)

    def forward(self, classes_BN: Tensor) -> Tensor:
        """(B, N) to (B, N, 3)."""
        x = self.table(classes_BN)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.frozen(self.head(self.mix(x.transpose(1, 2)).transpose(1, 2)))
        return out


class _Run:
    """A network and its optimizer."""

    def __init__(self, make: Callable[[], Optimizer], weight_decay: float = 0.1) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = _Network()
        config = TrainingConfig(steps=1, learning_rate_per=None, weight_decay=weight_decay)
        self.updates = Updates(make(), self.network, config, ["head"])
        self.losses: list[float] = []
        self.begun = self.weights()

    def steps(self, first: int, last: int, rate: float) -> _Run:
        """Steps `first` to `last` (not included), each on inputs of its own."""
        for step in range(first, last):
            classes_BN = torch.randint(5, (4, 6), generator=torch.Generator().manual_seed(step))
            target_BN3 = classes_BN[..., None] + 0.1 * normal(4, 6, 3, seed=step)
            loss = (self.network(classes_BN) - target_BN3).square().mean()
            self.updates.zero_grad()
            loss.backward()
            self.updates.step(rate)
            self.losses.append(loss.item())
        return self

    def weights(self) -> dict[str, Tensor]:
        """As gradients are taken at."""
        return {name: parameter.detach().clone() for name, parameter in self.network.named_parameters()}

    def moved(self) -> dict[str, float]:
        """How far each weight is from where it began."""
        return {name: float((weight - self.begun[name]).norm()) for name, weight in self.weights().items()}


def check_optimizer(make: Callable[[], Optimizer], *, rate: float = 1e-2) -> None:
    """The contract of `Optimizer`, whose `make` builds one.

    It moves every trained weight and no other, as far as the learning rate says, draws nothing, decays only what is to
    be decayed, and goes on to the bit from the tensors that a checkpoint holds of it by name.

    Args:
        rate: a learning rate at which it learns.
    """
    before = torch.get_rng_state()
    run = measured("40 steps of a small network", lambda: _Run(make).steps(0, 40, rate))
    topic("random numbers")
    expect(torch.equal(before, torch.get_rng_state()), "random numbers come from torch's global generator")
    topic("repeatable")
    expect_equal("two equal runs differ", run.weights(), _Run(make).steps(0, 40, rate).weights())
    topic("what it moves")
    expect(sum(run.losses[-5:]) < 0.7 * sum(run.losses[:5]), f"at a learning rate of {rate} the loss does not fall")
    for name, moved in run.moved().items():
        fits = moved == 0 if name.startswith("frozen") else 0 < moved < float("inf")
        expect(fits, f"{name} is moved by {moved}")
    still, once, twice = (_Run(make).steps(0, 1, factor * rate).moved() for factor in (0, 1, 2))
    for name in run.updates.parameters:
        expect(still[name] == 0, f"{name} moves at a learning rate of 0")
        expect(once[name] < twice[name], f"{name} moves no further at twice the learning rate")
    topic("weight decay")
    without, decayed = (_Run(make, weight_decay).steps(0, 1, rate).weights() for weight_decay in (0.0, 0.5))
    for name, weight in without.items():
        free = weight.ndim < 2 or name.startswith(("head", "frozen"))
        wrong = "is decayed, though its `weight.decayed` is False: no `training.weight_decay` for such"
        if not free:
            wrong = "is not decayed, though its `weight.decayed` is True: `training.weight_decay` is meant for such"
        expect(torch.equal(weight, decayed[name]) == free, f"{name} {wrong}")
    topic("state in checkpoints")
    _check_state(make, rate)


def _check_state(make: Callable[[], Optimizer], rate: float) -> None:
    """From weights and state, each by name, another one goes on as the first would have."""
    whole, resumed = _Run(make).steps(0, 3, rate), _Run(make)
    stored = {name: tensor.detach().clone() for name, tensor in whole.updates.state().items()}
    resumed.network.load_state_dict(whole.weights())
    resumed.updates.expect(stored)
    state = resumed.updates.state()
    shapes = [{name: tensor.shape for name, tensor in each.items()} for each in (stored, state)]
    expect(shapes[0] == shapes[1], "there is no room for the state that it wrote itself")
    for name, tensor in state.items():
        tensor.copy_(stored[name])
    resumed.updates.take(state)
    for run in (whole, resumed):
        run.steps(3, 6, rate)
    expect_equal("it goes on from its state in another way", whole.weights(), resumed.weights())
    evaluated = whole.updates.evaluated()
    expect_equal("what is evaluated differs after going on", evaluated, resumed.updates.evaluated())
    for name, tensor in evaluated.items():
        expect(tensor.shape == whole.updates.parameters[name].shape, f"what is evaluated of {name} has another shape")

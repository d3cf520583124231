"""The contract of optimizers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mixar_core.blocks import Block
from mixar_core.testing.common import expect, expect_equal, normal
from mixar_core.training.optimizer import Optimizer, Updates
from mixar_core.training.settings import TrainingConfig

_WIDTH, _CLASSES = 8, 5


class _Network(nn.Module):
    """Has what weights differ by: a table, blocks of matrices and vectors, a convolution, a layer without decay."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(_CLASSES, _WIDTH)
        self.blocks = nn.ModuleList(Block(_WIDTH, 2, 2.0, attention_dropout=0.0, dropout=0.0) for _ in range(2))
        self.mix = nn.Conv1d(_WIDTH, _WIDTH, 3, padding=1)
        self.head = nn.Linear(_WIDTH, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def forward(self, classes_BN: Tensor) -> Tensor:
        """(B, N) to (B, N, 3)."""
        x = self.table(classes_BN)
        for block in self.blocks:
            x = block(x)
        return self.frozen(self.head(self.mix(x.transpose(1, 2)).transpose(1, 2)))


class _Run:
    """A network and its optimizer."""

    def __init__(self, make: Callable[[], Optimizer], **settings: float) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = _Network()
        config = TrainingConfig(steps=1, learning_rate_per=None, **{"weight_decay": 0.1} | settings)  # type: ignore[arg-type]
        self.updates = Updates(make(), self.network, config, ["head"])
        self.losses: list[float] = []

    def steps(self, first: int, last: int, rate: float = 1e-3) -> _Run:
        """Steps `first` to `last` (not included), each on inputs of its own."""
        for step in range(first, last):
            classes_BN = torch.randint(_CLASSES, (4, 6), generator=torch.Generator().manual_seed(step))
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

    def moved(self, name: str) -> float:
        """How far a weight is from where it began."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            begun = dict(_Network().named_parameters())
        return float((self.weights()[name] - begun[name].detach()).norm())


def check_optimizer(make: Callable[[], Optimizer], *, rate: float = 1e-2) -> None:
    """The contract of `Optimizer`, whose `make` builds one.

    It moves every trained weight and no other, as far as the learning rate says, draws nothing, decays only what is to
    be decayed, and goes on to the bit from the tensors that a checkpoint holds of it by name.

    Args:
        rate: a learning rate at which it learns.
    """
    before = torch.get_rng_state()
    run = _Run(make).steps(0, 40, rate)
    expect(torch.equal(before, torch.get_rng_state()), "random numbers come from torch's global generator")
    expect_equal("two equal runs differ", run.weights(), _Run(make).steps(0, 40, rate).weights())
    expect(sum(run.losses[-5:]) < 0.7 * sum(run.losses[:5]), f"at a learning rate of {rate} the loss does not fall")
    for name, parameter in run.network.named_parameters():
        expect(bool(parameter.isfinite().all()), f"{name} is not finite")
        expect((run.moved(name) > 0) == parameter.requires_grad, f"{name} moves, or does not, as it should not")

    still, once, twice = (_Run(make).steps(0, 1, factor * rate) for factor in (0, 1, 2))
    for name in run.updates.parameters:
        expect(still.moved(name) == 0, f"{name} moves at a learning rate of 0")
        expect(once.moved(name) < twice.moved(name), f"{name} moves no further at twice the learning rate")
    _check_decay(make, rate)
    _check_state(make, rate)


def _check_decay(make: Callable[[], Optimizer], rate: float) -> None:
    """Vectors, and what the objective excludes, take the same step with weight decay as without."""
    without, decayed = (_Run(make, weight_decay=decay).steps(0, 1, rate).weights() for decay in (0.0, 0.5))
    for name, weight in without.items():
        free = weight.ndim < 2 or name.startswith(("head", "frozen"))
        expect(torch.equal(weight, decayed[name]) == free, f"{name} is decayed, or is not, as it should not be")


def _check_state(make: Callable[[], Optimizer], rate: float) -> None:
    """From weights and state, each by name, another one goes on as the first would have."""
    whole, stopped, resumed = _Run(make).steps(0, 3, rate), _Run(make).steps(0, 3, rate), _Run(make)
    stored = {name: tensor.detach().clone() for name, tensor in stopped.updates.state().items()}
    names = {name.partition(".")[2] for name in stored}
    expect(names >= stopped.updates.parameters.keys() or not stored, "its state lacks some weights")
    resumed.network.load_state_dict(stopped.weights())
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

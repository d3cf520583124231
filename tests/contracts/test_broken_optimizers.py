"""The contract of optimizers notices what is wrong with one."""

from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

from mixar_core.testing import check_optimizer
from mixar_core.training.optimizer import Optimizer, groups_of


class Steps(SGD):
    """Plain steps that can be spoilt; from the `slow`th on they are halved, which a group's `count` tells."""

    def __init__(self, groups, *, slow=None, noisy=False, rate=None, hidden=False):
        super().__init__(groups, lr=0.0, momentum=0.5 if hidden else 0.0)
        self.slow, self.noisy, self.rate = slow, noisy, rate
        for group in self.param_groups:
            group["count"] = 0

    def step(self):
        for group in self.param_groups:
            group["count"] += 1
            group["lr"] = self.rate or group["lr"] * (0.5 if self.slow and group["count"] >= self.slow else 1.0)
            for p in group["params"] if self.noisy else ():
                p.grad.add_(1e-3 * torch.randn_like(p))
        super().step()


def optimizer(*, counters=(), decay_all=False, decay_none=False, lacks=None, instead=None, **spoilt):
    """A kind of optimizer, of which something may be wrong."""

    class Made(Optimizer):
        config = None

        def make(self, weights, training):
            groups = groups_of([w for w in weights if w.name != lacks], training)
            for group in groups if decay_all else ():
                group["weight_decay"] = training.weight_decay
            for group in groups if decay_none else ():
                group["weight_decay"] = 0.0
            return [Steps(groups, **spoilt)]

    Made.counters = counters
    if instead is not None:
        Made.evaluated = lambda self, parameter, kept, group: instead(parameter)
    return Made


def test_a_good_one_passes():
    for make in (optimizer(), optimizer(hidden=True), optimizer(slow=5, counters=("count",))):
        check_optimizer(make, rate=0.1)


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ({"noisy": True}, "global generator"),
        ({"rate": 0.1}, "moves at a learning rate of 0"),
        ({"decay_all": True}, r"bias is decayed|weight is decayed"),
        ({"decay_all": True}, r"is decayed, though its `weight.decayed` is False: no `training.weight_decay` for"),
        (
            {"decay_none": True},
            r"is not decayed, though its `weight.decayed` is True: `training.weight_decay` is meant",
        ),
        ({"slow": 5}, "goes on from its state in another way"),
        ({"instead": lambda p: p.flatten()}, "has another shape"),
    ],
)
def test_a_bad_one_is_noticed(spoilt, said):
    with pytest.raises(AssertionError, match=said):
        check_optimizer(optimizer(**spoilt), rate=0.1)


def test_a_weight_that_is_left_out_is_noticed_wherever_it_is_used():
    with pytest.raises(ValueError, match="does not have each weight once"):
        check_optimizer(optimizer(lacks="table.weight"), rate=0.1)

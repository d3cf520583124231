"""Runs with other optimizers than AdamW: what is measured and written, and that they go on to the bit."""

from __future__ import annotations

import json

import pytest
import torch
from attrs import frozen
from torch.optim import SGD

from mixar_core.errors import UserError
from mixar_core.testing import check_optimizer
from mixar_core.training.checkpoint import list_checkpoints, read_sharded
from mixar_core.training.optimizer import Optimizer, groups_of
from mixar_plugins.optimizers.muon import Muon, MuonConfig
from mixar_plugins.optimizers.schedule_free import ScheduleFree, ScheduleFreeConfig
from tests.core.test_training import Watch, assert_same_weights, losses, mixar_objective, weights
from tests.core.training_toys import ToyImages, toy_run


class Averaging(SGD):
    """Its average of the weights is what counts; `count` is of the steps."""

    def __init__(self, groups):
        super().__init__(groups, lr=0.0)
        for group in self.param_groups:
            group["count"] = 0

    @torch.no_grad()
    def step(self):
        super().step()
        for group in self.param_groups:
            group["count"] += 1
            for p in group["params"]:
                self.state[p].setdefault("mean", torch.zeros_like(p)).lerp_(p, 1 / group["count"])


@frozen
class MeanConfig:
    pass


class Mean(Optimizer):
    counters = ("count",)
    config = MeanConfig()

    def make(self, weights, training):
        return [Averaging(groups_of(weights, training))]

    def evaluated(self, parameter, kept, group):
        return kept.get("mean", parameter)


def schedule_free():
    pytest.importorskip("schedulefree")
    return ScheduleFree(ScheduleFreeConfig())


OPTIMIZERS = [Mean, lambda: Muon(MuonConfig()), schedule_free]


def test_an_optimizer_that_averages_keeps_the_contract():
    check_optimizer(Mean, rate=0.1)


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_a_resumed_run_ends_with_the_same_bits(tmp_path, make):
    settings = {"schedule": "cosine", "validation": ToyImages(10), "evaluate_every": 2}

    def run(folder, **more):
        return toy_run(tmp_path / folder, objective=mixar_objective(dropout=0.1), optimizer=make(), **settings, **more)

    run("whole")
    assert run("parts", callbacks=[Watch(stop_at=3)]).stopped
    run("parts", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    for kind in ("train", "validation"):
        assert losses(tmp_path / "whole", kind) == losses(tmp_path / "parts", kind)


def test_another_optimizer_does_not_go_on(tmp_path):
    toy_run(tmp_path / "run", objective=mixar_objective())
    with pytest.raises(UserError, match=r"optimizer was None, is MuonConfig\(momentum=0.95, iterations=5\)"):
        toy_run(tmp_path / "run", objective=mixar_objective(), optimizer=Muon(MuonConfig()), resume=True, steps=7)
    toy_run(tmp_path / "muon", objective=mixar_objective(), optimizer=Muon(MuonConfig()))
    with pytest.raises(UserError, match=r"optimizer was .*0.95.*, is .*0.9,"):
        other = Muon(MuonConfig(momentum=0.9))
        toy_run(tmp_path / "muon", objective=mixar_objective(), optimizer=other, resume=True, steps=7)


def test_what_is_evaluated_is_measured_and_written(tmp_path):
    """Without a moving average both files hold the optimizer's mean, and a checkpoint what the steps move."""
    validation = {"validation": ToyImages(8), "evaluate_every": 6}
    toy_run(tmp_path / "run", optimizer=Mean(), ema_decay=0.0, **validation)
    moved = read_sharded(list_checkpoints(tmp_path / "run")[-1] / "raw")
    mean = read_sharded(list_checkpoints(tmp_path / "run")[-1] / "optimizer")
    for name in ("weights", "weights_raw"):
        written = weights(tmp_path / "run", name)["head.weight"]
        assert torch.equal(written, mean["mean.head.weight"]) and not torch.equal(written, moved["head.weight"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    measured = next(line["losses"] for line in lines if line["kind"] == "validation")
    assert measured["raw/loss"] == measured["ema/loss"]
    assert mean["count.group-0"].item() == 6

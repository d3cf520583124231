"""Learning-rate schedules of torch by name, and runs that keep no average of their weights."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, lr_scheduler

from mixar_core.errors import UserError
from mixar_core.training.checkpoint import list_checkpoints
from mixar_core.training.schedule import LearningRate
from mixar_core.training.settings import TrainingConfig
from mixar_plugins.optimizers.muon import Muon, MuonConfig
from tests.core.test_training import Watch, assert_same_weights, losses, mixar_objective, weights
from tests.core.training_toys import ToyImages, toy_run

#: every scheduler that a recipe may name, with settings that are short enough to be seen
SCHEDULES: dict[str, dict[str, Any]] = {
    "ConstantLR": {"factor": 0.5, "total_iters": 3},
    "CosineAnnealingLR": {"T_max": 5, "eta_min": 1e-5},
    "CosineAnnealingWarmRestarts": {"T_0": 3, "T_mult": 2},
    "CyclicLR": {"base_lr": 1e-4, "max_lr": 1e-3, "step_size_up": 2, "mode": "triangular2"},
    "ExponentialLR": {"gamma": 0.7},
    "LinearLR": {"start_factor": 0.1, "total_iters": 4},
    "MultiStepLR": {"milestones": [2, 5], "gamma": 0.3},
    "OneCycleLR": {"max_lr": 1e-3, "total_steps": 12, "pct_start": 0.4},
    "PolynomialLR": {"total_iters": 6, "power": 2.0},
    "StepLR": {"step_size": 2, "gamma": 0.5},
}
NAMES = sorted(SCHEDULES)
REFUSED = {"ReduceLROnPlateau", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}


def config(schedule: Any, steps: int = 12, **more: Any) -> TrainingConfig:
    return TrainingConfig(steps=steps, learning_rate=1e-3, schedule=schedule, **{"learning_rate_per": None, **more})


def rates(schedule: Any, steps: int = 12, warmup: int = 0, **more: Any) -> list[float]:
    rate = LearningRate(config(schedule, steps, warmup_steps=warmup, **more), steps=steps, warmup=warmup)
    return [rate(step) for step in range(steps)]


def test_every_scheduler_of_torch_is_taken_or_refused_with_a_reason() -> None:
    kinds = {
        name
        for name, kind in vars(lr_scheduler).items()
        if inspect.isclass(kind) and issubclass(kind, lr_scheduler.LRScheduler) and name not in ("LRScheduler",)
    }
    assert {name for name in kinds if name[0] != "_"} == {*SCHEDULES, *REFUSED}
    for name in REFUSED:
        with pytest.raises(ValueError, match=f"another than {name}: it .*; allowed: constant, cosine, ConstantLR"):
            config({"type": name})


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_is_what_torch_makes_of_it(name: str) -> None:
    optimizer = SGD([torch.nn.Parameter(torch.zeros(()))], lr=1e-3)
    cycle = {"cycle_momentum": False} if name in ("CyclicLR", "OneCycleLR") else {}
    scheduler, expected = getattr(lr_scheduler, name)(optimizer, **SCHEDULES[name], **cycle), []
    for _ in range(12):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = rates({"type": name, **SCHEDULES[name]})
        assert found == expected and len({*found}) > 1


@settings(max_examples=60)
@given(st.sampled_from(NAMES), st.lists(st.integers(0, 11), min_size=1, max_size=6), st.integers(0, 4))
def test_a_step_has_one_rate_in_whatever_order_it_is_asked_for(name: str, steps: list[int], warmup: int) -> None:
    schedule = {"type": name, **SCHEDULES[name]}
    in_order = rates(schedule, warmup=warmup)
    resumed = LearningRate(config(schedule, warmup_steps=warmup), steps=12, warmup=warmup)
    assert [resumed(step) for step in steps] == [in_order[step] for step in steps]


@pytest.mark.parametrize("name", NAMES)
def test_warmup_is_a_line_to_the_first_rate(name: str) -> None:
    schedule = {"type": name, **SCHEDULES[name]}
    first, warmed = rates(schedule), rates(schedule, steps=16, warmup=4)
    assert warmed[:4] == pytest.approx([first[0] * share for share in (0.25, 0.5, 0.75, 1.0)], rel=1e-12)
    assert warmed[4:] == first


def test_rates_are_scaled_as_the_learning_rate_is() -> None:
    for name in ("OneCycleLR", "CyclicLR", "CosineAnnealingLR", "StepLR"):
        schedule = {"type": name, **SCHEDULES[name]}
        scaled = rates(schedule, learning_rate_per=256, batch_size=64)
        assert scaled == pytest.approx([rate / 4 for rate in rates(schedule)], rel=1e-12)


def test_lengths_that_are_not_given_are_the_runs() -> None:
    once, annealed = ({"type": "OneCycleLR", "max_lr": 1e-3}, {"type": "CosineAnnealingLR"})
    assert rates(once, 12) == rates({**once, "total_steps": 12}, 12)
    assert rates(annealed, 12, warmup=2) == pytest.approx(rates("cosine", 12, warmup=2))
    for schedule in (once, annealed, "cosine"):
        assert "steps" in config(schedule).fingerprint()
    for schedule in ({**once, "total_steps": 50}, {**annealed, "T_max": 9}, {"type": "StepLR", "step_size": 3}):
        assert "steps" not in config(schedule).fingerprint()


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ("linear", "one of constant, cosine, ConstantLR, .*, StepLR: not linear"),
        ({"step_size": 3}, "one of constant, .*: not without a type"),
        ("StepLR", "StepLR with its step_size, which is required"),
        ("ExponentialLR", "its gamma, which is required: {type: ExponentialLR, gamma: ...}$"),
        ({"type": "OneCycleLR"}, "OneCycleLR with its max_lr, which is required"),
        ({"type": "StepLR", "step_size": 3, "gama": 1}, "StepLR with step_size, gamma: not gama"),
        ({"type": "OneCycleLR", "max_lr": 1.0, "cycle_momentum": True}, "not cycle_momentum"),
        ({"type": "cosine", "T_max": 3}, "cosine alone, which has no settings here: T_max"),
        ({"type": "StepLR", "step_size": "x"}, "training.schedule: StepLR: unsupported operand"),
        ({"type": "StepLR", "step_size": 0}, "training.schedule: StepLR: .*zero"),
        ({"type": "OneCycleLR", "max_lr": -1}, "OneCycleLR with a max_lr of 0 or more: not -1"),
        ({"type": "OneCycleLR", "max_lr": 1.0, "total_steps": 5}, "OneCycleLR ends after 5 steps, and 12 follow"),
    ],
)
def test_what_is_no_schedule_is_refused_in_a_line(schedule: Any, said: str) -> None:
    with pytest.raises((ValueError, UserError), match=said) as caught:
        config(schedule)
    assert "\n" not in str(caught.value)


def test_min_lr_is_of_cosine_alone() -> None:
    with pytest.raises(ValueError, match="min_lr is where cosine ends"):
        config({"type": "StepLR", "step_size": 3}, min_lr=1e-5)


@pytest.mark.parametrize("optimizer", [None, Muon(MuonConfig())])
def test_a_resumed_run_under_a_schedule_of_torch_ends_with_the_same_bits(tmp_path: Path, optimizer: Any) -> None:
    settings = {"schedule": {"type": "OneCycleLR", "max_lr": 1e-3}, "warmup_steps": 2, "optimizer": optimizer}
    toy_run(tmp_path / "whole", objective=mixar_objective(), **settings)
    assert toy_run(tmp_path / "parts", objective=mixar_objective(), callbacks=[Watch(stop_at=3)], **settings).stopped
    other = {**settings, "schedule": {"type": "OneCycleLR", "max_lr": 2e-3}}
    with pytest.raises(UserError, match=r"schedule was .*0\.001.*, is .*0\.002"):
        toy_run(tmp_path / "parts", objective=mixar_objective(), resume=True, **other)
    toy_run(tmp_path / "parts", objective=mixar_objective(), resume=True, **settings)
    assert_same_weights(tmp_path / "whole", tmp_path / "parts")
    assert losses(tmp_path / "whole", "train") == losses(tmp_path / "parts", "train")


# ---------------------------------------------------------------- no average


def test_without_an_average_there_is_one_set_of_weights(tmp_path: Path) -> None:
    measured = {"validation": ToyImages(8), "evaluate_every": 3}
    toy_run(tmp_path / "averaged", ema_decay=0.0, **measured)
    toy_run(tmp_path / "plain", ema_decay=None, **measured)
    assert not (tmp_path / "plain/weights_raw.safetensors").exists()
    for checkpoint in list_checkpoints(tmp_path / "plain"):
        assert sorted(path.name for path in checkpoint.iterdir()) == ["optimizer", "raw", "run.json"]
    raw, alone = weights(tmp_path / "averaged", "weights_raw"), weights(tmp_path / "plain")
    assert raw.keys() == alone.keys() and all(torch.equal(raw[name], alone[name]) for name in raw)
    lines = [json.loads(line) for line in (tmp_path / "plain/log.jsonl").read_text().splitlines()]
    validation = [line["losses"] for line in lines if line["kind"] == "validation"]
    assert validation and all(
        "raw/loss" in found and not any(name.startswith("ema/") for name in found) for found in validation
    )


def test_without_an_average_a_run_goes_on_to_the_bit_and_with_one_it_does_not(tmp_path: Path) -> None:
    toy_run(tmp_path / "whole", ema_decay=None)
    assert toy_run(tmp_path / "parts", ema_decay=None, callbacks=[Watch(stop_at=3)]).stopped
    with pytest.raises(UserError, match=r"ema_decay was None, is 0\.9"):
        toy_run(tmp_path / "parts", ema_decay=0.9, resume=True)
    toy_run(tmp_path / "parts", ema_decay=None, resume=True)
    one, other = (weights(tmp_path / folder) for folder in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    finished = (tmp_path / "parts/weights.safetensors").stat().st_mtime_ns
    toy_run(tmp_path / "parts", ema_decay=None, resume=True)  # nothing is left to do
    assert (tmp_path / "parts/weights.safetensors").stat().st_mtime_ns == finished

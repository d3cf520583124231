from __future__ import annotations

import pytest
from torch import nn

from mixar_core.training.optimizer import AdamW, Updates, weights_of
from mixar_core.training.schedule import lr_at
from mixar_core.training.settings import TrainingConfig


@pytest.mark.parametrize(
    "settings, message",
    [
        ({}, "neither steps nor epochs"),
        ({"steps": 1, "epochs": 1.0}, "both"),
        ({"steps": 1, "warmup_steps": 1, "warmup_epochs": 1.0}, "both"),
        ({"steps": 0}, "steps"),
        ({"steps": 1, "betas": (0.9, 1.0)}, "betas"),
        ({"steps": 1, "ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**settings)


def test_lengths_follow_from_epochs():
    config = TrainingConfig(epochs=400, warmup_epochs=100, batch_size=2048)
    assert config.total_steps(1_281_167) == 250_228
    assert config.total_warmup(1_281_167) == 62_557
    assert config.scale_lr(1e-4) == pytest.approx(8e-4)


def test_learning_rate_warms_up_and_falls():
    config = TrainingConfig(steps=10, learning_rate=2.0, min_lr=0.5, learning_rate_per=None, schedule="cosine")
    rates = [lr_at(step, config, steps=10, warmup=4) for step in range(10)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0 and rates[9] == 0.5
    assert rates[4:] == sorted(rates[4:], reverse=True)
    constant = TrainingConfig(steps=10, learning_rate=2.0, learning_rate_per=None)
    assert lr_at(9, constant, steps=10, warmup=0) == 2.0


def test_decay_is_for_matrices_outside_what_is_excluded():
    module = nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 2), "header": nn.Linear(2, 2)})
    weights = weights_of(module, ["head"])
    assert [weight.name for weight in weights if weight.decayed] == ["body.weight", "header.weight"]
    assert {weight.name for weight in weights if not weight.decayed} == {
        "body.bias",
        "head.weight",
        "head.bias",
        "header.bias",
    }
    with pytest.raises(ValueError, match="hat"):
        weights_of(module, ["hat"])


def test_frozen_parameters_are_not_optimised():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    optimizer = Updates(AdamW(), module, TrainingConfig(steps=1))
    assert [len(group["params"]) for group in optimizer.param_groups] == [1]


def test_a_resumed_run_may_change_its_length_only_where_no_schedule_depends_on_it():
    constant, cosine = TrainingConfig(steps=1), TrainingConfig(steps=1, schedule="cosine")
    assert "steps" not in constant.fingerprint() and "steps" in cosine.fingerprint()
    assert "batch_size" in constant.fingerprint() and "workers" not in constant.fingerprint()


def test_a_cache_folder_may_be_below_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(TrainingConfig(steps=1, cache="~/cache").cache_folder) == "/home/someone/cache"
    assert TrainingConfig(steps=1, cache="memory").cache_folder is None

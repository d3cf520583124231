"""A run from a recipe: what is looked at before the first step, and what callbacks are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixar_core.errors import UserError
from mixar_core.training.callback import Callback
from mixar_registry import memory
from mixar_registry.assembly import build
from mixar_registry.estimate import training_flop_per_image
from mixar_registry.manager import Registry
from mixar_registry.recipe import load_recipe
from mixar_registry.runs import train


class Keep(Callback):
    def on_start(self, run):
        self.run = run


def test_callbacks_learn_what_a_step_costs(tmp_path: Path, family: Path, registry: Registry) -> None:
    recipe = load_recipe(family / "recipes/mixar.yaml", registry)
    keep = Keep()
    train(recipe, tmp_path / "run", callbacks=[keep], registry=registry)
    expected = training_flop_per_image(build(recipe, registry, meta=True))
    assert keep.run.flop_per_image == expected and expected is not None and expected > 0


@pytest.mark.parametrize(("share", "warned"), [(0.5, False), (1.01, True)])
def test_what_does_not_fit_is_known_before_the_run(
    share: float,
    warned: bool,
    tmp_path: Path,
    family: Path,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = load_recipe(family / "recipes/mixar.yaml", registry)
    needed = memory.training_memory(build(recipe, registry, meta=True), device_type="cpu")
    standing = sum(needed[kind] or 0.0 for kind in memory.STANDING)
    monkeypatch.setattr(memory, "device_memory", lambda device: standing * share)
    if warned:
        train(recipe, tmp_path / "run", registry=registry)
        assert "training probably needs" in capsys.readouterr().err
        return
    with pytest.raises(UserError, match="weights, gradients, optimizer and averages need"):
        train(recipe, tmp_path / "run", registry=registry)
    assert not (tmp_path / "run").exists()

"""A run from a recipe: what is looked at before the first step, and what callbacks are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mixar import memory
from mixar.assembly import build
from mixar.cost import training_flop_per_image
from mixar.folder import read_provenance, sha256
from mixar.model import load
from mixar.plugins import Registry
from mixar.recipe import Recipe, load_recipe
from mixar.run import train
from mixar_core.errors import UserError
from mixar_core.training.callback import Callback


class Keep(Callback):
    def on_start(self, run):
        self.run = run


def test_callbacks_learn_what_a_step_costs(tmp_path: Path, family: Path, registry: Registry) -> None:
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry)
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
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry)
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


@pytest.fixture
def around(family: Path, registry: Registry, tmp_path: Path) -> Recipe:
    """The family's MixAR around a tokenizer trained for two steps, in `tmp_path / "tokenizer"`."""
    train(load_recipe(family / "recipes/continuous.yaml", registry=registry), tmp_path / "tokenizer", registry=registry)
    named = [f"continuous_tokenizer.weights={tmp_path / 'tokenizer'}"]
    return load_recipe(family / "recipes/mixar.yaml", registry=registry, overrides=named)


def test_a_run_that_is_not_finished_is_no_frozen_part(around: Recipe, tmp_path: Path, registry: Registry) -> None:
    train(around, tmp_path / "before", registry=registry)
    (tmp_path / "tokenizer/weights.safetensors").unlink()  # as while it is trained
    with pytest.raises(UserError, match=r"continuous_tokenizer\.weights: .*not finished, .* step-00000002; finish it"):
        train(around, tmp_path / "run", registry=registry)
    assert not (tmp_path / "run").exists()
    assert load(tmp_path / "before", registry=registry).generate(0).images.shape == (1, 3, 16, 16)


def test_a_run_goes_on_with_the_frozen_weights_it_began_with(
    around: Recipe, tmp_path: Path, registry: Registry
) -> None:
    run, weights = tmp_path / "run", tmp_path / "tokenizer/weights.safetensors"
    train(around, run, registry=registry)
    noted = read_provenance(run)["frozen"]
    assert sorted(noted) == ["continuous_tokenizer", "discrete_tokenizer", "prior"]
    before = sha256(weights)
    assert noted["continuous_tokenizer"] == before
    assert train(around, run, resume=True, registry=registry).step == 2
    shutil.copy(tmp_path / "tokenizer/weights_raw.safetensors", weights)
    with pytest.raises(UserError, match=f"continuous_tokenizer: their sha256 was {before}, is {sha256(weights)}"):
        train(around, run, resume=True, registry=registry)
    older = {key: value for key, value in read_provenance(run).items() if key != "frozen"}
    (run / "provenance.json").write_text(json.dumps(older))
    assert train(around, run, resume=True, registry=registry).step == 2

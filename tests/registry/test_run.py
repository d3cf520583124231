"""A run from a recipe: what is looked at before the first step, and what callbacks are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mixar import assembly, memory
from mixar.assembly import build
from mixar.cache import make_cache
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
    needed = memory.training_memory(build(recipe, registry, meta=True))
    standing = sum(float(needed[kind]) for kind in memory.STANDING)
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


def test_a_moved_part_is_named_with_its_key_and_the_file_to_edit(
    around: Recipe, tmp_path: Path, registry: Registry
) -> None:
    train(around, tmp_path / "run", registry=registry)
    (tmp_path / "tokenizer").rename(tmp_path / "moved")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "run", registry=registry)
    assert f"{tmp_path}/run/recipe.yaml: " in str(caught.value)
    assert f"continuous_tokenizer.weights: model {tmp_path}/tokenizer: no such folder" in str(caught.value)
    path = tmp_path / "run/recipe.yaml"
    path.write_text(path.read_text().replace(f"{tmp_path}/tokenizer", f"{tmp_path}/moved"))
    assert load(tmp_path / "run", registry=registry).generate(0).images.shape == (1, 3, 16, 16)


def test_a_prior_and_its_tokenizer_may_move_together(tmp_path: Path, family: Path, registry: Registry) -> None:
    (tmp_path / "old").mkdir()
    shutil.copytree(family / "models/discrete", tmp_path / "old/discrete")
    named = f"discrete_tokenizer.weights={tmp_path}/old/discrete"
    recipe = load_recipe(family / "recipes/prior.yaml", [named], registry=registry)
    train(recipe, tmp_path / "old/prior", device="cpu", registry=registry)
    (tmp_path / "old").rename(tmp_path / "new")
    mixar = family / "recipes/mixar.yaml"
    prior, moved = f"prior.weights={tmp_path}/new/prior", f"discrete_tokenizer.weights={tmp_path}/new/discrete"
    build(load_recipe(mixar, [prior, moved], registry=registry), registry)
    data = bytearray((tmp_path / "new/discrete/weights.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "new/discrete/weights.safetensors").write_bytes(data)  # the prior noted the digest of what it learned
    with pytest.raises(UserError, match=r"codes of .*old/discrete against codes of .*new/discrete"):
        build(load_recipe(mixar, [prior, moved], registry=registry), registry)
    lost = load_recipe(mixar, [prior, "prior.type=maskbit", moved], registry=registry)
    (tmp_path / "new/prior").rename(tmp_path / "new/elsewhere")
    with pytest.raises(UserError, match=r"prior\.weights: model .*new/prior: no such folder"):
        build(lost, registry)


def test_parts_are_put_together_once_for_the_check_and_once_for_the_run(
    tmp_path: Path, family: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry)
    make_cache(recipe, tmp_path / "cache", registry, device="cpu")
    assemble, calls = assembly._assemble, []
    monkeypatch.setattr(assembly, "_assemble", lambda *given, **more: calls.append(given) or assemble(*given, **more))
    cached = load_recipe(family / "recipes/mixar.yaml", [f"training.cache={tmp_path / 'cache'}"], registry=registry)
    train(cached, tmp_path / "run", device="cpu", registry=registry)
    assert len(calls) == 2


def test_a_run_goes_on_with_the_classes_it_began_with(
    tmp_path: Path, family: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(family / "data", tmp_path / "data")
    base, data = family / "recipes/continuous.yaml", f"data.path={tmp_path / 'data'}"
    recipe = load_recipe(base, [data, "training.evaluate_every=0"], registry=registry)
    run = tmp_path / "run"
    train(recipe, run, device="cpu", registry=registry)
    assert "note" not in capsys.readouterr().err
    (tmp_path / "data/train/cat").rename(tmp_path / "data/train/rat")  # dog, owl, rat: every label is another class
    with pytest.raises(UserError, match=r'the run in .*and its data now .*class 0 is "cat" against "dog"'):
        train(recipe, run, resume=True, device="cpu", registry=registry)
    accepted = load_recipe(base, [data, "training.evaluate_every=0", "accept_other_classes=true"], registry=registry)
    train(accepted, run, resume=True, device="cpu", registry=registry)


def test_a_caches_classes_are_those_of_the_data(tmp_path: Path, family: Path, registry: Registry) -> None:
    base = family / "recipes/mixar.yaml"
    make_cache(load_recipe(base, registry=registry), tmp_path / "cache", registry, device="cpu")
    shutil.copytree(family / "data", tmp_path / "data")
    for split in ("train", "val"):
        (tmp_path / "data" / split / "owl").rename(tmp_path / "data" / split / "ape")
    changed = [f"data.path={tmp_path / 'data'}", f"training.cache={tmp_path / 'cache'}", "prior=null"]
    recipe = load_recipe(base, [*changed, "ti_mix.schedule=constant"], registry=registry)
    with pytest.raises(UserError, match=r'class 0 is "ape" against "cat"'):
        train(recipe, tmp_path / "run", device="cpu", registry=registry)
    assert not (tmp_path / "run").exists()


def test_notes_of_the_data_are_told_once_when_a_run_starts(
    tmp_path: Path,
    family: Path,
    registry: Registry,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(family / "data", tmp_path / "data")
    for split in ("train", "val"):
        shutil.rmtree(tmp_path / "data" / split / "owl")
        (tmp_path / "data" / split / "owl").mkdir()
    data = [f"data.path={tmp_path / 'data'}", "training.evaluate_every=1"]
    monkeypatch.setenv("HOME", str(tmp_path))
    train(load_recipe(family / "recipes/continuous.yaml", data, registry=registry), "~/run", registry=registry)
    told = capsys.readouterr().err.splitlines()
    assert sum("owl" in line for line in told) == 2 and all(line.startswith("note: ") for line in told if "owl" in line)
    assert (tmp_path / "run/weights.safetensors").is_file()  # and no folder called ~

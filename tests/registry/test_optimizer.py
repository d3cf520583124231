"""The recipe key `optimizer`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mixar import train
from mixar.plugins import Registry
from mixar.recipe import load_recipe, to_plain
from mixar_core.errors import UserError


def test_a_recipe_without_one_means_adamw_and_says_so_when_resolved(family: Path, registry: Registry):
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry)
    assert to_plain(recipe)["optimizer"] == {"type": "adamw"}
    assert "optimizer" not in to_plain(
        load_recipe(family / "recipes/mixar.yaml", {"training": None}, registry=registry)
    )


@pytest.mark.parametrize("name", ["prior", "mixar"])
def test_a_run_with_another_goes_on_with_it_alone(
    name: str, family: Path, tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
):
    path, muon = family / f"recipes/{name}.yaml", {"optimizer": {"type": "muon", "momentum": 0.9}}
    train(load_recipe(path, muon, registry=registry), tmp_path / "run", registry=registry)
    assert "note: optimizer muon (momentum 0.9, iterations 5)\n" in capsys.readouterr().err
    more = {"training.steps": 3}
    assert train(load_recipe(path, muon | more, registry=registry), tmp_path / "run", resume=True, registry=registry)
    more = {"training.steps": 4}
    with pytest.raises(UserError, match=r"optimizer\.type was muon, is adamw"):
        train(load_recipe(path, more, registry=registry), tmp_path / "run", resume=True, registry=registry)


def test_a_run_of_before_there_was_a_choice_goes_on(
    family: Path, tmp_path: Path, registry: Registry, capsys: pytest.CaptureFixture[str]
):
    path, run = family / "recipes/mixar.yaml", tmp_path / "run"
    train(load_recipe(path, registry=registry), run, registry=registry)
    written = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(written.replace("optimizer:\n  type: adamw\n", ""))
    assert (run / "recipe.yaml").read_text() != written
    longer = load_recipe(path, {"training.steps": 3}, registry=registry)
    assert train(longer, run, resume=True, registry=registry).step == 3
    assert "optimizer" not in capsys.readouterr().err


def test_what_an_optimizer_lacks_is_said_before_anything_is_written(
    family: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    for name, kind, said in (
        ("mixar", "schedule-free", r"optimizer \(schedule-free\): needs the package schedulefree: pip install"),
        ("discrete", "muon", r"optimizer \(muon\): what is trained has no matrices in blocks"),
        ("mixar", "nuon", "did you mean muon"),
    ):
        with pytest.raises(UserError, match=said):
            recipe = load_recipe(family / f"recipes/{name}.yaml", {"optimizer.type": kind}, registry=registry)
            train(recipe, tmp_path / "run", registry=registry)
    assert not (tmp_path / "run").exists()

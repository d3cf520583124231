"""Presets of sampling: from a file's name to what is drawn."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
from attrs import evolve

import mixar
from mixar import Registry, UserError, load_recipe
from mixar.presets import read_preset
from mixar.sampling import Plan, claim, describe
from tests.cli.process import good, refused


@pytest.fixture
def model(family: Path, tmp_path: Path) -> Path:
    """A model that carries presets of its own."""
    folder = Path(shutil.copytree(family / "models/mixar", tmp_path / "model"))
    (folder / "presets").mkdir()
    (folder / "presets/fast.yaml").write_text("sampler: {tokens_per_step: 7}\nsampling: {head_steps: 3}\n")
    (folder / "presets/disa.yaml").write_text("summary: its own\nsampling: {steps: 2, head_steps: 5}\n")
    return folder


def test_every_shipped_preset_draws(registry: Registry, family: Path) -> None:
    names = {"exact", "disa", "lazymar", "gtr", "recap", "interval", "halton", "one-shot"}
    assert names <= registry.presets().keys()
    drawn = {}
    for name in names:
        loaded = mixar.load(family / "models/mixar", device="cpu", preset=name)
        assert read_preset(registry.find_preset(name), registry)["summary"]
        drawn[name] = loaded.generate(["cat", "owl"], cfg=2.0, seed=3).images
    exact = drawn.pop("exact")
    assert [name for name, images in drawn.items() if torch.equal(images, exact)] == []


def test_a_preset_stands_below_what_is_said_and_above_what_is_inherited(family: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    base = family / "recipes/mixar.yaml"
    own.write_text(f"extends: {base}\npreset: disa\nsampling: {{steps: 5}}\nsampler: {{order: halton}}\n")
    inherited, recipe = load_recipe(base), load_recipe(own)
    assert recipe.sampling == evolve(inherited.sampling, steps=5, head_steps=50)
    assert recipe.sampler is not None and recipe.sampler.config.order == "halton"
    assert recipe.sampler.config.head_steps_end == 5
    changed = load_recipe(own, ["preset=gtr", "sampling.head_steps=30"])
    assert changed.sampler is not None and changed.sampler.type == "gtr"
    assert (changed.sampling.steps, changed.sampling.head_steps) == (32, 30)
    whole = load_recipe(own, ["preset=exact"])  # every setting of its sampler, not only what its file says
    assert whole.sampler is not None and whole.sampler.config.order == "random"


def test_a_model_may_carry_presets_of_its_own(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = mixar.load(model, device="cpu", preset="fast").recipe
    assert recipe.sampler is not None and recipe.sampler.config.tokens_per_step == 7
    assert mixar.load(model, device="cpu", preset="disa").recipe.sampling.head_steps == 5
    (model / "presets/half.yaml").write_text("sampling: {steps: 2}\nprecision: bf16\n")
    half, whole = mixar.load(model, preset="half"), mixar.load(model, preset="half", precision="float32")
    assert (half.precision, whole.precision, whole.recipe.sampling.steps) == ("bf16", "float32", 2)
    with monkeypatch.context() as watched:
        read = mock.Mock(side_effect=read_preset)
        watched.setattr("mixar.presets.read_preset", read)
        mixar.load(model, preset="half")
    assert [call.args[0].name for call in read.call_args_list] == ["half.yaml"]  # once
    assert mixar.load(model, device="cpu", preset="builtin:disa").recipe.sampling.head_steps == 50


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no keys; allowed: precision, sampler, sampling, summary"),
        ("head: {type: mse}", "head: unknown key; allowed: precision, sampler, sampling, summary"),
        ("sampler: {type: cosin}", 'unknown sampler "cosin"; did you mean cosine'),
        ("sampler: {ordr: halton}", "sampler.ordr: unknown key; did you mean order"),
        ("sampling: {stepz: 3}", "sampling.stepz: unknown key; did you mean steps"),
        ("sampling: {steps: 0}", "sampling.steps"),
        ("precision: fp8", "precision 'fp8': not known; allowed: bf16, float32"),
    ],
)
def test_a_file_that_says_something_else_is_refused(model: Path, text: str, said: str) -> None:
    (model / "presets/fast.yaml").write_text(text)
    with pytest.raises(UserError, match=r"preset .*fast\.yaml") as error:
        mixar.load(model, device="cpu", preset="fast")
    assert said in str(error.value)


def test_on_the_command_line(model: Path, tmp_path: Path) -> None:
    listed = [(row["name"], row["summary"]) for row in json.loads(good("presets", model, "--json"))]
    assert listed[:2] == [("disa", "its own"), ("fast", "")] and "lazymar" in dict(listed)
    good("sample", model, "--preset", "fast", "--labels", "0,1", "--out", tmp_path / "drawn")
    said = json.loads((tmp_path / "drawn/sample.json").read_text())
    assert said["model"]["parts"]["sampler"]["tokens_per_step"] == 7 and said["plan"]["settings"]["head_steps"] == 3
    assert 'unknown preset "fats"; did you mean fast?' in refused("sample", model, "--preset", "fats")


def test_samples_begun_before_a_part_had_a_setting_go_on(model: Path, tmp_path: Path) -> None:
    loaded = mixar.load(model, device="cpu")
    manifest = describe(loaded, Plan(count=4, batch=4, seed=0, settings=loaded.settings(), classes=(0,)))
    claim(tmp_path / "drawn", manifest, loaded.recipe)
    older = json.loads((tmp_path / "drawn/sample.json").read_text())
    for part, settings in (("sampler", ("cfg_interval", "head_steps_end", "solver")), ("head", ("solver",))):
        for setting in settings:
            del older["model"]["parts"][part][setting]
    (tmp_path / "drawn/sample.json").write_text(json.dumps(older))
    claim(tmp_path / "drawn", manifest, loaded.recipe)
    other = mixar.load(model, device="cpu", preset="halton")
    with pytest.raises(UserError, match=r"sampler\.order was random, is halton"):
        claim(tmp_path / "drawn", describe(other, Plan(4, 4, 0, loaded.settings(), (0,))), other.recipe)

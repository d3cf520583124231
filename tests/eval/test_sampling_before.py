"""Samples that were begun before a recipe named its backbone and its sampler are gone on with."""

from __future__ import annotations

import json
from pathlib import Path

import mixar
from mixar.sampling import MANIFEST, Plan, all_classes, claim, describe


def test_a_folder_of_before_there_were_backbones_and_samplers_is_continued(family: Path, tmp_path: Path) -> None:
    model = mixar.load(family / "models/mixar", device="cpu")
    plan = Plan(count=4, batch=2, seed=3, settings=model.settings(), classes=all_classes(model))
    now = describe(model, plan)
    parts = now["model"]["parts"]
    assert "optimizer" not in parts  # draws nothing
    then = json.loads(json.dumps(now))
    del then["model"]["parts"]["sampler"], then["model"]["parts"]["backbone"]["type"]
    (tmp_path / MANIFEST).write_text(json.dumps(then))
    assert claim(tmp_path, now, model.recipe)["model"]["parts"] == json.loads(json.dumps(parts))

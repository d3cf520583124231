"""`mixar tune`: from candidates under a budget to a preset that the model carries."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import typer
from typer.testing import CliRunner

import mixar
from mixar import Registry, UserError
from mixar_eval import candidates, cli_shared, cli_tune, references, tune
from mixar_eval.candidates import Candidate
from mixar_eval.cli_tune import seconds_of
from mixar_eval.context import EvalContext
from mixar_eval.extractors import open_extractor
from mixar_eval.references import open_reference
from mixar_eval.tune import Result, Study, best_of, choose
from tests.cli.process import refused


def result(name: str, seconds: float, *kernel: float) -> Result:
    return Result(Candidate(name, {"type": "cosine"}, {}), 64, seconds, kernel)


def test_the_fastest_of_those_that_are_as_good_as_the_baseline_is_chosen() -> None:
    exact = result("exact", 2.0, 0.10, 0.12)
    slower, faster, worse = result("a", 0.5, 0.11, 0.11), result("b", 0.2, 0.12, 0.12), result("c", 0.1, 0.2, 0.2)
    assert choose(exact, [slower, faster, worse]) is faster
    assert choose(exact, [worse, result("d", 0.05, 0.3, 0.3)]) is worse
    assert choose(exact, []) is None


def test_what_goes_on_is_beaten_by_no_other_in_both() -> None:
    fast, slow, best = result("fast", 0.1, 0.3), result("slow", 0.5, 0.4), result("best", 1.0, 0.1)
    middle, beaten = result("middle", 0.3, 0.2), result("beaten", 0.4, 0.25)
    assert best_of([slow, best, beaten, fast, middle], 3) == [fast, middle, best]
    assert best_of([slow, best, beaten, fast, middle], 4) == [fast, middle, beaten, best]
    assert best_of([slow, best, middle, fast], 2) == [fast, best]
    assert best_of([slow], 4) == [slow] and best_of([], 4) == []


@pytest.mark.parametrize(("text", "seconds"), [("0.5s/image", 0.5), ("200ms/image", 0.2), ("3 s / image", 3.0)])
def test_a_budget_is_a_time_an_image(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["0.5", "0s/image", "1min/image", "-1s/image", "0.5s/imag"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="for example"):
        seconds_of(text)


def test_what_is_stored_draws_as_it_was_measured(
    family: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    for setting, values in {"STEPS": (1, 4, 32), "HEAD_STEPS": (2,), "PRIOR_STEPS": (None, 2)}.items():
        monkeypatch.setattr(candidates, setting, values)
    monkeypatch.setattr(tune, "FINALISTS", 2)
    folder = Path(shutil.copytree(family / "models/mixar", tmp_path / "model"))
    model = mixar.load(folder, device="cpu")
    context = EvalContext(registry=registry, extractor=open_extractor("efficientnet-lite0:size=32", registry))
    found = candidates.candidates(model, context)
    names = [*found]
    assert names[0] == "exact" and {"one-shot", "lazymar", "1x2", "4x2_dpm++"} <= {*names}
    assert not [name for name in names if name.startswith("32x")]  # there are fewer tokens
    reference = open_reference("data:train", context, recipe=model.recipe)
    study = Study({"float32": model}, tmp_path / "points", reference, context, 64)
    options: dict[str, Any] = {"seconds": 5.0, "count": 64, "seeds": 2}
    report, chosen = tune.tune(study, found, **options)
    assert chosen is not None and report.plain["chosen"] == chosen.name
    rows = report.plain["rows"]
    assert [row["seeds"] for row in rows] == [2, 2, 2] and rows[0]["preset"] == "exact"
    assert report.plain["parts"]["exact"].keys() == {"prior", "backbone and head", "decoder"}
    report.save(tmp_path / "out")
    table = list(csv.DictReader((tmp_path / "out/tune.csv").read_text().splitlines()))
    assert len(table) == len(names) and (tmp_path / "out/tune.png").is_file()

    tune.store(chosen, folder, "fast", "found")
    stored = mixar.load(folder, device="cpu", preset="fast")
    labels = [0, 1, 2, 1]
    as_measured = chosen.of(model, context).generate(labels, seed=1).images
    assert torch.equal(stored.generate(labels, seed=1).images, as_measured)

    again, same = tune.tune(study, found, **options)  # from what is there
    assert same is not None and same.name == chosen.name and again.plain["rows"] == rows
    nothing, none = tune.tune(study, found, **(options | {"seconds": 1e-9}))
    assert none is None and "No candidate is within the budget" in nothing.to_markdown()
    assert json.dumps(nothing.to_json())
    wanted = [*candidates.probes(found["exact"]), chosen.name]
    compared = tune.compare(study, found, wanted, count=64, seeds=2)
    assert {row["preset"] for row in compared.plain["rows"]} == {"exact", *wanted} == compared.plain["parts"].keys()
    assert set(compared.plain["insensitive_to"]) <= {*wanted} - {chosen.name}
    with pytest.raises(UserError, match=r"--presets exakt: none that this model can take; did you mean exact"):
        tune.compare(study, found, ["exakt"], count=64, seeds=2)
    next(tmp_path.glob("points/*/samples/timing.json")).unlink()  # killed between images and their time
    with pytest.raises(UserError, match=r"how long drawing took is not noted; remove this folder, and repeat$"):
        tune.tune(study, found, **options)


def test_what_cannot_be_tuned_is_refused(family: Path, tmp_path: Path) -> None:
    call = ("--reference", "data:train", "--budget", "1s/image")
    assert "there is nothing to tune: it trains prior" in refused("tune", family / "models/prior", *call, cwd=tmp_path)
    assert "--budget and --presets: give one of them" in refused("tune", "digits", *call, "--presets", "disa")
    assert "--name a/b" in refused("tune", family / "models/mixar", *call, "--name", "a/b", cwd=tmp_path)


def test_a_shipped_model_stays_as_it_is(
    family: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = registry.find_model("digits_lfq")
    assert registry.shipped_by(folder) is not None and not (folder / "presets").exists()
    found = Candidate("4x5", {"type": "cosine"}, {"steps": 4})
    monkeypatch.setattr(cli_shared, "load_model", lambda *_: SimpleNamespace(recipe=SimpleNamespace(num_classes=10)))
    monkeypatch.setattr(candidates, "candidates", lambda *_: {"exact": found})
    monkeypatch.setattr(cli_shared, "publish", lambda *_: None)
    monkeypatch.setattr(references, "open_reference", lambda *_, **__: None)
    monkeypatch.setattr(tune, "tune", lambda *_, **__: (None, found))
    app = typer.Typer()
    app.command()(cli_tune.tune_command)
    own = Path(shutil.copytree(family / "models/mixar", tmp_path / "own"))
    call = ["--reference", "data:train", "--budget", "1s/image", "--out", str(tmp_path / "out")]
    for _ in range(2):  # what it wrote is no stranger in its folder
        told = CliRunner().invoke(app, ["digits_lfq", *call], catch_exceptions=False).output
        assert (
            f"stored as {tmp_path}/out/presets/fast.yaml; a shipped model stays as it is: a copy of {folder} " in told
        )
    assert not (folder / "presets").exists()
    carried = Path(shutil.copytree(tmp_path / "out/presets", own / "presets"))
    assert mixar.load(own, device="cpu", preset="fast").recipe.sampling.steps == 4
    shutil.rmtree(carried)
    told = CliRunner().invoke(app, [str(own), *call], catch_exceptions=False).output
    assert f"stored as {own}/presets/fast.yaml; mixar sample {own} --preset fast" in told

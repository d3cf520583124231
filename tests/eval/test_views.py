"""What stands beside samples in a report: real images, codes alone, other encoders, seeds; and who may judge."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import attrs
import pytest
import torch

import mixar
from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar_core.distributed import Processes
from mixar_core.errors import UserError
from mixar_eval import generation, judge
from mixar_eval.context import EvalContext
from mixar_eval.distances import frechet_distance
from mixar_eval.extractors import open_extractor
from mixar_eval.features import extract
from mixar_eval.images import open_images
from tests.cli.process import good, refused
from tests.eval.test_evaluate import QUICK, Colour
from tests.eval.test_generation_report import Pooled

TAUGHT = {"reconstruction": {"perceptual_weight": 0.1}, "extractor": {"type": "efficientnet-lite0", "maps_scale": 2}}


def test_ratios_are_of_distances_at_equal_counts(family: Path, registry: Registry) -> None:
    recipe, encoders = load_recipe(family / "recipes/mixar.yaml", registry=registry), [Pooled(), Colour()]
    train, real = (open_images(f"data:{split}", registry, recipe=recipe) for split in ("train", "validation"))
    pixels = torch.cat([*real.batches()])
    samples = (pixels.float() * 0.5).to(torch.uint8)
    report = mixar.evaluate(samples, "data:train", extractor=encoders, recipe=recipe).to_json()
    assert (
        report["real_images"]["what"]
        == "6 real images of the validation split"
        == report["floor"]["what"].replace("other", "validation")
    )
    assert report["ratios"]["k"] == 2 and report["ratios"]["images"] == 6
    expected = []
    for encoder in encoders:
        vectors = [extract(some, encoder)["features"] for some in (torch.cat([*train.batches()]), samples, pixels)]
        of_samples, of_real = (frechet_distance(some, vectors[0]) for some in vectors[1:])
        expected.append(of_samples / of_real)
        assert report["ratios"]["encoders"][encoder.label] == [pytest.approx(expected[-1], rel=1e-6)]
    assert report["ratios"]["mean"] == pytest.approx(sum(expected) / 2) and expected[0] != expected[1]
    assert report["beside"]["Colour"]["scores"]["mind"] > 0 and "Pooled" not in report["beside"]
    # twice as many samples are measured by as many as there are real images
    twice = mixar.evaluate(torch.cat([samples, samples]), "data:train", extractor=encoders[0], recipe=recipe).to_json()
    assert (
        twice["ratios"]["images"] == 6
        and twice["scores"]["count"] == 12
        and twice["real_images"]["scores"]["count"] == 6
    )
    assert twice["floor"]["what"].startswith("4 of the reference's images")


def test_real_images_that_training_has_not_seen_have_a_ratio_of_one(family: Path, registry: Registry) -> None:
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry)
    report = mixar.evaluate("data:validation", "data:train", extractor=[Pooled(), Colour()], recipe=recipe)
    told = report.to_json()
    assert told["ratios"]["mean"] == pytest.approx(1.0, abs=1e-9)
    named = told["named"]
    assert named["samples"] == (named["real"],) and named["codes"] == () and named["ratio"]["value"] == 1.0
    assert named["ratio"]["low"] <= 1.0 <= named["ratio"]["high"]
    text = report.to_markdown()
    assert "| floor: " not in text and "The floor: the 6 real images of the other split." in text
    assert "**FDr-2: 1**" in text and "| 6 real images of the validation split |" in text and "class named" in text
    alone = mixar.evaluate(torch.cat([*open_images("data", registry, recipe=recipe).batches()]), family / "data/train",
                           extractor=Pooled())  # fmt: skip
    plain = alone.to_json()
    assert plain["ratios"] is plain["named"] is plain["real_images"] is None and "FDr" not in alone.to_markdown()
    assert "class named" not in alone.to_markdown()


def test_seeds_are_drawn_beside_each_other_and_their_spread_told(family: Path, tmp_path: Path) -> None:
    call = ("eval", "generation", family / "models/mixar", "--reference", "data:train", "--count", 12, *QUICK)
    said = good(*call, "--seeds", 2, "--out", "both", cwd=tmp_path)
    assert (
        "| 12 samples, 2 seeds |" in said
        and "| the codes' own decoding |" in said
        and "closer to the reference" in said
    )
    both = json.loads((tmp_path / "both/report.json").read_text())
    assert both["samples"]["seeds"] == [0, 1] and len(both["seeds"]) == 2 and both["seeds"][0] == both["scores"]
    second, kept = tmp_path / "both/seeds/1", tmp_path / "both/features"
    one = mixar.evaluate(second, family / "data/train", extractor=QUICK[1], cache=kept).to_json()
    assert one["scores"] == both["seeds"][1] and "codes_alone" not in one and "spread" not in one
    assert one["samples"]["drawn"]["plan"]["seed"] == 1
    distances = [scores["frechet"] for scores in both["seeds"]]
    assert both["spread"]["frechet"]["mean"] == pytest.approx(sum(distances) / 2)
    assert both["spread"]["frechet"]["deviation"] == pytest.approx(abs(distances[0] - distances[1]) / 2**0.5)
    assert both["ratios"]["deviation"] > 0 and len(both["named"]["codes"]) == 2
    assert refused(
        "eval", "generation", "both/samples", "--reference", "both/samples", "--seeds", 2, cwd=tmp_path
    ).startswith("error: --seeds: says how a model is sampled")


def test_codes_are_left_out_where_that_is_said(family: Path, tmp_path: Path, registry: Registry) -> None:
    model, seen = mixar.load(family / "models/mixar", device="cpu"), EvalContext(registry=registry, extractor=Colour())
    plan = generation.plan(model, count=3, batch=3, seed=4)
    with_codes = generation.draw_sets(model, plan, tmp_path, seen, seeds=2)
    without = generation.draw_sets(model, plan, tmp_path, seen, codes_too=False)
    assert [each.codes and each.codes.plan.seed for each in [*with_codes, *without]] == [4, 5, None]
    assert {path.name for path in tmp_path.iterdir()} == {"samples", "seeds"} and (tmp_path / "seeds/5").is_dir()
    prior = mixar.load(family / "models/prior", device="cpu")
    plain = generation.draw_sets(prior, generation.plan(prior, count=2, batch=2, seed=0), tmp_path / "prior", seen)
    assert plain[0].codes is None


@pytest.fixture
def taught(family: Path, tmp_path: Path) -> Path:
    """The tiny MixAR, its continuous tokenizer trained with a perceptual loss on EfficientNet-Lite0."""
    shutil.copytree(family / "models", tmp_path / "models")
    for name, changes in (
        ("continuous", TAUGHT),
        ("mixar", {"continuous_tokenizer": {"weights": str(tmp_path / "models/continuous")}}),
    ):
        path = tmp_path / "models" / name / "recipe.yaml"
        path.write_text(mixar.recipe.to_yaml(load_recipe(path, changes)))
    return tmp_path / "models/mixar"


def test_a_judge_is_one_that_no_loss_has_seen(taught: Path, family: Path, registry: Registry) -> None:
    teachers = judge.teachers_of(judge.recipes_of([str(taught), "no such model"], registry), registry)
    assert [each.loss for each in teachers] == ["the perceptual loss of continuous"]
    assert judge.chosen(teachers, registry) == ["efficientnet-lite1", "efficientnet-lite0"]
    assert judge.chosen([], registry) == ["efficientnet-lite0"]
    assert judge.teachers_of(judge.recipes_of([str(family / "models/mixar")], registry), registry) == []
    small = open_extractor("efficientnet-lite0:size=32", registry)
    assert judge.taught(small, teachers, registry) == "the perceptual loss of continuous"
    assert judge.taught(Colour(), teachers, registry) == ""
    assert judge.taught(open_extractor("efficientnet-lite1:size=32", registry), teachers, registry) == ""
    drawn = mixar.load(taught, device="cpu").generate([0, 0, 1, 2])
    told, silent = (mixar.evaluate(each, drawn.images, extractor=small).notes for each in (drawn, drawn.images))
    (warned,) = {*told} - {*silent}
    assert "stands in the perceptual loss of continuous: it favours" in warned
    small.sha256 = "0" * 64  # the same network with other weights
    assert judge.taught(small, teachers, registry) == ""
    aligned = load_recipe(
        family / "recipes/continuous.yaml", {"aligned_to": {"type": "efficientnet-lite1"}}, registry=registry
    )
    found = judge.teachers_of([attrs.evolve(aligned, name="held")], registry)
    assert [each.loss for each in found] == ["the alignment of held"]
    assert judge.chosen([*teachers, *found], registry) == [f"efficientnet-lite{number}" for number in (2, 0, 1)]


def test_images_have_the_judge_of_the_shipped_model_that_drew_them(
    family: Path, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = mixar.load(family / "models/mixar", device="cpu"), EvalContext(registry=registry, extractor=Colour())
    folder = tmp_path / "drawn"
    generation.draw_samples(model, generation.plan(model, count=2, batch=2, seed=0), folder, seen)
    assert judge.recipes_of([str(folder)], registry) == []  # by a model that nobody ships
    manifest = json.loads((folder / "sample.json").read_text())
    shipped = json.loads((registry.models()["emoji64_lfq"][0] / "provenance.json").read_text())
    manifest["model"]["sha256"]["discrete_tokenizer"] = shipped["sha256"]
    (folder / "sample.json").write_text(json.dumps(manifest))
    found = judge.recipes_of([str(folder)], registry)
    assert [recipe.name for recipe in found] == ["emoji64_lfq"]
    teachers = judge.teachers_of(found, registry)
    assert judge.chosen(teachers, registry) == ["efficientnet-lite1", "efficientnet-lite0"]
    report = mixar.evaluate(folder, folder, extractor=QUICK[1])
    assert report.notes[-1].startswith("efficientnet-lite0 at 32 px stands in the perceptual loss of emoji64_lfq")
    folder = folder.rename(tmp_path / "emoji64_continuous")  # a folder's name is no model's
    (folder / "sample.json").unlink()
    monkeypatch.chdir(tmp_path)
    silent = mixar.evaluate(folder.name, folder.name, extractor=QUICK[1]).notes
    assert not any("perceptual loss" in note for note in silent)


def test_statistics_for_a_recipe_are_its_judges_and_serve_its_models(taught: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "statistics.npz", ("--out", tmp_path / "report")
    said = good("eval", "statistics", "data:train", "--recipe", taught / "recipe.yaml", "--out", file)
    assert "efficientnet-lite1 at 240 px" in said
    asked = ("eval", "generation", taught, "--reference", file, "--count", 4, "--no-codes-too", *out)
    said = good(*asked)
    assert "note: efficientnet-lite0 at 224 px does not stand beside the judge: --reference" in said
    assert [*json.loads((tmp_path / "report/report.json").read_text())].count("beside") == 0


def test_a_report_says_that_its_judge_was_a_teacher(taught: Path, registry: Registry) -> None:
    images = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    by_teacher = mixar.evaluate(images, images, extractor=QUICK[1], recipe=taught / "recipe.yaml")
    note = "efficientnet-lite0 at 32 px stands in the perceptual loss of continuous: it favours what it has taught"
    assert by_teacher.notes[-1].startswith(note) and f"- Note: {note}" in by_teacher.to_markdown()
    assert not any("stands in" in line for line in mixar.evaluate(images, images, extractor=QUICK[1]).notes)
    both = judge.contexts(
        None,
        recipes=judge.recipes_of([str(taught)], registry),
        registry=registry,
        processes=Processes(0, 1, torch.device("cpu")),
    )
    assert both.taught == "" and both.extractor.label.startswith("efficientnet-lite1")
    assert [(each.extractor.label[:18], each.taught) for each in both.beside] == [
        ("efficientnet-lite0", "the perceptual loss of continuous")
    ]
    with pytest.raises(UserError, match="Colour: given twice"):
        mixar.evaluate(images, images, extractor=[Colour(), Colour()])

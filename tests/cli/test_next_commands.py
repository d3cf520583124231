"""From a folder to samples and a report by the commands that are printed, as they are printed; and other next commands.

Those of `mixar train` of each kind are in test_cli.py, those of several recipes in test_train_several.py.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.cli.process import good, refused, run
from tests.mixed_images import write_mixed_images

PAGE = (Path(__file__).parents[2] / "docs/own-images.md").read_text(encoding="utf-8")


def test_from_a_folder_to_samples_and_a_report_by_the_four_commands_of_the_page(tmp_path: Path) -> None:
    """docs/own-images.md in miniature: 24 images, as few steps as there can be, and names that need quotes."""
    page = [line.strip() for line in PAGE.splitlines() if line.startswith("    mixar ")]
    others = {"photos": "my photos", "own": "it's mine"}
    asked = [re.sub(r"\b(photos|own)\b", lambda found: shlex.quote(others[found[0]]), line) for line in page]
    write_mixed_images(tmp_path / "my photos", 24)
    first, *rest = (shlex.split(line) for line in asked)
    told = good(*first[1:], "--image-size", 16, "--minutes", 0, cwd=tmp_path).splitlines()
    assert "5 classes" in told[0] and any("images are few" in line for line in told)
    commands = [shlex.split(line) for line in told if line.startswith("mixar ")]
    count = commands[-1].index("--count") + 1
    rest[-1][count] = commands[-1][count]
    assert commands == rest
    assert "it's mine is not an empty folder" in refused(*first[1:], cwd=tmp_path)
    for words in commands:
        printed = good(*words[1:], cwd=tmp_path)
    assert "the codes' own decoding" in printed and "lie" in printed
    own = tmp_path / "it's mine"
    assert {path.name for path in (own / "samples").iterdir()} >= {"grid.png", "000_circle.png"}
    report = json.loads((own / "report/report.json").read_text())
    assert report["codes_alone"]["count"] == report["scores"]["count"] == 50
    assert report["nearest"]["training_images"] > 10 and (own / "report/nearest.png").is_file()
    assert "Nearest training images" in (own / "report/report.md").read_text()
    # what a run began with is what it goes on with, from its own folder too
    assert "done before" in good(*commands[0][1:], "--resume", cwd=tmp_path)


def test_new_takes_a_height_and_a_width(tmp_path: Path) -> None:
    write_mixed_images(tmp_path / "photos", 12)
    done = run("new", "photos", "--out", "own", "--image-size", "16x24", "--minutes", 0, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "training.cache" not in done.stderr  # the trials' notes are of noise, not of these images
    assert "image_size: [16, 24]" in (tmp_path / "own/base.yaml").read_text()


def test_what_new_cannot_do_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, message in (
        (("./nowhere", "--out", "own"), "nowhere"),
        (("empty", "--out", "own"), "empty"),
        (("empty", "--out", "own", "--image-size", "8"), "--image-size: 8 is too small; allowed: 16 or more"),
        (("empty", "--out", "own", "--image-size", "32x8"), "--image-size: 8 is too small; allowed: 16 or more"),
        (("empty", "--out", "own", "--image-size", "32x"), "32x: not a side such as 64, nor a height and a width"),
    ):
        assert message in refused("new", *words, cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_cache_is_trained_on_as_it_was_made(family: Path, tmp_path: Path) -> None:
    """Settings are repeated; and a folder may be called as what is no folder."""
    changes = ("--set", "training.steps=3", "--set", "head.width=16")
    told = good("cache", family / "recipes/mixar.yaml", "--out", "memory", *changes, cwd=tmp_path)
    words = shlex.split(told.splitlines()[-1])
    assert words[1] == "train" and "training.cache=./memory" in words and "head.width=16" in words
    trained = good(*words[1:], cwd=tmp_path)
    assert trained.startswith("3 steps")
    assert f"cache: {tmp_path / 'memory'}\n" in (tmp_path / "runs/mixar/recipe.yaml").read_text()


def test_a_mixar_without_a_prior_is_told_what_it_lacks(family: Path, tmp_path: Path) -> None:
    done = run("train", family / "recipes/mixar.yaml", "--set", "prior=null", "--out", "my run", cwd=tmp_path)
    assert done.returncode == 0 and "note: there is no prior: sampling will need codes" in done.stderr
    last = done.stdout.splitlines()[-1]
    assert last == "to sample, name the run of a prior in my run/recipe.yaml: prior: {weights: RUN}"
    path = tmp_path / "my run/recipe.yaml"
    path.write_text(path.read_text() + f"prior: {{weights: {family / 'models/prior'}}}\n")
    assert "images in samples" in good("sample", "my run", cwd=tmp_path)


@pytest.mark.parametrize("settings", [("prior={type: ground-truth}",), ("injector.type=none", "prior=null")])
def test_sampling_follows_other_kinds_of_mixar(settings: tuple[str, ...], family: Path, tmp_path: Path) -> None:
    changes = [word for setting in settings for word in ("--set", setting)]
    told = good("train", family / "recipes/mixar.yaml", *changes, "--out", "run", cwd=tmp_path).splitlines()
    assert told[-1] == "mixar sample run"
    good(*shlex.split(told[-1])[1:], cwd=tmp_path)


def test_a_tokenizer_is_measured_on_images_that_are_enough(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "data", tmp_path / "data")
    for image in sorted((tmp_path / "data/val").rglob("*.png"))[1:]:
        image.unlink()
    data = ("--set", f"data.path={tmp_path / 'data'}")
    told = good("train", family / "recipes/continuous.yaml", *data, "--out", "run", cwd=tmp_path).splitlines()
    assert told[-1] == "mixar eval tokenizer run --data data:train"
    good(*shlex.split(told[-1])[1:], cwd=tmp_path)

"""`mixar eval generation`, `sweep` and `guidance` from outside: reports, shared work, interruptions, refusals."""

from __future__ import annotations

import csv
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from tests.cli.process import good, refused, started, torchrun

#: the smallest extractor there is without a weights file of its own
QUICK = ("--extractor", "efficientnet-lite0:size=32")
COUNT = ("--count", 60, "--batch", 8)


def report_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def measured(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 60 images of the tiny MixAR."""
    folder = tmp_path_factory.mktemp("measured")
    said = good(
        "eval", "generation", family / "models/mixar", "--reference", "data:train", *COUNT, *QUICK, "--out", "one",
        cwd=folder,
    )  # fmt: skip
    assert "comparable with ADM-protocol FID: no, because the extractor is not Inception" in said
    assert "report: one/report.md" in said
    return folder / "one"


def test_a_report_says_all_that_a_number_depends_on(measured: Path) -> None:
    report, text = report_in(measured), (measured / "report.md").read_text()
    assert report["scores"]["count"] == 60 and report["scores"]["frechet"] > 0
    few = "fewer than the 60 samples, so its Frechet distance reads too high"
    assert report["floor"]["what"] == f"4 of the reference's images against its other 5: {few}"
    assert (
        report["samples"]["classes"] | {"known": 3, "missing": [], "exactly_balanced": True}
        == report["samples"]["classes"]
    )
    drawn = report["samples"]["drawn"]
    assert drawn["plan"]["settings"]["cfg"] == 1.5 and drawn["plan"]["seed"] == 0
    assert drawn["seconds_per_image_and_process"] > 0 and len(drawn["model"]["sha256"]["mixar"]) == 64
    assert (
        report["made"]["command"].startswith("mixar eval generation ")
        and "torch-fidelity" in report["made"]["versions"]
    )
    for told in (
        "Comparable with ADM-protocol FID: no, because", "60 images and not 50,000", "exactly 20 images of each",
        "| seed | 0 |", "| cfg schedule | linear |", "| temperature | 1.0 |", "| steps | 3 |", "averaged (EMA)",
        "| precision | float32 |", "efficientnet-lite0 at 32 px", "| image format | PNG |", "sampling_steps 3",
        "samples.png",
        drawn["model"]["sha256"]["mixar"],
    ):  # fmt: skip
        assert told in text, told
    with Image.open(measured / "samples.png") as picture:
        assert picture.width > 8 * 96


def test_images_measured_again_give_the_same_scores(family: Path, measured: Path, tmp_path: Path) -> None:
    """As a folder; as an .npz that a call of its own drew; ordered by class; and with a class left out."""
    scores = report_in(measured)["scores"]
    reference = ("--reference", family / "data/train")
    same = ("--batch", 8)  # features of another batch differ in the last digit
    good("eval", "generation", measured / "samples", *reference, *QUICK, *same, "--out", "folder", cwd=tmp_path)
    again = report_in(tmp_path / "folder")
    assert again["scores"] == scores and again["samples"]["drawn"]["plan"]["seed"] == 0
    good("sample", family / "models/mixar", *COUNT, "--npz", "drawn.npz", cwd=tmp_path)
    with numpy.load(tmp_path / "drawn.npz") as drawn:
        images, labels = drawn["arr_0"], drawn["arr_1"]
    order = numpy.argsort(labels, kind="stable")
    numpy.savez(tmp_path / "ordered.npz", images[order], labels[order])
    good("eval", "generation", "ordered.npz", *reference, *QUICK, "--out", "ordered", cwd=tmp_path)
    ordered = report_in(tmp_path / "ordered")
    for key in ("frechet", "kernel", "precision", "recall"):
        assert ordered["scores"][key] == pytest.approx(scores[key], rel=1e-4, abs=1e-5)
    assert ordered["scores"]["inception"]["mean"] == pytest.approx(scores["inception"]["mean"], rel=1e-4)
    assert ordered["samples"]["classes"]["exactly_balanced"] and ordered["samples"]["drawn"] is None
    assert "How they were drawn is not known" in (tmp_path / "ordered/report.md").read_text()
    numpy.savez(tmp_path / "without.npz", images[labels != 1], labels[labels != 1])
    said = good("eval", "generation", "without.npz", *reference, *QUICK, "--out", "without", cwd=tmp_path)
    assert "1 of 3 classes have no image: dog" in said
    assert "**1 of them have no image: dog.**" in (tmp_path / "without/report.md").read_text()


@pytest.mark.slow
def test_killed_and_shared_it_ends_with_the_same_report(family: Path, measured: Path, tmp_path: Path) -> None:
    call = ("eval", "generation", family / "models/mixar", "--reference", "data:train", *COUNT, *QUICK, "--out")
    with started(*call, "killed", folder=tmp_path) as child:
        for _ in range(6000):
            if len(list((tmp_path / "killed/samples").glob("*.png"))) >= 20 or not child.is_alive():
                break
            time.sleep(0.005)
        child.kill()  # SIGKILL
    assert not (tmp_path / "killed/report.json").exists()
    said = torchrun(*call, "killed", cwd=tmp_path)
    assert said.count("report: killed/report.md") == 1
    one, two = report_in(measured), report_in(tmp_path / "killed")
    assert two["made"]["processes"] == 2 and two["scores"] == one["scores"] and two["floor"] == one["floor"]
    for picture in sorted((measured / "samples").glob("*.png")):
        assert picture.read_bytes() == (tmp_path / "killed/samples" / picture.name).read_bytes()
    line = refused(*call, "killed", "--seed", 1, "--cfg", 2, cwd=tmp_path)
    assert "plan.seed was 0, is 1, plan.settings.cfg was 1.5, is 2.0" in line


def test_a_sweep_draws_its_budget_and_goes_on(family: Path, tmp_path: Path) -> None:
    call = (
        "eval", "sweep", family / "models/mixar", "--cfg", "1,3", "--reference", "data:train", "--budget", 130, *QUICK,
        "--out", "out",
    )  # fmt: skip
    said = good(*call, cwd=tmp_path)
    assert "**Best Frechet distance: " in said and "| images of a point | 63 |" in said
    out = tmp_path / "out"
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert [row["cfg"] for row in rows] == ["1.0", "3.0"] and {row["images"] for row in rows} == {"63"}
    report = report_in(out)
    lowest = min(rows, key=lambda row: float(row["frechet_distance"]))
    assert str(report["best"]["cfg"]) == lowest["cfg"] and report["floor's Frechet distance"] > 0
    assert Image.open(out / "sweep.png").width > 300 and "sweep.png" in (out / "report.md").read_text()
    shutil.rmtree(out / "points/cfg-3_temperature-1_steps-3")
    good(*call, cwd=tmp_path)  # the point that is there stays, the other is drawn again
    assert next(csv.DictReader((out / "sweep.csv").read_text().splitlines())) == rows[0]
    assert "plan.count was 63, is 60" in refused(*call, "--budget", 120, cwd=tmp_path)


def test_guidance_has_a_row_for_every_model_and_step(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "models/mixar", tmp_path / "plain")
    (tmp_path / "plain/recipe.yaml").write_text(
        (family / "models/mixar/recipe.yaml").read_text().replace("type: dc-mix\n  projection: false", "type: none")
    )
    call = ("eval", "guidance", family / "models/mixar", "plain", "--count", 51, "--steps", "1", *QUICK)
    said = good(*call, "--reference", family / "data/train", "--out", "out", cwd=tmp_path)
    assert "| dc-mix | mixar | 1 |" in said and "| none | plain | 1 |" in said
    rows = report_in(tmp_path / "out")["rows"]
    assert [(row["injector"], row["steps"]) for row in rows] == [("dc-mix", 1), ("none", 1)]
    assert all(row["images"] == 51 and row["seconds_per_image"] > 0 for row in rows)
    assert (tmp_path / "out/guidance.png").is_file() and (tmp_path / "out/guidance.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generation", "MODEL"], "--reference"),
        (["generation", "nobody", "--reference", "data:train"], 'unknown model "nobody"'),
        (["generation", "MODEL", "--reference", "nowhere"], "no such folder or .npz file"),
        (["generation", "MODEL", "--reference", "data:test"], "data:test"),
        (["generation", "MODEL", "--reference", "jpegs"], "JPEG changes pixels"),
        (["generation", "MODEL", "--reference", "small.npz"], "8x8 pixels; needed: 16x16"),
        (["generation", "MODEL", "--reference", "floats.npz"], "arr_0 is float64; needed: uint8"),
        (["generation", "MODEL", "--reference", "flat.npz"], "needed: (N, H, W, 3)"),
        (["generation", "MODEL", "--reference", "one.npz"], "too few images: 1"),
        (["generation", "MODEL", "--reference", "stats.npz"], "mu has shape (4,), sigma (3, 3)"),
        (["generation", "MODEL", "--reference", "data:train", "--extractor", "inception"], "weights_file"),
        (["generation", "MODEL", "--reference", "data:train", "--extractor", "vgg"], 'unknown extractor "vgg"'),
        (["generation", "MODEL", "--reference", "data:train", "--count", "1"], "--count: 1 is too small"),
        (["generation", "MODEL", "--reference", "data:train", "--out", "home"], "something else (thesis.tex)"),
        (["generation", "jpegs", "--reference", "images.npz"], "JPEG changes pixels"),
        (["generation", "images.npz", "--reference", "images.npz", "--cfg", "2"], "--cfg: says how a model is sampled"),
        (["generation", "images.npz", "--reference", "images.npz", "--count", "9"], "images.npz holds 6 images"),
        (["generation", "one.npz", "--reference", "images.npz"], "too few images: 1"),
        (["sweep", "MODEL", "--reference", "data:train", "--budget", "99", "--cfg", "1,2"], "at least 50 are needed"),
        (["sweep", "MODEL", "--reference", "data:train", "--budget", "200"], "nothing to sweep over"),
        (["sweep", "MODEL", "--reference", "data:train", "--budget", "200", "--cfg", "1,x"], "--cfg 1,x: not numbers"),
        (["sweep", "MODEL", "--reference", "data:train", "--budget", "200", "--steps", "1.5"], "not whole numbers"),
        (["sweep", "MODEL", "--reference", "data:train", "--budget", "200", "--cfg", "-1,1"], "cfg"),
        (["guidance", "PRIOR", "--reference", "data:train"], "trains prior"),
        (["guidance", "MODEL", "MODEL", "--reference", "data:train"], "two models are called mixar"),
        (["guidance", "MODEL", "--reference", "data:train", "--count", "10"], "--count: 10 is too small"),
    ],
)
def test_bad_input_is_one_line(family: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("")
    (tmp_path / "jpegs").mkdir()
    for index in range(3):
        Image.new("RGB", (16, 16)).save(tmp_path / f"jpegs/{index}.jpg")
    images = numpy.zeros((6, 16, 16, 3), "uint8")
    for name, array in {
        "images": images,
        "small": images[:, :8, :8],
        "floats": images / 255,
        "flat": images.reshape(6, -1),
        "one": images[:1],
    }.items():
        numpy.savez(tmp_path / f"{name}.npz", array)
    numpy.savez(tmp_path / "stats.npz", mu=numpy.zeros(4), sigma=numpy.eye(3))
    before = sorted(tmp_path.rglob("*"))
    places = {"MODEL": family / "models/mixar", "PRIOR": family / "models/prior"}
    assert message in refused("eval", *(places.get(word, word) for word in arguments), cwd=tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_one_line_and_the_call_can_be_repeated(family: Path, tmp_path: Path) -> None:
    call = ("eval", "generation", family / "models/mixar", "--reference", "data:train", "--count", 6, *QUICK)
    line = refused(*call, "--out", "out", cwd=tmp_path, largest_file=2500)
    assert "cannot be written" in line and not list(tmp_path.rglob("*.unfinished"))
    assert "comparable" in good(*call, "--out", "out", cwd=tmp_path)

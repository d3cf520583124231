"""`mixar edit` from outside: files, what it prints, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy
import pytest
from PIL import Image

from tests.cli.process import good, refused


@pytest.fixture
def place(family: Path, tmp_path: Path) -> Path:
    """A folder with a picture, a mask of it, a larger picture, and the family's model."""
    pixels = numpy.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype="uint8")
    Image.fromarray(pixels).save(tmp_path / "image.png")
    Image.fromarray(pixels).resize((48, 32)).save(tmp_path / "large.png")
    mask = numpy.zeros((16, 16), dtype="uint8")
    mask[5:7, 1:7] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    (tmp_path / "model").symlink_to(family / "models/mixar")
    return tmp_path


def pixels(path: Path) -> numpy.ndarray:
    return numpy.array(Image.open(path))


def test_an_edit_end_to_end(place: Path) -> None:
    for out in ("one", "two"):
        said = good(
            *("edit", "model", "image.png", "--mask", "mask.png", "--class", "owl", "--count", 2, "--seed", 3),
            *("--out", out, "--feather", 0),
            cwd=place,
        )
    assert "level both: drawn anew 2 of 16 latent tokens and 2 of 16 codes; the region grew from 12 to 32" in said
    assert "result, in levels of 256: kept pixels differ by 0.00" in said and "as decoded" in said
    assert said.endswith("2 results in two, beside what they were made of in two/edit.png\n")
    files = sorted(str(path.relative_to(place / "one")) for path in (place / "one").rglob("*") if path.is_file())
    drawn = ["000_owl.png", "001_owl.png"]
    assert files == sorted(
        [*drawn, *(f"raw/{name}" for name in drawn), *("edit.png", "input.png", "mask.png"), "sample.json"]
    )
    for file in files:
        assert (place / "one" / file).read_bytes() == (place / "two" / file).read_bytes()
    original, region = pixels(place / "image.png"), numpy.zeros((16, 16), dtype=bool)
    region[4:8, :8] = True
    assert (pixels(place / "one/input.png") == original).all()
    for name in drawn:
        assert (pixels(place / "one" / name)[~region] == original[~region]).all()
        assert (pixels(place / "one" / name)[region] == pixels(place / "one/raw" / name)[region]).all()
    assert not (pixels(place / "one" / drawn[0]) == pixels(place / "one" / drawn[1])).all()
    noted = json.loads((place / "one/sample.json").read_text())
    assert noted["edit"]["level"] == "both" and noted["edit"]["feather"] == 0 and noted["plan"]["seed"] == 3
    assert noted["edit"]["seam"]["images"]["kept"] == 0 < noted["edit"]["seam"]["raw"]["kept"]
    assert "already and not empty" in refused(
        "edit", "model", "image.png", "--mask", "mask.png", "--out", "one", cwd=place
    )
    good("edit", "model", "image.png", "--mask", "mask.png", "--out", "one", "--force", cwd=place)
    assert (place / "one/000_no_class.png").is_file() and not (place / "one/000_owl.png").exists()


def test_boxes_outsides_places_and_levels(place: Path) -> None:
    said = good(
        "edit", "model", "large.png", "--region", "8,0,16,16", "--outside", "--label", "1,2", "--peek", cwd=place
    )
    assert said.startswith("large.png: 48x32 pixels, its middle square scaled to 16x16 as training images are\n")
    assert "12 of 16 latent tokens and 12 of 16 codes" in said
    assert {"000_dog.png", "001_owl.png"} <= {*os.listdir(place / "edited")}
    assert json.loads((place / "edited/sample.json").read_text())["edit"]["peek"] is True
    said = good(
        "edit", "model", "large.png", "--place=4,0,12", "--level=codes", "--no-paste", "--out", "placed", cwd=place
    )
    assert "large.png: 48x32 pixels, scaled to 12x8 at 4,0" in said and "drawn anew 10 of 16 codes\n" in said
    assert (pixels(place / "placed/000_no_class.png") == pixels(place / "placed/raw/000_no_class.png")).all()
    said = good("edit", "model", "image.png", "--level", "latents", "--out", "all", cwd=place)
    assert "16 of 16 latent tokens and 0 of 16 codes" in said and "as decoded" not in said


def test_what_is_wrong_is_one_line_and_leaves_nothing(place: Path) -> None:
    (place / "broken.png").write_bytes((place / "image.png").read_bytes()[:200])
    Image.new("L", (8, 16), 255).save(place / "small.png")
    for words, message in (
        (("--mask", "small.png"), "the mask and the image have different sizes: 8x16 and 16x16"),
        (("--mask", "broken.png"), "broken.png: unreadable image"),
        (("--region", "8,8"), "8,8: not 4 whole numbers"),
        (("--region", "0,0,4,4", "--mask", "mask.png"), "--mask and --region: give one"),
        (("--outside",), "--outside: needs --mask or --region"),
        ((), "touches every token"),
        ((), "and that is sampling; give a mask, region or place that leaves some"),
        (("--mask", "mask.png", "--class", "ow"), "did you mean owl?"),
    ):
        assert message in refused("edit", "model", "image.png", *words, "--out", "out", cwd=place), words
        assert not (place / "out").exists()

"""What `look` tells of a folder of images, and `mixar data` prints."""

from __future__ import annotations

import json
import random
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixar import duplicates, strict_yaml
from mixar.assembly import open_data
from mixar.duplicates import FAR, OTHER_COLOURS, Print, near_duplicates
from mixar.facts import SIZES as PROPOSED
from mixar.facts import DataFacts, contact_sheet, fitting_size, look
from mixar.plugins import Registry
from mixar.recipe import make_recipe
from mixar_core.errors import UserError
from tests.cli.process import good, refused, run
from tests.mixed_images import BROKEN, CLASSES, SIZES, write_mixed_images

COUNT = 120


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mixed images; tests must not change them."""
    return write_mixed_images(tmp_path_factory.mktemp("mixed images"), COUNT)


@pytest.fixture(scope="module")
def facts(mixed: Path, registry: Registry) -> DataFacts:
    return look(mixed, registry=registry)


def test_mixed_images_are_all_told(mixed: Path, facts: DataFacts) -> None:
    assert facts.class_names == CLASSES and facts.num_classes == len(CLASSES)
    assert sum(facts.images.values()) == COUNT - len(BROKEN) and set(facts.unreadable) == set(BROKEN)
    assert facts.unreadable[BROKEN[1]] == "not an image Pillow knows"
    assert set(facts.sizes) == {*SIZES} and sum(facts.sizes.values()) == COUNT - len(BROKEN)
    assert [*facts.sizes.values()] == sorted(facts.sizes.values(), reverse=True)
    assert {*facts.modes} == {"RGB", "RGBA", "P", "L", "LA", "CMYK", "I;16"} and sum(facts.modes.values()) == 118
    paths = [path for path in mixed.rglob("*.*") if str(path.relative_to(mixed)) not in BROKEN]
    assert facts.turned == sum(Image.open(path).getexif().get(0x112) == 6 for path in paths) > 0
    assert facts.transparent == facts.modes["RGBA"] + facts.modes["LA"] and facts.animated == 0
    squares = [min(size) ** 2 / (size[0] * size[1]) for size, count in facts.sizes.items() for _ in range(count)]
    assert facts.kept == pytest.approx(numpy.mean(squares))
    assert facts.image_size == 48 and facts.left_out == {} and facts.enlarged == 0
    assert facts.data == {"type": "image-folder", "path": str(mixed), "orient": True, "validation": 0.1}
    assert json.loads(json.dumps(facts.plain()))["images"] == facts.images


def test_what_it_proposes_opens_the_same_images(facts: DataFacts, registry: Registry) -> None:
    plain = {"name": "x", "trains": "continuous_tokenizer", "continuous_tokenizer": {"type": "kl"}, **facts.recipe()}
    recipe = make_recipe(plain, registry, where="x")
    broken = len(facts.unreadable)
    assert sum(len(open_data(recipe, registry, split)) for split in ("train", "validation")) == COUNT
    train = open_data(recipe, registry, "train")
    assert len(train) - broken <= facts.images["train"] <= len(train) and train.class_names == facts.class_names
    sheet = contact_sheet(facts, registry)
    first = train[0][0].permute(1, 2, 0).numpy().repeat(2, axis=0).repeat(2, axis=1)  # shown twice as large
    rows = numpy.asarray(sheet)[22 : 22 + 96]  # under the title; names are at the left
    assert any(numpy.array_equal(rows[:, left : left + 96], first) for left in range(120))


def photo(seed: int, size: tuple[int, int] = (120, 90)) -> Image.Image:
    noise = numpy.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=numpy.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """Photos in train/ and val/, of which train/ has a copy of val/3 and one of its own 5."""
    for split, numbers in (("train", range(4, 24)), ("val", range(4))):
        for number in numbers:
            path = tmp_path / f"set/{split}/a/{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(number).save(path)
    photo(3).resize((80, 60)).save(tmp_path / "set/train/a/small.jpg", quality=85)
    photo(5).save(tmp_path / "set/train/a/again.jpg", quality=60)
    (tmp_path / "set/test").mkdir()
    photo(30).save(tmp_path / "set/test/30.png")
    (tmp_path / "set/train/a/list.txt").write_text("")
    return tmp_path / "set"


def test_copies_and_leaks_are_found(copies: Path, registry: Registry) -> None:
    facts = look(copies, registry=registry)
    assert facts.duplicates == (("train/a/5.png", "train/a/again.jpg"), ("train/a/small.jpg", "val/a/3.png"))
    assert facts.leaks == (("val/a/3.png", "train/a/small.jpg"),)
    assert facts.images == {"train": 22, "validation": 4} and facts.data == {
        "type": "image-folder",
        "path": str(copies),
    }
    assert facts.left_out == {".txt": ("train/a/list.txt",), "in no split": ("test/30.png",)}
    shutil.rmtree(copies / "val")
    assert look(copies, registry=registry).data["validation"] == 0.1  # train/ alone


@pytest.fixture
def without_imagehash(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    duplicates.imagehash.cache_clear()
    yield
    duplicates.imagehash.cache_clear()


@pytest.mark.usefixtures("without_imagehash")
def test_without_imagehash_it_is_said(copies: Path, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    from mixar.cli.data import _lines

    facts = look(copies, registry=registry)
    assert (facts.duplicates, facts.leaks) == (None, None)
    assert "near-duplicates: not looked for; pip install 'mixar[duplicates]'" in _lines(facts)


def test_a_set_that_holds_pixels_a_recipe_and_a_run(family: Path, registry: Registry) -> None:
    facts = look("digits_quick", registry=registry)
    assert facts.images == {"train": 4000, "validation": 1000} and facts.sizes == {(32, 32): 5000}
    assert facts.data["type"] == "digits" and facts.image_size == 32 and not facts.unreadable
    run = look(family / "models/continuous", registry=registry)
    assert run.data["path"] == str(family / "data") and run.class_names == ("cat", "dog", "owl")


def test_a_recipes_data_are_those_that_it_names(copies: Path, registry: Registry) -> None:
    path = copies / "own.yaml"
    path.write_text("extends: digits_continuous\ndata: {type: image-folder, path: .}\nimage_size: 48\nnum_classes: 1\n")
    facts = look(path, registry=registry)
    assert facts.images == {"train": 22, "validation": 4} and facts.image_size == 48 and facts.left_out == {}
    assert facts.notes == (f"{copies / 'train'}: left out: 1 .txt (a/list.txt)",)
    assert f"note: {facts.notes[0]}" in good("data", path)
    said = [str(copies / name) for name in ("val/a/3.png", "train/a/small.jpg")]
    assert facts.leaks == ((said[0], said[1]),)


def test_what_cannot_be_looked_at_is_refused(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(UserError, match=r"nowhere: no folder of images; as a recipe: recipe .*nowhere: no such file"):
        look(tmp_path / "nowhere", registry=registry)
    with pytest.raises(UserError, match=f"{tmp_path}: no folder train/ and no images in it"):
        look(tmp_path, registry=registry)
    (tmp_path / "a.png").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"no image of 1 can be read: a.png: not an image Pillow knows"):
        look(tmp_path, registry=registry)
    with pytest.raises(UserError, match=r"imagenet: no folder train/, nor any other: it is not there"):
        look("kl16", registry=registry)


def test_too_few_images_for_a_validation_split(tmp_path: Path, registry: Registry) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    facts = look(tmp_path, registry=registry)
    assert facts.images == {"train": 1} and facts.data["validation"] == 0.0 and facts.counts == {"train": (1,)}
    assert (facts.image_size, facts.enlarged) == (PROPOSED[0], 1)


@given(sides=st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_the_proposed_size_enlarges_few(sides: list[int]) -> None:
    size = fitting_size(sides)
    assert size in PROPOSED
    assert size == PROPOSED[0] or sum(side < size for side in sides) <= len(sides) * 0.1
    larger = [each for each in PROPOSED if each > size]
    assert not larger or sum(side < larger[0] for side in sides) > len(sides) * 0.1


@given(seed=st.integers(0, 10**9), count=st.integers(0, 40), flips=st.integers(0, 8))
@settings(max_examples=60)
def test_near_duplicates_are_those_of_all_pairs(seed: int, count: int, flips: int) -> None:
    draw = random.Random(seed)
    prints = list[Print]()
    for _ in range(count):
        bits = draw.choice(prints).bits if prints and draw.random() < 0.7 else draw.getrandbits(64)
        for _ in range(draw.randint(0, flips)):
            bits ^= 1 << draw.randrange(64)
        prints.append(Print(bits, bytes([draw.choice([10, 10, 10 + OTHER_COLOURS])] * 48)))

    def near(a: Print, b: Print) -> bool:
        return (a.bits ^ b.bits).bit_count() <= FAR and a.colours == b.colours

    expected = list[set[int]]()
    for index, each in enumerate(prints):
        joined = [group for group in expected if any(near(each, prints[other]) for other in group)]
        expected = [group for group in expected if group not in joined] + [{index}.union(*joined)]
    groups = near_duplicates(prints)
    assert sorted(map(sorted, groups)) == sorted(sorted(group) for group in expected if len(group) > 1)
    assert all(group == sorted(group) for group in groups)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # pytest shows what the command does not
def test_the_command_tells_what_the_function_does(tmp_path: Path, registry: Registry) -> None:
    own = write_mixed_images(tmp_path / "own images", 40)
    odd = bytes.fromhex("45786966000049492a0008000000050012010300")  # an EXIF entry cut short, of which Pillow warns
    photo(1, (64, 64)).save(own / "ring/odd.jpg", exif=odd)
    facts = look(own, registry=registry)
    done = run("data", own)
    assert done.returncode == 0 and not done.stderr, done.stderr
    said = done.stdout
    for split, count in facts.images.items():
        assert f"{count} {split}" in said
    assert (
        "validation images, the latter set aside by a hash of their paths; 5 classes\n" in said
        and "\nmodes: RGB (" in said
        and "\nnear-duplicates: " in said
    )
    assert "\nleft out: 2 that cannot be read: cross/broken.jpg (image file is truncated" in said
    recipe, _, last = said.partition("\nfor a recipe:\n\n")[2].rpartition("\n\n")
    assert strict_yaml.load(recipe, where="printed") == facts.recipe()
    words = shlex.split(last.partition(" writes every")[0])
    assert words[:2] == ["mixar", "data"] and "DIR/facts.json" in good(*words[1:], cwd=tmp_path)
    told = json.loads((tmp_path / "DIR/facts.json").read_text())
    assert told == json.loads(json.dumps(facts.plain()))
    assert Image.open(tmp_path / "DIR/contact_sheet.png").width > 4 * facts.image_size
    assert json.loads(good("data", own, "--json", "--image-size", "48x64", "--workers", 0)) == {
        **told,
        "image_size": [48, 64],
        "kept": look(own, image_size=(48, 64), registry=registry).kept,
        "enlarged": sum(count for size, count in facts.sizes.items() if size[0] < 64 or size[1] < 48),
    }
    assert "48x: not a side such as 64, nor a height" in refused("data", own, "--image-size", "48x")
    assert "lies in" in refused("data", own, "--out", own / "seen") and not (own / "seen").exists()

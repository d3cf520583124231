"""How images may lie in a folder, and which of them are set aside for validation."""

from __future__ import annotations

import io
import math
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from unicodedata import normalize

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from mixar.structure import Invalid, structure
from mixar_core.data.dataset import EncodedImage
from mixar_core.errors import UserError
from mixar_core.testing import check_dataset
from mixar_core.types import NO_CLASS
from mixar_plugins.datasets.folder import ImageFolder, ImageFolderConfig
from mixar_plugins.datasets.layout import set_aside

SIZE = 8


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (value % 256, value // 256, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write(root: Path, *names: str) -> Path:
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    return root


def build(path: Path, split: str = "train", **settings: object) -> ImageFolder:
    return ImageFolder(ImageFolderConfig(str(path), **settings), split=split, image_size=SIZE)  # type: ignore[arg-type]


def files(data: ImageFolder) -> list[str]:
    return [os.path.relpath(data.encoded(index).where, data.config.path) for index in range(len(data))]


CLASSES = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(40)]


def test_class_folders_are_enough(tmp_path: Path) -> None:
    write(tmp_path, *CLASSES)
    train, validation = build(tmp_path), build(tmp_path, "validation")
    assert train.class_names == validation.class_names == ("cat", "dog")
    assert sorted(files(train) + files(validation)) == sorted(CLASSES) and len(files(validation)) == 8
    note = f"{tmp_path}: 8 of 80 images are set aside for validation, by a hash of their names (data.validation=0.1)"
    assert train.notes == validation.notes == (note,)
    for data in (train, validation):
        assert [data.class_names[label] for label in data.labels()] == [file.split("/")[0] for file in files(data)]
        image, label = data[3]
        assert label == data.labels()[3] and int(image[0, 0, 0]) == CLASSES.index(files(data)[3])


def test_the_set_aside_are_the_same_on_every_machine(tmp_path: Path) -> None:
    write(tmp_path, *CLASSES)
    assert files(build(tmp_path, "validation")) == [
        *("cat/10.png", "cat/29.png", "cat/30.png", "cat/8.png"),
        *("dog/31.png", "dog/39.png", "dog/5.png", "dog/7.png"),
    ]


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    write(tmp_path, *(f"{number}.png" for number in range(40)))
    train, validation = build(tmp_path, validation=0.25), build(tmp_path, "validation", validation=0.25)
    assert train.num_classes == 0 and {*train.labels(), *validation.labels()} == {NO_CLASS}
    assert len(train) + len(validation) == 40 and 4 <= len(validation) <= 16


def test_train_alone_is_set_aside_of_where_that_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path, *(f"train/{name}" for name in CLASSES), "test/cat/0.png")
    assert len(build(tmp_path)) == len(build(tmp_path, validation=0.0)) == 80 and build(tmp_path).notes == ()
    with pytest.raises(UserError, match=r"no share is set aside \(data.validation=0.1 would\)"):
        build(tmp_path, "validation")
    train, validation = build(tmp_path, validation=0.1), build(tmp_path, "validation", validation=0.1)
    assert len(train) + len(validation) == 80 and len(validation)
    assert train.class_names == validation.class_names == ("cat", "dog")


def test_nothing_is_set_aside_beside_a_validation_folder(tmp_path: Path) -> None:
    write(tmp_path, *(f"train/{name}" for name in CLASSES), "val/dog/0.png")
    assert (len(build(tmp_path)), len(build(tmp_path, "validation"))) == (80, 1)
    for split in ("train", "validation"):
        with pytest.raises(UserError, match=r"data.validation: 0.2 is to be set aside, and .*/val is there$"):
            build(tmp_path, split, validation=0.2)
    assert len(build(tmp_path, validation=0.0)) == 80


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "not there": ((), "no folder train/, nor any other: it is not there; understood are CLASS/IMAGE"),
    "validation alone": (("val/a/0.png",), "no folder train/ in it; understood are"),
    "splits of other names": (
        ("training/a/0.png", "testing/a/0.png"),
        r"no folder train/.* testing/ is no name of a cl",
    ),
    "Train": (("Train/a/0.png", "Val/a/0.png"), "Train/ is no name of a class; .*rename it"),
    "wrapped": (("photos/a/0.png", "photos/b/0.png"), r"holds one folder, photos/, .*a/, b/; give .*/photos$"),
    "loose": (("a/0.png", "b/0.png", "1.png"), r"1 images in no class folder \(1.png\), 2 in class folders"),
    "a class called train": (("train/0.png", "car/0.png"), "train/ may be a class like car/, or hold all images; move"),
    "one image a class": (("a/0.png", "b/0.png"), "2 images, no class of which has two, so none is set aside"),
    "empty": (("a/0.txt",), "no images in it; left out: 1 .txt"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_be_meant_otherwise_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    names, message = REFUSED[name]
    write(tmp_path / "set", *names)
    with pytest.raises(UserError, match=message) as caught:
        build(tmp_path / "set", "validation" if name == "one image a class" else "train")
    assert "\n" not in str(caught.value)
    if name == "one image a class":
        assert len(build(tmp_path / "set")) == 2 and build(tmp_path / "set").notes == ()


def test_folders_beside_train_are_named(tmp_path: Path) -> None:
    write(tmp_path, "train/a/0.png", "car/0.png", "val/a/0.png", "test/0.png", "more/b/0.png")
    assert build(tmp_path).notes == (f"{tmp_path}: not read, because train/ is there: car/",)


def test_no_share_is_no_validation(tmp_path: Path) -> None:
    write(tmp_path, *CLASSES)
    assert len(build(tmp_path, validation=0.0)) == 80 and build(tmp_path, validation=0.0).notes == ()
    with pytest.raises(UserError, match=r"data.validation is 0: no image is set aside; training.evaluate_every=0"):
        build(tmp_path, "validation", validation=0.0)


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        ({"validation": 1.0}, "validation: must be < 1"),
        ({"validation": -0.1}, "validation: must be >= 0"),
        ({"background": "whyte"}, "background: must be an opaque colour, such as white or #808080; 'whyte' is none"),
        ({"background": "#ffffff00"}, "background: must be an opaque colour"),
    ],
)
def test_wrong_settings_are_refused(plain: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        structure({"path": "/x", **plain}, ImageFolderConfig)


def test_the_background_is_a_setting(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0)).save(tmp_path / "train/a.png")
    assert build(tmp_path)[0][0].unique().tolist() == [255]
    red = build(tmp_path, background="#ff0000")
    assert red[0][0][:, 0, 0].tolist() == [255, 0, 0]
    assert red.notes == (
        f"{tmp_path / 'train'}: 1 of 1 images that were looked at have transparency, shown over #ff0000 "
        "(data.background)",
    )


def test_what_is_done_to_images_is_noted(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    frames = [Image.new("RGB", (SIZE, SIZE), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "train/a.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (SIZE, SIZE - 1), "red").save(tmp_path / "train/b.png")
    data = build(tmp_path)
    where = f"{tmp_path / 'train'}: 1 of 2 images that were looked at"
    assert data.notes == (
        f"{where} hold several pictures, of which the first is taken",
        f"{where} are smaller than {SIZE} pixels, and are enlarged",
    )
    assert data[0][0][:, 0, 0].tolist() == data[1][0][:, 0, 0].tolist() == [255, 0, 0]


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=6)
ROWS = st.sets(st.tuples(st.integers(0, 4), NAMES).map(lambda row: (row[0], f"{row[0]}/{row[1]}")), max_size=60)
SHARES = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.9])


@given(rows=ROWS, share=SHARES)
def test_every_class_keeps_training_images(rows: set[tuple[int, str]], share: float) -> None:
    aside, counts = set_aside(rows, share), Counter(label for label, _ in rows)
    assert aside <= {file for _, file in rows}
    left = Counter(label for label, file in rows if file not in aside)
    assert all(left[label] for label in counts)
    assert bool(aside) == (share > 0 and max(counts.values(), default=0) > 1)


@given(rows=ROWS, more=ROWS, share=SHARES)
def test_images_stay_where_they_are_when_others_come(
    rows: set[tuple[int, str]], more: set[tuple[int, str]], share: float
) -> None:
    """But for one of a class that was all below the share, and for the one that is taken where none is."""
    before, after = set_aside(rows, share), set_aside(rows | more, share)
    moved = {(label, file) for label, file in rows if (file in before) != (file in after)}
    below = {file for _, file in rows if set_aside({(0, file), *GROUND}, share) >= {file}}
    for label, file in moved:
        if file not in below:  # taken where none was below, before or after
            assert {file} in (before, after)
        else:
            assert file in after and {other for its, other in rows if its == label} <= below


#: images of which one at least is above, and one below, any of the shares
GROUND = [(0, f"0/ground {number}") for number in range(200)]


@given(seed=st.integers(0, 10**6), share=st.sampled_from([0.05, 0.1, 0.3]))
@settings(max_examples=30)
def test_the_share_is_about_what_was_asked(seed: int, share: float) -> None:
    count = 2000
    got = len(set_aside([(number % 5, f"{number % 5}/{seed}-{number}.png") for number in range(count)], share))
    assert abs(got - share * count) < 6 * math.sqrt(count * share * (1 - share))


def test_a_name_has_one_place_however_a_disk_spells_it() -> None:
    rows = [(0, f"caf\u00e9/{number}.png") for number in range(60)]
    other = [(0, normalize("NFD", file)) for _, file in rows]
    assert {normalize("NFC", file) for file in set_aside(other, 0.3)} == set_aside(rows, 0.3)
    set_aside([(0, os.fsdecode(b"caf\xe9.png"))], 0.3)  # no text in any encoding we know


LAYOUTS: list[Callable[[str], str]] = [lambda name: name, lambda name: f"train/{name}"]


@settings(max_examples=30)
@given(
    names=st.sets(st.tuples(st.sampled_from(["a", "b", "c/d"]), st.integers(0, 30)), min_size=1, max_size=20),
    share=SHARES,
    place=st.sampled_from(LAYOUTS),
)
def test_splits_are_disjoint_and_nothing_is_lost(
    names: set[tuple[str, int]], share: float, place: Callable[[str], str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        every = sorted(place(f"{name}/{number}.png") for name, number in names)
        root = write(Path(folder) / "set", *every)
        if (root / "c").is_dir() and len([*root.iterdir()]) == 1:  # one folder, which holds one: refused
            write(root, "a/0.png")
            every = [*every, "a/0.png"]
        train = build(root, validation=share)
        try:
            validation = files(build(root, "validation", validation=share))
        except UserError as error:
            assert "training.evaluate_every=0 does without" in str(error)
            validation = []
        assert sorted(files(train) + validation) == sorted(every)
        assert {*train.labels()} == {*range(train.num_classes)}


def test_recipes_of_before_mean_what_they_meant() -> None:
    assert attrs.asdict(ImageFolderConfig("/x", orient=True)) == {
        "path": "/x",
        "orient": True,
        "validation": None,  # nothing that a cache of before would find changed
        "background": None,
    }


class Shifted(ImageFolder):
    """One whose files are those of its neighbours."""

    def encoded(self, index: int) -> EncodedImage:
        return super().encoded((index + 1) % len(self))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = super().encoded(index)
        return image.pixels(self.image_size), image.label


def test_the_contract_sees_files_that_are_others(tmp_path: Path) -> None:
    write(tmp_path, "train/a/0.png", "train/a/1.png")
    check_dataset(build(tmp_path), image_size=SIZE)
    with pytest.raises(AssertionError, match=r"encoded\(0\) is another image than the one at 0"):
        check_dataset(Shifted(ImageFolderConfig(str(tmp_path)), split="train", image_size=SIZE), image_size=SIZE)

from __future__ import annotations

import io
import json
import pickle
import re
import tempfile
from collections import Counter
from pathlib import Path
from unicodedata import normalize

import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixar_core.data.dataset import class_misfit
from mixar_core.data.images import center_crop, read_image
from mixar_core.errors import UserError
from mixar_core.types import NO_CLASS
from mixar_plugins.datasets.folder import ImageFolder, ImageFolderConfig
from mixar_plugins.datasets.parquet import ParquetConfig, ParquetDataset


def png(value: int, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    path: Path, *, labels: list, splits: list | None, names: list[str] | None = None, images=None, groups=4
) -> Path:
    path.parent.mkdir(exist_ok=True)
    images = [png(row) for row in range(len(labels))] if images is None else images
    columns = {"image": [{"bytes": data, "path": None} for data in images], "label": labels}
    if splits is not None:
        columns["split"] = splits
    table = pa.table(columns)
    if names:
        info = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path, row_group_size=groups)
    return path


def opened(path: Path, split: str = "train", **settings) -> ParquetDataset:
    return ParquetDataset(ParquetConfig(str(path), **settings), split=split, image_size=8)


def values(dataset) -> list[int]:
    return [int(dataset[index][0][0, 0, 0]) for index in range(len(dataset))]


SPLITS = ["train", "validation"] * 5


def test_parquet_rows_labels_and_names_by_split(tmp_path):
    path = write(tmp_path / "a.parquet", labels=[row % 3 for row in range(10)], splits=SPLITS, names=["x", "y", "z"])
    train, validation = opened(path), opened(path, "validation")
    assert (train.class_names, train.num_classes) == (("x", "y", "z"), 3)
    assert values(train) == [0, 2, 4, 6, 8]
    assert values(validation) == [1, 3, 5, 7, 9]
    assert train.labels() == [label for _, label in train] == [0, 2, 1, 0, 2]
    image, _ = train[1]
    assert image.dtype == torch.uint8 and image.shape == (3, 8, 8)


def test_parquet_gives_images_as_they_are_stored(tmp_path):
    path = write(tmp_path / "a.parquet", labels=[1, 0], splits=["train"] * 2, images=[png(3), png(9, (40, 20))])
    image = opened(path).encoded(1)
    assert (image.label, image.header().size, image.picture().size) == (0, (40, 20), (40, 20))


def test_parquet_survives_pickling_and_takes_a_setting_of_before(tmp_path):
    path = write(tmp_path / "a.parquet", labels=list(range(10)), splits=None)
    dataset = opened(path.rename(tmp_path / "train-0.parquet"), split_column=None, memory_mb=0)
    assert values(dataset) == list(range(10))
    copy = pickle.loads(pickle.dumps(dataset))
    assert values(copy) == values(dataset)
    assert len(pickle.dumps(dataset)) < 4000  # no images in it


def test_parquet_files_of_a_folder_by_name_and_by_column(tmp_path):
    write(tmp_path / "train-00000-of-00002.parquet", labels=[0, 1], splits=None, images=[png(1), png(2)])
    write(tmp_path / "train-00001-of-00002.parquet", labels=[2], splits=None, images=[png(3)])
    write(tmp_path / "val-00000.parquet", labels=[1], splits=None, images=[png(4)])
    assert values(opened(tmp_path, split_column=None)) == [1, 2, 3]
    assert values(opened(tmp_path, "validation", split_column=None)) == [4]
    assert opened(tmp_path, split_column=None).class_names == ("0", "1", "2")
    with pytest.raises(UserError, match=r"no column 'split'.*columns: image, label"):
        opened(tmp_path)


def test_parquet_unlabelled(tmp_path):
    path = write(tmp_path / "train.parquet", labels=[0, 0], splits=None)
    dataset = opened(path, label_column=None, split_column=None)
    assert (dataset.num_classes, dataset.class_names, dataset.labels()) == (0, (), [NO_CLASS] * 2)


def test_parquet_says_what_is_wrong_in_one_line(tmp_path):
    good = write(tmp_path / "good.parquet", labels=[0, 1], splits=["train", "test"])
    broken = write(
        tmp_path / "broken.parquet",
        labels=[0] * 6,
        splits=["train"] * 6,
        images=[*[png(0)] * 5, png(0, (512, 512))[:300]],
    )
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.parquet").write_text("no parquet here")
    label = write(tmp_path / "label.parquet", labels=[0, 7], splits=["train"] * 2, names=["x"])
    null = write(tmp_path / "null.parquet", labels=[0, None], splits=["train"] * 2)
    word = write(tmp_path / "word.parquet", labels=["a", "b"], splits=["train"] * 2)
    cases = {
        "none.parquet: no such file": lambda: opened(tmp_path / "none.parquet"),
        "no \\*.parquet file": lambda: opened(tmp_path / "empty"),
        "not a readable Parquet file": lambda: opened(tmp_path / "text.parquet"),
        "no column 'pixels' \\(image_column\\)": lambda: opened(good, image_column="pixels"),
        "no row of split 'validation'.*test, train": lambda: opened(good, "validation"),
        "split 'test': must be": lambda: opened(good, "test"),
        "no file named train": lambda: opened(good, split_column=None),
        "broken.parquet, row 5: unreadable image": lambda: opened(broken)[5],
        "label.parquet, row 1: label 7: must be 0 to 0": lambda: opened(label),
        "null.parquet, row 1: label none": lambda: opened(null),
        "'label' is string, not class numbers": lambda: opened(word),
        "holds no images": lambda: opened(good, image_column="label"),
    }
    for message, action in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            action()
        assert "\n" not in str(caught.value)


def test_parquet_names_are_names_and_no_patterns(tmp_path):
    """`train[1].parquet` alone gave the images of train1.parquet, and `a*b/` those of its neighbours as well."""
    for name, first in (("train[1]", 1), ("train1", 2), ("train*", 3), ("train?x", 4)):
        write(tmp_path / "d[1]*" / f"{name}.parquet", labels=[0], splits=None, images=[png(first)])
    write(tmp_path / "d1x" / "train.parquet", labels=[0], splits=None, images=[png(9)])
    for name, first in (("train[1]", 1), ("train*", 3)):
        assert values(opened(tmp_path / "d[1]*" / f"{name}.parquet", split_column=None)) == [first]
    assert sorted(values(opened(tmp_path / "d[1]*", split_column=None))) == [1, 2, 3, 4]


def test_parquet_files_without_rows_are_passed_over(tmp_path):
    write(tmp_path / "train-a.parquet", labels=[], splits=None, images=[])
    with pytest.raises(UserError, match="no rows in the files of the train split"):
        opened(tmp_path, split_column=None)
    write(tmp_path / "train-b.parquet", labels=[1], splits=None, images=[png(5)])
    assert values(opened(tmp_path, split_column=None)) == [5]


def test_parquet_files_that_name_their_classes_differently_are_refused(tmp_path):
    for name, names in (("train-0", ["cat", "dog"]), ("val-0", ["dog", "cat"])):
        write(tmp_path / f"{name}.parquet", labels=[0, 1], splits=None, names=names)
    for split in ("train", "validation"):
        with pytest.raises(UserError, match=r'differently: class 0 is "dog" against "cat"$'):
            opened(tmp_path, split, split_column=None)


def test_parquet_says_what_it_leaves_out_and_which_classes_are_empty(tmp_path):
    write(tmp_path / "train-0.parquet", labels=[1, 2], splits=None)
    write(tmp_path / "extra.parquet", labels=[0], splits=None)
    (tmp_path / "._train-0.parquet").write_bytes(b"Mac")
    assert opened(tmp_path, split_column=None).notes == (
        f"{tmp_path}: left out: 1 files of no split that is read (extra.parquet)",
        f'{tmp_path}, train: no image of class 0 "0", of 3',
    )
    one = write(tmp_path / "one/a.parquet", labels=[0] * 4, splits=["train", "test", "test", "val"])
    assert opened(one).notes == (f"{one}: left out: 2 rows of no split that is read (test)",)
    assert (len(opened(one)), len(opened(one, "validation"))) == (1, 1)


def folder(root: Path, names: list[str]) -> Path:
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value))
    return root


def test_folder_labels_come_from_train(tmp_path):
    folder(tmp_path, ["train/b/0.JPEG", "train/a/1.png", "train/a/deep/2.png", "val/b/3.png", "train/a/.hidden.png"])
    (tmp_path / "train/a/notes.txt").write_text("no image")
    train = ImageFolder(ImageFolderConfig(str(tmp_path)), split="train", image_size=8)
    validation = ImageFolder(ImageFolderConfig(str(tmp_path)), split="validation", image_size=8)
    assert train.class_names == validation.class_names == ("a", "b")
    assert (values(train), train.labels()) == ([1, 2, 0], [0, 0, 1])
    assert (values(validation), validation.labels()) == ([3], [1])
    assert values(pickle.loads(pickle.dumps(train))) == values(train)


def test_folder_without_classes_is_unlabelled(tmp_path):
    dataset = ImageFolder(ImageFolderConfig(str(folder(tmp_path, ["train/0.png"]))), split="train", image_size=4)
    assert (dataset.num_classes, dataset.labels()) == (0, [NO_CLASS])


def test_folder_says_what_is_wrong(tmp_path):
    folder(tmp_path, ["train/a/0.png", "val/c/1.png"])
    (tmp_path / "train/a/0.png").write_bytes(b"no image")

    with pytest.raises(UserError, match=r"0.png: unreadable image: not an image Pillow knows$"):
        build(tmp_path, "train")[0]
    with pytest.raises(UserError, match=r"a class that .* does not have"):
        build(tmp_path, "validation")
    with pytest.raises(UserError, match="no folder train/"):
        build(tmp_path / "nowhere", "train")
    flat = folder(tmp_path / "flat", ["train/a/0.png", "train/b/0.png", "val/ILSVRC2012_val_00000001.JPEG"])
    with pytest.raises(
        UserError, match=r"flat/val: 1 images in no class folder.*sort them into .*/flat/val/a/ and so on$"
    ):
        build(flat, "validation")
    (tmp_path / "new/train/a").mkdir(parents=True)
    with pytest.raises(UserError, match="no images"):
        build(tmp_path / "new", "train")


def build(path: Path, split: str = "train", **settings) -> ImageFolder:
    return ImageFolder(ImageFolderConfig(str(path), **settings), split=split, image_size=8)


def test_images_beside_class_folders_are_an_error_with_both_counts(tmp_path):
    folder(tmp_path, [*(f"train/{number}.png" for number in range(20)), "train/thumbs/a.png", "train/thumbs/b.png"])
    folder(tmp_path, ["train/@eaDir/0.png", "train/__MACOSX/0.png", "train/lost+found/0.png", "train/.git/0.png"])
    with pytest.raises(
        UserError, match=r"train: 20 images in no class folder \(0.png\), 2 in class folders, of which .* 1 \(thumbs\)"
    ):
        build(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"train/thumbs/{name}.png").unlink()
    (tmp_path / "train/thumbs").rmdir()
    plain = build(tmp_path)
    assert (len(plain), plain.num_classes) == (20, 0)
    train = tmp_path / "train"
    assert plain.notes == (f"{train}: left out: 3 folder of a system (@eaDir), 1 hidden (.git)",)
    (train / "labels").mkdir()  # nothing in it, but then it is no class
    (train / "labels/0.txt").write_text("")
    with pytest.raises(UserError, match=r"20 images in no class folder .*, 0 in class folders, .* 1 \(labels\)"):
        build(tmp_path)


def test_empty_classes_keep_their_number_and_are_named(tmp_path):
    folder(tmp_path, ["train/a/0.png", "train/c/1.png", "val/c/2.png"])
    (tmp_path / "train/b").mkdir()
    train, validation = build(tmp_path), build(tmp_path, "validation")
    assert (train.class_names, train.labels(), validation.labels()) == (("a", "b", "c"), [0, 2], [2])
    assert train.notes == (f'{tmp_path / "train"}: no image of class 1 "b", of 3',)
    assert validation.notes == (f'{tmp_path / "val"}: no image of class 0 "a", 1 "b", of 3',)
    (tmp_path / "same/train/a").mkdir(parents=True)
    folder(tmp_path, ["same/train/a/0.png"])
    (tmp_path / "same/val").symlink_to("train")
    (note,) = build(tmp_path / "same", "validation").notes
    assert note == f"{tmp_path / 'same/val'}: is the same folder as {tmp_path / 'same/train'}"
    folder(tmp_path, ["train/b/3.png", "validation/c/2.png"])
    assert build(tmp_path).notes == ()
    assert (
        f"{tmp_path / 'val'}: not read, because {tmp_path / 'validation'} is there"
        in build(tmp_path, "validation").notes
    )


def test_every_ending_counts_or_is_named(tmp_path):
    pixels = Image.new("RGB", (8, 8), (9, 9, 9))
    for kind, name in (
        ("JPEG", "a.jfif"),
        ("AVIF", "b.avif"),
        ("GIF", "c.GIF"),
        ("JPEG2000", "d.jp2"),
        ("PPM", "e.pgm"),
    ):
        (tmp_path / "train/cat").mkdir(parents=True, exist_ok=True)
        pixels.convert("L" if kind == "PPM" else "RGB").save(tmp_path / "train/cat" / name, kind)
    folder(tmp_path, ["train/cat/._a.jfif", "train/cat/f.heif", "train/cat/g.heif", "train/dog/0.png"])
    data = build(tmp_path)
    assert data.labels() == [0] * 5 + [1]
    assert all(abs(value - 9) < 3 for value in values(data)[:5])
    left_out = "2 .heif (cat/f.heif), 1 hidden (cat/._a.jfif)"
    assert data.notes == (f"{tmp_path / 'train'}: left out: {left_out}",)
    (tmp_path / "video/train/cat").mkdir(parents=True)
    (tmp_path / "video/train/cat/a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"video/train: no images in it; left out: 1 .mp4 \(cat/a.mp4\)$"):
        build(tmp_path / "video")


def test_links_do_not_multiply_a_class(tmp_path):
    folder(tmp_path, [f"train/{name}/{number}.png" for name in ("cat", "dog") for number in range(3)])
    (tmp_path / "train/cat/all").symlink_to("../cat")
    (tmp_path / "train/pets").symlink_to("dog")
    data = build(tmp_path)
    assert data.labels() == [0, 0, 0, 1, 1, 1] and data.class_names == ("cat", "dog", "pets")
    assert data.notes[0].endswith("left out: 2 linked a second time (cat/all)")
    assert data.notes[1].endswith('no image of class 2 "pets", of 3')


def test_class_names_are_compared_in_one_unicode_form(tmp_path):
    composed, decomposed = "Caf\u00e9", "Cafe\u0301"
    folder(tmp_path, [f"train/{composed}/0.png", "train/bar/1.png", f"val/{decomposed}/2.png"])
    train, validation = build(tmp_path), build(tmp_path, "validation")
    assert train.class_names == validation.class_names == (composed, "bar")
    assert (values(validation), validation.labels()) == ([2], [0])
    assert class_misfit(("bar", composed), ("bar", decomposed)) is None
    folder(tmp_path, [f"train/{decomposed}/0.png"])
    with pytest.raises(UserError, match=r"two class folders .* which are the same text"):
        build(tmp_path)


def test_without_validation_it_is_said_how_to_do_without(tmp_path):
    folder(tmp_path, ["train/a/0.png", "test/a/0.png"])
    with pytest.raises(
        UserError, match=r"no folder validation/ or val/ or valid/ in it; training.evaluate_every=0 does"
    ):
        build(tmp_path, "validation")


def test_orientation_is_a_setting_of_a_folder(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 3
    image = Image.new("RGB", (8, 8), (255, 255, 255))
    image.putpixel((0, 0), (0, 0, 0))
    (tmp_path / "train").mkdir()
    image.save(tmp_path / "train/a.png", exif=exif)
    assert build(tmp_path)[0][0][0, 0, 0] == 0
    assert build(tmp_path, orient=True)[0][0][0, 7, 7] == 0


def test_photos_that_lie_on_their_side_are_named(tmp_path):
    folder(tmp_path, [f"train/{number:03d}.png" for number in range(100)])
    assert build(tmp_path).notes == ()
    exif = Image.Exif()
    exif[0x112] = 6
    for number in range(50):
        Image.new("RGB", (8, 8)).save(tmp_path / f"train/{number:03d}.jpg", exif=exif)
    (tmp_path / "train/000.png").write_bytes(b"torn")
    (note,) = build(tmp_path).notes
    assert re.search(r"train: 10 of 30 images that were looked at are to be turned .* data.orient=true", note)
    assert build(tmp_path, orient=True).notes == ()


PIECES = st.sampled_from(["cat", "dog", "Caf\u00e9", "Cafe\u0301", ".git", "@eaDir", "x.png", "y.JPG", "z.txt", "w"])


@settings(max_examples=80, deadline=None)
@given(paths=st.sets(st.lists(PIECES, min_size=1, max_size=3).map("/".join), max_size=10))
def test_every_file_of_a_folder_is_counted_or_named_or_refused(paths):
    with tempfile.TemporaryDirectory() as name:
        root, files = Path(name) / "train", []
        root.mkdir()
        for path in sorted(paths):
            whole = root / path
            if not any(above.is_file() for above in whole.parents) and not whole.exists():
                whole.parent.mkdir(parents=True, exist_ok=True)
                whole.write_bytes(b"")
                files.append(Path(path))
        images = [f for f in files if f.suffix.lower() in (".png", ".jpg") and not set(f.parts) & {".git", "@eaDir"}]
        try:
            data = build(Path(name))
        except UserError as error:
            assert re.search("no images in it|in no class folder|the same text", str(error))
            return
        assert len(data) == len(images) and data.class_names == tuple(sorted(set(data.class_names)))
        if data.num_classes:
            by_class = Counter(data.class_names.index(normalize("NFC", file.parts[0])) for file in images)
        else:
            by_class = Counter([NO_CLASS] * len(images))
        assert Counter(data.labels()) == by_class
        if len(images) < len(files):
            counts = map(int, re.findall(r"(?:left out: |, )(\d+) [^,(]+\(", data.notes[0]))
            assert 0 < sum(counts) <= len(files) - len(images)


def test_center_crop_halves_with_a_box_and_keeps_the_centre():
    noise = Image.fromarray(numpy.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=numpy.uint8))
    assert center_crop(noise, 64).tobytes() == noise.tobytes()
    halved = numpy.asarray(noise, dtype=float).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert numpy.abs(numpy.asarray(center_crop(noise, 32), dtype=float) - halved).max() <= 1
    for width, height in ((300, 100), (100, 301), (7, 9), (64, 64)):
        assert center_crop(Image.new("RGB", (width, height)), 32).size == (32, 32)
    wide = Image.new("RGB", (96, 32))
    wide.paste((255, 255, 255), (32, 0, 64, 32))
    assert numpy.asarray(center_crop(wide, 32)).min() == 255


def test_read_image_makes_rgb_of_other_modes():
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 7).save(buffer, "PNG")
    assert read_image(buffer.getvalue(), 8, where="row 0").unique().tolist() == [7]

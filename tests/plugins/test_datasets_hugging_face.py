"""Images through Hugging Face's `datasets`: each format at random and as a stream, from files made here."""

from __future__ import annotations

import io
import json
import pickle
import re
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mixar_core.data.images import read_image
from mixar_core.errors import UserError
from mixar_core.types import NO_CLASS
from mixar_plugins.datasets.hugging_face import HuggingFaceConfig, HuggingFaceDataset

SIZE = 8


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root: Path) -> dict[str, object]:
    """Training images 0, 1, 10, 11 of two classes, validation 100 of the second."""
    for name, value in {
        "train/cat/a": 0,
        "train/cat/b": 1,
        "train/dog/a": 10,
        "train/dog/b": 11,
        "val/dog/a": 100,
    }.items():
        path = root / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(value))
    return {"path": "imagefolder", "data_dir": str(root)}


def write_parquet(root: Path) -> dict[str, object]:
    """The same in two Parquet files."""
    root.mkdir()
    for split, rows in {"train": [(0, 0), (1, 0), (10, 1), (11, 1)], "validation": [(100, 1)]}.items():
        images = [{"bytes": png(value), "path": None} for value, _ in rows]
        pq.write_table(pa.table({"image": images, "label": [label for _, label in rows]}), root / f"{split}.parquet")
    files = {split: (str(root / f"{split}.parquet"),) for split in ("train", "validation")}
    return {"path": "parquet", "data_files": files, "num_classes": 2}


def write_tars(root: Path) -> dict[str, object]:
    """The same in WebDataset tars, two for training."""
    root.mkdir()
    content = {"train-0": [(0, 0), (1, 0)], "train-1": [(10, 1), (11, 1)], "val-0": [(100, 1)]}
    for name, rows in content.items():
        with tarfile.open(root / f"{name}.tar", "w") as tar:
            for number, (value, label) in enumerate(rows):
                for ending, data in (("png", png(value)), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{name}_{number}.{ending}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    files = {"train": (str(root / "train-*.tar"),), "validation": (str(root / "val-*.tar"),)}
    columns = {"image_column": "png", "label_column": "cls", "num_classes": 2}
    return {"path": "webdataset", "data_files": files, **columns}


FORMATS = {"folder": write_folder, "parquet": write_parquet, "tars": write_tars}


def opened(settings: dict[str, object], split: str = "train", **others: object) -> HuggingFaceDataset:
    return HuggingFaceDataset(HuggingFaceConfig(**settings, **others), split=split, image_size=SIZE)


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_at_random_and_as_a_stream(name: str, tmp_path: Path) -> None:
    settings = {**FORMATS[name](tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
    train, validation = opened(settings), opened(settings, "validation")
    for data in (train, pickle.loads(pickle.dumps(train))):
        assert [(int(image[0, 0, 0]), label) for image, label in (data[i] for i in (3, 0, 2, 1))] == [
            *((11, 1), (0, 0), (10, 1), (1, 0)),
        ]
    assert train.labels() == [0, 0, 1, 1] and len(train) == 4
    assert train.class_names == validation.class_names == (("cat", "dog") if name == "folder" else ("0", "1"))
    assert [int(image[0, 0, 0]) for image, _ in (validation[0],)] == [100] and len(validation) == 1
    with pytest.raises(IndexError):
        train[4]

    streamed = opened(settings, streaming=True)
    assert streamed.stream is not None and streamed.class_names == train.class_names
    for _ in range(2):
        rows = [(int(read_image(row.data, SIZE, where=row.where)[0, 0, 0]), row.label) for row in streamed.stream]
        assert rows == [(0, 0), (1, 0), (10, 1), (11, 1)]
    with pytest.raises(UserError, match=r"a stream has no random access: run `mixar cache RECIPE --out DIR`"):
        len(streamed)


def test_slices_and_unlabelled(tmp_path: Path) -> None:
    settings = {**write_folder(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
    held_out = {"train_split": "train[:75%]", "validation_split": "train[75%:]"}
    assert len(opened(settings, **held_out)) == 3 and len(opened(settings, "validation", **held_out)) == 1
    plain = opened(settings, label_column=None)
    assert (plain.num_classes, plain.class_names, plain.labels()) == (0, (), [NO_CLASS] * 4)
    streamed = opened(settings, label_column=None, streaming=True)
    assert streamed.stream is not None and {row.label for row in streamed.stream} == {NO_CLASS}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    settings = {**write_folder(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
    (tmp_path / "data/train/dog/a.png").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"imagefolder, train, row 2 \(.*dog/a.png\): unreadable image"):
        opened(settings)[2]
    (tmp_path / "data/train/dog/a.png").unlink()
    tars = write_tars(tmp_path / "tars")
    torn = tmp_path / "tars/train-1.tar"
    torn.write_bytes(torn.read_bytes()[:700])
    labels = {"path": "parquet", "data_files": {"train": (str(tmp_path / "wrong.parquet"),)}}
    pq.write_table(
        pa.table({"image": [png(0)] * 2, "label": [0, 7], "word": ["a", "b"], "holes": [0, None]}),
        tmp_path / "wrong.parquet",
    )
    cache = {"cache_dir": str(tmp_path / "cache")}
    cases = {
        "webdataset, train: breaks off after 2 rows": lambda: list(opened(tars, streaming=True).stream or ()),
        "a stream does not say; set num_classes": lambda: opened(tars | {"num_classes": None}, streaming=True),
        "datasets cannot read it: .*nowhere": lambda: opened({"path": "./nowhere"}),
        'datasets cannot read it: .*"test"': lambda: opened(settings, train_split="test"),
        r"no column 'pixels' \(image_column\); columns: image, label": lambda: opened(settings, image_column="pixels"),
        r"no column 'cls' \(label_column\).*label_column: null does without": lambda: opened(
            settings, label_column="cls"
        ),
        "split 'test': must be one of": lambda: opened(settings, "test"),
        "column 'word' is string, not class numbers": lambda: opened(labels | cache, label_column="word"),
        "row 1: label 7: must be 0 to 2": lambda: opened(labels | cache, num_classes=3),
        "row 1.*: label 7: must be 0 to 2": lambda: list(opened(labels, num_classes=3, streaming=True).stream or ()),
        "row 1: label none": lambda: opened(labels | cache, label_column="holes"),
        "holds no images": lambda: opened(labels | cache, image_column="label", label_column=None),
    }
    for message, action in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            action()
        assert "\n" not in str(caught.value)


def write_mixed_tar(path: Path, rows: list[dict[str, bytes]]) -> dict[str, object]:
    with tarfile.open(path, "w") as tar:
        for number, files in enumerate(rows):
            for ending, data in files.items():
                member = tarfile.TarInfo(f"{number:04d}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    cache = str(path.parent / "cache")
    return {"path": "webdataset", "data_files": {"train": (str(path),)}, "label_column": "cls", "cache_dir": cache}


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_of_a_tar_with_other_endings(tmp_path: Path, streaming: bool) -> None:
    rows = [{"jpg": png(row), "cls": b"0"} for row in range(8)]
    rows += [{"png": png(8 + row), "cls": b"1"} for row in range(4)]
    settings = {**write_mixed_tar(tmp_path / "mixed.tar", rows), "num_classes": 3, "streaming": streaming}

    def images(data: HuggingFaceDataset) -> list[int | str]:
        found: list[int | str] = []
        stream = data.stream
        for read in (
            (image.pixels for image in stream)
            if stream is not None
            else ((lambda size, index=index: data[index][0]) for index in range(len(data)))
        ):
            try:
                found.append(int(read(SIZE)[0, 0, 0]))
            except UserError as error:
                found.append(str(error))
        return found

    one = images(opened(settings, image_column="jpg"))
    assert one[:8] == list(range(8))
    assert one[8:] == [f"webdataset, train, row {row}: no jpg; it has png, cls" for row in range(8, 12)]
    both = opened(settings, image_column=("jpg", "png"))
    assert images(both) == list(range(12))
    if not streaming:
        assert both.notes == ('webdataset, train: no image of class 2 "2", of 3',)
    rows.append({"gif": png(0), "cls": b"0"})
    more = opened({**settings, **write_mixed_tar(tmp_path / "more.tar", rows)}, image_column=("jpg", "png"))
    assert images(more)[12] == "webdataset, train, row 12: no jpg or png; it has gif, cls"
    first_differs = [{"png": png(7), "cls": b"2"}, {"jpg": png(8), "cls": b"1"}]
    early = opened({**settings, **write_mixed_tar(tmp_path / "early.tar", first_differs)}, image_column=("jpg", "png"))
    assert images(early) == [7, 8]


def write_named(path: Path, names: list[str], ending: str) -> str:
    table = pa.table({"image": [png(label) for label in range(len(names))], "label": list(range(len(names)))})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    noted = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file = f"{path}.{ending}"
    if ending == "parquet":
        pq.write_table(noted, file)
    else:
        with pa.ipc.new_stream(file, noted.schema) as stream:
            stream.write_table(noted)
    return file


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_files_that_name_their_classes_differently_are_refused(tmp_path: Path, ending: str) -> None:
    one, other = (write_named(tmp_path / name, names, ending) for name, names in {
        "train-0": ["cat", "dog"], "val-0": ["dog", "cat"]}.items())  # fmt: skip
    again = write_named(tmp_path / "train-1", ["cat", "dog"], ending)
    longer = write_named(tmp_path / "longer", ["cat", "dog", "eel"], ending)

    def build(**files: tuple[str, ...]) -> HuggingFaceDataset:
        return opened({"path": ending, "data_files": files, "cache_dir": str(tmp_path / "cache")})

    assert build(train=(one, again)).class_names == ("cat", "dog")
    for files in ({"train": (one, other)}, {"train": (one,), "validation": (other,)}):
        with pytest.raises(UserError, match=r'name their classes differently: class 0 is "dog" against "cat"'):
            build(**files)
    with pytest.raises(UserError, match="3 classes against 2"):
        build(train=(one, again, longer))
    assert len(build(train=(one,), test=(other,))) == 2  # not read
    with pytest.raises(UserError, match=rf"torn.{ending}: not a readable"):
        (tmp_path / f"torn.{ending}").write_bytes(b"torn")
        build(train=(str(tmp_path / f"torn.{ending}"),))


def test_what_goes_wrong_inside_datasets_is_said(tmp_path: Path) -> None:
    file = tmp_path / "torn.parquet"
    pq.write_table(pa.table({"image": [png(row) for row in range(9)], "label": [0] * 9}), file, compression="zstd")
    data = file.read_bytes()
    file.write_bytes(data[:20] + bytes(200) + data[220:])  # a page, and not what describes the file
    settings = {"path": "parquet", "data_files": {"train": (str(file),)}, "cache_dir": str(tmp_path / "cache")}
    with pytest.raises(UserError, match="parquet: datasets cannot read it: ") as caught:
        opened(settings)
    assert "DatasetGeneration" not in str(caught.value) and "\n" not in str(caught.value)


def test_no_file_is_read_twice_nor_taken_for_a_pattern(tmp_path: Path) -> None:
    one, every = str(tmp_path / "p/train.parquet"), str(tmp_path / "p/*.parquet")
    with pytest.raises(UserError, match=re.escape(f"{one} is named twice")):
        opened(write_parquet(tmp_path / "p") | {"data_files": {"train": (one, every)}})
    odd = tmp_path / "im*x"
    write_folder(odd)
    for folder in ({"path": "imagefolder", "data_dir": str(odd)}, {"path": str(odd)}):
        with pytest.raises(UserError, match=re.escape("im*x: datasets takes *, ? and [ in a folder's name for a")):
            opened(folder)


def test_a_missing_package_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'mixar\[datasets\]'$"):
        opened({"path": "imagefolder"})


def test_home_and_orientation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    exif = Image.Exif()
    exif[0x112] = 3
    image = Image.new("RGB", (SIZE, SIZE), (255, 255, 255))
    image.putpixel((0, 0), (0, 0, 0))
    (tmp_path / "data/train").mkdir(parents=True)
    image.save(tmp_path / "data/train/a.png", exif=exif)
    settings = {"path": "imagefolder", "data_dir": "~/data", "label_column": None, "cache_dir": "~/cache"}
    assert opened(settings)[0][0][0, 0, 0] == 0 and opened(settings, orient=True)[0][0][0, -1, -1] == 0
    streamed = opened(settings, orient=True, streaming=True).stream
    assert streamed is not None and next(iter(streamed)).pixels(SIZE)[0, -1, -1] == 0
    files = {"path": "imagefolder", "data_files": {"train": ("~/data/train/*.png",)}, "label_column": None}
    assert len(opened(files, cache_dir="~/other")) == 1


def test_what_datasets_makes_of_stray_files_is_said(tmp_path: Path) -> None:
    settings = {**write_folder(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
    assert opened(settings).notes == ()
    Image.new("RGB", (SIZE, SIZE)).save(tmp_path / "data/train/cat/c.avif")
    (note,) = opened(settings).notes
    file = tmp_path / "data/train/cat/c.avif"
    assert note == f"imagefolder, train: datasets leaves out 1 of 5 images ({file})"
    assert opened(settings, train_split="train[:2]").notes == (
        'imagefolder, train[:2]: no image of class 1 "dog", of 2',
    )
    (tmp_path / "data/train/@eaDir").mkdir()
    (tmp_path / "data/train/@eaDir/a.png").write_bytes(png(1))
    with pytest.raises(UserError, match="imagefolder: class '@eaDir' is a folder that systems leave"):
        opened(settings)

"""Images through Hugging Face's `datasets`: each format at random and as a stream, from files made here."""

from __future__ import annotations

import io
import pickle
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

"""Sets of images from a command line's words: what is taken, and one line for each thing that is not."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar.stores import images_crc32
from mixar_core.errors import UserError
from mixar_eval.extractors import open_extractor
from mixar_eval.images import ImageSet, open_images, other_split

SIZE = 16


def pixels(count: int = 6, *, seed: int = 0, size: int = SIZE) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype="uint8")


def write_pngs(folder: Path, images: numpy.ndarray, name: str = "{}.png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / name.format(index))
    return folder


def all_of(images: ImageSet) -> numpy.ndarray:
    return torch.cat(list(images.batches(batch_size=4))).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("compressed", [False, True])
def test_an_npz_gives_its_images_and_labels(compressed: bool, tmp_path: Path, registry: Registry) -> None:
    images = pixels()
    save = numpy.savez_compressed if compressed else numpy.savez
    save(tmp_path / "a.npz", images, numpy.arange(6) % 3)
    found = open_images(str(tmp_path / "a.npz"), registry, num_classes=3)
    assert (all_of(found) == images).all() and found.labels == [0, 1, 2, 0, 1, 2]
    assert (found.height, found.width) == (SIZE, SIZE) and "6 images" in found.description
    again = pickle.loads(pickle.dumps(found.data))  # as into a loader's worker
    assert torch.equal(again[5][0], found.data[5][0])
    rows = torch.tensor([4, 1])
    assert (torch.cat(list(found.batches(rows))).permute(0, 2, 3, 1).numpy() == images[[4, 1]]).all()


def test_uncompressed_images_are_mapped_and_not_read(tmp_path: Path, registry: Registry) -> None:
    numpy.savez(tmp_path / "a.npz", pixels())
    found = open_images(str(tmp_path / "a.npz"), registry)
    assert isinstance(found.data._array.array, numpy.memmap)
    assert len(pickle.dumps(found.data)) < 3000 < pixels().nbytes


def test_folders_flat_and_by_class(tmp_path: Path, registry: Registry) -> None:
    images = pixels()
    flat = open_images(str(write_pngs(tmp_path / "flat", images)), registry)
    assert (all_of(flat) == images).all() and flat.labels is None
    for name, part in (("b", images[:2]), ("a", images[2:])):
        write_pngs(tmp_path / "classes" / name, part)
    by_class = open_images(str(tmp_path / "classes"), registry)
    assert by_class.labels == [0, 0, 0, 0, 1, 1] and by_class.data.class_names == ("a", "b")
    named = by_class.named_as(("b", "other", "a"))
    assert named.labels == [2, 2, 2, 2, 0, 0] and named.class_names == ("b", "other", "a")
    assert (all_of(named) == numpy.concatenate([images[2:], images[:2]])).all()
    other = by_class.named_as(("b", "c"))  # a is none of these: they keep their own
    assert other.labels == by_class.labels and other.class_names == ("a", "b")


def test_data_of_a_recipe_and_of_a_part(family: Path, registry: Registry) -> None:
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry)
    assert len(open_images("data:validation", registry, recipe=recipe)) == 6
    train = open_images("data", registry, recipe=recipe)
    assert len(train) == 9 and train.labels == [0, 0, 0, 1, 1, 1, 2, 2, 2] and "train split" in train.description
    part = open_images(f"image-folder:validation,path={family / 'data'}", registry, image_size=SIZE)
    assert len(part) == 6


def test_what_is_no_set_of_images_is_one_line(tmp_path: Path, registry: Registry) -> None:
    good = pixels()
    numpy.savez(tmp_path / "good.npz", good)
    numpy.savez(tmp_path / "objects.npz", arr_0=numpy.array([{}, 1], dtype=object))
    numpy.savez(tmp_path / "float.npz", good.astype("float32"))
    numpy.savez(tmp_path / "chw.npz", good.transpose(0, 3, 1, 2))
    numpy.savez(tmp_path / "labels.npz", good, numpy.arange(6))
    numpy.savez(tmp_path / "below.npz", good, numpy.arange(6) % 3 - 3)
    numpy.savez(tmp_path / "beyond.npz", good, numpy.full(6, 2**62))  # a name for each class up to it has no memory
    numpy.savez(tmp_path / "short.npz", good, numpy.arange(5))
    numpy.savez(tmp_path / "one.npz", good[:1])
    numpy.savez(tmp_path / "none.npz", good[:0])
    numpy.savez(tmp_path / "other.npz", x=good)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-300])
    (tmp_path / "text.npz").write_text("hello")
    with (tmp_path / "array.npz").open("wb") as file:
        numpy.save(file, good)
    for name, message in (
        ("objects", "holds Python objects"),
        ("float", "arr_0 is float32; needed: uint8"),
        ("chw", r"needed: \(N, H, W, 3\)"),
        ("labels", "label 3 is out of range; allowed: 0 to 2"),
        ("below", r"arr_1 has the label -3; allowed: -1 \(no class\) to 99,999"),
        ("beyond", "arr_1 has the label 4611686018427387904"),
        ("short", r"arr_1 is int64 \(5,\)"),
        ("one", "too few images: 1"),
        ("none", "too few images: 0"),
        ("other", "no array arr_0; allowed: x"),
        ("cut", "not an .npz file, or cut off"),
        ("text", "not an .npz file"),
        ("array", "not an .npz file"),
        ("nowhere", "no such folder or .npz file; allowed: data:train"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            open_images(str(tmp_path / f"{name}.npz"), registry, num_classes=3)
        assert "\n" not in str(caught.value) and name in str(caught.value)
    with pytest.raises(UserError, match="images of 16x16 pixels; needed: 32x32"):
        open_images(str(tmp_path / "good.npz"), registry, image_size=32)


def test_folders_that_are_refused(tmp_path: Path, registry: Registry) -> None:
    def refused(folder: Path, message: str, image_size: int | None = None) -> None:
        with pytest.raises(UserError, match=message) as caught:
            open_images(str(folder), registry, image_size=image_size)
        assert "\n" not in str(caught.value)

    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no PNG images in it")
    refused(write_pngs(tmp_path / "jpeg", pixels(), "{}.jpg"), r"jpeg/0.jpg: JPEG changes pixels.*give PNGs")
    (tmp_path / "in_class").mkdir()
    write_pngs(tmp_path / "in_class/cat", pixels(), "{}.JPEG")
    refused(tmp_path / "in_class", "JPEG changes pixels")
    disguised = write_pngs(tmp_path / "disguised", pixels())
    Image.fromarray(pixels()[0]).save(disguised / "3.png", format="JPEG")
    refused(disguised, "3.png: a JPEG in spite of its name")
    mixed = write_pngs(write_pngs(tmp_path / "mixed", pixels(3)), pixels(1, size=20), "large.png")
    refused(mixed, "large.png: 20x20 pixels; needed: 16x16")
    refused(write_pngs(tmp_path / "small", pixels()), "0.png: 16x16 pixels; needed: 32x32", 32)
    broken = write_pngs(tmp_path / "broken", pixels())
    (broken / "4.png").write_bytes(b"not a picture")
    refused(broken, "4.png: not an image Pillow knows")
    deep = write_pngs(tmp_path / "deep", pixels())
    Image.fromarray(numpy.zeros((SIZE, SIZE), dtype="uint16")).save(deep / "5.png")
    refused(deep, "5.png: a PNG of 16 bits a channel; needed: 8")


def test_an_image_that_is_cut_off_is_named_when_it_is_read(tmp_path: Path, registry: Registry) -> None:
    folder = write_pngs(tmp_path / "cut", pixels())
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:200])
    images = open_images(str(folder), registry)
    with pytest.raises(UserError, match=r"2\.png: unreadable PNG"):
        all_of(images)


def test_bad_words_are_one_line(family: Path, registry: Registry) -> None:
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry)
    for text, message in (
        ("data:test", "no split 'test'; allowed: train, validation"),
        ("image-folder:train,pth=/x", "pth: unknown key; did you mean path"),
        ("image-folder:train,path", "'path' is not of the form setting=value"),
        ("data:train,path=x", "no split 'train,path=x'"),
    ):
        with pytest.raises(UserError, match=message):
            open_images(text, registry, recipe=recipe)
    with pytest.raises(UserError, match="there is no model here"):
        open_images("data", registry)
    with pytest.raises(UserError, match="at which size is not known"):
        open_images(f"image-folder:train,path={family / 'data'}", registry)


def test_a_part_may_be_named_with_its_plugin(family: Path, registry: Registry) -> None:
    place = f"path={family / 'data'}"
    qualified = open_images(f"builtin:image-folder:validation,{place}", registry, image_size=SIZE)
    assert len(qualified) == len(open_images(f"image-folder:validation,{place}", registry, image_size=SIZE))
    assert other_split(f"builtin:image-folder:train,{place}") == f"builtin:image-folder:validation,{place}"
    assert other_split("data") == "data:validation" and other_split("builtin:data") is None
    assert type(open_extractor("builtin:efficientnet-lite0", registry)).__name__ == "EfficientNetLite0"
    for text, message in (
        ("efficientnet-lite0:x=1", "x: unknown key"),
        ("builtin:efficientnet-lite0:x=1", "x: unknown key"),
        ("builtin:efficientnet", 'unknown extractor "builtin:efficientnet"; did you mean .*builtin:efficientnet-lite0'),
        ("efficientnet:x=1", 'unknown extractor "efficientnet"; did you mean .*efficientnet-lite0'),
    ):
        with pytest.raises(UserError, match=message):
            open_extractor(text, registry)


def test_a_folder_that_mixar_sampled_has_its_labels(family: Path, tmp_path: Path, registry: Registry) -> None:
    from tests.cli.process import good

    out = tmp_path / "samples"
    good("sample", family / "models/prior", "--count", 5, "--out", out, "--seed", 1)
    images = open_images(str(out), registry, num_classes=3)
    assert len(images) == 5 and images.labels == [0, 1, 2, 0, 1]
    (out / "003_cat.png").unlink()
    with pytest.raises(UserError, match="4 of 5 images are there"):
        open_images(str(out), registry)
    assert json.loads((out / "sample.json").read_text())["plan"]["count"] == 5


def test_a_stream_is_refused(family: Path, registry: Registry) -> None:
    text = f"datasets:train,path={family / 'data'},streaming=true,num_classes=3"
    with pytest.raises(UserError, match="a stream has no random access"):
        open_images(text, registry, image_size=SIZE)


def test_a_file_that_is_cut_off_is_one_line_though_a_note_lies_beside_it(tmp_path: Path, registry: Registry) -> None:
    path, plan = tmp_path / "drawn.npz", {"count": 6, "batch": 6, "seed": 0, "classes": [0], "settings": {}}
    numpy.savez(path, pixels())
    noted = {"plan": plan, "model": {"parts": {}}, "arr_0_crc32": images_crc32(path)}
    (tmp_path / "drawn.npz.json").write_text(json.dumps(noted))
    assert open_images(path, registry).drawn is not None
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"not an \.npz file, or cut off"):
        open_images(path, registry)

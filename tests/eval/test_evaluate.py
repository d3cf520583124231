"""`mixar.evaluate` from Python, and what people's files and words bring to it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import mixar
from mixar.plugins import Registry
from mixar.sampling import Plan, all_classes
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_eval import Report
from mixar_eval.context import EvalContext
from mixar_eval.extractors import part_config
from mixar_eval.generation import is_model
from mixar_eval.guidance import check_models
from mixar_eval.images import open_images
from mixar_eval.references import open_reference
from mixar_eval.sweep import grid, sweep
from mixar_plugins.datasets.folder import ImageFolder, ImageFolderConfig
from tests.cli.process import good, refused
from tests.eval.test_images import SIZE, all_of, pixels, write_pngs
from tests.eval.test_references import Grey

QUICK = ("--extractor", "efficientnet-lite0:size=32")


class Colour(FeatureExtractor):
    """The means of red, green and blue."""

    feature_dim = 3

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return images_B3HW.mean(dim=(2, 3))

    def maps(self, images_B3HW: Tensor) -> list[Tensor]:
        return [images_B3HW]


def test_images_in_whatever_form_have_the_same_figures(family: Path, tmp_path: Path) -> None:
    drawn, real = pixels(9), pixels(12, seed=1)
    numpy.savez(tmp_path / "drawn.npz", drawn)
    for label, part in enumerate(numpy.split(drawn, 3)):
        write_pngs(tmp_path / "data/train" / f"class{label}", part)
    array = drawn.transpose(0, 3, 1, 2)
    samples = {
        "array": array,
        "tensor": torch.from_numpy(array.copy()),
        "npz": tmp_path / "drawn.npz",
        "folder": str(write_pngs(tmp_path / "drawn", drawn)),
        "words": f"image-folder:train,path={tmp_path / 'data'}",
        "data set": ImageFolder(ImageFolderConfig(path=str(tmp_path / "data")), split="train", image_size=SIZE),
    }
    reference = torch.from_numpy(real).permute(0, 3, 1, 2)
    found = {
        name: mixar.evaluate(some, reference, extractor=Grey(), image_size=SIZE if name == "words" else None)
        for name, some in samples.items()
    }
    first = found["array"]
    scores = {"frechet", "kernel", "mind", "inception", "precision", "recall"}
    assert isinstance(first, Report) and set(first.figures) == scores
    for name, report in found.items():
        assert report.figures == first.figures, name
    assert first.figures["frechet"] > 0 and first.comparable.startswith("no, because the extractor is not Inception")
    model = mixar.load(family / "models/mixar", device="cpu")
    generation = model.generate([0, 0, 1, 2, 2, 2])
    report = mixar.evaluate(generation, "data:train", extractor=Grey(), recipe=family / "recipes/mixar.yaml")
    assert report.to_json()["samples"]["classes"]["fewest"] == 1 and report.to_json()["samples"]["count"] == 6
    assert report.figures == mixar.evaluate(generation.images, family / "data/train", extractor=Grey()).figures
    assert report.figures == mixar.evaluate(generation, "data:train", extractor=Grey()).figures


def test_a_report_is_shown_and_saved(tmp_path: Path) -> None:
    array = pixels(6).transpose(0, 3, 1, 2)
    report = mixar.evaluate(array, array, extractor=Grey())
    assert "| Frechet distance (lower is better) |" in report._repr_markdown_() and "![" not in report._repr_markdown_()
    report.save(tmp_path / "deep/report")
    files = sorted(path.name for path in (tmp_path / "deep/report").iterdir())
    assert files == ["report.json", "report.md", "samples.png"]
    stored = json.loads((tmp_path / "deep/report/report.json").read_text())
    assert stored == json.loads(json.dumps(report.to_json())) and stored["comparable with ADM-protocol FID"]
    assert (tmp_path / "deep/report/report.md").read_text() == report.to_markdown()
    assert report.to_markdown().startswith(report._repr_markdown_())


def test_what_cannot_be_measured_is_one_line(tmp_path: Path) -> None:
    good_ones = torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8)
    for bad, message in (
        (good_ones.float(), r"samples: images are float32 \(4, 3, 16, 16\); needed: uint8 \(N, 3, H, W\)"),
        (good_ones.permute(0, 2, 3, 1), r"needed: uint8 \(N, 3, H, W\)"),
        (good_ones[0], r"needed: uint8 \(N, 3, H, W\)"),
        (good_ones[:1], "too few images: 1"),
        (good_ones[..., :8], "reference: images of 16x16 pixels; needed: 8x16"),
        ([1, 2], "list is no set of images"),
        (good_ones.to("meta"), "Tensor is no set of images"),
        (good_ones.to_sparse(), "Tensor is no set of images"),
        (numpy.ma.masked_array(good_ones.numpy(), mask=True), "MaskedArray is no set of images"),
        ("", "an empty path"),
        (None, "NoneType is no set of images"),
        ("nowhere", "no such folder or .npz file"),
        ("data:train", "there is no model here"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            mixar.evaluate(bad, good_ones, extractor=Grey())
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="8x8 pixels; needed: 16x16"):
        mixar.evaluate(good_ones, good_ones[..., :8, :8], extractor=Grey())


def test_transparent_pixels_are_white_whatever_is_under_them(tmp_path: Path) -> None:
    """RGBA, LA, and palettes with a transparent index; as training sees them."""
    for name, hidden in (("red", (255, 0, 0)), ("green", (0, 255, 0))):
        (tmp_path / name).mkdir()
        for index in range(4):
            rgba = numpy.zeros((SIZE, SIZE, 4), numpy.uint8)
            rgba[..., :3] = hidden
            rgba[4:12, 4:12] = [10 * index, 0, 255, 255]
            Image.fromarray(rgba).save(tmp_path / name / f"{index}.png")
            palette = Image.fromarray((rgba[..., 3] // 255).astype(numpy.uint8)).convert("P")
            palette.putpalette([*hidden, 10 * index, 0, 255])
            palette.save(tmp_path / name / f"{index}p.png", transparency=0)
            grey = rgba[..., [hidden.index(255), 3]]
            Image.fromarray(grey, "LA").save(tmp_path / name / f"{index}g.png")
    images = [all_of(open_images(tmp_path / name, mixar_registry())) for name in ("red", "green")]
    assert (images[0][:, 0, 0] == 255).all() and (images[0][::3] == images[1][::3]).all()
    report = mixar.evaluate(tmp_path / "red", tmp_path / "green", extractor=Colour())
    assert abs(report.figures["frechet"]) < 0.01  # 40 where what is hidden was seen


def mixar_registry() -> Registry:
    from mixar.plugins import plugin_manager

    return plugin_manager()


def test_hidden_files_are_no_images_at_any_depth(tmp_path: Path, registry: Registry) -> None:
    for folder in ("flat", "byclass/a", "byclass/b"):
        write_pngs(tmp_path / folder, pixels(2))
        (tmp_path / folder / "._0.png").write_bytes(b"\0\5\x16\7" + bytes(60))
    (tmp_path / "byclass/@eaDir").mkdir()
    write_pngs(tmp_path / "byclass/a/.thumbs", pixels(2, size=4))
    for name, count, labels in (("flat", 2, None), ("byclass", 4, [0, 0, 1, 1])):
        images = open_images(tmp_path / name, registry)
        assert len(images) == count and images.labels == labels
        assert any("left out" in note and "._0.png" in note for note in images.notes)
    said = good("eval", "generation", "byclass", "--reference", "flat", *QUICK, "--out", "out", cwd=tmp_path)
    assert "note: byclass: left out" in said and "._0.png" in said


def test_images_beside_class_folders_are_refused(tmp_path: Path, registry: Registry) -> None:
    write_pngs(write_pngs(tmp_path / "both", pixels(3)) / "cat", pixels(2))
    with pytest.raises(UserError, match=r"both: 3 images \(0.png\) beside folders with 2 \(cat/0.png\)"):
        open_images(tmp_path / "both", registry)


@pytest.mark.parametrize(
    ("file", "reason"), [("a.jfif", "JPEG changes pixels"), ("a.webp", "only PNG"), ("a.avif", "only")]
)
def test_other_images_are_refused_by_name(tmp_path: Path, registry: Registry, file: str, reason: str) -> None:
    write_pngs(tmp_path / "set/cat", pixels(2))
    Image.fromarray(pixels(1)[0]).save(tmp_path / "set/cat" / file, "JPEG")
    with pytest.raises(UserError, match=f"cat/{file}: {reason}"):
        open_images(tmp_path / "set", registry)


def test_sixteen_bits_are_refused_in_colour_too(tmp_path: Path, registry: Registry) -> None:
    """Pillow opens a PNG of 16 bits a channel as RGB, and says nothing."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(SIZE * 6) for _ in range(SIZE))
    header = struct.pack(">IIBBBBB", SIZE, SIZE, 16, 2, 0, 0, 0)
    folder = write_pngs(tmp_path / "deep", pixels(2))
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (folder / "9.png").write_bytes(png)
    with Image.open(folder / "9.png") as opened:
        assert opened.mode == "RGB"
    with pytest.raises(UserError, match=r"9\.png: a PNG of 16 bits a channel; needed: 8"):
        open_images(folder, registry)


KINDS = st.sampled_from(["png", "txt", "hidden", "link", "dead link", "hidden folder", "PNG", "copy of a folder"])


@given(st.lists(st.tuples(KINDS, st.sampled_from(["a", "b"])), max_size=12), st.booleans())
def test_what_was_counted_and_what_was_left_out_is_what_is_there(
    tmp_path_factory: pytest.TempPathFactory, things: list[tuple[str, str]], flat: bool
) -> None:
    folder = tmp_path_factory.mktemp("set")
    image, there = Image.new("RGB", (8, 8)), 2
    image.save(folder / "0.png" if flat else (folder / "a").mkdir() or folder / "a/0.png")
    image.save(folder / "1.png" if flat else folder / "a/1.png")
    left_out = 0
    for index, (kind, name) in enumerate(things, start=2):
        inside = folder if flat else folder / name
        inside.mkdir(exist_ok=True)
        if kind in ("png", "PNG"):
            image.save(inside / f"{index}.{kind}", "PNG")
            there += 1
            continue
        left_out += 1
        if kind == "txt":
            (inside / f"{index}.txt").write_text("x")
        elif kind == "hidden":
            image.save(inside / f".{index}.png")
        elif kind == "hidden folder":
            (inside / f".{index}").mkdir()
            image.save(inside / f".{index}/0.png")
        elif kind == "link":
            os.symlink(folder / ("0.png" if flat else "a/0.png"), inside / f"{index}.png")
        elif kind == "dead link":
            os.symlink(folder / "nowhere", inside / f"{index}.png")
        else:
            os.symlink(folder if flat else folder / "a", inside / f"{index}")
    images = open_images(folder, mixar_registry())
    assert len(images) == there
    told = sum(int(number) for note in images.notes for number in note_numbers(note))
    assert told == left_out
    shutil.rmtree(folder)


def note_numbers(note: str) -> list[str]:
    """The counts in `left out: 2 .txt (a/2.txt), 1 hidden (a/.3.png)`."""
    return [part.split()[0] for part in note.partition("left out: ")[2].split("), ")]


def test_a_few_images_are_warned_of_on_the_screen(tmp_path: Path) -> None:
    write_pngs(tmp_path / "two", pixels(2))
    write_pngs(tmp_path / "three", pixels(3, seed=1))
    said = good("eval", "generation", "two", "--reference", "three", *QUICK, "--out", "out", cwd=tmp_path)
    assert "note: 2 samples are few for vectors of 1,280 numbers" in said
    assert "note: the reference has 3 images" in said


def test_a_name_that_is_a_model_and_a_folder_of_images(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_model("digits", registry)
    (tmp_path / "digits").mkdir()
    assert is_model("digits", registry)  # an empty folder of that name hides no model
    write_pngs(tmp_path / "digits", pixels(3))
    with pytest.raises(
        UserError, match=r"digits: a folder of images is here.*give \./digits for the images, or /.*digits"
    ):
        is_model("digits", registry)
    assert not is_model("./digits", registry) and is_model(str(registry.models()["digits"][0]), registry)
    write_pngs(tmp_path / "mine", pixels(3))
    assert not is_model("mine", registry)
    line = refused("eval", "generation", "digits", "--reference", "mine", "--out", "out", cwd=tmp_path)
    assert "give ./digits" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["set #2", "a,b", "2024", "a: b", "null", "über", "x~"])
def test_a_path_in_words_is_the_path(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for folder in (name, name.split(" ")[0], name.split(",")[0]):
        write_pngs(tmp_path / "there" / folder / "train/c", pixels(2 + len(folder)))
    monkeypatch.chdir(tmp_path / "there")
    images = open_images(f"image-folder:train,path={name}", registry, image_size=SIZE)
    assert len(images) == 2 + len(name)
    with pytest.raises(UserError, match="b: unknown key"):  # said, not cut
        open_images("image-folder:train,path=a, b=c", registry, image_size=SIZE)


def test_home_is_home_in_words_and_paths(tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_pngs(tmp_path / "set/train/c", pixels(3))
    assert len(open_images("image-folder:train,path=~/set", registry, image_size=SIZE)) == 3
    assert len(open_images("~/set/train", registry)) == len(open_images(Path("~/set/train"), registry)) == 3


@given(
    st.text(
        st.characters(exclude_characters="\0\r\n=,~", exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1
    )
)
@example("://")
def test_any_text_of_a_setting_comes_back(text: str) -> None:
    written = f"./{text}"
    config = part_config(ImageFolderConfig, f"path={written}", where="--data")
    assert Path(config.path) == Path.cwd() / written


def test_a_cfg_of_one_is_no_guidance_of_a_prior_too(family: Path) -> None:
    """The prior's own scale s, in c + s (c - u), is 0 then; a sweep says what was given."""
    model = mixar.load(family / "models/prior", device="cpu")
    plan = Plan(count=60, batch=8, seed=0, settings=model.settings(), classes=all_classes(model))
    plans = grid(model, plan, [1.0, 3.0], [], [])
    assert [name.split("_")[0] for name in plans] == ["cfg-1", "cfg-3"]
    assert [some.settings.prior_cfg for some in plans.values()] == [0.0, 2.0]


def test_a_sweep_of_a_prior_says_which_cfg_it_means(family: Path, tmp_path: Path, registry: Registry) -> None:
    model = mixar.load(family / "models/prior", device="cpu")
    context = EvalContext(registry=registry, extractor=Grey())
    plan = Plan(count=50, batch=50, seed=0, settings=model.settings(), classes=all_classes(model))
    reference = open_reference(family / "data/train", context)
    report = sweep(model, grid(model, plan, [1.0, 2.0], [], []), tmp_path, reference, context)
    assert [row["cfg"] for row in report.to_json()["points"]] == [1.0, 2.0]
    assert "the cfg of a prior is 1 + its own scale s" in report.to_markdown()
    assert report.figures["frechet_distance"] == report.to_json()["best"]["frechet_distance"]


def test_models_of_other_classes_do_not_compare(family: Path, tmp_path: Path) -> None:
    shutil.copytree(family / "models/mixar", tmp_path / "other")
    noted = json.loads((tmp_path / "other/provenance.json").read_text())
    (tmp_path / "other/provenance.json").write_text(json.dumps(noted | {"class_names": ["dog", "cat", "owl"]}))
    models = {
        name: mixar.load(folder, device="cpu")
        for name, folder in (("mixar", family / "models/mixar"), ("other", tmp_path / "other"))
    }
    with pytest.raises(UserError, match='other: class 0 is "dog" against "cat" of mixar'):
        check_models(models)


def test_class_folders_are_the_references_in_any_unicode_form(tmp_path: Path, registry: Registry) -> None:
    write_pngs(tmp_path / "drawn/Cafe\u0301", pixels(2))
    images = open_images(tmp_path / "drawn", registry).named_as(["Bar", "Caf\u00e9"])
    assert images.labels == [1, 1] and images.class_names == ("Bar", "Caf\u00e9")
    write_pngs(tmp_path / "drawn/Caf\u00e9", pixels(3))  # the same text in both forms is one class
    images = open_images(tmp_path / "drawn", registry)
    assert images.labels == [0] * 5 and images.class_names == ("Caf\u00e9",)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"batch_size": 0}, {"batch_size": 2.5}, {"workers": -1}, {"extractor": None}, {"device": "tpu"}),
        *({"batch_size": None}, {"workers": None}, {"recipe": 3}, {"image_size": True}, {"image_size": "16"}),
    ],
)
def test_wrong_values_from_python_are_one_line(wrong: dict[str, object]) -> None:
    images = torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8)
    with pytest.raises(UserError, match=str(next(iter(wrong)))) as caught:
        mixar.evaluate(images, images, **{"extractor": Grey(), **wrong})
    assert "\n" not in str(caught.value)


def test_a_report_is_saved_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    images = torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8)
    mixar.evaluate(images, images, extractor=Grey(), cache="~/kept").save("~/report")
    assert (tmp_path / "report/report.md").is_file() and any((tmp_path / "kept").iterdir())


def test_what_lies_beside_samples_is_left_out_with_a_word(family: Path, tmp_path: Path, registry: Registry) -> None:
    good("sample", family / "models/prior", "--labels", "0,1", "-n", 2, "--out", "few", cwd=tmp_path)
    assert open_images(tmp_path / "few", registry).notes == ()  # grid.png is no sample, and nobody's surprise
    write_pngs(tmp_path / "few", pixels(1), "extra.png")
    images = open_images(tmp_path / "few", registry)
    assert len(images) == 4 and images.labels == [0, 0, 1, 1]
    assert images.notes == (f"{tmp_path / 'few'}: left out 1 images of others, such as extra.png",)


def test_a_setting_given_twice_is_refused(tmp_path: Path) -> None:
    images = torch.zeros(4, 3, SIZE, SIZE, dtype=torch.uint8)
    with pytest.raises(UserError, match="size is given twice"):
        mixar.evaluate(images, images, extractor="efficientnet-lite0:size=32,size=64")


def test_too_few_images_for_a_tokenizer_are_not_asked_for(family: Path, tmp_path: Path) -> None:
    write_pngs(tmp_path / "few", pixels(3))
    line = refused("eval", "tokenizer", family / "models/continuous", "--data", "few", *QUICK, cwd=tmp_path)
    assert "few: too few images: 3; a tokenizer is measured on 4 or more" in line

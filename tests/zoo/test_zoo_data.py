from __future__ import annotations

import hashlib
from collections import Counter

import pyarrow.parquet as pq
import pytest

from mixar.plugins import plugin_manager
from mixar_core.data.loader import load_readable

pytest.importorskip("mixar_zoo", reason="plugins/mixar_zoo is not installed")

from mixar_zoo.classifier import FEATURES, fit_classifier
from mixar_zoo.data_sets import DATA, Digits, Emoji64, Emoji64Config, NoSettings


def test_the_package_joins_through_its_entry_point():
    registry = plugin_manager()
    assert registry.part("dataset", "emoji64").component is Emoji64
    assert registry.plugin_of(registry.part("dataset", "emoji64")).distribution.startswith("mixar-zoo")


def test_emoji_are_what_the_documents_say_and_no_emoji_is_on_both_sides():
    train, validation = (Emoji64(Emoji64Config(), split=split, image_size=64) for split in ("train", "validation"))
    assert (len(train), len(validation), train.num_classes) == (3380, 432, 9)
    assert train.class_names[0] == "Smileys & Emotion" and train.class_names[8] == "Flags"
    assert min(Counter(validation.labels()).values()) == 20
    columns = pq.read_table(DATA / "emoji64.parquet", columns=["split", "unicode", "vendor"]).to_pydict()
    sides = {}
    for code, split in zip(columns["unicode"], columns["split"], strict=True):
        assert sides.setdefault(code, split) == split
    assert set(Counter(zip(columns["unicode"], columns["vendor"], strict=True)).values()) == {1}
    image, label = train[0]
    assert image.shape == (3, 64, 64) and label == 0
    assert image[:, 0, 0].tolist() == [255, 255, 255]  # over white


def test_with_subcategories_a_training_image_has_two_labels_and_a_validation_image_its_category():
    plain, train, validation = (
        Emoji64(Emoji64Config(subcategories=finer), split=split, image_size=64)
        for finer, split in ((False, "train"), (True, "train"), (True, "validation"))
    )
    assert train.class_names[:9] == plain.class_names and len(train.class_names) == train.num_classes == 9 + 98
    assert validation.class_names == train.class_names and max(validation.labels()) == 8
    assert len(validation) == 432 and len(train) == 2 * 3380
    coarse, finer = train.labels()[:3380], train.labels()[3380:]
    assert coarse == plain.labels()
    assert {*finer} == {*range(9, 107)}
    for category, subcategory in zip(coarse, finer, strict=True):
        assert train.class_names[subcategory].startswith(f"{train.class_names[category]} / ")
    assert train[5][0].equal(train[3385][0]) and train[3385][1] == finer[5]


def test_digits_are_balanced_and_have_the_pixels_that_are_documented():
    pixels = hashlib.sha256()
    for split, each in (("train", 400), ("validation", 100)):
        dataset = Digits(NoSettings(), split=split, image_size=32)
        assert Counter(dataset.labels()) == dict.fromkeys(range(10), each)
        images = load_readable(dataset, list(range(len(dataset)))).pixels_B3HW
        pixels.update(images.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    assert f"`{pixels.hexdigest()}`" in (DATA / "DATA.md").read_text()


def test_files_have_the_checksums_that_are_documented():
    documented = (DATA / "DATA.md").read_text()
    for name in ("emoji64", "digits"):
        assert f"`{hashlib.sha256((DATA / f'{name}.parquet').read_bytes()).hexdigest()}`" in documented


def test_the_classifier_learns_digits_and_repeats():
    seen = load_readable(Digits(NoSettings(), split="train", image_size=32), list(range(0, 4000, 2)))
    real = load_readable(Digits(NoSettings(), split="validation", image_size=32), list(range(0, 1000, 2)))
    first, again = (fit_classifier(seen.pixels_B3HW, seen.labels_B, epochs=2, seed=3) for _ in range(2))
    predicted, features = first.judge(real.pixels_B3HW)
    assert (predicted == real.labels_B).float().mean() > 0.9
    assert features.shape == (500, FEATURES) and 0.8 < features.square().mean() < 1.2
    assert features.equal(again.judge(real.pixels_B3HW)[1])

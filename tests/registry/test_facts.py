"""What `look` tells of a folder of images."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixar.facts import DataFacts, contact_sheet, look
from tests.mixed_images import BROKEN, CLASSES, SIZES, write_mixed_images

COUNT = 120


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mixed_images(tmp_path_factory.mktemp("mixed"), COUNT)


@pytest.fixture(scope="module")
def facts(mixed: Path) -> DataFacts:
    return look(mixed, workers=2)


def test_mixed_images_are_all_told(mixed: Path, facts: DataFacts) -> None:
    assert facts.class_names == CLASSES and facts.num_classes == len(CLASSES)
    assert sum(facts.images.values()) == COUNT - len(BROKEN) and set(facts.unreadable) == set(BROKEN)
    assert set(facts.sizes) == {*SIZES} and sum(facts.sizes.values()) == COUNT - len(BROKEN)
    assert {*facts.modes} == {"RGB", "RGBA", "P", "L", "LA", "CMYK", "I;16"} and facts.turned and facts.transparent
    assert facts.image_size == 48 and facts.left_out == {} and facts.enlarged == 0
    assert facts.recipe()["data"] == {"type": "image-folder", "path": str(mixed), "orient": True, "validation": 0.1}
    assert contact_sheet(facts).height > len(CLASSES) * facts.image_size

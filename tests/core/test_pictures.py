"""Pictures a person looks at: names where the font has their letters, numbers where it has not."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mixar.generation import Generation, grid_picture
from mixar_core.errors import UserError
from mixar_core.pictures import labelled_grid, legible

IMAGES = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and one.tobytes() == other.tobytes()


@pytest.mark.parametrize("name", ["日本語", "Ж", "Café", "🙂", "two\nlines", "\u200b"])
def test_a_name_the_font_lacks_is_shown_by_its_number(name: str) -> None:
    drawn = Generation(IMAGES, labels=(7, 3), names=(name, "owl"))
    assert not legible(name) and legible("owl")
    assert same(drawn.grid(), Generation(IMAGES, labels=(7, 3), names=("7", "owl")).grid())
    assert not same(drawn.grid(), Generation(IMAGES, labels=(8, 3), names=(name, "owl")).grid())


@given(st.lists(st.text(), min_size=2, max_size=2))
def test_any_names_make_a_picture(names: list[str]) -> None:
    shown = [name if legible(name) else str(number) for number, name in enumerate(names)]
    assert same(grid_picture(IMAGES, names, [0, 1]), grid_picture(IMAGES, shown))


def test_a_title_or_label_of_several_lines_is_no_error() -> None:
    labelled_grid(IMAGES, ["a\nb", "c"], title="d\ne")


def test_columns_are_counted() -> None:
    for wrong in (0, -1, 2.5, True, "2"):
        with pytest.raises(UserError, match="columns"):
            grid_picture(IMAGES, ["a", "b"], columns=wrong)  # type: ignore[arg-type]
    assert grid_picture(IMAGES, ["a", "b"], columns=1).height > grid_picture(IMAGES, ["a", "b"], columns=2).height

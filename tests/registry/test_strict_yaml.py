"""YAML: what is written is what is read, and 1.1's surprises are gone."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mixar import strict_yaml
from mixar_core.errors import UserError

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec="utf-8"))
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@given(values)
@example({"\x85": " \u2028 "})
def test_what_is_dumped_loads_as_the_same_value(value: object) -> None:
    loaded = strict_yaml.load(strict_yaml.dump(value), where="test")
    assert loaded == value
    assert repr(loaded) == repr(value)  # 1 == 1.0 == True


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5.1e-12", 5.1e-12),
        ("no", "no"),
        ("on", "on"),
        ("010", 10),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("1_000", "1_000"),
        ("true", True),
        ("~", None),
        ("'7'", "7"),
        (".inf", math.inf),
    ],
)
def test_scalars_mean_what_they_look_like(text: str, value: object) -> None:
    loaded = strict_yaml.load(text, where="test")
    assert loaded == value and type(loaded) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "line 2, column 1: key a stands twice"),
        ("a: [1", "line 1"),
        ("1: 2", "key 1 is not text"),
        ("a: !!python/object/apply:os.getcwd []", "line 1"),
        ("a: \t- b", "line 1"),
    ],
)
def test_bad_yaml_is_one_line_with_its_place(text: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        strict_yaml.load(text, where="recipe x")
    assert str(caught.value).startswith("recipe x: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)

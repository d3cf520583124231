"""Plain values to typed ones: nothing is cast, every problem is found and says where."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any, Literal

import pytest
from attrs import field, frozen
from attrs.validators import ge
from hypothesis import given
from hypothesis import strategies as st

from mixar.structure import Invalid, structure, unstructure


class Color(Enum):
    RED = "red"


@frozen
class Inner:
    a: int = 1
    kind: Literal["x", "y"] = "x"


@frozen
class Outer:
    number: int = field(default=0, validator=ge(0))
    share: float = 0.5
    flag: bool = False
    text: str = ""
    maybe: int | None = None
    either: int | str = 0
    several: tuple[int, ...] = ()
    pair: tuple[float, float] = (0.0, 1.0)
    place: Path = Path(".")
    table: dict[str, float] = field(factory=dict)
    inner: Inner = Inner()
    inners: tuple[Inner, ...] = ()


finite = st.floats(allow_nan=False, allow_infinity=False)
inners = st.builds(Inner, a=st.integers(), kind=st.sampled_from(["x", "y"]))
outers = st.builds(
    Outer,
    number=st.integers(min_value=0),
    share=finite,
    flag=st.booleans(),
    text=st.text(),
    maybe=st.none() | st.integers(),
    either=st.integers() | st.text(),
    several=st.lists(st.integers()).map(tuple),
    pair=st.tuples(finite, finite),
    place=st.sampled_from([Path("a/b"), Path("/c")]),
    table=st.dictionaries(st.text(), finite),
    inner=inners,
    inners=st.lists(inners, max_size=2).map(tuple),
)


@given(outers)
def test_unstructured_values_structure_to_an_equal_one(value: Outer) -> None:
    assert structure(unstructure(value), Outer) == value


@given(st.sampled_from(["number", "flag", "text", "share"]), st.data())
def test_no_value_of_another_type_is_cast(name: str, data: st.DataObject) -> None:
    strategies = {"number": st.integers(), "flag": st.booleans(), "text": st.text(), "share": finite | st.integers()}
    wrong: Any = data.draw(st.one_of([s for other, s in strategies.items() if other != name]))
    if name == "share" and type(wrong) is int:
        assert structure({"share": wrong}, Outer).share == float(wrong)  # the one cast that loses nothing anybody meant
    elif type(wrong) is int and name == "number":
        assert wrong < 0 or structure({"number": wrong}, Outer).number == wrong
    else:
        with pytest.raises(Invalid, match=name):
            structure({name: wrong}, Outer)


def test_only_what_can_be_set_is_written_and_read() -> None:
    @frozen
    class Derived:
        _own: int = 1
        color: Color | None = None
        twice: int = field(init=False, default=2)

    made = Derived(own=3, color=Color.RED)
    assert unstructure(made) == {"_own": 3, "color": "red"} and structure(unstructure(made), Derived) == made
    with pytest.raises(Invalid, match="twice: unknown key"):
        structure({"twice": 2}, Derived)
    with pytest.raises(Invalid, match="color: 'blue' is not a valid"):
        structure({"color": "blue"}, Derived)


@pytest.mark.parametrize(
    ("plain", "problem"),
    [
        ({"number": 1.9}, "o.number: 1.9 is not a whole number"),
        ({"number": 2.0}, "o.number: 2.0 is not a whole number"),
        ({"number": "7"}, "o.number: '7' is not a whole number"),
        ({"number": True}, "o.number: True is not a whole number"),
        ({"number": -1}, "o.number: must be >= 0: -1"),
        ({"share": float("nan")}, "o.share: nan is not a finite number"),
        ({"flag": 1}, "o.flag: 1 is not true or false"),
        ({"maybe": 1.5}, "o.maybe: 1.5 is not a whole number"),
        ({"several": "12"}, "o.several: '12' is not a list"),
        ({"several": [1, 2.5]}, "o.several.1: 2.5 is not a whole number"),
        ({"pair": [1.0]}, "o.pair: [1.0] has 1 items, not 2"),
        ({"table": [1]}, "o.table: [1] is not a mapping"),
        ({"table": {"a": "b"}}, "o.table.a: 'b' is not a number"),
        ({"inner": 3}, "o.inner: 3 is not a mapping; allowed: a, kind"),
        ({"inner": {"kind": "z"}}, "o.inner.kind: 'z' is not one of them; allowed: x, y"),
        ({"inners": [{}, {"b": 1}]}, "o.inners.1.b: unknown key; allowed: a, kind"),
        ({"numbr": 1}, "o.numbr: unknown key; did you mean number? "),
    ],
)
def test_a_problem_names_path_value_and_choices(plain: dict[str, Any], problem: str) -> None:
    with pytest.raises(Invalid) as caught:
        structure(plain, Outer, path="o")
    (found,) = caught.value.problems
    assert found.startswith(problem)


def test_all_problems_are_found_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        structure({"number": "a", "inner": {"a": "b", "c": 1}, "zzz": 1}, Outer)
    assert sorted(problem.partition(":")[0] for problem in caught.value.problems) == [
        "inner.a",
        "inner.c",
        "number",
        "zzz",
    ]

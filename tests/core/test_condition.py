"""A condition, and the one rule by which it is dropped."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixar_core import NO_CLASS, Condition

quick = settings(max_examples=60, deadline=None)


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    """Labels alone, with vectors, or with vectors of which some do not count."""
    size, length = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    labels_B = torch.randint(NO_CLASS, 3, (size,), generator=generator)
    vectors_BTF = torch.randn(size, length, 2, generator=generator)
    mask_BT = torch.rand(size, length, generator=generator) < 0.5
    return draw(
        st.sampled_from(
            [Condition(labels_B), Condition(labels_B, vectors_BTF), Condition(labels_B, vectors_BTF, mask_BT)]
        )
    )


def rows(condition: Condition, seed: int) -> Tensor:
    return torch.rand(len(condition), generator=torch.Generator().manual_seed(seed)) < 0.5


def same(a: Condition, b: Condition) -> bool:
    """Equal in all that a model may look at: labels, which vectors count, and these."""
    if not torch.equal(a.labels_B, b.labels_B) or (a.vectors_BTF is None) != (b.vectors_BTF is None):
        return False
    if a.vectors_BTF is None or b.vectors_BTF is None:
        return True
    counting = torch.equal(a.counting_BT(), b.counting_BT())
    return counting and torch.equal(a.vectors_BTF[a.counting_BT()], b.vectors_BTF[b.counting_BT()])


def row(condition: Condition, index: int) -> Condition:
    here = slice(index, index + 1)
    if condition.vectors_BTF is None:
        return Condition(condition.labels_B[here])
    return Condition(condition.labels_B[here], condition.vectors_BTF[here], condition.counting_BT()[here])


@quick
@given(conditions(), st.integers(0, 99))
def test_a_dropped_row_has_no_class_and_no_vector_and_the_others_are_as_they_were(
    condition: Condition, seed: int
) -> None:
    before, where_B = (
        Condition(condition.labels_B.clone(), condition.vectors_BTF, condition.mask_BT),
        rows(condition, seed),
    )
    dropped = condition.dropped(where_B)
    assert len(dropped) == len(condition) and same(condition, before)
    for index, gone in enumerate(where_B.tolist()):
        if gone:
            assert dropped.labels_B[index] == NO_CLASS
            assert dropped.vectors_BTF is None or not dropped.counting_BT()[index].any()
        else:
            assert same(row(dropped, index), row(condition, index))


@quick
@given(conditions(), st.integers(0, 99), st.integers(0, 99))
def test_dropping_twice_is_dropping_either(condition: Condition, first: int, second: int) -> None:
    one_B, other_B = rows(condition, first), rows(condition, second)
    assert same(condition.dropped(one_B).dropped(other_B), condition.dropped(one_B | other_B))
    assert same(condition.dropped(one_B & ~one_B), condition)


@quick
@given(conditions())
def test_guided_is_the_condition_and_then_the_dropped_one(condition: Condition) -> None:
    guided, size = condition.guided(), len(condition)
    nothing = condition.dropped(torch.ones(size, dtype=torch.bool))
    assert len(guided) == 2 * size
    for index in range(size):
        assert same(row(guided, index), row(condition, index))
        assert same(row(guided, size + index), row(nothing, index))


def test_it_runs_where_its_tensors_are() -> None:
    with torch.device("meta"):
        condition = Condition(torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, 4))
        guided = condition.dropped(torch.ones(2, dtype=torch.bool)).guided()
    assert guided.labels_B.is_meta and guided.counting_BT().is_meta and guided.counting_BT().shape == (4, 3)


def test_labels_alone_have_no_vectors_that_could_count() -> None:
    with pytest.raises(AssertionError):
        Condition(torch.zeros(2, dtype=torch.int64)).counting_BT()

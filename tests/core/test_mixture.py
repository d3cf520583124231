"""Invariants of the mixtures: Eq. 8, 9, 10, 12 and the lambda schedules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixar_core.mixture import (
    MASKED_CODE,
    TIMixConfig,
    dc_mixture,
    hide_codes,
    ti_mixture,
)

seeds = st.integers(0, 2**31 - 1)
lambdas = st.floats(0.0, 1.0)


def draw(seed: int, batch: int = 3, tokens: int = 12, width: int = 4):
    g = torch.Generator().manual_seed(seed)
    masked = torch.rand(batch, tokens, generator=g) < torch.rand((), generator=g)
    x, fill = torch.randn(2, batch, tokens, width, generator=g)
    truth, predicted = torch.randint(0, 64, (2, batch, tokens), generator=g)
    return masked, x, fill, truth, predicted, torch.rand(batch, tokens, generator=g)


@given(seeds)
def test_dc_mix_leaves_visible_positions_and_fills_masked_ones(seed: int) -> None:
    masked, x, fill, *_ = draw(seed)
    mixed = dc_mixture(x, fill, masked)
    assert torch.equal(mixed[~masked], x[~masked])
    assert torch.equal(mixed[masked], fill[masked])


@given(seeds)
def test_dc_mix_with_the_mask_token_everywhere_is_mar(seed: int) -> None:
    masked, x, fill, *_ = draw(seed)
    token = fill[0, 0]
    assert torch.equal(dc_mixture(x, token.expand_as(x), masked), torch.where(masked[..., None], token, x))


@given(seeds)
def test_the_prior_sees_no_masked_code(seed: int) -> None:
    masked, _, _, truth, *_ = draw(seed)
    hidden = hide_codes(truth, masked)
    assert (hidden[masked] == MASKED_CODE).all()
    assert torch.equal(hidden[~masked], truth[~masked])


@given(seeds, lambdas)
def test_ti_mix_never_touches_visible_positions(seed: int, lam: float) -> None:
    masked, _, _, truth, predicted, rho = draw(seed)
    mixed = ti_mixture(truth, predicted, masked, rho, lam)
    assert torch.equal(mixed[~masked], truth[~masked])
    assert ((mixed == truth) | (mixed == predicted)).all()


@given(seeds)
def test_ti_mix_is_truth_at_one_and_generated_at_zero(seed: int) -> None:
    masked, _, _, truth, predicted, rho = draw(seed)
    assert torch.equal(ti_mixture(truth, predicted, masked, rho, 1.0), truth)
    assert torch.equal(ti_mixture(truth, predicted, masked, rho, 0.0)[masked], predicted[masked])


@given(seeds, lambdas, lambdas)
def test_ti_mix_is_monotone_in_lambda_for_the_same_rho(seed: int, a: float, b: float) -> None:
    masked, _, _, truth, _, rho = draw(seed)
    other = truth + 1000
    less, more = (ti_mixture(truth, other, masked, rho, lam) == truth for lam in sorted((a, b)))
    assert (more | ~less).all()


@given(
    st.sampled_from(["constant", "linear", "cosine", "step"]),
    lambdas,
    lambdas,
    st.floats(0.0, 0.99),
    st.integers(1, 9),
    st.lists(st.floats(0.0, 1.0), min_size=2, max_size=20),
)
def test_every_lambda_schedule_falls_within_bounds(schedule, a, b, begin, levels, points) -> None:
    config = TIMixConfig(schedule=schedule, start=max(a, b), end=min(a, b), begin=begin, levels=levels)
    values = [config.lambda_at(p) for p in sorted(points)]
    assert all(0.0 <= v <= 1.0 for v in values)
    assert values == sorted(values, reverse=True)
    assert config.lambda_at(0.0) == config.start
    if schedule != "constant":
        assert config.lambda_at(1.0) == pytest.approx(config.end)


def test_a_rising_lambda_is_refused() -> None:
    with pytest.raises(ValueError, match="lambda falls"):
        TIMixConfig(schedule="linear", start=0.2, end=0.9)

"""Invariants of masks, orders and generation schedules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixar_core.masking import (
    MaskingConfig,
    cfg_at_step,
    masked_after_step,
    masked_count,
    random_orders,
    split_by_order,
)
from mixar_core.noise import Noise

sizes = st.integers(1, 80)


@given(sizes, st.integers(1, 100), st.integers(0, 2**31 - 1))
def test_the_steps_of_an_order_partition_the_tokens(tokens: int, steps: int, seed: int) -> None:
    orders = random_orders(2, tokens, noise=Noise.seeded(seed), device="cpu")
    left, chosen = tokens, []
    after = masked_after_step(tokens, steps)
    assert len(after) == steps and after[-1] == 0
    for masked in after:
        assert masked <= left
        chosen.append(orders[:, masked:left])
        left = masked
    together = torch.cat(chosen, dim=1).sort(dim=1).values
    assert torch.equal(together, torch.arange(tokens).expand(2, -1))


@given(sizes, st.floats(0.0, 1.0), st.integers(0, 2**31 - 1))
def test_a_split_partitions_the_tokens(tokens: int, ratio: float, seed: int) -> None:
    orders = random_orders(3, tokens, noise=Noise.seeded(seed), device="cpu")
    count = masked_count(ratio, tokens)
    assert 1 <= count <= tokens and count >= ratio * tokens - 1e-9
    split = split_by_order(orders, count)
    both = torch.cat([split.visible_BU, split.masked_BK], dim=1).sort(dim=1).values
    assert torch.equal(both, torch.arange(tokens).expand(3, -1))
    assert torch.equal(split.masked_BN.sum(1), torch.full((3,), count))
    assert split.masked_BN.gather(1, split.masked_BK).all()
    for positions in (split.visible_BU, split.masked_BK):
        assert (positions.diff(dim=1) > 0).all()


@given(st.floats(0.0, 0.999999), st.floats(0.0, 0.999999))
def test_ratios_stay_in_range_and_rise_with_the_quantile(a: float, b: float) -> None:
    config = MaskingConfig()
    low, high = (config.ratio(u) for u in sorted((a, b)))
    assert 0.7 <= low <= high <= 1.0


def test_the_published_ratio_is_the_truncated_normal() -> None:
    """Quantiles and mean of scipy 1.x's truncnorm((0.7 - 1) / 0.25, 0, loc=1, scale=0.25), which MAR draws from."""
    published = {0.01: 0.7048979782242804, 0.3: 0.8157398000189641, 0.5: 0.8742874762745441, 0.9: 0.9758405176194248}
    for u, ratio in published.items():
        assert MaskingConfig().ratio(u) == pytest.approx(ratio, abs=1e-9)
    assert MaskingConfig().mean_ratio() == pytest.approx(0.8670173473105165, abs=1e-4)


@given(sizes, st.integers(1, 64), st.floats(1.0, 10.0))
def test_guidance_rises_to_its_scale(tokens: int, steps: int, cfg: float) -> None:
    scales = [cfg_at_step(cfg, tokens, masked, "linear") for masked in masked_after_step(tokens, steps)]
    assert scales == sorted(scales)
    assert all(1.0 <= s <= cfg for s in scales)
    assert cfg_at_step(cfg, tokens, 3, "constant") == cfg

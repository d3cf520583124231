"""The cosine sampler: MAR's published schedule, and orders that are what their names say."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from mixar_core import Grid, Noise, Plan, Task, TokenLayout, UserError
from mixar_core.masking import cfg_at_step, masked_after_step, random_orders
from mixar_plugins.networks.orders import halton
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler, OrderName, fixed_order, subsample

FIXED: tuple[OrderName, ...] = ("raster", "subsample", "halton")
quick = settings(max_examples=60, deadline=None)
grids = st.builds(Grid, st.integers(1, 12), st.integers(1, 12))


SQUARE = Grid(8, 8)


def on(grid: Grid) -> TokenLayout:
    return TokenLayout("grid", (grid,))


def task(grid: Grid = SQUARE, **settings) -> Task:
    return Task(**({"images": 3, "layout": on(grid), "device": torch.device("cpu"), "steps": 8} | settings))


def planned(asked: Task, **config) -> Plan:
    return CosineSampler(CosineConfig(**config)).plan(asked, noise=Noise.seeded(0))


def revealed(plan: Plan) -> torch.Tensor:
    return torch.cat([step.positions_BK for step in plan.steps], dim=1)


# ---------------------------------------------------------------- orders


@quick
@given(grids, st.sampled_from(FIXED))
def test_an_order_names_every_place_once_on_any_grid(grid: Grid, order: OrderName) -> None:
    assert sorted(fixed_order(order, on(grid))) == list(range(grid.tokens))


def discrepancy(grid: Grid, order: list[int]) -> float:
    """How unevenly prefixes fill the grid: the largest gap between a box's share of the area and of the tokens, over
    all boxes from the corner, averaged over all prefixes (the star discrepancy of the tokens' centres)."""
    known, total = torch.zeros(grid.height, grid.width), 0.0
    area = torch.outer(torch.arange(1, grid.height + 1), torch.arange(1, grid.width + 1)) / grid.tokens
    for count, position in enumerate(order[:-1], 1):
        known[divmod(position, grid.width)] = 1
        total += float((known.cumsum(0).cumsum(1) / count - area).abs().max())
    return total / (len(order) - 1)


@pytest.mark.parametrize("grid", [Grid(8, 8), Grid(16, 16), Grid(9, 12)], ids=str)
def test_halton_spreads_out_at_every_moment(grid: Grid) -> None:
    spread = discrepancy(grid, halton(grid))
    randoms = [
        discrepancy(grid, torch.randperm(grid.tokens, generator=torch.Generator().manual_seed(s)).tolist())
        for s in range(5)
    ]
    assert spread < discrepancy(grid, list(range(grid.tokens))) / 3
    assert spread < discrepancy(grid, subsample(grid))
    assert spread < min(randoms)


def test_halton_is_the_published_order() -> None:
    """By fractions, from the second point on, as the released sampler of Halton-MaskGIT has it."""

    def mirrored(index: int, base: int) -> Fraction:
        value, share = Fraction(0), Fraction(1, base)
        while index:
            value, share, index = value + share * (index % base), share / base, index // base
        return value

    def first_met(side: int) -> list[int]:
        met: list[int] = []
        index = 0
        while len(met) < side**2:
            index += 1
            place = math.floor(mirrored(index, 2) * side) * side + math.floor(mirrored(index, 3) * side)
            met += [] if place in met else [place]
        return met

    assert [divmod(p, 16) for p in halton(Grid(16, 16))[:8]] == [
        (8, 5), (4, 10), (12, 1), (2, 7), (10, 12), (6, 3), (14, 8), (1, 14),
    ]  # fmt: skip
    for side in (4, 9, 16):
        assert halton(Grid(side, side)) == first_met(side)


def test_subsample_is_vqgans_order() -> None:
    """Recursively: of an even grid, the quarter of even rows and columns in this order, then the other three."""

    def quarters(side: int) -> list[tuple[int, int]]:
        if side == 1:
            return [(0, 0)]
        inner = quarters(side // 2)
        return [(2 * r + a, 2 * c + b) for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)) for r, c in inner]

    for side in (1, 2, 4, 8, 16):
        assert [divmod(position, side) for position in subsample(Grid(side, side))] == quarters(side)


@quick
@given(grids)
def test_subsample_is_coarse_to_fine(grid: Grid) -> None:
    """Whatever the grid, all places of every fourth row and column come before those of every second, before others."""
    order = subsample(grid)
    for stride in (8, 4, 2):
        coarse = {r * grid.width + c for r in range(0, grid.height, stride) for c in range(0, grid.width, stride)}
        assert set(order[: len(coarse)]) == coarse


@pytest.mark.parametrize("order", ["subsample", "halton"])
@pytest.mark.parametrize(
    "layout",
    [TokenLayout("sequence", (Grid(1, 6),)), TokenLayout("pyramid", (Grid(1, 1), Grid(2, 2)))],
    ids=str,
)
def test_what_has_no_grid_is_refused_by_orders_that_need_one(order: str, layout: TokenLayout) -> None:
    with pytest.raises(UserError, match=f"sampler.order: {order}; it needs tokens on a grid, and these are a {layout}"):
        planned(task(layout=layout), order=order)
    assert len(revealed(planned(task(layout=layout), order="raster"))[0]) == layout.tokens


def test_a_random_order_is_each_images_own_and_the_seeds() -> None:
    asked = task()
    order_BN = random_orders(3, 64, noise=Noise.seeded(0), device="cpu").flip(1)
    one_each = planned(evolve(asked, steps=64))
    sizes = [step.positions_BK.shape[1] for step in one_each.steps]
    for at, step in zip([sum(sizes[:n]) for n in range(len(sizes))], one_each.steps, strict=True):
        wanted = order_BN[:, at : at + step.positions_BK.shape[1]]
        assert torch.equal(step.positions_BK, wanted.sort(dim=1).values)
    assert len({tuple(row) for row in revealed(one_each).tolist()}) == 3


# ---------------------------------------------------------------- the schedule


@quick
@given(grids, st.integers(1, 200))
def test_the_counts_are_mars(grid: Grid, steps: int) -> None:
    left = [grid.tokens, *masked_after_step(grid.tokens, steps)]
    wanted = [before - after for before, after in pairwise(left) if after < before]
    assert [step.positions_BK.shape[1] for step in planned(task(grid, steps=steps)).steps] == wanted


def test_mars_64_steps_of_256_tokens() -> None:
    """floor(256 cos(pi / 2 * n / 64)), at least one token a step, as MAR's released code counts."""
    plan, left = planned(task(Grid(16, 16), steps=64)), 256
    assert len(plan) == 64
    for index, step in enumerate(plan.steps, 1):
        before, left = left, left - step.positions_BK.shape[1]
        formula = math.floor(256 * math.cos(math.pi / 2 * index / 64))
        assert left == (0 if index == 64 else max(1, min(before - 1, formula)))


@quick
@given(grids, st.integers(1, 40), st.sampled_from(["linear", "constant"]))
def test_guidance_grows_with_what_is_known(grid: Grid, steps: int, schedule: str) -> None:
    plan, left = planned(task(grid, steps=steps, cfg=3.0, cfg_schedule=schedule)), grid.tokens
    for step in plan.steps:
        left -= step.positions_BK.shape[1]
        assert step.step.cfg == cfg_at_step(3.0, grid.tokens, left, schedule)  # type: ignore[arg-type]


@quick
@given(grids, st.integers(0, 9), st.sampled_from([*FIXED, "random"]), st.data())
def test_known_tokens_are_passed_over_and_the_others_keep_their_order(
    grid: Grid, seed: int, order: str, data: st.DataObject
) -> None:
    known = data.draw(st.integers(0, grid.tokens))
    known_BK = random_orders(3, grid.tokens, noise=Noise.seeded(seed), device="cpu")[:, :known]
    singly = {"order": order, "tokens_per_step": 1}
    everything, rest = revealed(planned(task(grid), **singly)), planned(task(grid, known_BK=known_BK), **singly)
    if known == grid.tokens:
        assert len(rest) == 0
        return
    for all_N, known_K, left in zip(everything.tolist(), known_BK.tolist(), revealed(rest).tolist(), strict=True):
        assert left == [position for position in all_N if position not in known_K]


def test_the_share_known_counts_what_was_given() -> None:
    known_BK = torch.arange(32).expand(3, -1)
    first = planned(task(cfg=3.0, known_BK=known_BK), tokens_per_step=16).steps[0]
    assert first.step.cfg == cfg_at_step(3.0, 64, 16, "linear")


def test_only_one_at_a_time_is_row_by_row() -> None:
    assert CosineSampler(CosineConfig(order="raster", tokens_per_step=1)).raster
    asked = evolve(task(), order="raster")
    assert revealed(planned(asked, order="raster", tokens_per_step=1))[0].tolist() == list(range(64))
    for config in ({}, {"order": "raster"}, {"order": "halton", "tokens_per_step": 1}):
        assert not CosineSampler(CosineConfig(**config)).raster
        with pytest.raises(UserError, match="the backbone predicts row by row: order raster, tokens_per_step 1"):
            planned(asked, **config)

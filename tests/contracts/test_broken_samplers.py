"""The contract of samplers catches a sampler with one thing wrong, and holds for every task of the shipped one."""

from __future__ import annotations

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixar_core import Grid, Noise, Plan, PlannedStep, Sampler, Step, Task, TokenLayout, UserError
from mixar_core.masking import random_orders
from mixar_core.testing import check_plan, check_sampler
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler


class Halves(Sampler):
    """The smallest sampler: what is not known, in random order, in two steps."""

    def plan(self, task: Task, *, noise: Noise) -> Plan:
        if task.order == "raster":
            raise UserError("this sampler goes in random order")
        order_BN = self.order(task, noise)
        known = 0
        if task.known_BK is not None:
            known = task.known_BK.shape[1]
            known_BN = torch.zeros_like(order_BN, dtype=torch.bool).scatter(1, task.known_BK, True)
            order_BN = order_BN.gather(1, known_BN.gather(1, order_BN).int().argsort(dim=1, stable=True))
        parts = order_BN[:, : task.layout.tokens - known].tensor_split(2, dim=1)
        steps = [self.step(task, share) for share in (0.5, 1.0)]
        return Plan([PlannedStep(*of) for of in zip(parts, steps, strict=True) if of[0].shape[1]])

    def order(self, task: Task, noise: Noise) -> Tensor:
        return random_orders(task.images, task.layout.tokens, noise=noise, device=task.device)

    def step(self, task: Task, share: float) -> Step:
        """The step after which this share of tokens is known."""
        cfg = task.cfg if task.cfg_schedule == "constant" else 1.0 + (task.cfg - 1.0) * share
        return Step(cfg=cfg, temperature=task.temperature, head_steps=task.head_steps)


class Redraws(Halves):
    """Draws the last tokens twice."""

    def plan(self, task: Task, *, noise: Noise) -> Plan:
        steps = super().plan(task, noise=noise).steps
        return Plan([*steps, *(PlannedStep(p.positions_BK, evolve(p.step, redraw=True)) for p in steps[1:])])


@pytest.mark.parametrize("sampler", [Halves, Redraws])
def test_the_smallest_samplers_pass(sampler: type[Sampler]) -> None:
    check_sampler(sampler)


class Changed(Halves):
    """Another plan made of the right one."""

    def plan(self, task: Task, *, noise: Noise) -> Plan:
        return Plan(self.changed(list(super().plan(task, noise=noise).steps), task))

    def changed(self, steps: list[PlannedStep], task: Task) -> list[PlannedStep]:
        return steps


class LosesOne(Changed):
    def changed(self, steps: list[PlannedStep], task: Task) -> list[PlannedStep]:
        return [PlannedStep(steps[0].positions_BK[:, 1:], steps[0].step), *steps[1:]] if len(steps) > 1 else steps


class DrawsTwice(Changed):
    def changed(self, steps: list[PlannedStep], task: Task) -> list[PlannedStep]:
        return [*steps, *steps]


class Doubled(Changed):
    def changed(self, steps: list[PlannedStep], task: Task) -> list[PlannedStep]:
        return [PlannedStep(torch.cat([p.positions_BK, p.positions_BK], dim=1), p.step) for p in steps]


class DrawsWhatIsKept(Halves):
    def plan(self, task: Task, *, noise: Noise) -> Plan:
        return super().plan(evolve(task, known_BK=None), noise=noise)


class RedrawsTheUnknown(Changed):
    def changed(self, steps: list[PlannedStep], task: Task) -> list[PlannedStep]:
        return [PlannedStep(p.positions_BK, evolve(p.step, redraw=True)) for p in steps]


class Idle(Changed):
    def changed(self, steps: list[PlannedStep], task: Task) -> list[PlannedStep]:
        return [*steps, *(PlannedStep(p.positions_BK[:, :0], p.step) for p in steps[:1])]


class IdleWhenAllIsGiven(Changed):
    def changed(self, steps: list[PlannedStep], task: Task) -> list[PlannedStep]:
        nothing = torch.zeros(task.images, 0, dtype=torch.int64, device=task.device)
        return steps or [PlannedStep(nothing, self.step(task, 1.0))]


class FromOne(Changed):
    def changed(self, steps: list[PlannedStep], task: Task) -> list[PlannedStep]:
        return [PlannedStep(p.positions_BK + 1, p.step) for p in steps]


class Unguided(Halves):
    def step(self, task: Task, share: float) -> Step:
        return evolve(super().step(task, share), cfg=1.0)


class AlwaysGuided(Halves):
    def step(self, task: Task, share: float) -> Step:
        return evolve(super().step(task, share), cfg=2.0)


class RisesAnyway(Halves):
    def step(self, task: Task, share: float) -> Step:
        return evolve(super().step(task, share), cfg=1.0 + (task.cfg - 1.0) / 2)


class StaysConstant(Halves):
    def step(self, task: Task, share: float) -> Step:
        return evolve(super().step(task, share), cfg=task.cfg)


class OwnTemperature(Halves):
    def step(self, task: Task, share: float) -> Step:
        return evolve(super().step(task, share), temperature=1.0)


class OwnHeadSteps(Halves):
    def step(self, task: Task, share: float) -> Step:
        return evolve(super().step(task, share), head_steps=None)


class GlobalRandom(Halves):
    def order(self, task: Task, noise: Noise) -> Tensor:
        return torch.rand(task.images, task.layout.tokens).argsort(dim=1).to(task.device)


class CountsImages(Halves):
    def order(self, task: Task, noise: Noise) -> Tensor:
        return super().order(task, noise).roll(task.images, dims=1)


class GoesAnyway(Halves):
    def plan(self, task: Task, *, noise: Noise) -> Plan:
        return super().plan(evolve(task, order="any"), noise=noise)


class GoesAnywayAndSaysSo(GoesAnyway):
    raster = True


class SaysRaster(Halves):
    raster = True


class KeepsQuiet(CosineSampler):
    def __init__(self) -> None:
        super().__init__(CosineConfig(order="raster", tokens_per_step=1))
        self.raster = False

    def plan(self, task: Task, *, noise: Noise) -> Plan:
        return super().plan(evolve(task, order="any"), noise=noise)


class OnTheHost(Halves):
    def order(self, task: Task, noise: Noise) -> Tensor:
        return super().order(evolve(task, device=torch.device("cpu")), noise)


class Refuses(Halves):
    def plan(self, task: Task, *, noise: Noise) -> Plan:
        raise UserError("no")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (LosesOne, "3 tokens are never drawn"),
        (LosesOne, "never drawn; of the 16 of each image 1, 1, 1"),
        (IdleWhenAllIsGiven, "step 0 of 1 draws no token; here all tokens are given, and a plan has no steps"),
        (DrawsTwice, "draws a token that is known already"),
        (Doubled, "draws a token twice"),
        (DrawsWhatIsKept, "draws a token that is kept"),
        (RedrawsTheUnknown, "redraws a token that is not known"),
        (Idle, "step 2 of 3 draws no token"),
        (FromOne, "a position outside"),
        (Unguided, "no step is guided"),
        (AlwaysGuided, "guided although no guidance is asked for"),
        (RisesAnyway, "the schedule is constant"),
        (StaysConstant, "the schedule is linear"),
        (OwnTemperature, "the temperature asked for is not passed on"),
        (OwnHeadSteps, "the head's steps asked for are not passed on"),
        (GlobalRandom, "torch's global generator"),
        (CountsImages, "how many processes share the batch"),
        (GoesAnyway, "does not say so"),
        (GoesAnyway, 'where task.order == "raster", draw one token a step in order and set `raster = True`, or raise'),
        (GoesAnywayAndSaysSo, "row by row only"),
        (GoesAnywayAndSaysSo, "draw one token a step in order .*, or raise UserError, and leave `raster` False"),
        (SaysRaster, "yet refuses a backbone that does"),
        (KeepsQuiet, "does not say so"),
        (OnTheHost, "not on the device"),
        (Refuses, "refuses every layout"),
    ],
)
def test_a_broken_sampler_fails(broken: type[Sampler], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_sampler(broken)


@st.composite
def tasks(draw: st.DrawFn) -> Task:
    """Any task on a small grid, some of its tokens known."""
    grid = Grid(draw(st.integers(1, 6)), draw(st.integers(1, 6)))
    images, known = draw(st.integers(1, 3)), draw(st.integers(0, grid.tokens))
    orders_BN = random_orders(images, grid.tokens, noise=Noise.seeded(draw(st.integers(0, 9))), device="cpu")
    return Task(
        images=images,
        layout=TokenLayout("grid", (grid,)),
        device=torch.device("cpu"),
        steps=draw(st.integers(1, 2 * grid.tokens)),
        cfg=draw(st.sampled_from([1.0, 1.5, 4.0])),
        known_BK=draw(st.sampled_from([None, orders_BN[:, :known]])),
    )


@settings(max_examples=60, deadline=None)
@given(
    task=tasks(),
    order=st.sampled_from(["random", "raster", "subsample", "halton"]),
    tokens_per_step=st.none() | st.integers(1, 40),
)
def test_every_plan_draws_what_is_not_known_once(task: Task, order: str, tokens_per_step: int | None) -> None:
    sampler = CosineSampler(CosineConfig(order=order, tokens_per_step=tokens_per_step))  # type: ignore[arg-type]
    plan = check_plan(sampler, task)
    if tokens_per_step is None:
        assert len(plan) <= task.steps
    else:
        sizes = [planned.positions_BK.shape[1] for planned in plan.steps]
        assert all(size == tokens_per_step for size in sizes[:-1]) and all(0 < s <= tokens_per_step for s in sizes)

"""The contract of samplers: plans that any loop can run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial

import torch
from attrs import evolve
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.plan import Plan, Sampler, Task
from mixar_core.testing.common import BATCH, expect, measured, normal, shares, topic
from mixar_core.types import Grid, TokenLayout

#: of every kind; a sampler may refuse one that it cannot plan for
LAYOUTS = (
    TokenLayout("grid", (Grid(4, 4),)),
    TokenLayout("grid", (Grid(3, 5),)),
    TokenLayout("grid", (Grid(1, 1),)),
    TokenLayout("depth", (Grid(2, 3),), depth=2),
    TokenLayout("pyramid", (Grid(1, 1), Grid(2, 2), Grid(3, 3))),
    TokenLayout("sequence", (Grid(1, 7),)),
)
#: what a sampler can do where `task.order` is "raster"
_ROW_BY_ROW = 'where task.order == "raster", draw one token a step in order and set `raster = True`'


def check_sampler(make: Callable[[], Sampler], *, layouts: Iterable[TokenLayout] = LAYOUTS) -> None:
    """Raise AssertionError where a sampler breaks its contract.

    Its plans name every token that is not known once, in steps of one token and more, whatever steps are asked for;
    they pass on guidance, temperature and the head's steps; one seed gives one plan, also in the shares of several
    processes. It may refuse with UserError a layout, tokens that are given, and a backbone that goes row by row.

    Args:
        make: builds one.
        layouts: for which it is to plan; one of them at least it must not refuse.
    """
    planned = 0
    topic("plans")
    for layout in layouts:
        task = _taken(make(), Task(images=BATCH, layout=layout, device=torch.device("cpu"), steps=4))
        if task is None:
            continue
        topic("plans")
        if not planned:
            measured(f"a plan for a {layout}", partial(plan_of, make(), task))
        planned += 1
        for steps in (1, 2, layout.tokens, 3 * layout.tokens):
            check_plan(make(), evolve(task, steps=steps))
        for known in sorted({1, layout.tokens // 2, layout.tokens - 1, layout.tokens}):
            with suppress(UserError):
                given_BK = normal(BATCH, layout.tokens).argsort(dim=1)[:, :known]
                check_plan(make(), evolve(task, known_BK=given_BK))
        check_plan(make(), evolve(task, confidence_BN=-normal(BATCH, layout.tokens).square()))
        topic("settings of the steps")
        _check_settings(make(), task)
        topic("row by row")
        _check_raster(make(), task)
        topic("repeatable, and batch independence")
        _check_seeds(make(), task)
        topic("on meta, without values")
        on_meta = make().plan(evolve(task, device=torch.device("meta")), noise=Noise.seeded(0))
        expect(all(p.positions_BK.is_meta for p in on_meta.steps), "positions are not on the device that was asked for")
    topic("plans")
    expect(planned > 0, "it refuses every layout")


def _taken(sampler: Sampler, task: Task) -> Task | None:
    """The task, with the head's steps named if the sampler must know them; None if it refuses that, too."""
    for asked in (task, evolve(task, head_steps=7)):
        with suppress(UserError):
            plan_of(sampler, asked)
            return asked
    return None


def plan_of(sampler: Sampler, task: Task, *, noise: Noise | None = None) -> Plan:
    """A plan that draws from `noise` (by default of seed 0) and from nothing else."""
    before = torch.get_rng_state()
    plan = sampler.plan(task, noise=noise or Noise.seeded(0))
    untouched = torch.equal(before, torch.get_rng_state())
    expect(untouched, "random numbers come from torch's global generator, not `noise`")
    return plan


def check_plan(sampler: Sampler, task: Task) -> Plan:
    """Raise AssertionError unless this task's plan draws every token that is not known once, and known ones never."""
    plan, tokens = plan_of(sampler, task), task.layout.tokens
    known_BN = torch.zeros(task.images, tokens, dtype=torch.bool)
    if task.known_BK is not None:
        known_BN.scatter_(1, task.known_BK, True)
    kept_BN = known_BN.clone()
    for index, planned in enumerate(plan.steps):
        positions_BK, where = planned.positions_BK, f"step {index} of {len(plan)}"
        expect(positions_BK.dtype == torch.int64, f"{where}: positions are {positions_BK.dtype}, not torch.int64")
        rows, count = positions_BK.shape
        expect(rows == task.images, f"{where}: positions of {rows} images; there are {task.images}")
        none_left = "; here all tokens are given, and a plan has no steps" if kept_BN.all() else ""
        expect(count > 0, f"{where} draws no token{none_left}")
        inside = bool(((positions_BK >= 0) & (positions_BK < tokens)).all())
        expect(inside, f"{where}: a position outside [0, {tokens})")
        drawn_BN = torch.zeros_like(known_BN).scatter(1, positions_BK, True)
        expect(bool((drawn_BN.sum(dim=1) == count).all()), f"{where} draws a token twice")
        expect(not (drawn_BN & kept_BN).any(), f"{where} draws a token that is kept")
        again = known_BN.gather(1, positions_BK)
        if planned.step.redraw:
            expect(bool(again.all()), f"{where} redraws a token that is not known")
        else:
            expect(not again.any(), f"{where} draws a token that is known already")
        known_BN |= drawn_BN
    missing_B = (~known_BN).sum(dim=1)
    missing, by_image = int(missing_B.sum()), ", ".join(map(str, missing_B.tolist()))
    expect(not missing, f"{missing} tokens are never drawn; of the {tokens} of each image {by_image}")
    return plan


def _check_settings(sampler: Sampler, task: Task) -> None:
    """Guidance between none and what is asked for, the temperature, the head's steps at most as asked for."""
    unguided = plan_of(sampler, task)
    expect(all(p.step.cfg == 1.0 for p in unguided.steps), "steps are guided although no guidance is asked for")
    for schedule in ("linear", "constant"):
        asked = evolve(task, cfg=3.0, cfg_schedule=schedule, temperature=0.5, head_steps=7)
        steps = [planned.step for planned in plan_of(sampler, asked).steps]
        scales = [step.cfg for step in steps]
        expect(all(1.0 <= cfg <= 3.0 for cfg in scales), f"guidance of {scales}; 3.0 is asked for")
        guided = any(cfg > 1.0 for cfg in scales) or (schedule == "linear" and len(scales) == 1)
        expect(guided, "no step is guided although guidance is asked for")
        if schedule == "constant":
            expect(all(cfg in (1.0, 3.0) for cfg in scales), f"guidance of {scales}; the schedule is constant")
        elif len(scales) > 1:
            rises = scales == sorted(scales) and scales[0] < 3.0
            expect(rises, f"guidance of {scales}; the schedule is linear in what is known")
        expect(all(step.temperature == 0.5 for step in steps), "the temperature asked for is not passed on")
        passed = all(step.head_steps is not None and step.head_steps <= 7 for step in steps)
        expect(passed, "the head's steps asked for are not passed on")


def _check_raster(sampler: Sampler, task: Task) -> None:
    """For a backbone that only goes row by row: one token after the other, or a refusal; `raster` says which."""
    known_BK = torch.arange(task.layout.tokens // 2).expand(BATCH, -1)
    for asked in (evolve(task, order="raster"), evolve(task, order="raster", known_BK=known_BK)):
        try:
            plan = check_plan(sampler, asked)
        except UserError:
            expect(not sampler.raster, "it says that it goes row by row (`raster`), yet refuses a backbone that does")
            continue
        plans = "it plans for a backbone that predicts row by row only, yet does not say so (`raster`)"
        expect(sampler.raster, f"{plans}: {_ROW_BY_ROW}, or raise UserError")
        singly = all(planned.positions_BK.shape[1] == 1 for planned in plan.steps)
        order_BN = torch.cat([known_BK[:, :0], *(planned.positions_BK for planned in plan.steps)], dim=1)
        ascends = singly and bool((order_BN.diff(dim=1) > 0).all())
        otherwise = "the backbone predicts row by row only; the plan goes otherwise, and does not refuse"
        expect(ascends, f"{otherwise}: {_ROW_BY_ROW}, or raise UserError, and leave `raster` False")


def _check_seeds(sampler: Sampler, task: Task) -> None:
    def drawn(rows: slice = slice(None), noise: Noise | None = None) -> Tensor:
        confidence_BN = -normal(BATCH, task.layout.tokens).square()[rows]
        asked = evolve(task, images=len(confidence_BN), confidence_BN=confidence_BN)
        return torch.cat([planned.positions_BK for planned in plan_of(sampler, asked, noise=noise).steps], dim=1)

    expect(torch.equal(drawn(), drawn()), "one seed gives two plans")
    shared = torch.cat([drawn(rows, noise) for rows, noise in shares()])
    expect(torch.equal(drawn(), shared), "a plan depends on how many processes share the batch")

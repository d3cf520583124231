"""Computing less: the diffusion head's solvers, and steps of the backbone that reuse earlier ones."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from torch import Tensor

from mixar_core import Condition, Grid, Guidance, Noise, Plan, Step, Task, TokenLayout, UserError, Z
from mixar_core.backbone import BackboneState
from mixar_core.head import ContinuousHead, detail_of, parts_of, sample_parts
from mixar_plugins.backbones.masked import MaskedBackbone, MaskedConfig
from mixar_plugins.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from mixar_plugins.heads.solvers import SOLVERS, process_of
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler
from mixar_plugins.samplers.gtr import GtRConfig, GtRSampler
from mixar_plugins.samplers.reuse import LazyMARConfig, LazyMARSampler, ReCAPConfig, ReCAPSampler

LAYOUT = TokenLayout("grid", (Grid(4, 6),))
PLACES_BK = torch.tensor([[0, 5, 9, 17], [3, 8, 20, 23]])


def task(**settings) -> Task:
    given = {"images": 2, "layout": LAYOUT, "device": torch.device("cpu"), "steps": 8, "head_steps": 20}
    return Task(**(given | settings))


# ---------------------------------------------------------------- solvers


def solved(solver: str, steps: int, mean: float, std: float) -> tuple[Tensor, Tensor]:
    """Where a perfect network for tokens of this mean and deviation leads, and where the equation itself does."""
    process = process_of(solver, steps)
    advance = SOLVERS[solver].advance(process, None)
    x = start = torch.linspace(-2.0, 2.0, 9, dtype=torch.float64)
    for k in reversed(range(len(process))):
        a = float(process.alphas_cumprod[k])
        spread = a * std**2 + 1.0 - a
        eps = math.sqrt(1.0 - a) * (x - math.sqrt(a) * mean) / spread
        x = advance(k, x, (eps, torch.zeros_like(x)), None, 1.0)
    a = float(process.alphas_cumprod[-1])
    return x, mean + std * (start - math.sqrt(a) * mean) / math.sqrt(a * std**2 + 1.0 - a)


def distance(solver: str, steps: int) -> float:
    got, exact = solved(solver, steps, 0.5, 0.4)
    return float((got - exact).norm())


def test_solvers_of_the_equation_converge_to_it_the_second_order_one_faster() -> None:
    assert 0.45 < distance("ddim", 80) / distance("ddim", 40) < 0.55
    assert 0.2 < distance("dpm++", 80) / distance("dpm++", 40) < 0.28
    assert distance("dpm++", 20) < 0.12 * distance("ddim", 20)


@pytest.mark.parametrize("solver", sorted(SOLVERS))
@pytest.mark.parametrize("steps", [2, 3, 10, 100, 1000])
def test_every_solver_ends_at_the_cleanest_step_and_takes_no_more_steps_than_asked(solver: str, steps: int) -> None:
    process = process_of(solver, steps)
    assert process.timesteps[0] == 0 and len(process) <= steps
    assert (process.timesteps[1:] > process.timesteps[:-1]).all()


@pytest.mark.parametrize("solver", ["disa", "ddim", "dpm++"])
def test_what_begins_below_the_noisiest_step_multiplies_no_error_by_thousands(solver: str) -> None:
    assert process_of(solver, 50).error_gain(-1) < 40 < 1000 < process_of("ddpm", 50).error_gain(-1)


@pytest.fixture
def head() -> DiffusionHead:
    torch.manual_seed(0)
    head = DiffusionHead(DiffusionHeadConfig(depth=6, width=16, clip=3.0), token_dim=4, width=8, layout=LAYOUT)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return head.eval()


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_a_temperature_is_refused_where_there_is_no_noise_to_scale(head: DiffusionHead, solver: str) -> None:
    head.check(Step(solver=solver))
    with pytest.raises(UserError, match=rf"temperature: 0.7; the solver {solver.replace('+', '.')} .* allowed: 1"):
        head.check(Step(solver=solver, temperature=0.7))


def test_the_lazy_head_is_the_head_where_every_step_is_full(
    head: DiffusionHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixar_plugins.heads import denoisers

    z = Z(torch.randn(2, 3, 8), PLACES_BK[:, :3], torch.randn(2, 3, 8))
    step = Step(cfg=2.0, head_steps=12)

    def drawn(solver: str) -> Tensor:
        return head.sample(z, attrs.evolve(step, solver=solver), noise=Noise.seeded(0))

    exact, lazy = drawn("ddpm"), drawn("lazymar")
    assert not torch.allclose(exact, lazy, atol=1e-3)
    monkeypatch.setattr(denoisers, "FULL_EVERY", 1)
    monkeypatch.setattr(denoisers, "FRESH_MLP_ABOVE", -1.0)
    torch.testing.assert_close(drawn("lazymar"), exact)


# ---------------------------------------------------------------- reuse between steps


@pytest.fixture(params=["none", "fill", "prefix", "memory"])
def begun(request: pytest.FixtureRequest) -> BackboneState:
    """A batch of which a few tokens are known, with guidance through one of the doors."""
    torch.manual_seed(1)
    config = MaskedConfig(width=16, depth=5, heads=2, buffer=3)
    backbone = MaskedBackbone(
        config, layout=LAYOUT, token_dim=4, num_classes=5, memory=request.param == "memory"
    ).eval()
    doors = {
        "none": Guidance(),
        "fill": Guidance(fill_BND=torch.randn(2, LAYOUT.tokens, 16)),
        "prefix": Guidance(prefix_BPD=torch.randn(2, 7, 16)),
        "memory": Guidance(memory_BMD=torch.randn(2, 9, 16)),
    }
    state = backbone.start(Condition(torch.tensor([1, 4])), doors[request.param], guided=True)
    state.reveal(torch.tensor([[1, 2, 3], [0, 1, 2]]), torch.randn(2, 3, 4))
    return state


def both(z: Z) -> Tensor:
    assert z.uncond_BKD is not None
    return torch.stack([z.cond_BKD, z.uncond_BKD])


@pytest.mark.parametrize("method", ["lazymar", "recap"])
@torch.no_grad()
def test_where_nothing_changed_reuse_gives_what_the_full_pass_gave(begun: BackboneState, method: str) -> None:
    exact = both(begun.predict(PLACES_BK, Step(cfg=2.0)))
    full = both(begun.predict(PLACES_BK, Step(cfg=2.0, reuse=method)))
    torch.testing.assert_close(full, exact, rtol=0, atol=0)
    torch.testing.assert_close(both(begun.predict(PLACES_BK, Step(cfg=2.0, reuse=method, refresh=False))), exact)
    pruned = both(begun.predict(PLACES_BK, Step(cfg=2.0, reuse=method, refresh=False, share=0.1)))
    torch.testing.assert_close(pruned, exact)


@pytest.mark.parametrize("method", ["lazymar", "recap"])
@torch.no_grad()
def test_what_became_known_is_seen_by_a_step_that_reuses(begun: BackboneState, method: str) -> None:
    begun.predict(PLACES_BK, Step(cfg=2.0, reuse=method))
    begun.reveal(PLACES_BK, torch.randn(2, 4, 4))
    next_BK, lazy = torch.tensor([[7, 10], [9, 15]]), Step(cfg=2.0, reuse=method, refresh=False)
    stale_or_not = both(begun.predict(next_BK, lazy))
    exact = both(begun.predict(next_BK, Step(cfg=2.0)))
    error = (stale_or_not - exact).norm() / exact.norm()
    assert 0 < error < 0.5
    # after a step that reuses nothing there is nothing to build on: the next one is full whatever it says
    torch.testing.assert_close(both(begun.predict(next_BK, lazy)), exact, rtol=0, atol=0)


@torch.no_grad()
def test_without_both_halves_of_the_guidance_a_guided_step_is_full(begun: BackboneState) -> None:
    begun.predict(PLACES_BK, Step(reuse="recap"))
    exact = both(begun.predict(PLACES_BK, Step(cfg=2.0)))
    begun.predict(PLACES_BK, Step(reuse="recap"))
    torch.testing.assert_close(both(begun.predict(PLACES_BK, Step(cfg=2.0, reuse="recap", refresh=False))), exact)


# ---------------------------------------------------------------- plans


def steps_of(plan: Plan) -> list[Step]:
    return [planned.step for planned in plan.steps]


def test_lazymars_schedule_is_full_five_times_and_then_every_ninth() -> None:
    asked = task(layout=TokenLayout("grid", (Grid(16, 16),)), steps=64)
    steps = steps_of(LazyMARSampler(LazyMARConfig()).plan(asked, noise=Noise.seeded(0)))
    assert [index for index, step in enumerate(steps) if step.refresh] == [0, 1, 2, 3, 4, 5, 14, 23, 32, 41, 50, 59]
    assert [steps[index].share for index in (19, 20, 24, 25, 34, 63)] == [1.0, 0.6, 0.5, 0.4, 0.15, 0.05]
    with pytest.raises(UserError, match=r"sampling.steps: 65; the sampler lazymar .* at most 64"):
        LazyMARSampler(LazyMARConfig()).plan(attrs.evolve(asked, steps=65), noise=Noise.seeded(0))


def test_recap_reuses_every_other_step_of_the_second_half_with_fewer_head_steps() -> None:
    steps = steps_of(ReCAPSampler(ReCAPConfig()).plan(task(), noise=Noise.seeded(0)))
    assert [step.refresh for step in steps] == [True, True, True, True, True, False, True, False]
    assert [step.head_steps for step in steps] == [20, 20, 20, 20, 20, 8, 20, 8]
    with pytest.raises(UserError, match="head_steps_share"):
        ReCAPSampler(ReCAPConfig()).plan(task(head_steps=None), noise=Noise.seeded(0))


def test_gtr_draws_a_checkerboard_in_most_of_its_steps() -> None:
    asked = task(layout=TokenLayout("grid", (Grid(16, 16),)), steps=32)
    plan = GtRSampler(GtRConfig()).plan(asked, noise=Noise.seeded(0))
    assert len(plan) == 32
    drawn = [planned.positions_BK[0] for planned in plan.steps]
    diagonals = [{sum(divmod(int(place), 16)) % 4 for place in torch.cat(part)} for part in
                 (drawn[:24], drawn[24:30], drawn[30:])]  # fmt: skip
    assert diagonals == [{0}, {2}, {1, 3}]
    assert [len(part) for part in drawn[30:]] == [64, 64]


def test_gtr_takes_no_more_steps_than_asked_for() -> None:
    for steps in (1, 2, 3, 4, 8, 15, 32):  # shares of 8 round to 9
        plan = GtRSampler(GtRConfig()).plan(
            task(layout=TokenLayout("grid", (Grid(16, 16),)), steps=steps), noise=Noise.seeded(0)
        )
        drawn_BN = torch.cat([planned.positions_BK for planned in plan.steps], dim=1).sort(dim=1).values
        assert len(plan) == steps and torch.equal(drawn_BN[0], torch.arange(256))


def test_gtr_gives_more_head_steps_to_a_share_of_its_last_stage() -> None:
    asked = task(layout=TokenLayout("grid", (Grid(16, 16),)), steps=32, head_steps=50)
    plan = GtRSampler(GtRConfig(head_steps_end=20, detail=0.1)).plan(asked, noise=Noise.seeded(0))
    assert [planned.step.detail for planned in plan.steps] == [None] * 30 + [(0.1, 50)] * 2
    with pytest.raises(UserError, match=r"sampler.detail: 0.1; .* which is None"):
        GtRSampler(GtRConfig(detail=0.1)).plan(task(head_steps=None), noise=Noise.seeded(0))


class Counting(ContinuousHead):
    """Draws its z and the number of head steps."""

    token_dim = 5

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        raise NotImplementedError

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        places_BK1, steps_BK1 = (
            z.positions_BK[..., None].float(),
            torch.full((*z.positions_BK.shape, 1), step.head_steps),
        )
        return torch.cat([z.cond_BKD, z.uncond_BKD[..., :1], places_BK1, steps_BK1], dim=-1)


def test_tokens_whose_z_varies_most_take_more_head_steps() -> None:
    torch.manual_seed(0)
    calm, wild, even = torch.linspace(0.0, 1.0, 16), torch.tensor([1.0, -1.0] * 8), torch.full((16,), 0.9)
    z_BKD = torch.stack([torch.stack([even, wild, calm, calm]), torch.stack([calm, calm, even, wild])])
    z = Z(z_BKD, PLACES_BK, torch.rand(2, 4, 16))
    head, step = Counting(), Step(cfg=2.0, head_steps=20, detail=(0.25, 50))
    drawn_BKC = sample_parts(head, z, step, noise=Noise.seeded(0))
    assert torch.equal(drawn_BKC[..., :16], z.cond_BKD) and torch.equal(drawn_BKC[..., 16], z.uncond_BKD[..., 0])
    assert torch.equal(drawn_BKC[..., 17], PLACES_BK.float())
    assert drawn_BKC[..., 18].tolist() == [[20, 50, 20, 20], [20, 20, 20, 50]]
    assert [(n, s.head_steps) for n, s in parts_of(head, step, 4)] == [(1, 50), (3, 20)]
    assert [(n, s.head_steps) for n, s in parts_of(head, step, 1)] == [(1, 20)]
    head.together = True
    with pytest.raises(UserError, match="Counting draws the tokens of a step together"):
        sample_parts(head, z, step, noise=Noise.seeded(0))
    spectrum = torch.fft.fft(z_BKD).abs()[..., :9]  # by the definition, up to half of the length
    torch.testing.assert_close(detail_of(z_BKD), (spectrum * (1 + torch.arange(9) / 8)).sum(-1))


def test_guidance_keeps_to_its_interval() -> None:
    sampler = CosineSampler(CosineConfig(cfg_interval=(0.3, 0.8)))
    plan = sampler.plan(task(cfg=3.0, cfg_schedule="constant"), noise=Noise.seeded(0))
    left, scales = LAYOUT.tokens, []
    for planned in plan.steps:
        scales.append((left / LAYOUT.tokens, planned.step.cfg))
        left -= planned.positions_BK.shape[1]
    assert {cfg for share, cfg in scales if 0.3 < share <= 0.8} == {3.0}
    assert {cfg for share, cfg in scales if not 0.3 < share <= 0.8} == {1.0}


@pytest.mark.parametrize("head_steps", [None, 4])
def test_head_steps_fall_from_what_is_asked_for(head_steps: int | None) -> None:
    with pytest.raises(UserError, match=f"head_steps_end: 5; .* which is {head_steps}"):
        CosineSampler(CosineConfig(head_steps_end=5)).plan(task(head_steps=head_steps), noise=Noise.seeded(0))


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        (CosineConfig, {"cfg_interval": (0.6, 0.2)}, "it rises"),
        (GtRConfig, {"order": "raster"}, "an order and steps of its own"),
        (GtRConfig, {"shares": (-1.0, 1.0, 1.0)}, "not below 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(config, settings, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**settings)

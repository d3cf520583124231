"""The diffusion process behind the head."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mixar_core.errors import UserError
from mixar_core.model import SamplingConfig
from mixar_core.noise import Noise
from mixar_core.types import Grid, Step, TokenLayout, Z
from mixar_plugins.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from mixar_plugins.heads.gaussian_diffusion import TrainTables, cosine_betas, respaced_timesteps, reverse_step, schedule

LAYOUT = TokenLayout("grid", (Grid(2, 4),))
PLACES = torch.arange(8)[None]


@given(st.integers(1, 1000))
def test_respacing_keeps_both_ends_and_the_process(steps: int) -> None:
    chosen = respaced_timesteps(steps)
    assert len(set(chosen)) == steps == len(schedule(steps))
    assert chosen[0] == 0 and chosen == sorted(chosen)
    if steps > 1:
        assert chosen[-1] == 999
    full = np.cumprod(1.0 - cosine_betas())
    np.testing.assert_allclose(schedule(steps).alphas_cumprod, full[chosen], rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_respacing_is_refused(steps: int) -> None:
    with pytest.raises(ValueError, match="1 to 1000"):
        respaced_timesteps(steps)


def test_a_perfect_denoiser_returns_the_token() -> None:
    x0 = torch.tensor([[0.3, -1.2, 0.7]])
    process = schedule(50)
    x = torch.randn(1, 3, generator=torch.Generator().manual_seed(0))
    for k in reversed(range(50)):
        a = float(process.alphas_cumprod[k])
        eps = (x - a**0.5 * x0) / (1 - a) ** 0.5
        x = reverse_step(process, k, x, eps, torch.zeros_like(x), None, 1.0)
    torch.testing.assert_close(x, x0, atol=1e-4, rtol=0)


def test_the_bound_is_zero_for_the_true_posterior_and_trains_the_variance_only() -> None:
    tables = TrainTables()
    x0, eps = torch.randn(2, 64, 4, generator=torch.Generator().manual_seed(1)) * 0.3
    t = torch.arange(1, 65) * 15
    xt = tables.diffuse(x0, t, eps)
    variance = torch.full_like(x0, -1.0, requires_grad=True)  # the posterior's own variance
    bound = tables.variational_bound(x0, xt, t, eps, variance)
    assert bound.detach().abs().max() < 1e-3
    bound.sum().backward()
    assert variance.grad is not None and torch.isfinite(variance.grad).all()


def test_the_head_learns_the_mean_and_spread_of_its_tokens() -> None:
    torch.manual_seed(0)
    config = DiffusionHeadConfig(depth=2, width=64, sampling_steps=40, clip=4.0)
    head = DiffusionHead(config, token_dim=2, width=4, layout=LAYOUT)
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-3)
    z = torch.zeros(64, 8, 4)
    z[:32, :, 0] = 1.0
    means = torch.where(z[..., :1] > 0, 1.0, -1.0).expand(-1, -1, 2)
    for step in range(200):
        noise = Noise.seeded(step)
        target = means + 0.3 * noise.normal(means.shape, "cpu")
        loss = head.loss(Z(z, PLACES.expand(64, -1)), target, noise=noise).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        asked = Z(z[[0, 63]].repeat(60, 1, 1), PLACES.repeat(120, 1))
        drawn = head.sample(asked, Step(), noise=Noise.seeded(1)).view(60, 2, 8, 2)
    assert drawn[:, 0].mean() == pytest.approx(1.0, abs=0.15)
    assert drawn[:, 1].mean() == pytest.approx(-1.0, abs=0.15)
    assert drawn[:, 0].std() == pytest.approx(0.3, abs=0.15)


@pytest.mark.parametrize("cfg", [1.0, 2.0])
@pytest.mark.parametrize("steps", [2, 20, 1000])
def test_bf16_is_kept_out_of_the_steps_that_would_multiply_its_rounding(cfg: float, steps: int) -> None:
    torch.manual_seed(0)
    head = DiffusionHead(DiffusionHeadConfig(depth=1, width=16), token_dim=3, width=4, layout=LAYOUT)
    for parameter in head.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    z, z_uncond = torch.randn(2, 50, 1, 4)
    process = schedule(steps)
    first = sum(process.error_gain(k) > 100 for k in range(steps))
    assert first == (7 if steps == 1000 else 1)
    drawn: list[list[torch.Tensor]] = []
    for enabled in (False, True):
        seen: list[torch.Tensor] = []
        handle = head.net.register_forward_pre_hook(lambda _, arguments, seen=seen: seen.append(arguments[0][:50]))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            asked = Z(z, torch.zeros(50, 1, dtype=torch.int64), z_uncond)
            head.sample(asked, Step(cfg=cfg, head_steps=steps), noise=Noise.seeded(0))
        handle.remove()
        drawn.append(seen)
    exact, rounded = drawn
    torch.testing.assert_close(rounded[first], exact[first], rtol=1e-6, atol=1e-5)
    assert not torch.equal(rounded[-1], exact[-1]) or steps == 2  # the others do run in bf16


def test_one_step_of_sampling_is_refused() -> None:
    with pytest.raises(ValueError, match="'sampling_steps' must be >= 2"):
        DiffusionHeadConfig(sampling_steps=1)
    with pytest.raises(ValueError, match="'head_steps' must be >= 2"):
        SamplingConfig(head_steps=1)


@pytest.mark.parametrize("step", [Step(head_steps=1), Step(head_steps=1001), Step(solver="heun")])
def test_steps_and_solvers_that_it_has_not_are_refused(step: Step) -> None:
    head = DiffusionHead(DiffusionHeadConfig(depth=1, width=16), token_dim=3, width=4, layout=LAYOUT)
    with pytest.raises(UserError, match=r"2 to 1000|allowed: ddpm"):
        head.sample(Z(torch.zeros(1, 8, 4), PLACES), step, noise=Noise.seeded(0))

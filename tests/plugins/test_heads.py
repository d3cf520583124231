"""Heads beside `diffusion`: what they learn, what guidance and temperature do, what they refuse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from mixar.plugins import plugin_manager
from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead
from mixar_core.noise import Noise
from mixar_core.types import Grid, Step, TokenLayout, Z
from mixar_plugins.heads.categorical import CategoricalHead
from mixar_plugins.heads.joint import JointHead
from mixar_plugins.heads.mixture import Gaussians, MixtureHead, MixtureHeadConfig
from mixar_plugins.heads.rectified_flow import FlowConfig, RectifiedFlowHead

REGISTRY = plugin_manager()
LAYOUT = TokenLayout("grid", (Grid(2, 2),))
SMALL = {"depth": 1, "width": 32}
ONE_GO = ("mixture", "energy", "categorical", "mse")
#: what lets a head of each name learn in few steps
QUICK: dict[str, dict[str, Any]] = {
    "flow": {"samples_per_token": 2},
    "joint": {"samples_per_token": 2, "heads": 2},
    "categorical": {"bins": 16, "bound": 2.5},
}


def build(name: str, *, token_dim: int = 2, width: int = 4, **config: Any) -> Any:
    part = REGISTRY.part("head", name)
    torch.manual_seed(0)
    return part.component(part.config(**{**SMALL, **config}), token_dim=token_dim, width=width, layout=LAYOUT)


def asked(cond_BKD: Tensor, uncond_BKD: Tensor | None = None) -> Z:
    return Z(cond_BKD, torch.arange(cond_BKD.shape[1]).expand(len(cond_BKD), -1), uncond_BKD)


def awake(head: Any) -> Any:
    """A fresh head whose zeros, which would make it deaf to what it is told, are drawn."""
    for parameter in head.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return head.eval()


def fit(head: ContinuousHead, z: Z, targets: Sequence[Tensor]) -> None:
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for step, target in enumerate(targets):
        loss = head.loss(z, target, noise=Noise.seeded(step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["flow", "joint", *ONE_GO])
def test_the_head_learns_the_mean_and_spread_of_its_tokens(name: str) -> None:
    head = build(name, **QUICK.get(name, {}))
    z_BKD = torch.zeros(64, 4, 4)
    z_BKD[::2, :, 0] = 1.0
    means = torch.where(z_BKD[..., :1] > 0, 1.0, -1.0).expand(-1, -1, 2)
    draws = torch.Generator().manual_seed(0)
    targets = [means + 0.4 * torch.randn(means.shape, generator=draws) for _ in range(100)]
    fit(head, asked(z_BKD), targets)
    with torch.no_grad():
        drawn = head.sample(asked(z_BKD), Step(), noise=Noise.seeded(1))
    assert drawn[::2].mean() == pytest.approx(1.0, abs=0.15)
    assert drawn[1::2].mean() == pytest.approx(-1.0, abs=0.15)
    assert drawn[::2].std() == pytest.approx(0.0 if name == "mse" else 0.4, abs=0.1)


@pytest.mark.parametrize("name", ["joint", "flow"])
def test_only_the_joint_head_knows_what_its_tokens_share(name: str) -> None:
    """Four tokens with one sign, drawn in one step: z says nothing of it."""
    head = build(name, token_dim=1, **QUICK[name])
    z = asked(torch.zeros(64, 4, 4))
    draws = torch.Generator().manual_seed(0)
    signs = [torch.randint(2, (64, 1, 1), generator=draws).float() * 2 - 1 for _ in range(150)]
    fit(head, z, [sign.expand(-1, 4, -1) for sign in signs])
    z = asked(torch.zeros(128, 4, 4))
    with torch.no_grad():
        drawn = head.sample(z, Step(), noise=Noise.seeded(1)).squeeze(-1)
    agreement = (drawn.sign().sum(dim=1).abs() == 4).float().mean()
    assert agreement > 0.8 if name == "joint" else agreement < 0.3  # by chance an eighth


class Shuffled(Noise):
    """Noise whose tokens come in another order."""

    def __init__(self, order: Tensor) -> None:
        super().__init__(torch.Generator().manual_seed(0))
        self.order = order

    def normal(self, shape: Sequence[int], device: torch.device | str, *, name: str = "") -> Tensor:
        return super().normal(shape, device, name=name)[:, self.order]


@given(st.permutations(range(4)))
@settings(max_examples=10, deadline=None)
def test_the_joint_head_does_not_care_for_the_order_of_its_tokens(permutation: list[int]) -> None:
    head: JointHead = awake(build("joint", heads=2, sampling_steps=3))
    z_BKD, uncond_BKD = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    order = torch.tensor(permutation)
    z = asked(z_BKD, uncond_BKD)
    shuffled = Z(z_BKD[:, order], z.positions_BK[:, order], uncond_BKD[:, order])
    with torch.no_grad():
        drawn = head.sample(z, Step(cfg=2.0), noise=Noise.seeded(0))
        again = head.sample(shuffled, Step(cfg=2.0), noise=Shuffled(order))
        elsewhere = head.sample(z._replace(positions_BK=z.positions_BK.roll(1, 1)), Step(), noise=Noise.seeded(0))
    torch.testing.assert_close(again, drawn[:, order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(elsewhere, head.sample(z, Step(), noise=Noise.seeded(0)))


def test_in_training_tokens_of_other_groups_are_not_seen() -> None:
    """With the fewest tokens to a group, what stands on one place never reaches the loss of another."""
    head: JointHead = awake(build("joint", heads=2))

    class Alone(Noise):
        def scalar(self, *, name: str = "") -> float:
            return 1.0 - 1e-6  # as many groups as tokens

    def losses(target: Tensor) -> Tensor:
        return head.loss(asked(torch.zeros(2, 4, 4)), target, noise=Alone(torch.Generator().manual_seed(0)))

    target = torch.zeros(2, 4, 2)
    other = target.clone()
    other[:, 0] = 3.0
    assert torch.equal(losses(target)[:, 1:], losses(other)[:, 1:])
    assert not torch.equal(losses(target)[:, 0], losses(other)[:, 0])


class Decay(RectifiedFlowHead):
    """dx/dt = x, whose solution from t = 1 to 0 divides by e."""

    def __init__(self) -> None:
        super().__init__()
        self.flow, self.token_dim = FlowConfig(), 2

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        raise NotImplementedError

    def embed(self, z_BKD: Tensor, positions_BK: Tensor) -> None:
        return None

    def embed_time(self, t: Tensor) -> Tensor:
        return t

    def velocity(self, x: Tensor, time: Tensor, condition: None) -> Tensor:
        return x


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_solvers_are_of_their_order(solver: str, order: int) -> None:
    head, z = Decay(), asked(torch.zeros(2, 4, 4))
    exact = Noise.seeded(0).normal((2, 4, 2), "cpu") * torch.exp(torch.tensor(-1.0))
    errors = [
        (head.sample(z, Step(head_steps=steps, solver=solver), noise=Noise.seeded(0)) - exact).norm()
        for steps in (10, 20)
    ]
    assert errors[0] / errors[1] == pytest.approx(2**order, rel=0.15)


def test_times_are_uniform_or_dwell_on_the_middle() -> None:
    def middle(time: str) -> float:
        t = build("flow", time=time).draw_times(500, 4, torch.device("cpu"), noise=Noise.seeded(0))
        assert t.shape == (500, 4, 4) and (t >= 0).all() and (t <= 1).all()
        return float(((t > 0.25) & (t < 0.75)).float().mean())

    assert middle("uniform") == pytest.approx(0.5, abs=0.03)
    assert middle("logit-normal") == pytest.approx(0.728, abs=0.03)  # P(|normal| < log 3)


@pytest.mark.parametrize("name", ["flow", "joint", "mse"])
def test_temperature_0_leaves_no_noise(name: str) -> None:
    head, z = awake(build(name, **({"heads": 2} if name == "joint" else {}))), asked(torch.randn(2, 4, 4))
    first, second = (head.sample(z, Step(temperature=0.0), noise=Noise.seeded(seed)) for seed in (0, 1))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["flow", "joint", "energy", "categorical", "mse"])
def test_guidance_goes_from_the_unconditional_to_the_conditional_and_on(name: str) -> None:
    """At a scale of 0 it is the one, at 1 the other, and at 2 the mean of a mean goes as far again."""
    head = awake(build(name, **QUICK.get(name, {})))
    cond, uncond = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        drawn = [head.sample(asked(cond, uncond), Step(cfg=cfg), noise=Noise.seeded(0)) for cfg in (0.0, 1.0, 2.0)]
        alone = [head.sample(asked(z_BKD), Step(), noise=Noise.seeded(0)) for z_BKD in (uncond, cond)]
    for found, wanted in zip(drawn, alone, strict=False):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.equal(drawn[2], drawn[1])
    if name == "mse":
        torch.testing.assert_close(drawn[2], 2 * drawn[1] - drawn[0], rtol=1e-4, atol=1e-5)


def test_the_mixture_is_torchs() -> None:
    head: MixtureHead = awake(build("mixture", components=3))
    gaussians = head.gaussians(torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(0)))
    theirs = MixtureSameFamily(
        Categorical(logits=gaussians.log_weights), Independent(Normal(gaussians.means, gaussians.deviations), 1)
    )
    x = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(gaussians.log_density(x[:, :, None])[..., 0], theirs.log_prob(x))


@pytest.mark.parametrize("cfg", [0.0, 0.5, 2.0])
def test_guidance_of_the_mixture_is_that_of_densities(cfg: float) -> None:
    """Of N(0, 1) against N(-1, 1) guidance makes N(cfg - 1, 1)."""
    head = MixtureHead(MixtureHeadConfig(**SMALL, candidates=256), token_dim=1, width=4, layout=LAYOUT)

    def gaussians(z_BKD: Tensor) -> Gaussians:
        shape = (*z_BKD.shape[:2], 1, 1)
        return Gaussians(torch.zeros(shape[:3]), z_BKD[..., :1, None].expand(shape), torch.ones(shape))

    head.gaussians = gaussians  # type: ignore[method-assign]
    z = asked(torch.zeros(250, 4, 4), torch.full((250, 4, 4), -1.0))
    drawn = head.sample(z, Step(cfg=cfg), noise=Noise.seeded(0))
    assert drawn.mean() == pytest.approx(cfg - 1.0, abs=0.12)
    assert drawn.std() == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(("cfg", "share"), [(1.0, 0.8), (2.0, 16 / 17), (0.0, 0.5)])
def test_components_are_drawn_by_their_weights_and_guided_by_powers_of_them(cfg: float, share: float) -> None:
    """Of 4 : 1 against 1 : 1 guidance makes 4^cfg : 1."""
    head = MixtureHead(MixtureHeadConfig(**SMALL, candidates=64), token_dim=1, width=4, layout=LAYOUT)
    means = torch.tensor([5.0, -5.0])[:, None].expand(250, 4, 2, 1)

    def gaussians(z_BKD: Tensor) -> Gaussians:
        weights = torch.stack([z_BKD[..., 0], 1.0 - z_BKD[..., 0]], dim=-1)
        return Gaussians(weights.log(), means, torch.ones_like(means))

    head.gaussians = gaussians  # type: ignore[method-assign]
    drawn = head.sample(
        asked(torch.full((250, 4, 4), 0.8), torch.full((250, 4, 4), 0.5)), Step(cfg=cfg), noise=Noise.seeded(0)
    )
    assert (drawn > 0).float().mean() == pytest.approx(share, abs=0.04)
    assert drawn.abs().mean() == pytest.approx(5.0, abs=0.15) and drawn.abs().std() == pytest.approx(1.0, abs=0.1)


def test_temperature_of_the_mixture_scales_deviations() -> None:
    head: MixtureHead = awake(build("mixture", components=1))
    z = asked(torch.randn(1, 1, 4).expand(500, 4, 4))
    spread = [head.sample(z, Step(temperature=t), noise=Noise.seeded(0)).std(dim=(0, 1)) for t in (0.0, 0.5, 1.0)]
    torch.testing.assert_close(spread[1], 0.5 * spread[2], rtol=1e-3, atol=1e-4)
    assert spread[0].max() < 1e-5


@given(st.floats(-6.0, 6.0, width=32), st.integers(2, 100), st.floats(0.5, 5.0))
@settings(max_examples=50, deadline=None)
def test_a_number_lies_in_its_bin(value: float, bins: int, bound: float) -> None:
    head: CategoricalHead = build("categorical", bins=bins, bound=bound, depth=0, width=1)
    middle = head.middle(head.quantize(torch.tensor([value]))).item()
    nearest = max(-bound, min(bound, value))
    assert abs(middle - nearest) <= bound / bins * (1 + 1e-3)
    assert abs(middle) < bound


def test_the_categorical_is_guided_in_log_probabilities() -> None:
    head: CategoricalHead = awake(build("categorical", token_dim=1, bins=2, bound=1.0))
    cond, uncond = torch.randn(2, 1, 1, 4, generator=torch.Generator().manual_seed(0))
    one, none = (head.log_probs(z).squeeze() for z in (cond, uncond))
    expected = torch.softmax(none + 3.0 * (one - none), dim=-1)
    z = asked(cond.expand(2000, 4, -1), uncond.expand(2000, 4, -1))
    drawn = head.sample(z, Step(cfg=3.0), noise=Noise.seeded(0))
    assert (drawn > 0).float().mean() == pytest.approx(expected[1].item(), abs=0.02)
    likeliest = head.sample(z, Step(cfg=3.0, temperature=0.0), noise=Noise.seeded(0))
    assert torch.equal(likeliest, head.middle(expected.argmax()).expand_as(likeliest))


@pytest.mark.parametrize("name", ONE_GO)
@pytest.mark.parametrize(("step", "word"), [(Step(head_steps=5), "head_steps: 5"), (Step(solver="euler"), "euler")])
def test_a_head_that_draws_in_one_go_refuses_steps_and_solvers(name: str, step: Step, word: str) -> None:
    with pytest.raises(UserError, match=word):
        build(name).sample(asked(torch.zeros(1, 4, 4)), step, noise=Noise.seeded(0))


@pytest.mark.parametrize(
    ("name", "step", "word"),
    [
        ("flow", Step(solver="ddpm"), "allowed: euler, heun"),
        ("joint", Step(solver="ddpm"), "allowed: euler, heun"),
        ("mse", Step(temperature=0.9), "allowed: 0, 1"),
    ],
)
def test_what_a_head_cannot_do_is_refused(name: str, step: Step, word: str) -> None:
    with pytest.raises(UserError, match=word):
        build(name).sample(asked(torch.zeros(1, 4, 4)), step, noise=Noise.seeded(0))

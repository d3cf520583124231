"""The adaptive mixture: a gate that is one, a plan that is each image's own, and both inside a MixAR."""

from __future__ import annotations

from itertools import pairwise
from unittest import mock

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixar.plugins import plugin_manager
from mixar_adaptive.injector import AdaptiveDCMix, AdaptiveDCMixConfig
from mixar_adaptive.sampler import AdaptiveConfig, AdaptiveSampler
from mixar_core.errors import UserError
from mixar_core.masking import split_by_order, take
from mixar_core.model import Kept, MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.plan import Task
from mixar_core.testing import check_injector, check_sampler
from mixar_core.testing.samplers import check_plan
from mixar_core.types import Condition, DiscreteTokens, DrawnCodes, Grid, TokenBatch, TokenLayout
from mixar_plugins.tokenizers.residual import RVQConfig, RVQTokenizer
from tests.toys import SignTokenizer, UniformPrior, small_mixar

WIDTH, GRID = 16, TokenLayout("grid", (Grid(4, 4),))
shares = st.floats(0.0, 1.0)
configs = st.builds(
    AdaptiveConfig,
    confident=shares,
    confident_steps=st.integers(1, 20),
    confident_head_steps=st.none() | st.integers(2, 9),
    redraw=shares,
)


def injector(start: float = 0.98) -> AdaptiveDCMix:
    return AdaptiveDCMix(AdaptiveDCMixConfig(start=start), tokenizer=SignTokenizer(), width=WIDTH)


def tokens(confidence_BN: Tensor | None, known: float = 0.0, seed: int = 0) -> DiscreteTokens:
    tokenizer = SignTokenizer()
    codes_BN = torch.randint(8, (2, 16), generator=torch.Generator().manual_seed(seed))
    vectors_BNE = tokenizer.code_vectors(codes_BN)
    return DiscreteTokens(codes_BN, vectors_BNE, vectors_BNE, confidence_BN, known)


def task(seed: int, *, images: int = 3, steps: int = 6, known: int = 0) -> Task:
    noise = Noise.seeded(seed)
    confidence_BN = -5 * noise.uniform((images, 16), "cpu")
    known_BK = noise.uniform((images, 16), "cpu").argsort(dim=1)[:, :known]
    return Task(images, GRID, torch.device("cpu"), steps, known_BK=known_BK, confidence_BN=confidence_BN)


def test_contracts() -> None:
    check_injector(injector, tokenizer=SignTokenizer(), width=WIDTH)
    for config in (AdaptiveConfig(), AdaptiveConfig(0.75, 3, 2, 0.25), AdaptiveConfig(0.0), AdaptiveConfig(1.0, 9)):
        check_sampler(lambda config=config: AdaptiveSampler(config))


def test_a_depth_of_codes_is_trusted_together_and_a_pyramid_refused() -> None:
    settings = {"channels": 4, "channel_multipliers": (1, 1, 2), "blocks": 1, "norm": "none"}
    tokenizer = RVQTokenizer(RVQConfig(**settings, code_width=3, codebook_size=8, depth=3), image_size=16).eval()
    check_injector(
        lambda: AdaptiveDCMix(AdaptiveDCMixConfig(), tokenizer=tokenizer, width=WIDTH), tokenizer=tokenizer, width=WIDTH
    )
    pyramid = SignTokenizer()
    layout = TokenLayout("pyramid", (Grid(1, 1), Grid(4, 4)))
    with mock.patch.object(SignTokenizer, "layout", layout), pytest.raises(UserError, match="pyramid"):
        AdaptiveDCMix(AdaptiveDCMixConfig(), tokenizer=pyramid, width=WIDTH)


def test_both_are_found_as_parts() -> None:
    registry = plugin_manager()
    assert registry.part("injector", "dc-mix-adaptive").component is AdaptiveDCMix
    assert registry.part("sampler", "adaptive").component is AdaptiveSampler


# -------------------------------------------------------------------- the gate


@given(st.lists(st.floats(-1e30, 0.0), min_size=32, max_size=32), shares, st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_the_gate_stays_between_0_and_1_whatever_it_has_learned(values: list[float], known: float, seed: int) -> None:
    module = injector()
    for parameter in module.gate_net.parameters():
        torch.nn.init.normal_(parameter, std=3.0, generator=torch.Generator().manual_seed(seed))
    gate_BN = module.gate(tokens(torch.tensor(values).view(2, 16), known))
    assert gate_BN.shape == (2, 16) and ((gate_BN >= 0) & (gate_BN <= 1)).all()


def test_the_mixture_goes_from_the_mask_token_to_the_code() -> None:
    module, seen = injector(), tokens(None)
    with torch.no_grad():
        module.gate_net[2].bias.fill_(-200.0)
        closed = module(seen).fill_BND
        module.gate_net[2].bias.fill_(200.0)
        opened = module(seen).fill_BND
    assert torch.equal(closed, module.mask_token.expand(2, 16, WIDTH))
    assert torch.equal(opened[..., :3], seen.vectors_BNE) and not opened[..., 3:].any()


def test_it_starts_as_nearly_dc_mix_whatever_the_confidence() -> None:
    module = injector(start=0.9)
    for known in (0.0, 0.5):
        gate_BN = module.gate(tokens(-9 * torch.rand(2, 16), known))
        torch.testing.assert_close(gate_BN, torch.full((2, 16), 0.9))


@pytest.mark.parametrize(
    ("tokenizer", "width", "says"), [(None, 16, "discrete_tokenizer"), (SignTokenizer(), 2, "wider")]
)
def test_it_says_what_it_needs(tokenizer: SignTokenizer | None, width: int, says: str) -> None:
    with pytest.raises(UserError, match=says):
        AdaptiveDCMix(AdaptiveDCMixConfig(), tokenizer=tokenizer, width=width)


# -------------------------------------------------------------------- the plan


@given(configs, st.integers(0, 2**31 - 1), st.integers(1, 20), st.integers(0, 16))
@settings(max_examples=40, deadline=None)
def test_a_plan_draws_all_once_the_surest_first_and_redraws_the_least_sure(
    config: AdaptiveConfig, seed: int, steps: int, known: int
) -> None:
    asked, total = task(seed, steps=steps, known=known), 16 - known
    plan = check_plan(AdaptiveSampler(config), asked)
    assert asked.confidence_BN is not None
    drawn = [take(asked.confidence_BN[..., None], p.positions_BK) for p in plan.steps if not p.step.redraw]
    assert len(drawn) <= steps
    for earlier, later in pairwise(drawn):
        assert (earlier.amin(dim=1) >= later.amax(dim=1)).all()
    again = [planned.positions_BK for planned in plan.steps if planned.step.redraw]
    count = round(config.redraw * total)
    assert [p.shape[1] for p in again] == ([count] if count else [])
    if count:
        assert plan.steps[-1].step.redraw
        least = torch.cat(drawn, dim=1).sort(dim=1).values[:, :count]
        assert torch.equal(take(asked.confidence_BN[..., None], again[0]).sort(dim=1).values, least)


def test_steps_are_shared_out_as_the_settings_say() -> None:
    plan = AdaptiveSampler(AdaptiveConfig(0.5, 2, 3, 0.25)).plan(evolve(task(0), head_steps=7), noise=Noise.seeded(0))
    assert [p.positions_BK.shape[1] for p in plan.steps] == [4, 4, 2, 2, 2, 2, 4]
    assert [p.step.head_steps for p in plan.steps] == [3, 3, 7, 7, 7, 7, 7]
    single = AdaptiveSampler(AdaptiveConfig(0.5, 2, 3)).plan(task(0, steps=1), noise=Noise.seeded(0))
    assert [(p.positions_BK.shape[1], p.step.head_steps) for p in single.steps] == [(16, None)]


@given(configs, st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_an_image_is_planned_for_whatever_shares_its_batch(config: AdaptiveConfig, seed: int) -> None:
    asked = task(seed)
    assert asked.confidence_BN is not None
    other = evolve(asked, confidence_BN=torch.cat([asked.confidence_BN[:1], asked.confidence_BN[1:].flip(1) - 1]))
    plans = [AdaptiveSampler(config).plan(each, noise=Noise.seeded(seed)) for each in (asked, other)]
    for a, b in zip(plans[0].steps, plans[1].steps, strict=True):
        assert a.step == b.step and torch.equal(a.positions_BK[:1], b.positions_BK[:1])


def test_equally_sure_codes_are_drawn_in_a_random_order() -> None:
    same = evolve(task(0), confidence_BN=torch.zeros(3, 16))
    plans = [AdaptiveSampler(AdaptiveConfig()).plan(same, noise=Noise.seeded(seed)) for seed in (1, 2)]
    assert not torch.equal(plans[0].steps[0].positions_BK, plans[1].steps[0].positions_BK)


# -------------------------------------------------------------------- inside a MixAR


class UnsurePrior(UniformPrior):
    """Draws as it is told, and is less sure of every token than of the one before."""

    def _with_confidence(self, drawn: DrawnCodes) -> DrawnCodes:
        shape = drawn.codes_BN.shape
        return DrawnCodes(drawn.codes_BN, -torch.arange(16.0).expand(shape), truth_BN=torch.full(shape, -20.0))

    def sample_steps(self, *args, **kwargs):
        yield from map(self._with_confidence, super().sample_steps(*args, **kwargs))

    def predict(self, *args, **kwargs) -> DrawnCodes:
        return self._with_confidence(super().predict(*args, **kwargs))


def adaptive_mixar(config: AdaptiveConfig | None = None) -> MixAR:
    model = small_mixar("dc-mix")
    model.trained["injector"] = injector()
    model.sampler = AdaptiveSampler(config or AdaptiveConfig(0.5, 1, 3, 0.25))
    model.prior = UnsurePrior(layout=GRID, codebook_size=8, num_classes=5)
    return model


def test_the_injector_is_told_what_is_known_and_how_sure_the_prior_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, told = adaptive_mixar().eval(), []
    forward = AdaptiveDCMix.forward
    monkeypatch.setattr(AdaptiveDCMix, "forward", lambda self, tokens: (told.append(tokens), forward(self, tokens))[1])
    model.generate(Condition(torch.arange(2)), settings=SamplingConfig(steps=3), noise=Noise.seeded(0))
    assert [t.known for t in told] == [0.0, 0.5, 0.75, 0.75]  # the last: four tokens forgotten
    assert all(t.confidence_BN is not None and torch.equal(t.confidence_BN[0], -torch.arange(16.0)) for t in told)


def test_a_redrawn_token_is_unknown_to_the_head_while_it_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = adaptive_mixar().eval(), []
    sample = type(model.head).sample

    def looking(self, z, step, *, noise):
        seen.append((step.redraw, z.known_BN.gather(1, z.positions_BK).any().item(), z.known_BN.sum().item()))
        return sample(self, z, step, noise=noise)

    monkeypatch.setattr(type(model.head), "sample", looking)
    steps = model.generation_steps(Condition(torch.arange(2)), settings=SamplingConfig(steps=3), noise=Noise.seeded(0))
    states = list(steps)
    assert seen == [(False, False, 0), (False, False, 16), (False, False, 24), (True, False, 24)]
    assert states[-1].known_BN.all() and not torch.equal(states[-1].latents_BChw, states[-2].latents_BChw)
    same = (states[-1].latents_BChw == states[-2].latents_BChw).flatten(2).all(dim=1)
    assert torch.equal(same[0], torch.arange(16) < 12)  # the four least sure alone


def test_what_is_kept_is_never_redrawn() -> None:
    model = adaptive_mixar(AdaptiveConfig(redraw=1.0)).eval()
    latents_BChw, positions_BK = torch.randn(2, 3, 4, 4), torch.tensor([[0, 5, 15], [3, 4, 9]])
    kept = Kept(latents_BChw, positions_BK)
    drawn = model.generate(Condition(torch.arange(2)), settings=SamplingConfig(), noise=Noise.seeded(0), kept=kept)
    before, after = (take(model.patchify(x), positions_BK) for x in (latents_BChw, drawn.latents_BChw))
    assert torch.equal(before, after)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_mixed_codes_carry_the_confidence_of_what_stands_there(lam: float) -> None:
    model, codes_BN = adaptive_mixar(), torch.zeros(2, 16, dtype=torch.int64)
    split = split_by_order(torch.arange(16).expand(2, -1), 12)
    condition = Condition(torch.arange(2))
    mixed = model.mixed_codes(codes_BN, split, condition, lam=lam, noise=Noise.seeded(0))
    said, by_position = mixed.confidence_BN, -torch.arange(16.0).expand(2, -1)
    assert said is not None
    true_BN, masked_BN = said == -20.0, split.masked_BN
    assert torch.equal(said[masked_BN & ~true_BN], by_position[masked_BN & ~true_BN])
    assert true_BN[~masked_BN].all() and not mixed.codes_BN[true_BN].any()
    assert (true_BN & masked_BN).any() == (lam > 0) and (masked_BN & ~true_BN).any() == (lam < 1)


def test_ti_mix_teaches_the_gate() -> None:
    model = adaptive_mixar()
    images = Noise.seeded(0).uniform((4, 3, 16, 16), "cpu") * 2 - 1
    assert model.discrete_tokenizer is not None
    batch = TokenBatch(
        model.continuous_tokenizer.encode(images), model.discrete_tokenizer.encode(images), torch.arange(4)
    )
    model.loss(batch, lam=0.5, noise=Noise.seeded(0)).total.backward()
    gate_net = model.injector.get_submodule("gate_net")
    assert all(p.grad is not None for p in model.trained.parameters())
    weight = gate_net.get_parameter("2.weight")
    assert weight.grad is not None and weight.grad.any()

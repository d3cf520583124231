"""The conversation of sampling in any order and any groups, with the shipped backbones; and the whole loop's draws."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixar_core import MASKED_CODE, Backbone, Condition, Grid, Guidance, MaskSplit, Noise, Step, TokenLayout
from mixar_core.masking import random_orders, take
from mixar_core.model import Kept, SamplingConfig
from mixar_core.testing.common import near
from mixar_plugins.backbones.causal import CausalBackbone, CausalConfig
from mixar_plugins.backbones.masked import MaskedBackbone, MaskedConfig
from tests.toys import small_mixar

LAYOUT = TokenLayout("grid", (Grid(3, 4),))
SIZES = {"layout": LAYOUT, "token_dim": 2, "num_classes": 3}
SMALL = {"width": 16, "depth": 2, "heads": 2, "buffer": 2}


@pytest.fixture(scope="module", params=["masked", "causal", "causal-learned"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    if request.param == "masked":
        return MaskedBackbone(MaskedConfig(**SMALL), **SIZES).eval()
    positions = "learned" if request.param == "causal-learned" else "rotary"
    return CausalBackbone(CausalConfig(**SMALL, positions=positions), **SIZES).eval()


def groups(draw: st.DrawFn, count: int) -> list[int]:
    """Sizes, 1 and more, that add up to a count."""
    ends = sorted(draw(st.sets(st.integers(1, count - 1), max_size=4))) if count > 1 else []
    return [b - a for a, b in zip([0, *ends], [*ends, count], strict=True)]


@st.composite
def talks(draw: st.DrawFn) -> tuple[int, int, list[int], list[int]]:
    """A seed, how many tokens are known in the end, and two ways to group them."""
    known = draw(st.integers(1, LAYOUT.tokens - 1))
    return draw(st.integers(0, 99)), known, groups(draw, known), groups(draw, known)


@settings(max_examples=25, deadline=None)
@given(talks())
@torch.no_grad()
def test_what_is_known_decides_in_whichever_groups_it_became_known(
    backbone: Backbone, talk: tuple[int, int, list[int], list[int]]
) -> None:
    """z of what is left, after revealing in two groupings, and as `forward` says it with the same tokens known."""
    seed, known, one, other = talk
    noise = Noise.seeded(seed)
    order_BN = random_orders(2, LAYOUT.tokens, noise=noise, device="cpu")
    tokens_BNC = noise.normal((2, LAYOUT.tokens, 2), "cpu")
    condition, rest_BK = Condition(torch.tensor([0, 2])), order_BN[:, known:]

    def told(sizes: list[int], *, asking: bool) -> Tensor:
        state = backbone.start(condition, Guidance(), guided=True)
        for positions_BK in order_BN[:, :known].split(sizes, dim=1):
            if asking:
                state.predict(positions_BK, Step(cfg=2.0))
            state.reveal(positions_BK, take(tokens_BNC, positions_BK))
        z = state.predict(rest_BK, Step(cfg=2.0))
        assert z.uncond_BKD is not None
        return torch.stack([z.cond_BKD, z.uncond_BKD])

    first = told(one, asking=True)
    assert near(told(other, asking=False), first, rtol=1e-5)
    # the first token that is left knows exactly what is known, in training as in sampling
    split = MaskSplit(visible_BU=order_BN[:, :known], masked_BK=rest_BK)
    for condition_of, said in ((condition, first[0]), (condition.dropped(torch.ones(2, dtype=torch.bool)), first[1])):
        trained = backbone(tokens_BNC, split, condition_of, Guidance())
        sure = slice(None) if backbone.masks else slice(1)
        assert near(trained[:, sure], said[:, sure], rtol=1e-5)


@pytest.mark.parametrize("name", ["none", "dc-mix", "dc-sa", "dc-ca"])
def test_the_whole_loop_draws_from_noise_alone(name: str) -> None:
    model, before = small_mixar(name).eval(), torch.get_rng_state()
    given_BN = torch.full((2, 16), MASKED_CODE)
    given_BN[:, :5] = 3
    kept = Kept(torch.ones(2, 3, 4, 4), torch.tensor([[0, 1, 9], [3, 4, 5]]))
    settings = SamplingConfig(steps=3, cfg=2.0)

    def drawn(seed: int) -> Tensor:
        found = model.generate(
            Condition(torch.tensor([0, 1])), settings=settings, noise=Noise.seeded(seed), given_BN=given_BN, kept=kept
        )
        return found.latents_BChw

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(take(model.patchify(drawn(0)), kept.positions_BK), torch.ones(2, 3, 3))

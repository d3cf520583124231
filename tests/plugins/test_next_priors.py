"""Priors that draw codes one after the other: contracts, the cache against one pass, filters, what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from mixar.plugins import plugin_manager
from mixar_core.errors import UserError
from mixar_core.mixture import MASKED_CODE
from mixar_core.noise import Noise
from mixar_core.testing import check_prior
from mixar_core.types import Condition
from mixar_plugins.priors.next import NextPrior, filtered

TINY = {"width": 16, "depth": 2, "heads": 2}
VQ = {"channels": 8, "channel_multipliers": (1, 1), "blocks": 1, "codebook_size": 16, "code_width": 4, "norm": "none"}
SETTINGS: dict[str, dict[str, Any]] = {
    "llamagen": {"multiple_of": 8, "top_k": 12, "top_p": 0.9, "guidance_interval": 1},
    "randar": {"multiple_of": 8, "steps": 4},
    "magvit2": {"multiple_of": 8, "first_bits": 1, "factorised_depth": 1, "top_k": 2},
    "rar": {"mlp_dim": 32, "shuffled": 0.5},
    "var": {"top_k": 12},
    "var, smooth": {"top_k": 12, "smooth": True},
    "hart": {"top_k": 12, "smooth": False, "context_width": 6, "mlp_width": 24},
}


def make(name: str, **settings: Any) -> Callable[[], NextPrior]:
    """A small prior over codes on a grid of 2 x 3, or in a pyramid."""
    registry, kind = plugin_manager(), name.split(",")[0]

    def built() -> NextPrior:
        pyramid = {"scales": ((1, 1), (1, 2), (2, 3)), "smoothing": 2} if kind in ("var", "hart") else {}
        part = registry.part("prior", kind)
        tokenizer_part = registry.part("discrete-tokenizer", "pyramid" if pyramid else "vq")
        with torch.random.fork_rng():
            torch.manual_seed(0)  # whose vectors VAR's prior sees: a part of its input, not of its weights
            tokenizer = tokenizer_part.component(tokenizer_part.config(**VQ, **pyramid), image_size=(4, 6)).eval()
        return part.component(part.config(**TINY, **SETTINGS[name], **settings), tokenizer=tokenizer, num_classes=3)

    return built


@pytest.mark.parametrize("name", SETTINGS)
def test_it_keeps_the_contract(name: str) -> None:
    assert make(name)().predicts == (name == "randar")
    check_prior(make(name))


@pytest.mark.parametrize("name", sorted(SETTINGS.keys() - {"randar"}))  # draws several at once, in an order of its own
@torch.no_grad()
def test_codes_drawn_with_a_cache_are_those_of_one_pass(name: str) -> None:
    """The log-probabilities of drawn codes, unguided and unfiltered, sum to the loss of these codes."""
    prior = make(name, class_dropout=0.0)().eval()
    plain: dict[str, Any] = (
        {"smooth": False} if name[:3] in ("var", "har") else {"shuffled": 0.0} if name == "rar" else {}
    )
    prior.config = evolve(prior.config, top_k=0, top_p=1.0, **plain)
    condition = Condition(torch.tensor([0, 2]))
    drawn = prior.sample(condition, noise=Noise.seeded(1), cfg=0.0 if name[:3] in ("var", "rar", "har") else 1.0)
    assert drawn.confidence_BN is not None
    loss = prior.loss(drawn.codes_BN, condition, noise=Noise.seeded(0)).total
    torch.testing.assert_close(-drawn.confidence_BN.mean(), loss, rtol=1e-4, atol=1e-5)


def test_codes_that_come_later_are_refused() -> None:
    for name in ("llamagen", "var"):
        prior = make(name)()
        given_BN = torch.full((1, prior.layout.tokens), MASKED_CODE)
        given_BN[0, -1] = 1
        with pytest.raises(UserError, match="in one order"):
            prior.sample(Condition(torch.tensor([0])), noise=Noise.seeded(0), given_BN=given_BN)


def test_a_prior_of_scales_refuses_a_grid() -> None:
    part, tokenizer_part = plugin_manager().part("prior", "var"), plugin_manager().part("discrete-tokenizer", "vq")
    tokenizer = tokenizer_part.component(tokenizer_part.config(**VQ), image_size=4)
    with pytest.raises(UserError, match="choose a pyramid tokenizer"):
        part.component(part.config(**TINY), tokenizer=tokenizer, num_classes=3)


@given(st.integers(0, 2**31), st.integers(1, 9), st.floats(0.05, 0.99))
def test_filters_leave_the_likeliest_and_no_more_than_they_must(seed: int, top_k: int, top_p: float) -> None:
    logits_V = torch.randn(9, generator=torch.Generator().manual_seed(seed)) * 3
    ranked = logits_V.softmax(dim=0).sort(descending=True).values
    by_k, by_p = (filtered(logits_V, **kept).isfinite() for kept in ({"top_k": top_k}, {"top_p": top_p}))
    assert by_k.sum() == top_k
    assert by_k[logits_V.argmax()] and by_p[logits_V.argmax()]
    kept = int(by_p.sum())
    assert ranked[: kept - 1].sum() <= top_p + 1e-5  # without the last of them it is not enough
    assert kept == 9 or ranked[:kept].sum() > top_p - 1e-5

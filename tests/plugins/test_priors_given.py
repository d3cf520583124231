"""Codes that are given to a prior's sampler: they stay, and all others are drawn to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixar_core.mixture import MASKED_CODE
from mixar_core.noise import Noise
from mixar_core.types import Condition
from mixar_plugins.priors import masked
from mixar_plugins.priors.masked import MaskedTransformerPrior
from mixar_plugins.priors.masked_transformer import BitTokenPrior, EmbeddingTokenPrior, MaskBitConfig
from tests.toys import SignTokenizer

TOKENS, CODES = 16, 8


def make(cls: type[MaskedTransformerPrior] = BitTokenPrior, **changes) -> MaskedTransformerPrior:
    torch.manual_seed(0)
    sizes = {"bits": 3, "stride": 4, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 16, "steps": 5, "splits": 3}
    prior = cls(MaskBitConfig(**{**sizes, **changes}), tokenizer=SignTokenizer(), num_classes=2).eval()
    for parameter in prior.parameters():  # so that logits are not flat
        torch.nn.init.normal_(parameter, std=0.5)
    return prior


def some_codes(seed: int, *shares: float) -> Tensor:
    """Two rows of codes, of which about this share is given, or these."""
    generator = torch.Generator().manual_seed(seed)
    codes_BN = torch.randint(CODES, (2, TOKENS), generator=generator)
    absent_BN = torch.rand(2, TOKENS, generator=generator) >= torch.tensor(shares)[:, None]
    return codes_BN.masked_fill(absent_BN, MASKED_CODE)


@settings(max_examples=25)
@given(
    st.integers(0, 2**31),
    st.tuples(*[st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])] * 2),
    st.integers(1, 70),
    st.sampled_from([1, 3]),
    st.sampled_from([BitTokenPrior, EmbeddingTokenPrior]),
)
def test_given_codes_stay_at_every_step_and_the_others_are_drawn(seed, shares, steps, splits, cls) -> None:
    given_BN = some_codes(seed, *shares)
    known_BN = given_BN != MASKED_CODE
    prior, condition = make(cls, splits=splits), Condition(torch.tensor([0, 1]))
    seen, before_BN = (
        list(prior.sample_steps(condition, noise=Noise.seeded(seed), steps=steps, given_BN=given_BN)),
        given_BN,
    )
    for drawn in seen:
        assert torch.equal(drawn.codes_BN[known_BN], given_BN[known_BN])
        assert not drawn.confidence_BN[known_BN].any()
        fixed_BN = before_BN != MASKED_CODE
        assert torch.equal(drawn.codes_BN[fixed_BN], before_BN[fixed_BN])
        before_BN = drawn.codes_BN
    assert seen[-1].codes_BN.min() >= 0 and seen[-1].codes_BN.max() < CODES
    assert (seen[-1].confidence_BN[~known_BN] < 0).all() and seen[-1].confidence_BN.isfinite().all()
    assert len(seen) == min(steps, splits * TOKENS)


@pytest.mark.parametrize("cls", [BitTokenPrior, EmbeddingTokenPrior])
def test_every_prediction_sees_the_given_codes(cls, monkeypatch: pytest.MonkeyPatch) -> None:
    prior, given_BN, seen = make(cls), some_codes(1, 0.5), []
    forward = prior.forward
    monkeypatch.setattr(prior, "forward", lambda tokens, labels: seen.append(tokens) or forward(tokens, labels))
    prior.sample(Condition(torch.tensor([0, 1])), noise=Noise.seeded(2), cfg=0.0, given_BN=given_BN)
    known_BN = given_BN != MASKED_CODE
    entries_BNS = prior._entries(given_BN.clamp(min=0))
    assert len(seen) == 5
    for tokens_BNS in seen:
        assert torch.equal(tokens_BNS[known_BN], entries_BNS[known_BN])
    assert (seen[0][~known_BN] == prior.mask_token).all()


@settings(max_examples=20)
@given(
    st.integers(0, 2**31),
    st.tuples(*[st.sampled_from([0.5, 0.95, 1.0])] * 2),
    st.integers(1, 60),
    st.sampled_from([1, 3]),
    st.sampled_from(["confidence", "halton"]),
)
def test_a_step_that_fixes_nothing_does_not_ask_the_network_and_draws_the_same(seed, shares, steps, splits, order):
    """Beside many given codes most steps keep nothing of what they draw: the codes are those of asking every time."""
    prior, condition, given_BN = (
        make(splits=splits, order=order),
        Condition(torch.tensor([0, 1])),
        some_codes(seed, *shares),
    )
    drawn, asked = [], []
    forward, fixing = prior.forward, masked._fixing
    prior.forward = lambda *inputs: asked.append(1) or forward(*inputs)
    for every in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(masked, "_fixing", (lambda counts, *_: [True] * len(counts)) if every else fixing)
            asked.clear()
            seen = list(
                prior.sample_steps(condition, noise=Noise.seeded(seed), steps=steps, cfg=0.0, given_BN=given_BN)
            )
        drawn.append((len(asked), seen))
    (few, lean), (all_of_them, full) = drawn
    fixed = [int((step.codes_BN == MASKED_CODE).sum()) for step in lean]
    assert few <= all_of_them == len(full) == len(lean) and (shares != (1.0, 1.0) or few == 0 < all_of_them)
    assert few <= splits * int((given_BN == MASKED_CODE).sum()) and fixed[-1] == 0
    assert all(torch.equal(one.codes_BN, other.codes_BN) for one, other in zip(lean, full, strict=True))
    assert torch.equal(lean[-1].confidence_BN, full[-1].confidence_BN)


def test_one_step_without_noise_is_the_likeliest_given_the_given() -> None:
    prior, condition = make(splits=1), Condition(torch.tensor([0, 1]))
    confidences = []
    for seed in (1, 2):
        given_BN = some_codes(seed, 1.0)
        given_BN[:, 5:9] = MASKED_CODE
        drawn = prior.sample(condition, noise=Noise.seeded(0), steps=1, cfg=0.0, temperature=0.0, given_BN=given_BN)
        tokens_BNS = given_BN.masked_fill(given_BN == MASKED_CODE, prior.mask_token)[..., None]
        best = prior(tokens_BNS, condition.labels_B)[:, 5:9, 0].log_softmax(dim=-1).max(dim=-1)
        assert torch.equal(drawn.codes_BN[:, 5:9], best.indices)
        torch.testing.assert_close(drawn.confidence_BN[:, 5:9], best.values)
        confidences.append(best.values)
    assert (confidences[0] != confidences[1]).all(), "other neighbours, other chances"


def test_nothing_given_is_as_without_and_what_is_given_conditions_the_rest() -> None:
    prior, condition = make(), Condition(torch.tensor([0, 1]))
    nothing_BN = torch.full((2, TOKENS), MASKED_CODE)
    one, other = (prior.sample(condition, noise=Noise.seeded(3), given_BN=codes) for codes in (None, nothing_BN))
    assert torch.equal(one.codes_BN, other.codes_BN)
    rest = []
    for code in (0, CODES - 1):
        given_BN = nothing_BN.clone()
        given_BN[:, : TOKENS // 2] = code
        drawn = prior.sample(condition, noise=Noise.seeded(1), given_BN=given_BN)
        rest.append(drawn.codes_BN[:, TOKENS // 2 :])
    assert not torch.equal(*rest)

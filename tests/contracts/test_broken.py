"""The contracts catch what they are there for: a component with one thing wrong fails with a telling message."""

from __future__ import annotations

import re
from collections.abc import Iterator

import attrs
import pytest
import torch
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead
from mixar_core.injector import GuidanceInjector
from mixar_core.noise import Noise
from mixar_core.prior import DiscretePrior
from mixar_core.testing import (
    check_continuous_tokenizer,
    check_discrete_tokenizer,
    check_head,
    check_injector,
    check_prior,
)
from mixar_core.types import (
    Condition,
    DiscreteTokens,
    DrawnCodes,
    Grid,
    Guidance,
    Losses,
    Posterior,
    Quantized,
    Step,
    TokenLayout,
    Z,
)
from tests.toys import PoolTokenizer, SignTokenizer, UniformPrior

WIDTH = 8
LAYOUT = TokenLayout("grid", (Grid(3, 5),))


class Head(ContinuousHead):
    """A normal distribution about a linear map of z: the smallest head there is."""

    def __init__(self) -> None:
        super().__init__()
        self.token_dim = 4
        self.map = nn.Linear(WIDTH, 4)

    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        return (self.map(z.cond_BKD).float() - target_BKC).square().mean(dim=-1)

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        if step.head_steps or step.solver:
            raise UserError("there is one step")
        mean = self.map(z.cond_BKD).float()
        if z.uncond_BKD is not None:
            mean = mean + (step.cfg - 1) * (mean - self.map(z.uncond_BKD))
        return mean + step.temperature * noise.normal(mean.shape, mean.device)


class GlobalRandom(Head):
    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        torch.rand(1)
        return super().sample(z, step, noise=noise)


class HalfPrecision(Head):
    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        return super().loss(z, target_BKC, noise=noise).to(z.cond_BKD.dtype)


class InPlace(Head):
    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        return super().sample(z._replace(cond_BKD=z.cond_BKD.mul_(2)), step, noise=noise)


class Detached(Head):
    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        return super().loss(z._replace(cond_BKD=z.cond_BKD.detach()), target_BKC, noise=noise)


class Deaf(Head):
    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        return super().sample(z, step, noise=Noise.seeded(7))


class Mean(Head):
    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        return super().sample(z, attrs.evolve(step, temperature=0.0), noise=noise)


class Unguided(Head):
    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        return super().sample(z._replace(uncond_BKD=None), step, noise=noise)


class AnySolver(Head):
    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        return super().sample(z, attrs.evolve(step, solver=None), noise=noise)


class Neighbours(Head):
    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        return super().sample(z._replace(cond_BKD=z.cond_BKD - z.cond_BKD.mean(dim=0)), step, noise=noise)


class OfOneShape(Head):
    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        return super().sample(z, step, noise=noise).flatten(0, 1)


class Unsaved(Head):
    def __init__(self) -> None:
        super().__init__()
        self.secret = torch.randn(4)

    def sample(self, z: Z, step: Step, *, noise: Noise) -> Tensor:
        return super().sample(z, step, noise=noise) + self.secret.to(z.cond_BKD.device)


class Unused(Head):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class ValueDependent(Head):
    def loss(self, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        return super().loss(z, target_BKC, noise=noise) * (2.0 if z.cond_BKD.sum().item() > 0 else 1.0)


def test_the_smallest_head_passes() -> None:
    check_head(Head, width=WIDTH, layout=LAYOUT)
    check_head(Mean, width=WIDTH, layout=LAYOUT, deterministic=True)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (GlobalRandom, "torch's global generator"),
        (HalfPrecision, "loss under autocast is torch.bfloat16"),
        (InPlace, "argument cond_BKD was changed"),
        (Detached, "input 0 gets no gradient"),
        (Deaf, "another seed, yet the same sample"),
        (Deaf, "a head that draws nothing says `deterministic = True`"),
        (Mean, "another seed, yet the same sample"),
        (Unguided, "guided, yet the sample is the same"),
        (AnySolver, "a solver that nobody knows"),
        (Neighbours, "sample: it depends on what shares the batch"),
        (OfOneShape, "sample has shape (30, 4), not (3, 10, 4)"),
        (Unsaved, "same state dict differs"),
        (Unused, "spare.weight gets no gradient"),
    ],
)
def test_a_broken_head_fails(broken: type[Head], message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_head(broken, width=WIDTH, layout=LAYOUT)


def test_shapes_must_not_depend_on_values() -> None:
    with pytest.raises(RuntimeError, match=r"meta.*`meta_safe = False`, and keeps this contract; recipes find it by"):
        check_head(ValueDependent, width=WIDTH, layout=LAYOUT)


class Injector(GuidanceInjector):
    opens = frozenset({"fill"})

    def __init__(self, tokenizer: SignTokenizer | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(8, WIDTH)
        if tokenizer is not None:
            self.tokenizer = tokenizer

    def forward(self, tokens: DiscreteTokens) -> Guidance:
        return Guidance(fill_BND=self.table(tokens.codes_BN))


class OtherDoor(Injector):
    opens = frozenset({"prefix"})


class Follower(Injector):
    """Trusts codes less the more is known, and those less that are not certain."""

    follows = True

    def forward(self, tokens: DiscreteTokens) -> Guidance:
        fill_BND = self.table(tokens.codes_BN) * (1 - tokens.known)
        if tokens.confidence_BN is not None:
            fill_BND = fill_BND * tokens.confidence_BN.exp()[..., None]
        return Guidance(fill_BND=fill_BND)


class Unfollowed(Follower):
    follows = False


class Ignorant(Injector):
    follows = True


class Distrustful(Injector):
    def forward(self, tokens: DiscreteTokens) -> Guidance:
        trust = 0.5 if tokens.confidence_BN is None else 1.0
        return Guidance(fill_BND=self.table(tokens.codes_BN) * trust)


class Blind(Injector):
    def forward(self, tokens: DiscreteTokens) -> Guidance:
        return Guidance(fill_BND=self.table(torch.zeros_like(tokens.codes_BN)))


def test_broken_injectors_fail() -> None:
    tokenizer = SignTokenizer()
    for good in (Injector, Follower):
        check_injector(good, tokenizer=tokenizer, width=WIDTH)
    for make, message in (
        (lambda: Injector(tokenizer), "registered as its submodule tokenizer"),
        (OtherDoor, "opens ['fill'] but announces ['prefix']"),
        (Blind, "other codes, yet the same guidance"),
        (Unfollowed, "it looks at the share known, yet does not follow it"),
        (Ignorant, "it follows the sampling (`follows`), yet ignores the share known"),
        (Distrustful, "no confidence is not as certain codes"),
    ):
        with pytest.raises(AssertionError, match=re.escape(message)):
            check_injector(make, tokenizer=tokenizer, width=WIDTH)
    with pytest.raises(AssertionError, match=re.escape("fill has shape (3, 16, 8), not (3, 16, 9)")):
        check_injector(Injector, tokenizer=tokenizer, width=9)


class Embedded(Injector):
    opens = frozenset({"prefix"})

    def forward(self, tokens: DiscreteTokens) -> Guidance:
        return Guidance(prefix_BPD=self.table(tokens.codes_BN))


class Placed(Embedded):
    """Counts on codes that have a place."""

    def forward(self, tokens: DiscreteTokens) -> Guidance:
        length = tokens.on_grid_BNE.shape[1]
        return Guidance(prefix_BPD=self.table(tokens.codes_BN)[:, :length])


class SequenceOfSigns(SignTokenizer):
    @property
    def layout(self) -> TokenLayout:
        return TokenLayout("sequence", (Grid(1, 16),))


def test_codes_without_a_place_come_in_through_a_prefix_only() -> None:
    tokenizer = SequenceOfSigns()
    check_injector(Embedded, tokenizer=tokenizer, width=WIDTH)
    with pytest.raises(AssertionError, match="opens the door fill, and codes in a sequence of 16 have no place"):
        check_injector(Injector, tokenizer=tokenizer, width=WIDTH)
    with pytest.raises(AttributeError, match="NoneType"):
        check_injector(Placed, tokenizer=tokenizer, width=WIDTH)


class Meddling(UniformPrior):
    def predict(self, codes_BN: Tensor, masked_BN: Tensor, condition: Condition, *, noise: Noise) -> DrawnCodes:
        return DrawnCodes(noise.integers(self.codebook_size, codes_BN.shape, codes_BN.device))


class Peeking(UniformPrior):
    def predict(self, codes_BN: Tensor, masked_BN: Tensor, condition: Condition, *, noise: Noise) -> DrawnCodes:
        return DrawnCodes(codes_BN)


class Changed(UniformPrior):
    """Draws something else than the right thing."""

    def sample_steps(self, condition: Condition, *, given_BN=None, **settings) -> Iterator[DrawnCodes]:
        for drawn in super().sample_steps(condition, given_BN=given_BN, **settings):
            yield self.changed(drawn, condition, given_BN)

    def changed(self, drawn: DrawnCodes, condition: Condition, given_BN: Tensor | None) -> DrawnCodes:
        return drawn


class Sharing(Changed):
    def changed(self, drawn: DrawnCodes, condition: Condition, given_BN: Tensor | None) -> DrawnCodes:
        codes_BN = (drawn.codes_BN + len(condition)) % self.codebook_size
        return DrawnCodes(codes_BN if given_BN is None else torch.where(given_BN < 0, codes_BN, given_BN))


class Overwriting(Changed):
    def changed(self, drawn: DrawnCodes, condition: Condition, given_BN: Tensor | None) -> DrawnCodes:
        return DrawnCodes((drawn.codes_BN + 1) % self.codebook_size)


class Pasting(UniformPrior):
    """It has learned something, yet given codes only replace what it drew."""

    def __init__(self, **sizes) -> None:
        super().__init__(**sizes)
        self.weight = nn.Parameter(torch.ones(()))

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        return Losses(self.weight.square())


class Probability(Changed):
    def changed(self, drawn: DrawnCodes, condition: Condition, given_BN: Tensor | None) -> DrawnCodes:
        return DrawnCodes(
            drawn.codes_BN, torch.full(drawn.codes_BN.shape, 1 / self.codebook_size, device=drawn.codes_BN.device)
        )


class Doubting(Changed):
    def changed(self, drawn: DrawnCodes, condition: Condition, given_BN: Tensor | None) -> DrawnCodes:
        device = drawn.codes_BN.device
        return DrawnCodes(drawn.codes_BN, torch.full(drawn.codes_BN.shape, -1 / self.codebook_size, device=device))


class Bare(UniformPrior):
    def sample(self, condition: Condition, **settings):
        return super().sample(condition, **settings).codes_BN


class Unfinished(UniformPrior):
    """What it samples is not what its steps end with."""

    def sample_steps(self, condition: Condition, **settings) -> Iterator[DrawnCodes]:
        for drawn in super().sample_steps(condition, **settings):
            yield drawn
            yield DrawnCodes(drawn.codes_BN.flip(1) if settings.get("given_BN") is None else drawn.codes_BN)

    def sample(self, condition: Condition, **settings) -> DrawnCodes:
        return next(self.sample_steps(condition, **settings))


class Inventing(UniformPrior):
    """Given nothing is not as without `given_BN`."""

    def sample_steps(self, condition: Condition, *, given_BN=None, **settings) -> Iterator[DrawnCodes]:
        for drawn in super().sample_steps(condition, **settings):
            codes_BN = drawn.codes_BN
            yield drawn if given_BN is None else DrawnCodes(torch.where(given_BN < 0, codes_BN.flip(1), given_BN))


class WithoutPredict(UniformPrior):
    """A prior without a mask token: it defines no `predict`."""

    predict = DiscretePrior.predict


def test_broken_priors_fail() -> None:
    sizes = {"layout": SignTokenizer().layout, "codebook_size": 8, "num_classes": 5}
    for good in (UniformPrior, WithoutPredict):
        check_prior(lambda good=good: good(**sizes))
    for broken, message in (
        (Meddling, "changes codes that are not masked"),
        (Peeking, "must not see"),
        (Sharing, "how many processes share the batch"),
        (Overwriting, "changes codes that are given"),
        (Pasting, "other codes are given, yet the drawn ones are the same"),
        (Probability, "sample's confidence reaches from 0.125"),
        (Doubting, "confidence in codes that it was given is not 0"),
        (Bare, "gives a Tensor, not DrawnCodes"),
        (Unfinished, "the last of sample_steps is not what sample gives"),
        (Inventing, "not as without `given_BN`"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_prior(lambda broken=broken: broken(**sizes))


class Unclamped(PoolTokenizer):
    def decode(self, latents_BChw: Tensor) -> Tensor:
        return 3 * super().decode(latents_BChw)


class BatchStatistics(PoolTokenizer):
    def posterior(self, images_B3HW: Tensor) -> Posterior:
        found = super().posterior(images_B3HW)
        return Posterior(found.mean_BChw - images_B3HW.mean(), found.logvar_BChw)


class Shuffled(SignTokenizer):
    def quantize(self, images_B3HW: Tensor) -> Quantized:
        found = super().quantize(images_B3HW)
        return Quantized(found.vectors_BEhw, found.codes_BN.flip(1), found.losses)


def test_broken_tokenizers_fail() -> None:
    check_continuous_tokenizer(PoolTokenizer)
    for broken, message in (
        (Unclamped, "decode reaches from"),
        (BatchStatistics, "depends on what shares its batch"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_continuous_tokenizer(broken)
    with pytest.raises(AssertionError, match="not those of its codes"):
        check_discrete_tokenizer(Shuffled)
    with pytest.raises(AssertionError, match="cannot be differentiated"):
        check_discrete_tokenizer(SignTokenizer)  # its bits pass no gradient

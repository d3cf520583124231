"""The contracts catch what they are there for: a component with one thing wrong fails with a telling message."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from mixar_core.head import ContinuousHead
from mixar_core.injector import GuidanceInjector
from mixar_core.noise import Noise
from mixar_core.testing import (
    check_continuous_tokenizer,
    check_discrete_tokenizer,
    check_head,
    check_injector,
    check_prior,
)
from mixar_core.types import DiscreteTokens, Guidance, Posterior, Quantized
from tests.toys import PoolTokenizer, SignTokenizer, UniformPrior

WIDTH = 8


class Head(ContinuousHead):
    """A normal distribution about a linear map of z: the smallest head there is."""

    def __init__(self) -> None:
        super().__init__()
        self.token_dim = 4
        self.map = nn.Linear(WIDTH, 4)

    def loss(self, z_BKD: Tensor, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        return (self.map(z_BKD).float() - target_BKC).square().mean(dim=-1)

    def sample(self, z_RD, *, z_uncond_RD=None, cfg=1.0, temperature=1.0, steps=None, noise: Noise) -> Tensor:
        mean = self.map(z_RD)
        if z_uncond_RD is not None:
            mean = mean + (cfg - 1) * (mean - self.map(z_uncond_RD))
        return mean + temperature * noise.normal(mean.shape, mean.device)


class GlobalRandom(Head):
    def sample(self, z_RD, **arguments) -> Tensor:
        torch.rand(1)
        return super().sample(z_RD, **arguments)


class HalfPrecision(Head):
    def loss(self, z_BKD: Tensor, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        return (self.map(z_BKD) - target_BKC.to(z_BKD.dtype)).square().mean(dim=-1).to(z_BKD.dtype)


class InPlace(Head):
    def sample(self, z_RD, **arguments) -> Tensor:
        return super().sample(z_RD.mul_(2), **arguments)


class Detached(Head):
    def loss(self, z_BKD: Tensor, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        return super().loss(z_BKD.detach(), target_BKC, noise=noise)


class Unsaved(Head):
    def __init__(self) -> None:
        super().__init__()
        self.secret = torch.randn(4)

    def sample(self, z_RD, **arguments) -> Tensor:
        return super().sample(z_RD, **arguments) + self.secret.to(z_RD.device)


class Unused(Head):
    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


class ValueDependent(Head):
    def loss(self, z_BKD: Tensor, target_BKC: Tensor, *, noise: Noise) -> Tensor:
        return super().loss(z_BKD, target_BKC, noise=noise) * (2.0 if z_BKD.sum().item() > 0 else 1.0)


def test_the_smallest_head_passes() -> None:
    check_head(Head, width=WIDTH)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (GlobalRandom, "torch's global generator"),
        (HalfPrecision, "loss under autocast is torch.bfloat16"),
        (InPlace, "argument z_RD was changed"),
        (Detached, "input 0 gets no gradient"),
        (Unsaved, "same state dict differs"),
        (Unused, "spare.weight gets no gradient"),
    ],
)
def test_a_broken_head_fails(broken: type[Head], message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        check_head(broken, width=WIDTH)


def test_shapes_must_not_depend_on_values() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        check_head(ValueDependent, width=WIDTH)


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


class Blind(Injector):
    def forward(self, tokens: DiscreteTokens) -> Guidance:
        return Guidance(fill_BND=self.table(torch.zeros_like(tokens.codes_BN)))


def test_broken_injectors_fail() -> None:
    tokenizer = SignTokenizer()
    check_injector(Injector, tokenizer=tokenizer, width=WIDTH)
    for make, message in (
        (lambda: Injector(tokenizer), "registered as its submodule tokenizer"),
        (OtherDoor, "opens ['fill'] but announces ['prefix']"),
        (Blind, "other codes, yet the same guidance"),
    ):
        with pytest.raises(AssertionError, match=re.escape(message)):
            check_injector(make, tokenizer=tokenizer, width=WIDTH)
    with pytest.raises(AssertionError, match=re.escape("fill has shape (3, 16, 8), not (3, 16, 9)")):
        check_injector(Injector, tokenizer=tokenizer, width=9)


class Meddling(UniformPrior):
    def predict(self, codes_BN: Tensor, masked_BN: Tensor, labels_B: Tensor, *, noise: Noise) -> Tensor:
        return noise.integers(self.codebook_size, codes_BN.shape, codes_BN.device)


class Peeking(UniformPrior):
    def predict(self, codes_BN: Tensor, masked_BN: Tensor, labels_B: Tensor, *, noise: Noise) -> Tensor:
        return codes_BN


class Sharing(UniformPrior):
    def sample(self, labels_B, *, noise: Noise, steps=None, cfg=None, temperature=None) -> Tensor:
        codes_BN = super().sample(labels_B, noise=noise)
        return (codes_BN + len(labels_B)) % self.codebook_size


def test_broken_priors_fail() -> None:
    sizes = {"grid": SignTokenizer().grid, "codebook_size": 8, "num_classes": 5}
    check_prior(lambda: UniformPrior(**sizes))
    for broken, message in (
        (Meddling, "changes codes that are not masked"),
        (Peeking, "must not see"),
        (Sharing, "how many processes share the batch"),
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

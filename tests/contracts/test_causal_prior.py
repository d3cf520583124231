"""A prior that draws one code after the other keeps the contract of priors without a mask token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from attrs import evolve
from torch import Tensor, nn

from mixar import Part, Registry, UserError, build, load_recipe
from mixar.plugins import Plugin
from mixar_core import (
    MASKED_CODE,
    Condition,
    DiscretePrior,
    DiscreteTokenizer,
    DrawnCodes,
    Grid,
    Losses,
    Noise,
    TokenLayout,
)
from mixar_core.testing import check_prior
from mixar_plugins.injectors.none import NoGuidanceConfig

SIZES = {"codebook_size": 8, "num_classes": 3}
LAYOUTS = [
    TokenLayout("grid", (Grid(2, 3),)),
    TokenLayout("sequence", (Grid(1, 5),)),
    TokenLayout("pyramid", (Grid(1, 1), Grid(2, 2))),
]


class Raster(DiscretePrior):
    """p(code | class, the code before it), both from tables."""

    def __init__(self, *, layout: TokenLayout, codebook_size: int, num_classes: int) -> None:
        super().__init__(layout=layout, codebook_size=codebook_size, num_classes=num_classes)
        self.after = nn.Embedding(codebook_size + 1, codebook_size)  # the last is the beginning
        self.classes = nn.Embedding(num_classes + 1, codebook_size)  # the last is "no class"

    def log_p_BV(self, before_B: Tensor, condition: Condition) -> Tensor:
        labels_B = torch.where(condition.labels_B < 0, self.num_classes, condition.labels_B)
        return (self.after(before_B) + self.classes(labels_B)).log_softmax(dim=-1)

    def sample_steps(
        self, condition: Condition, *, noise: Noise, steps=None, cfg=None, temperature=None, given_BN=None
    ) -> Iterator[DrawnCodes]:
        shape, device = (len(condition), self.layout.tokens), condition.labels_B.device
        uniform_BN = noise.uniform(shape, device)
        codes_BN = torch.full(shape, MASKED_CODE, device=device) if given_BN is None else given_BN
        confidence_BN = torch.zeros(shape, device=device)
        before_B1 = torch.full((shape[0], 1), self.codebook_size, device=device)
        for at in range(shape[1]):
            log_p_BV = self.log_p_BV(before_B1[:, 0], condition)
            drawn_B1 = torch.searchsorted(log_p_BV.exp().cumsum(dim=1), uniform_BN[:, at : at + 1].contiguous())
            drawn_B1 = drawn_B1.clamp(max=self.codebook_size - 1)
            sure_B1 = log_p_BV.gather(1, drawn_B1)
            if given_BN is not None:
                drawn_B1, sure_B1 = self.kept(drawn_B1, sure_B1, given_BN[:, at : at + 1])
            before_B1 = self.next(drawn_B1, before_B1)
            here = torch.full_like(drawn_B1, at)
            codes_BN, confidence_BN = codes_BN.scatter(1, here, drawn_B1), confidence_BN.scatter(1, here, sure_B1)
            yield DrawnCodes(codes_BN, confidence_BN)

    def kept(self, drawn_B1: Tensor, sure_B1: Tensor, given_B1: Tensor) -> tuple[Tensor, Tensor]:
        free_B1 = given_B1 == MASKED_CODE
        return torch.where(free_B1, drawn_B1, given_B1), sure_B1 * free_B1

    def next(self, drawn_B1: Tensor, before_B1: Tensor) -> Tensor:
        """What the next code is drawn from."""
        return drawn_B1

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        before_BN = torch.cat([torch.full_like(codes_BN[:, :1], self.codebook_size), codes_BN[:, :-1]], dim=1)
        log_p = [self.log_p_BV(before_B, condition) for before_B in before_BN.unbind(dim=1)]
        return Losses(-torch.stack(log_p, dim=1).gather(2, codes_BN[..., None]).mean())


class Deaf(Raster):
    """Does not look at the code before: given codes condition nothing."""

    def next(self, drawn_B1: Tensor, before_B1: Tensor) -> Tensor:
        return before_B1


class Sure(Raster):
    """Says how likely a code is, not its logarithm."""

    def kept(self, drawn_B1: Tensor, sure_B1: Tensor, given_B1: Tensor) -> tuple[Tensor, Tensor]:
        return super().kept(drawn_B1, sure_B1.exp(), given_B1)


class Doubts(Raster):
    """Is not certain of what it was given."""

    def kept(self, drawn_B1: Tensor, sure_B1: Tensor, given_B1: Tensor) -> tuple[Tensor, Tensor]:
        return super().kept(drawn_B1, sure_B1, given_B1)[0], sure_B1


class Draws(Raster):
    """Draws again what it was given."""

    def kept(self, drawn_B1: Tensor, sure_B1: Tensor, given_B1: Tensor) -> tuple[Tensor, Tensor]:
        return drawn_B1, super().kept(drawn_B1, sure_B1, given_B1)[1]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_prior_without_a_mask_token_keeps_the_contract_in_every_layout(layout: TokenLayout) -> None:
    assert not Raster(layout=layout, **SIZES).predicts
    check_prior(lambda: Raster(layout=layout, **SIZES))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (Deaf, "other codes are given, yet the drawn ones are the same"),
        (Sure, "confidence reaches from .*, outside"),
        (Doubts, "confidence in codes that it was given is not 0"),
        (Draws, "sample_steps changes codes that are given"),
    ],
)
def test_what_it_does_with_given_codes_is_checked(broken: type[Raster], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_prior(lambda: broken(layout=LAYOUTS[0], **SIZES))


class RasterPart(Raster):
    """As a recipe builds it."""

    def __init__(self, config: object, *, tokenizer: DiscreteTokenizer, num_classes: int, data: object) -> None:
        super().__init__(layout=tokenizer.layout, codebook_size=tokenizer.codebook_size, num_classes=num_classes)


def test_a_recipe_without_ti_mix_takes_it_and_one_with_says_what_to_set(registry: Registry, family: Path) -> None:
    part = Part("prior", "raster", RasterPart, NoGuidanceConfig)
    registry = evolve(registry, plugins=(Plugin("mine", "mine 1.0", parts=(part,)), *registry.plugins))
    path, chosen = family / "recipes/mixar.yaml", {"prior": {"type": "raster"}}
    assert build(load_recipe(path, chosen, registry=registry), registry, meta=True).prior is not None
    mixed = load_recipe(path, {**chosen, "ti_mix.schedule": "linear"}, registry=registry)
    with pytest.raises(UserError, match=r"ti_mix and prior \(raster\) .* cannot predict .*; set ti_mix=null"):
        build(mixed, registry, meta=True)
    plain = load_recipe(path, {**chosen, "ti_mix": None}, registry=registry)
    assert build(plain, registry, meta=True).prior is not None

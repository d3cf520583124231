"""The contract of discrete priors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.mixture import MASKED_CODE
from mixar_core.noise import Noise
from mixar_core.prior import DiscretePrior
from mixar_core.testing.common import (
    check_gradients,
    check_module,
    codes_of,
    expect,
    expect_equal,
    expect_tensor,
    labels_of,
    shares,
    topic,
    unchanged,
)
from mixar_core.types import Condition, DrawnCodes, Losses

_GIVEN = "sample to given codes"


def check_prior(make: Callable[[], DiscretePrior], *, sees_truth: bool | None = None) -> None:
    """Raise AssertionError where a discrete prior breaks its contract.

    It draws codes for a condition, keeps those that are given and draws the others to them, says how sure it was, and
    where it defines `predict`, does not look at what it predicts. One that draws in a fixed order may refuse, with a
    UserError, all given codes but the first ones. All of it the same however many processes share the batch.

    Args:
        make: builds one, small enough to run in a moment, with `data` if it needs that.
        sees_truth: its `predict` may look at what is masked; None: as its class says.
    """
    if sees_truth is None:
        sees_truth = make().sees_truth

    def exercise(module: DiscretePrior, device: str) -> dict[str, Tensor]:
        condition, codes_BN, masked_BN = _asked(module, device)
        given_BN = codes_BN.masked_fill(masked_BN, MASKED_CODE)
        found: dict[str, Tensor] = {}
        with unchanged(labels_B=condition.labels_B, codes_BN=codes_BN, masked_BN=masked_BN, given_BN=given_BN):
            if module.predicts:
                found |= _named("predict", module.predict(codes_BN, masked_BN, condition, noise=Noise.seeded(0)))
            if not sees_truth or device == "cpu":  # real images are real
                few: dict[str, Any] = {"steps": 2, "cfg": 1.5, "temperature": 0.5}
                for name, settings in {"sample": {}, "sample in 2 steps": few, _GIVEN: {"given_BN": given_BN}}.items():
                    found |= _named(name, module.sample(condition, noise=Noise.seeded(0), **settings))
            losses = _loss(module, codes_BN, condition)
        return found if losses is None else found | {"loss": losses.total, **losses.terms}

    prior, found = check_module(make, exercise, on_meta=not sees_truth)
    condition, codes_BN, masked_BN = _asked(prior, "cpu")
    for name, tensor in found.items():
        if name.endswith("'s codes"):
            expect_tensor(name, tensor, codes_BN.shape, dtype=torch.int64, within=(0, prior.codebook_size - 1))
        elif name.endswith("'s confidence"):
            expect_tensor(name, tensor, codes_BN.shape, within=(-torch.inf, 0.0))
        elif name.endswith("'s features"):
            expect_tensor(name, tensor, (*codes_BN.shape, tensor.shape[-1]), dtype=tensor.dtype)
    for name in ("predict", _GIVEN):
        certain = not found.get(f"{name}'s confidence", torch.zeros(codes_BN.shape))[~masked_BN].any()
        expect(certain, f"{name}'s confidence in codes that it was given is not 0")
    topic("predict")
    with torch.no_grad():
        if prior.predicts:
            truth_BN = prior.predict(codes_BN, masked_BN, condition, noise=Noise.seeded(0)).truth_BN
            if truth_BN is not None:
                expect_tensor("predict's truth", truth_BN, codes_BN.shape, within=(-torch.inf, 0.0))
                expect(not truth_BN[~masked_BN].any(), "predict's truth of codes that are not masked is not 0")
            kept = torch.equal(found["predict's codes"][~masked_BN], codes_BN[~masked_BN])
            expect(kept, "predict changes codes that are not masked")
        if prior.predicts and not sees_truth:
            other_BN = torch.where(masked_BN, (codes_BN + 1) % prior.codebook_size, codes_BN)
            blind = _named("predict", prior.predict(other_BN, masked_BN, condition, noise=Noise.seeded(0)))
            expect_equal("it depends on the codes it must not see", blind, found)
        topic("steps of sampling, and given codes")
        _check_steps(prior, found)
        _check_given(prior, found)
        topic("batch independence")
        parts = [prior.sample(Condition(condition.labels_B[rows]), noise=noise).codes_BN for rows, noise in shares()]
    expect_equal("it depends on how many processes share the batch", {"sample's codes": torch.cat(parts)}, found)

    topic("losses")
    losses = _loss(prior.train(), codes_BN, condition)
    if losses is None:
        return
    expect_tensor("the loss", losses.total.detach(), ())
    for name, term in losses.terms.items():
        expect_tensor(f"term {name}", term, ())
        expect(not term.requires_grad, f"term {name} is not detached")
    check_gradients(prior, losses.total)


def _named(name: str, said: object) -> dict[str, Tensor]:
    expect(isinstance(said, DrawnCodes), f"{name} gives a {type(said).__name__}, not DrawnCodes")
    assert isinstance(said, DrawnCodes)
    parts = {"codes": said.codes_BN, "confidence": said.confidence_BN, "features": said.features_BND}
    return {f"{name}'s {what}": tensor for what, tensor in parts.items() if tensor is not None}


def _check_steps(prior: DiscretePrior, found: Mapping[str, Tensor]) -> None:
    """Every step's codes are codes or not drawn yet, given ones stay; the last are what `sample` gives."""
    condition, codes_BN, masked_BN = _asked(prior, "cpu")
    within = (MASKED_CODE, prior.codebook_size - 1)
    for name, given_BN in (("sample", None), (_GIVEN, codes_BN.masked_fill(masked_BN, MASKED_CODE))):
        steps = list(prior.sample_steps(condition, noise=Noise.seeded(0), given_BN=given_BN))
        for step in steps:
            expect_tensor("a step's codes", step.codes_BN, codes_BN.shape, dtype=torch.int64, within=within)
            kept = given_BN is None or torch.equal(step.codes_BN[~masked_BN], codes_BN[~masked_BN])
            expect(kept, "sample_steps changes codes that are given")
        last = torch.equal(steps[-1].codes_BN, found[f"{name}'s codes"])
        expect(last, "the last of sample_steps is not what sample gives")


def _check_given(prior: DiscretePrior, found: Mapping[str, Tensor]) -> None:
    """The other codes are drawn to those that are given."""
    condition, codes_BN, masked_BN = _asked(prior, "cpu")
    nothing_BN = torch.full_like(codes_BN, MASKED_CODE)
    if any(True for _ in prior.parameters()):  # without any it knows nothing of how codes go together
        others_BN = torch.where(masked_BN, MASKED_CODE, (codes_BN + 1) % prior.codebook_size)
        told = _named(_GIVEN, prior.sample(condition, noise=Noise.seeded(0), given_BN=others_BN))
        told.pop(f"{_GIVEN}'s features", None)
        same = all(torch.equal(tensor[masked_BN], found[name][masked_BN]) for name, tensor in told.items())
        expect(not same, "other codes are given, yet the drawn ones are the same")
    free = _named("sample", prior.sample(condition, noise=Noise.seeded(0), given_BN=nothing_BN))
    expect_equal("no code is given, yet it is not as without `given_BN`", free, found)
    every = prior.sample(condition, noise=Noise.seeded(0), given_BN=codes_BN)
    expect(torch.equal(every.codes_BN, codes_BN), "all codes are given, yet it draws others")


def _asked(prior: DiscretePrior, device: str) -> tuple[Condition, Tensor, Tensor]:
    """A condition, the last without class, codes, and which are hidden: two of three, also of a short sequence.

    A prior that refuses codes in between is given the first ones alone: a pyramid's first scale, or a third.
    """
    condition = Condition(labels_of(prior.num_classes, device))
    codes_BN = codes_of(prior.codebook_size, prior.layout.tokens, device)
    masked_BN = torch.arange(codes_BN.numel(), device=device).view_as(codes_BN) % 3 > 0
    if _refuses(prior, condition, codes_BN.masked_fill(masked_BN, MASKED_CODE)):
        layout = prior.layout
        first = layout.scales[0].tokens if layout.kind == "pyramid" else -(-layout.tokens // 3)
        masked_BN = (torch.arange(layout.tokens, device=device) >= first).expand_as(codes_BN).clone()
    return condition, codes_BN, masked_BN


def _refuses(prior: DiscretePrior, condition: Condition, given_BN: Tensor) -> bool:
    """Whether it says that it cannot draw to these codes; on meta it cannot know."""
    try:
        with torch.no_grad():
            next(iter(prior.sample_steps(condition, noise=Noise.seeded(0), given_BN=given_BN)))
    except UserError:
        return True
    return False


def _loss(prior: DiscretePrior, codes_BN: Tensor, condition: Condition) -> Losses | None:
    """Its loss, or None for a prior that is not trained."""
    try:
        return prior.loss(codes_BN, condition, noise=Noise.seeded(0))
    except TypeError:
        trained = [name for name, parameter in prior.named_parameters() if parameter.requires_grad]
        expect(not trained, f"loss raises TypeError, yet there are weights to train: {', '.join(trained[:3])}")
        return None

"""The contract of discrete priors."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mixar_core.mixture import MASKED_CODE
from mixar_core.noise import Noise
from mixar_core.prior import DiscretePrior
from mixar_core.testing.common import (
    BATCH,
    check_gradients,
    check_module,
    codes_of,
    expect,
    expect_equal,
    expect_tensor,
    labels_of,
    shares,
    unchanged,
)
from mixar_core.types import Condition, DrawnCodes, Losses


def check_prior(make: Callable[[], DiscretePrior], *, sees_truth: bool = False) -> None:
    """Raise AssertionError where a discrete prior breaks its contract.

    It draws codes for a condition, keeps those that are given and draws the others to them, says how sure it was, and
    where it defines `predict`, does not look at what it predicts. All of it the same however many processes share the
    batch.

    Args:
        make: builds one, small enough to run in a moment, with `data` if it needs that.
        sees_truth: it is no model but a stand-in for ablations, whose `predict` may look at what is masked.
    """

    def exercise(module: DiscretePrior, device: str) -> dict[str, Tensor]:
        condition, codes_BN, masked_BN = _asked(module, device)
        given_BN = codes_BN.masked_fill(masked_BN, MASKED_CODE)
        drawn: dict[str, DrawnCodes] = {}
        with unchanged(labels_B=condition.labels_B, codes_BN=codes_BN, masked_BN=masked_BN, given_BN=given_BN):
            if module.predicts:
                drawn["predict"] = module.predict(codes_BN, masked_BN, condition, noise=Noise.seeded(0))
            if not sees_truth or device == "cpu":  # real images are real
                drawn["sample"] = module.sample(condition, noise=Noise.seeded(0))
                drawn["sample in 2 steps"] = module.sample(
                    condition, noise=Noise.seeded(0), steps=2, cfg=1.5, temperature=0.5
                )
                drawn["sample to given codes"] = module.sample(condition, noise=Noise.seeded(0), given_BN=given_BN)
            losses = _loss(module, codes_BN, condition)
        found = {f"{name}'s {what}": tensor for name, said in drawn.items() for what, tensor in _parts(said).items()}
        return found if losses is None else found | {"loss": losses.total, **losses.terms}

    prior, found = check_module(make, exercise, on_meta=not sees_truth)
    condition, codes_BN, masked_BN = _asked(prior, "cpu")
    for name in ("predict", "sample", "sample in 2 steps", "sample to given codes"):
        if f"{name}'s codes" in found:
            _expect_drawn(prior, name, {what: found.get(f"{name}'s {what}") for what in _WHAT})
    with torch.no_grad():
        if prior.predicts:
            _check_predict(prior, condition, codes_BN, masked_BN, found, sees_truth=sees_truth)
        _check_steps(prior, condition, found["sample's codes"])
        _check_given(prior, condition, codes_BN, masked_BN, found)
        parts = [prior.sample(_rows(condition, rows), noise=noise).codes_BN for rows, noise in shares()]
    expect_equal("it depends on how many processes share the batch", {"sample's codes": torch.cat(parts)}, found)

    prior.train()
    losses = _loss(prior, codes_BN, condition)
    if losses is None:
        return
    expect_tensor("the loss", losses.total.detach(), ())
    for name, term in losses.terms.items():
        expect_tensor(f"term {name}", term, ())
        expect(not term.requires_grad, f"term {name} is not detached")
    check_gradients(prior, losses.total)


_WHAT = ("codes", "confidence", "features")


def _parts(said: object) -> dict[str, Tensor]:
    expect(isinstance(said, DrawnCodes), f"it gives a {type(said).__name__}, not DrawnCodes")
    assert isinstance(said, DrawnCodes)
    parts = zip(_WHAT, (said.codes_BN, said.confidence_BN, said.features_BND), strict=True)
    return {what: tensor for what, tensor in parts if tensor is not None}


def _expect_drawn(prior: DiscretePrior, name: str, parts: dict[str, Tensor | None]) -> None:
    """Codes that are codes; confidence, where it says one, that is a log-probability; features a code."""
    shape = (BATCH, prior.layout.tokens)
    expect_tensor(f"{name}'s codes", parts["codes"], shape, dtype=torch.int64, within=(0, prior.codebook_size - 1))
    if parts["confidence"] is not None:
        expect_tensor(f"{name}'s confidence", parts["confidence"], shape, within=(-torch.inf, 0.0))
    if (features := parts["features"]) is not None:
        expect_tensor(f"{name}'s features", features, (*shape, features.shape[-1]), dtype=features.dtype)


def _check_predict(
    prior: DiscretePrior,
    condition: Condition,
    codes_BN: Tensor,
    masked_BN: Tensor,
    found: Mapping[str, Tensor],
    *,
    sees_truth: bool,
) -> None:
    kept = torch.equal(found["predict's codes"][~masked_BN], codes_BN[~masked_BN])
    expect(kept, "predict changes codes that are not masked")
    _expect_certain("predict", found, ~masked_BN)
    if not sees_truth:
        other_BN = torch.where(masked_BN, (codes_BN + 1) % prior.codebook_size, codes_BN)
        blind = _parts(prior.predict(other_BN, masked_BN, condition, noise=Noise.seeded(0)))
        blind = {f"predict's {what}": tensor for what, tensor in blind.items()}
        expect_equal("it depends on the codes it must not see", blind, found)


def _check_steps(prior: DiscretePrior, condition: Condition, sampled_BN: Tensor) -> None:
    """Every step's codes are codes or not drawn yet; the last are what `sample` gives."""
    steps = list(prior.sample_steps(condition, noise=Noise.seeded(0)))
    for step in steps:
        within = (MASKED_CODE, prior.codebook_size - 1)
        expect_tensor("a step's codes", step.codes_BN, sampled_BN.shape, dtype=torch.int64, within=within)
    expect(torch.equal(steps[-1].codes_BN, sampled_BN), "the last of sample_steps is not what sample gives")


def _check_given(
    prior: DiscretePrior, condition: Condition, codes_BN: Tensor, masked_BN: Tensor, found: Mapping[str, Tensor]
) -> None:
    """Given codes stay as they are in every step, are certain, and the others are drawn to them."""
    name = "sample to given codes"
    given_BN = codes_BN.masked_fill(masked_BN, MASKED_CODE)
    for step in prior.sample_steps(condition, noise=Noise.seeded(0), given_BN=given_BN):
        kept = torch.equal(step.codes_BN[~masked_BN], codes_BN[~masked_BN])
        expect(kept, "sample_steps changes codes that are given")
    _expect_certain(name, found, ~masked_BN)
    if any(True for _ in prior.parameters()):  # without any it knows nothing of how codes go together
        others_BN = torch.where(masked_BN, given_BN, (codes_BN + 1) % prior.codebook_size)
        told = prior.sample(condition, noise=Noise.seeded(0), given_BN=others_BN)
        drawn = [(f"{name}'s {what}", tensor) for what, tensor in _parts(told).items() if what != "features"]
        same = all(torch.equal(tensor[masked_BN], found[key][masked_BN]) for key, tensor in drawn)
        expect(not same, "other codes are given, yet the drawn ones are the same")
    nothing_BN = torch.full_like(codes_BN, MASKED_CODE)
    free = _parts(prior.sample(condition, noise=Noise.seeded(0), given_BN=nothing_BN))
    free = {f"sample's {what}": tensor for what, tensor in free.items()}
    expect_equal("no code is given, yet it is not as without `given_BN`", free, found)
    every = prior.sample(condition, noise=Noise.seeded(0), given_BN=codes_BN)
    expect(torch.equal(every.codes_BN, codes_BN), "all codes are given, yet it draws others")


def _expect_certain(name: str, found: Mapping[str, Tensor], certain_BN: Tensor) -> None:
    confidence_BN = found.get(f"{name}'s confidence")
    certain = confidence_BN is None or not confidence_BN[certain_BN].any()
    expect(certain, f"{name}'s confidence in codes that it was given is not 0")


def _asked(prior: DiscretePrior, device: str) -> tuple[Condition, Tensor, Tensor]:
    """A condition, the last without class, codes, and which are hidden: two of three, also of a short sequence."""
    codes_BN = codes_of(prior.codebook_size, prior.layout.tokens)
    masked_BN = torch.arange(codes_BN.numel()).view_as(codes_BN) % 3 > 0
    return Condition(labels_of(prior.num_classes, device)), codes_BN.to(device), masked_BN.to(device)


def _rows(condition: Condition, rows: slice) -> Condition:
    return Condition(condition.labels_B[rows])


def _loss(prior: DiscretePrior, codes_BN: Tensor, condition: Condition) -> Losses | None:
    """Its loss, or None for a prior that is not trained."""
    try:
        return prior.loss(codes_BN, condition, noise=Noise.seeded(0))
    except TypeError:
        trained = [name for name, parameter in prior.named_parameters() if parameter.requires_grad]
        expect(not trained, f"loss raises TypeError, yet there are weights to train: {', '.join(trained[:3])}")
        return None

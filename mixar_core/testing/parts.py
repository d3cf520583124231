"""Contracts of priors, injectors and heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from mixar_core.head import ContinuousHead
from mixar_core.injector import GuidanceInjector
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
    normal,
    unchanged,
)
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import NO_CLASS, DiscreteTokens, Guidance, Losses

DOORS = {"fill": "fill_BND", "prefix": "prefix_BPD", "memory": "memory_BMD"}


def check_prior(make: Callable[[], DiscretePrior], *, sees_truth: bool = False) -> None:
    """Raise AssertionError where a discrete prior breaks its contract.

    Args:
        make: builds one, small enough to run in a moment, with `data` if it needs that.
        sees_truth: it is no model but a stand-in for ablations, whose `predict` may look at what is masked.
    """

    def exercise(module: nn.Module, device: str) -> dict[str, Tensor]:
        assert isinstance(module, DiscretePrior)
        labels_B, codes_BN, masked_BN = _asked(module, device)
        with unchanged(labels_B=labels_B, codes_BN=codes_BN, masked_BN=masked_BN):
            found = {"predict": module.predict(codes_BN, masked_BN, labels_B, noise=Noise.seeded(0))}
            if not sees_truth or device == "cpu":  # real images are real
                found["sample"] = module.sample(labels_B, noise=Noise.seeded(0))
                found["sample in 2 steps"] = module.sample(
                    labels_B, noise=Noise.seeded(0), steps=2, cfg=1.5, temperature=0.5
                )
            losses = _loss(module, codes_BN, labels_B)
            return found if losses is None else found | {"loss": losses.total, **losses.terms}

    prior = check_module(make, exercise, on_meta=not sees_truth)
    labels_B, codes_BN, masked_BN = _asked(prior, "cpu")
    shape = (BATCH, prior.grid.tokens)
    with torch.no_grad():
        found = exercise(prior, "cpu")
        for name in ("predict", "sample", "sample in 2 steps"):
            expect_tensor(name, found[name], shape, dtype=torch.int64, within=(0, prior.codebook_size - 1))
        expect(
            torch.equal(found["predict"][~masked_BN], codes_BN[~masked_BN]), "predict changes codes that are not masked"
        )
        if not sees_truth:
            other_BN = torch.where(masked_BN, (codes_BN + 1) % prior.codebook_size, codes_BN)
            blind = {"predict": prior.predict(other_BN, masked_BN, labels_B, noise=Noise.seeded(0))}
            expect_equal("it depends on the codes it must not see", blind, found)
        first, last = (Noise(torch.Generator().manual_seed(0), first=row, total=BATCH) for row in (0, BATCH - 1))
        alone = torch.cat([prior.sample(labels_B[:-1], noise=first), prior.sample(labels_B[-1:], noise=last)])
        expect_equal("it depends on how many processes share the batch", {"sample": alone}, found)

    prior.train()
    losses = _loss(prior, codes_BN, labels_B)
    if losses is None:
        return
    _check_losses(losses.total, losses.terms)
    check_gradients(prior, losses.total)


def check_injector(make: Callable[[], GuidanceInjector], *, tokenizer: DiscreteTokenizer, width: int) -> None:
    """Raise AssertionError where a guidance injector breaks its contract.

    Args:
        make: builds one with this tokenizer and width; one that opens no door must be content without a tokenizer.
    """
    tokens = tokenizer.grid.tokens

    def exercise(module: nn.Module, device: str, codes_BN: Tensor | None = None) -> dict[str, Tensor]:
        codes_BN = codes_of(tokenizer.codebook_size, tokens) if codes_BN is None else codes_BN
        with torch.no_grad():
            vectors_BNE = tokenizer.code_vectors(codes_BN).to(device)
        codes_BN = codes_BN.to(device)
        with unchanged(codes_BN=codes_BN, vectors_BNE=vectors_BNE):
            guidance = module(DiscreteTokens(codes_BN, vectors_BNE))
        expect(isinstance(guidance, Guidance), f"forward returns a {type(guidance).__name__}, not Guidance")
        doors = {door: getattr(guidance, name) for door, name in DOORS.items()}
        return {door: tensor for door, tensor in doors.items() if tensor is not None}

    injector = check_module(make, exercise)
    expect(injector.opens <= DOORS.keys(), f"it opens {sorted(injector.opens)}; doors are {sorted(DOORS)}")
    opened = exercise(injector, "cpu")
    expect(opened.keys() == injector.opens, f"it opens {sorted(opened)} but announces {sorted(injector.opens)}")
    for door, tensor in opened.items():
        length = tokens if door == "fill" else tensor.shape[1]
        expect_tensor(door, tensor.detach(), (BATCH, length, width))
    expect(injector.needs_codes or not opened, "it opens a door but says that it needs no codes")
    if injector.needs_codes:
        codes_BN = codes_of(tokenizer.codebook_size, tokens)
        other = exercise(injector, "cpu", (codes_BN + 1) % tokenizer.codebook_size)
        expect(any(not torch.equal(opened[door], other[door]) for door in opened), "other codes, yet the same guidance")
        alone = exercise(injector, "cpu", codes_BN[:1])
        first = {door: tensor[:1] for door, tensor in opened.items()}
        expect_equal("an image depends on what shares its batch", first, alone, rtol=1e-4)

    injector.train()
    opened = exercise(injector, "cpu")
    if any(parameter.requires_grad for parameter in injector.parameters()):
        weights = {door: normal(*tensor.shape) for door, tensor in opened.items()}
        total = torch.stack([(weights[door] * tensor).sum() for door, tensor in opened.items()]).sum()
        check_gradients(injector, total)


def check_head(make: Callable[[], ContinuousHead], *, width: int) -> None:
    """Raise AssertionError where a continuous head breaks its contract.

    Args:
        make: builds one for vectors z of this width.
    """
    tokens, rows = 4, 5

    def exercise(module: nn.Module, device: str) -> dict[str, Tensor]:
        assert isinstance(module, ContinuousHead)
        z_BKD = normal(BATCH, tokens, width, device=device)
        target_BKC = normal(BATCH, tokens, module.token_dim, device=device, seed=1)
        z_RD, z_uncond_RD = (normal(rows, width, device=device, seed=seed) for seed in (2, 3))
        with unchanged(z_BKD=z_BKD, target_BKC=target_BKC, z_RD=z_RD, z_uncond_RD=z_uncond_RD):
            return {
                "loss": module.loss(z_BKD, target_BKC, noise=Noise.seeded(0)),
                "sample": module.sample(z_RD, noise=Noise.seeded(0)),
                "sample in 2 steps": module.sample(z_RD, steps=2, noise=Noise.seeded(0)),
                "sample with guidance": module.sample(z_RD, z_uncond_RD=z_uncond_RD, cfg=2.0, noise=Noise.seeded(0)),
                "sample at temperature 0": module.sample(z_RD, temperature=0.0, noise=Noise.seeded(0)),
                "sample at guidance 1": module.sample(z_RD, z_uncond_RD=z_uncond_RD, cfg=1.0, noise=Noise.seeded(0)),
            }

    head = check_module(make, exercise)
    with torch.no_grad():
        found = exercise(head, "cpu")
        expect_tensor("loss", found["loss"], (BATCH, tokens))
        for name, tensor in found.items():
            if name != "loss":
                expect_tensor(name, tensor, (rows, head.token_dim))
        expect_equal("not as without guidance", {"sample at guidance 1": found["sample"]}, found, rtol=1e-5)
        z_RD = normal(rows, width, seed=2)
        other = head.sample(z_RD, noise=Noise.seeded(1))
        expect(not torch.equal(found["sample"], other), "another seed, yet the same sample")
        other = head.sample(z_RD + 1, noise=Noise.seeded(0))
        expect(not torch.equal(found["sample"], other), "another z, yet the same sample")

    z_BKD, target_BKC = normal(BATCH, tokens, width), normal(BATCH, tokens, head.token_dim, seed=1)
    with torch.no_grad():
        parts = [
            head.loss(
                z_BKD[rows_], target_BKC[rows_], noise=Noise(torch.Generator().manual_seed(0), first=first, total=BATCH)
            )
            for rows_, first in ((slice(0, 1), 0), (slice(1, BATCH), 1))
        ]
        shared = {"loss": torch.cat(parts)}
        expect_equal("it depends on how many processes share the batch", found, {**found, **shared}, rtol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            loss = head.loss(z_BKD.bfloat16(), target_BKC, noise=Noise.seeded(0))
        expect_tensor("loss under autocast", loss, (BATCH, tokens))

    head.train()
    z_BKD.requires_grad_()
    check_gradients(head, head.loss(z_BKD, target_BKC, noise=Noise.seeded(0)).mean(), z_BKD)


def _asked(prior: DiscretePrior, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Labels, the last of them "no class", codes, and what is masked."""
    labels_B = torch.full((BATCH,), NO_CLASS)
    if prior.num_classes:
        labels_B[:-1] = torch.arange(BATCH - 1) % prior.num_classes
    codes_BN = codes_of(prior.codebook_size, prior.grid.tokens)
    masked_BN = torch.arange(codes_BN.numel()).view_as(codes_BN) % 3 > 0
    return labels_B.to(device), codes_BN.to(device), masked_BN.to(device)


def _loss(prior: DiscretePrior, codes_BN: Tensor, labels_B: Tensor) -> Losses | None:
    """Its loss, or None for a prior that is not trained."""
    try:
        return prior.loss(codes_BN, labels_B, noise=Noise.seeded(0))
    except TypeError:
        trained = [name for name, parameter in prior.named_parameters() if parameter.requires_grad]
        expect(not trained, f"loss raises TypeError, yet there are weights to train: {', '.join(trained[:3])}")
        return None


def _check_losses(total: Tensor, terms: Mapping[str, Tensor]) -> None:
    expect_tensor("the loss", total.detach(), ())
    for name, term in terms.items():
        expect_tensor(f"term {name}", term, ())
        expect(not term.requires_grad, f"term {name} is not detached")

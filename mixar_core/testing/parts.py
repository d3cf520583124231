"""Contracts of priors, injectors and heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

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
    expect_alone,
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

    def exercise(module: DiscretePrior, device: str) -> dict[str, Tensor]:
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

    prior, found = check_module(make, exercise, on_meta=not sees_truth)
    labels_B, codes_BN, masked_BN = _asked(prior, "cpu")
    for name in ("predict", "sample", "sample in 2 steps"):
        within = (0, prior.codebook_size - 1)
        expect_tensor(name, found[name], codes_BN.shape, dtype=torch.int64, within=within)
    kept = torch.equal(found["predict"][~masked_BN], codes_BN[~masked_BN])
    expect(kept, "predict changes codes that are not masked")
    with torch.no_grad():
        if not sees_truth:
            other_BN = torch.where(masked_BN, (codes_BN + 1) % prior.codebook_size, codes_BN)
            blind = {"predict": prior.predict(other_BN, masked_BN, labels_B, noise=Noise.seeded(0))}
            expect_equal("it depends on the codes it must not see", blind, found)
        shares = [prior.sample(labels_B[rows], noise=noise) for rows, noise in _shares()]
    expect_equal("it depends on how many processes share the batch", {"sample": torch.cat(shares)}, found)

    prior.train()
    losses = _loss(prior, codes_BN, labels_B)
    if losses is None:
        return
    expect_tensor("the loss", losses.total.detach(), ())
    for name, term in losses.terms.items():
        expect_tensor(f"term {name}", term, ())
        expect(not term.requires_grad, f"term {name} is not detached")
    check_gradients(prior, losses.total)


def check_injector(make: Callable[[], GuidanceInjector], *, tokenizer: DiscreteTokenizer, width: int) -> None:
    """Raise AssertionError where a guidance injector breaks its contract.

    Args:
        make: builds one with this tokenizer and width; one that opens no door must be content without a tokenizer.
    """
    tokens = tokenizer.grid.tokens

    def exercise(module: GuidanceInjector, device: str, codes_BN: Tensor | None = None) -> dict[str, Tensor]:
        codes_BN = codes_of(tokenizer.codebook_size, tokens) if codes_BN is None else codes_BN
        with torch.no_grad():
            vectors_BNE = tokenizer.code_vectors(codes_BN).to(device)
        codes_BN = codes_BN.to(device)
        with unchanged(codes_BN=codes_BN, vectors_BNE=vectors_BNE):
            guidance = module(DiscreteTokens(codes_BN, vectors_BNE))
        expect(isinstance(guidance, Guidance), f"forward returns a {type(guidance).__name__}, not Guidance")
        doors = {door: getattr(guidance, name) for door, name in DOORS.items()}
        return {door: tensor for door, tensor in doors.items() if tensor is not None}

    injector, opened = check_module(make, exercise)
    expect(injector.opens <= DOORS.keys(), f"it opens {sorted(injector.opens)}; doors are {sorted(DOORS)}")
    expect(opened.keys() == injector.opens, f"it opens {sorted(opened)} but announces {sorted(injector.opens)}")
    for door, tensor in opened.items():
        length = tokens if door == "fill" else tensor.shape[1]
        expect_tensor(door, tensor, (BATCH, length, width))
    expect(injector.needs_codes or not opened, "it opens a door but says that it needs no codes")
    if injector.needs_codes:
        codes_BN = codes_of(tokenizer.codebook_size, tokens)
        with torch.no_grad():
            other = exercise(injector, "cpu", (codes_BN + 1) % tokenizer.codebook_size)
            expect(any(not torch.equal(opened[d], other[d]) for d in opened), "other codes, yet the same guidance")
            expect_alone(opened, exercise(injector, "cpu", codes_BN[:1]))

    injector.train()
    opened = exercise(injector, "cpu")
    if any(parameter.requires_grad for parameter in injector.parameters()):
        total = torch.stack([(normal(*tensor.shape) * tensor).sum() for tensor in opened.values()]).sum()
        check_gradients(injector, total)


def check_head(make: Callable[[], ContinuousHead], *, width: int) -> None:
    """Raise AssertionError where a continuous head breaks its contract.

    Args:
        make: builds one for vectors z of this width.
    """
    tokens, rows = 4, 5

    def exercise(module: ContinuousHead, device: str) -> dict[str, Tensor]:
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

    head, found = check_module(make, exercise)
    for name, tensor in found.items():
        expect_tensor(name, tensor, (BATCH, tokens) if name == "loss" else (rows, head.token_dim))
    expect_equal("not as without guidance", {"sample at guidance 1": found["sample"]}, found, rtol=1e-5)
    z_RD, z_BKD = normal(rows, width, seed=2), normal(BATCH, tokens, width)
    target_BKC = normal(BATCH, tokens, head.token_dim, seed=1)
    with torch.no_grad():
        for what, z, seed in (("seed", z_RD, 1), ("z", z_RD + 1, 0)):
            other = head.sample(z, noise=Noise.seeded(seed))
            expect(not torch.equal(found["sample"], other), f"another {what}, yet the same sample")
        shares = [head.loss(z_BKD[part], target_BKC[part], noise=noise) for part, noise in _shares()]
        expect_equal("it depends on how many processes share the batch", {"loss": torch.cat(shares)}, found, rtol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            loss = head.loss(z_BKD.bfloat16(), target_BKC, noise=Noise.seeded(0))
    expect_tensor("loss under autocast", loss, (BATCH, tokens))

    head.train()
    z_BKD.requires_grad_()
    check_gradients(head, head.loss(z_BKD, target_BKC, noise=Noise.seeded(0)).mean(), z_BKD)


def _shares() -> list[tuple[slice, Noise]]:
    """Rows of a batch and their noise, as two processes have them: all but the last, and the last."""
    return [
        (slice(first, until), Noise(torch.Generator().manual_seed(0), first=first, total=BATCH))
        for first, until in ((0, BATCH - 1), (BATCH - 1, BATCH))
    ]


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

"""The contract of heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mixar_core.head import ContinuousHead
from mixar_core.noise import Noise
from mixar_core.testing.common import (
    BATCH,
    check_gradients,
    check_module,
    expect,
    expect_equal,
    expect_tensor,
    normal,
    shares,
    unchanged,
)


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
        shared = [head.loss(z_BKD[part], target_BKC[part], noise=noise) for part, noise in shares()]
        expect_equal("it depends on how many processes share the batch", {"loss": torch.cat(shared)}, found, rtol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            loss = head.loss(z_BKD.bfloat16(), target_BKC, noise=Noise.seeded(0))
    expect_tensor("loss under autocast", loss, (BATCH, tokens))

    head.train()
    z_BKD.requires_grad_()
    check_gradients(head, head.loss(z_BKD, target_BKC, noise=Noise.seeded(0)).mean(), z_BKD)

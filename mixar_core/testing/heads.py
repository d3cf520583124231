"""The contract of heads."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mixar_core.errors import UserError
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
    topic,
    unchanged,
)
from mixar_core.types import Denoise, Step, TokenLayout, Z

#: what a head may refuse, by UserError, if it has no meaning for it
STEPS = {
    "sample in 2 steps": Step(head_steps=2),
    "sample with guidance": Step(cfg=2.0),
    "sample at temperature 0": Step(temperature=0.0),
    "sample at temperature 0.5": Step(temperature=0.5),
}


def check_head(
    make: Callable[[], ContinuousHead], *, width: int, layout: TokenLayout, deterministic: bool | None = None
) -> None:
    """Raise AssertionError where a continuous head breaks its contract.

    Args:
        make: builds one for vectors z of this width and this layout of 3 tokens or more.
        deterministic: it draws nothing; None: as its class says.
    """

    def exercise(module: ContinuousHead, device: str) -> dict[str, Tensor]:
        z, target_BKC = _asked(module, width, layout, device)
        one = z._replace(cond_BKD=z.cond_BKD[:, :1], positions_BK=z.positions_BK[:, :1], uncond_BKD=None)
        plain = z._replace(uncond_BKD=None)
        assert z.uncond_BKD is not None and z.tokens_BNC is not None
        with unchanged(cond_BKD=z.cond_BKD, uncond_BKD=z.uncond_BKD, tokens_BNC=z.tokens_BNC, target_BKC=target_BKC):
            found = {
                "loss": _loss(module, plain, target_BKC, noise=Noise.seeded(0)),
                "sample": _sample(module, plain, Step(), noise=Noise.seeded(0)),
                "sample at guidance 1": _sample(module, z, Step(cfg=1.0), noise=Noise.seeded(0)),
                "sample of one token": _sample(module, one, Step(), noise=Noise.seeded(0)),
            }
            drawn = {name: _unless_refused(module, z, step) for name, step in STEPS.items()}
        return found | {name: tensor for name, tensor in drawn.items() if tensor is not None}

    head, found = check_module(make, exercise)
    z, target_BKC = _asked(head, width, layout, "cpu")
    images, tokens, _ = target_BKC.shape
    for name, tensor in found.items():
        shape = (images, 1 if "one token" in name else tokens, head.token_dim)
        expect_tensor(name, tensor, (images, tokens) if name == "loss" else shape)
    expect_equal("not as without guidance", {"sample at guidance 1": found["sample"]}, found, rtol=1e-5)
    guided = found.get("sample with guidance")
    expect(guided is None or not torch.equal(guided, found["sample"]), "guided, yet the sample is the same")
    topic("what it refuses")
    solver = Step(solver="no solver has this name")
    expect(_unless_refused(head, z, solver) is None, "sample takes a solver that nobody knows")

    z = z._replace(uncond_BKD=None)
    topic("what it depends on")
    with torch.no_grad():
        other = _sample(head, z, Step(), noise=Noise.seeded(1))
        deterministic = head.deterministic if deterministic is None else deterministic
        what = "another seed, yet the same sample; a head that draws nothing says `deterministic = True`"
        if deterministic:
            what = "another seed and another sample, though it says `deterministic = True`"
        expect(torch.equal(found["sample"], other) == deterministic, what)
        other = _sample(head, z._replace(cond_BKD=z.cond_BKD + 1), Step(), noise=Noise.seeded(0))
        expect(not torch.equal(found["sample"], other), "another z, yet the same sample")
        topic("batch independence")
        losses, samples = [], []
        for (rows, noise), (_, again) in zip(shares(), shares(), strict=True):
            losses.append(_loss(head, _rows(z, rows), target_BKC[rows], noise=noise))
            samples.append(_sample(head, _rows(z, rows), Step(), noise=again))
        alone = {"loss": torch.cat(losses), "sample": torch.cat(samples)}
        expect_equal("it depends on what shares the batch", alone, found, rtol=1e-4)
        topic("under bf16 autocast")
        with torch.autocast("cpu", torch.bfloat16):
            rounded = z._replace(cond_BKD=z.cond_BKD.bfloat16())
            loss = _loss(head, rounded, target_BKC, noise=Noise.seeded(0))
            sample = _sample(head, rounded, Step(), noise=Noise.seeded(0))
    expect_tensor("loss under autocast", loss, (images, tokens))
    expect_tensor("sample under autocast", sample, target_BKC.shape)

    head.train()
    z.cond_BKD.requires_grad_()
    check_gradients(head, _loss(head, z, target_BKC, noise=Noise.seeded(0)).mean(), z.cond_BKD)


def _asked(head: ContinuousHead, width: int, layout: TokenLayout, device: str) -> tuple[Z, Tensor]:
    """Every third token is known, the others are asked for, each image's in an order of its own; and their truth."""
    tokens_BNC = normal(BATCH, layout.tokens, head.token_dim, seed=1)
    order_BN = torch.arange(layout.tokens).expand(BATCH, -1)
    known_BN = order_BN % 3 == 0
    positions_BK = torch.stack([torch.roll(order_BN[0, ~known_BN[0]], image) for image in range(BATCH)])
    target_BKC = tokens_BNC.gather(1, positions_BK[..., None].expand(-1, -1, head.token_dim))
    cond_BKD, uncond_BKD = (normal(*positions_BK.shape, width, device=device, seed=seed) for seed in (2, 3))
    known = (tokens_BNC * known_BN[..., None]).to(device), known_BN.to(device)
    return Z(cond_BKD, positions_BK.to(device), uncond_BKD, *known), target_BKC.to(device)


def _rows(z: Z, rows: slice) -> Z:
    """Some images of a batch."""
    assert z.tokens_BNC is not None and z.known_BN is not None
    return Z(z.cond_BKD[rows], z.positions_BK[rows], None, z.tokens_BNC[rows], z.known_BN[rows])


def _loss(head: ContinuousHead, z: Z, target_BKC: Tensor, *, noise: Noise) -> Tensor:
    return head.loss(_with_network(head, z), target_BKC, noise=noise)


def _sample(head: ContinuousHead, z: Z, step: Step, *, noise: Noise) -> Tensor:
    return head.sample(_with_network(head, z), step, noise=noise)


def _with_network(head: ContinuousHead, z: Z) -> Z:
    """With what a head without a network of its own calls: it reads each token's noise off its z."""
    if not head.denoises:
        return z
    told_RK1 = torch.cat([z.cond_BKD, *([] if z.uncond_BKD is None else [z.uncond_BKD])]).mean(dim=-1, keepdim=True)

    def predict(noised: Tensor, t: Tensor) -> Tensor:
        return 0.5 * noised + told_RK1[: len(noised)] * (1.0 + t[:, :1, None] / 1000.0)

    return z._replace(denoise=Denoise(predict))


def _unless_refused(head: ContinuousHead, z: Z, step: Step) -> Tensor | None:
    """A sample, or None where the head says that it cannot draw so."""
    try:
        return _sample(head, z, step, noise=Noise.seeded(0))
    except UserError:
        return None

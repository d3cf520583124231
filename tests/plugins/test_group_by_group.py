"""Backbones that predict groups of tokens together: what fits them, and a whole model of each kind that learns."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor

from mixar.assembly import build
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import make_recipe
from mixar_core.errors import UserError
from mixar_core.model import GenerationStep, MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.testing import check_backbone
from mixar_core.types import Condition, Grid, TokenBatch, TokenLayout
from mixar_plugins.backbones.acdit import ACDiTBackbone, ACDiTConfig

FLOWAR: dict[str, Any] = {
    "name": "tiny",
    "trains": "mixar",
    "image_size": 8,
    "num_classes": 3,
    "continuous_tokenizer": {
        "type": "kl",
        "latent_channels": 2,
        "channels": 8,
        "channel_multipliers": [1, 1],
        "blocks": 1,
        "norm": "none",
        "mid_attention": False,
        "encoder_attention": [],
        "scales": [1, 2, 4],
    },
    "head": {"type": "flowar", "depth": 1, "width": 64, "sampling_steps": 4},
    "backbone": {"type": "flowar", "width": 16, "depth": 1, "heads": 2},
    "sampler": {"type": "groups"},
    "sampling": {"cfg": 2.0},
}


ACDIT = {
    **FLOWAR,
    "continuous_tokenizer": {**FLOWAR["continuous_tokenizer"], "scales": []},
    "head": {"type": "denoising", "sampling_steps": 4},
    "backbone": {"type": "acdit", "width": 64, "depth": 1, "block": 2},
    "sampling": {"cfg": 2.0, "cfg_schedule": "constant"},
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return plugin_manager()


def made(registry: Registry, plain: dict[str, Any], **changed: Any) -> Any:
    return build(make_recipe({**plain, **changed}, registry, where="test"), registry, load_weights=False)


def test_flowar_learns_and_draws_scale_by_scale(registry: Registry) -> None:
    torch.manual_seed(0)
    system = made(registry, FLOWAR)
    model, tokenizer = system.model, system.continuous_tokenizer
    images_B3HW = torch.rand(4, 3, 8, 8) * 2 - 1
    latents_BChw = tokenizer.encode(images_B3HW, Noise.seeded(0))
    finest = latents_BChw[..., -16:].reshape(4, 2, 4, 4)
    assert torch.allclose(latents_BChw[..., 0, 0], finest.mean(dim=(2, 3)), atol=1e-6)  # of the same sample
    assert learns(model, latents_BChw) < 0.8
    steps = drawn(model)
    assert [int(step.known_BN.sum()) for step in steps] == [2, 10, 42]
    assert tokenizer.decode(steps[-1].latents_BChw).shape == (2, 3, 8, 8)


def test_acdit_learns_and_draws_block_by_block(registry: Registry) -> None:
    torch.manual_seed(0)
    model = made(registry, ACDIT).model
    model.backbone.config = evolve(model.backbone.config, activation_checkpointing=True)
    latents_BChw = torch.randn(4, 2, 4, 4)
    assert learns(model, latents_BChw) < 0.8
    steps = drawn(model)
    assert [int(step.known_BN.sum()) for step in steps] == [8, 16, 24, 32]
    first = steps[0].known_BN[0].view(4, 4)
    assert first[:2, :2].all() and first.sum() == 4


def learns(model: MixAR, latents_BChw: Tensor) -> float:
    """The loss of the last 10 of 40 steps on one batch, over that of the first 10."""
    batch = TokenBatch(latents_BChw, None, torch.tensor([0, 1, 2, 0]))
    optimizer, losses = torch.optim.AdamW(model.trained.parameters(), lr=3e-3), []
    for step in range(40):
        loss = model.train().loss(batch, noise=Noise.seeded(step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses[-10:]) / sum(losses[:10])


def drawn(model: MixAR) -> list[GenerationStep]:
    settings, condition = SamplingConfig(cfg=2.0), Condition(torch.tensor([0, 1]))
    return list(model.eval().generation_steps(condition, settings=settings, noise=Noise.seeded(0)))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sampler": {"type": "cosine"}}, r"order groups against steps that are not its groups"),
        ({"head": {"type": "joint", "depth": 1, "width": 16, "heads": 2}}, "z that knows other tokens"),
        ({"head": {"type": "energy", "depth": 1, "width": 16}}, None),
        ({"backbone": {"type": "masked", "width": 16, "depth": 1, "heads": 2, "buffer": 1}}, None),
        ({"continuous_tokenizer": {**FLOWAR["continuous_tokenizer"], "scales": []}}, "needs latents in a pyramid"),
        ({"continuous_tokenizer": {**FLOWAR["continuous_tokenizer"], "scales": [1, 3]}}, r"\[1, 3\]; they must rise"),
        ({"backbone": {**FLOWAR["backbone"], "heads": 8}}, "a head is 2 wide"),
    ],
)
def test_what_fits_groups(registry: Registry, changed: dict[str, Any], said: str | None) -> None:
    if said is None:
        model = made(registry, FLOWAR, **changed).model
        settings, noise = SamplingConfig(cfg=1.5), Noise.seeded(0)
        assert len(list(model.generation_steps(Condition(torch.tensor([1])), settings=settings, noise=noise))) == 3
        return
    with pytest.raises(UserError, match=said) as caught:
        made(registry, FLOWAR, **changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sampler": {"type": "cosine"}}, "order groups against steps that are not its groups"),
        ({"head": {"type": "flow", "depth": 1, "width": 16}}, "denoises tokens against a network of its own"),
        ({"backbone": {"type": "masked", "width": 16, "depth": 1, "heads": 2}}, "denoises none against need of it"),
        ({"backbone": {**ACDIT["backbone"], "block": 3}}, "must be a grid of whole blocks"),
    ],
)
def test_what_fits_a_backbone_that_denoises(registry: Registry, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        made(registry, ACDIT, **changed)
    assert "\n" not in str(caught.value)


def test_acdits_blocks_meet_the_contract() -> None:
    config, layout = ACDiTConfig(width=64, depth=1, block=2, patch_size=2), TokenLayout("grid", (Grid(4, 6),))
    check_backbone(partial(ACDiTBackbone, config, layout=layout, token_dim=8, num_classes=3))


def test_tokens_by_scale() -> None:
    pyramid = TokenLayout("pyramid", (Grid(1, 1), Grid(2, 3), Grid(3, 4)))
    assert pyramid.by_scale == (range(1), range(1, 7), range(7, 19))
    assert TokenLayout("depth", (Grid(2, 3),), depth=2).by_scale == (range(12),)

"""Settings that mean nothing are refused, and those at the ends of what is allowed do what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mixar.plugins import plugin_manager
from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.plan import Task
from mixar_core.types import Condition, Denoise, Grid, Step, TokenLayout, Z
from mixar_plugins.heads.denoising import DenoisingHead, DenoisingHeadConfig
from mixar_plugins.heads.denoising import process_of as denoising_process
from mixar_plugins.samplers.groups import GroupsConfig, GroupsSampler

CODES = {"channels": 8, "channel_multipliers": (1, 1), "blocks": 1, "norm": "none"}
TINY = {"width": 16, "depth": 1, "heads": 2}
HART = {**TINY, "context_width": 6, "mlp_width": 24}


def tokenizer(name: str, side: int, **settings: Any):
    part = plugin_manager().part("discrete-tokenizer", name)
    return part.component(part.config(**CODES, codebook_size=16, code_width=4, **settings), image_size=2 * side).eval()


def prior(name: str, of, **settings: Any):
    part = plugin_manager().part("prior", name)
    return part.component(part.config(**settings), tokenizer=of, num_classes=3)


@pytest.mark.parametrize(
    ("kind", "name", "wrong"),
    [
        ("backbone", "masked", {"decoder_depth": 0}),  # was the encoder's
        ("backbone", "masked", {"decoder_width": 0}),
        ("backbone", "masked", {"decoder_heads": -4}),
        ("backbone", "flowar", {"decoder_depth": 0}),
        ("backbone", "flowar", {"label_dropout": 1.0}),
        ("backbone", "acdit", {"label_dropout": 3.0}),
        ("prior", "maskbit", {"scale_pow": -1.0}),  # was a division by zero
        ("prior", "maskgit", {"guidance_scale": -1.0}),
        ("prior", "titok-uvit", {"guidance_scale": -1.0}),
        ("prior", "llamagen", {"guidance_scale": -2.0}),
        ("prior", "llamagen", {"guidance_interval": -5}),
        ("prior", "rar", {"shuffled": 1.5}),
        ("prior", "magvit2", {"second_top_k": -3}),
        ("prior", "magvit2", {"second_top_p": 0.0}),
    ],
)
def test_a_setting_that_means_nothing_is_refused(kind: str, name: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        plugin_manager().part(kind, name).config(**wrong)


def test_a_pyramid_of_one_scale_trains_and_draws_a_prior_of_scales() -> None:
    var = prior("var", tokenizer("pyramid", 2, scales=(2,)), **TINY)
    assert var.loss(torch.zeros(1, 4, dtype=torch.int64), Condition(torch.tensor([0])), noise=Noise.seeded(0)).total > 0
    assert var.sample(Condition(torch.tensor([0])), noise=Noise.seeded(0)).codes_BN.shape == (1, 4)


def test_guidance_that_rises_is_there_where_there_is_one_step() -> None:
    assert prior("var", tokenizer("pyramid", 2, scales=(2,)), **TINY).guidance(1.5, [(0, 4)]) == [(2.5,)]
    layout = TokenLayout("grid", (Grid(2, 2),))
    for groups, scales in ([range(4)], [3.0]), ([range(2), range(2, 4)], [1.0, 3.0]):
        task = Task(
            images=1, layout=layout, device=torch.device("cpu"), steps=1, cfg=3.0, order="groups", groups=groups
        )
        plan = GroupsSampler(GroupsConfig()).plan(task, noise=Noise.seeded(0))
        assert [planned.step.cfg for planned in plan.steps] == scales


@pytest.mark.parametrize("scales", [(2,), (1,), ((1, 2), (2, 2))])
def test_harts_prior_begins_with_one_code(scales: tuple) -> None:
    """Of more it drew one and took it for all, or failed in training."""
    pyramid = tokenizer("pyramid", 1 if scales == (1,) else 2, scales=scales)
    with pytest.raises(UserError, match="draws one code and then larger scales"):
        prior("hart", pyramid, **HART)


def test_a_head_that_positions_cannot_turn_is_refused() -> None:
    for name, of, settings in (
        ("hart", tokenizer("pyramid", 2, scales=(1, 2)), {**HART, "width": 12}),
        ("llamagen", tokenizer("rvq", 2, depth=2), {**TINY, "width": 6, "multiple_of": 8}),
        ("randar", tokenizer("vq", 2), {**TINY, "width": 12, "multiple_of": 8}),
    ):
        with pytest.raises(UserError, match=r"a head of the prior is \d wide; with rotary positions"):
            prior(name, of, **settings)


def test_half_of_one_likeliest_code_is_one_and_not_all() -> None:
    pyramid = tokenizer("pyramid", 8, scales=(1, 2, 3, 4, 5, 6, 7, 8))
    assert [prior("hart", pyramid, **HART, top_k=top_k).top_k(7) for top_k in (0, 1, 2, 601)] == [0, 1, 1, 300]


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2, 3, 16, 100])
def test_randar_takes_no_more_steps_than_asked_for(steps: int) -> None:
    randar = prior("randar", tokenizer("vq", 4), **TINY, multiple_of=8).eval()
    seen = [*randar.sample_steps(Condition(torch.tensor([0, 1])), noise=Noise.seeded(0), steps=steps)]
    assert len(seen) <= min(steps, 16) and seen[-1].codes_BN.min() >= 0


@pytest.mark.parametrize("scales", [(0, 2), (-1, 2), ((2, 1), (1, 2), 2)])
def test_scales_of_latents_rise_from_one(scales: tuple) -> None:
    part = plugin_manager().part("continuous-tokenizer", "kl")
    with pytest.raises(UserError, match="they must rise to image_size / stride, 2"):
        part.component(part.config(**CODES, encoder_attention=(), mid_attention=False, scales=scales), image_size=4)


def test_all_steps_of_the_schedule_can_be_taken() -> None:
    """Of 1000, two are the same to rounding, and the solver divided by the way between them."""
    timesteps = denoising_process("dpm++", 1000).timesteps
    assert (timesteps[1:] > timesteps[:-1]).all() and timesteps[-1] == 999
    config = DenoisingHeadConfig(clip=4.0)
    head = DenoisingHead(config, token_dim=2, width=1, layout=None)  # type: ignore[arg-type]
    z = Z(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.int64), denoise=Denoise(lambda x, t: torch.tanh(x)))
    assert head.sample(z, Step(head_steps=1000), noise=Noise.seeded(0)).isfinite().all()

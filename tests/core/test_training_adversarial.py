"""A tokenizer against a discriminator: both losses, who gets which gradient, and what a run keeps of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._functorch import config as functorch

from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.training.adversarial import AdversarialConfig, Adversary, gradient_ratio
from mixar_core.training.checkpoint import read_sharded
from mixar_core.training.reconstruction import ContinuousReconstruction, ReconstructionConfig
from mixar_core.types import ImageBatch, Losses
from tests.core.training_toys import ToyImages, ToyJudge, against_a_judge, toy_run
from tests.toys import PoolTokenizer

WEIGHTS = "weights.safetensors"
LOGITS = st.lists(st.floats(-9, 9, width=32), min_size=4, max_size=4).map(lambda values: torch.tensor(values)[:, None])


def forward(objective: ContinuousReconstruction, *, step: int = 0, rows: slice = slice(0, 8)) -> Losses:
    pixels = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return objective(ImageBatch(pixels[rows], torch.zeros(8)[rows]), step=step, steps=10, noise=Noise.seeded(0))


def gradients(module: nn.Module, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(module.parameters()), retain_graph=True))


def log(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: line[key] for key in ("kind", "step", "losses")} for line in lines]


@given(real=LOGITS, fake=LOGITS)
@settings(deadline=None, max_examples=30)
def test_the_losses_are_the_published_ones(real: Tensor, fake: Tensor) -> None:
    ones, zeros, mean = torch.ones(4, 1), torch.zeros(4, 1), real.mean()
    cross = F.binary_cross_entropy_with_logits
    expected = {
        "hinge": 0.5 * ((1 - real).clamp_min(0).mean() + (1 + fake).clamp_min(0).mean()),
        "vanilla": 0.5 * (cross(real, ones) + cross(fake, zeros)),
        "non-saturating": cross(real, ones) + cross(fake, zeros),  # of one logit an image
    }
    for loss, value in expected.items():
        adversary = Adversary(ToyJudge(), AdversarialConfig(loss=loss, lecam_decay=0.0))
        torch.testing.assert_close(adversary.discriminator_loss(real, fake), value)
        torch.testing.assert_close(
            adversary.lecam(real, fake),
            (real - fake.mean()).clamp_min(0).square().mean() + (mean - fake).clamp_min(0).square().mean(),
        )
    for loss, value in {"hinge": -fake.mean(), "non-saturating": cross(fake, ones)}.items():
        adversary = Adversary(ToyJudge(), AdversarialConfig(generator_loss=loss))
        torch.testing.assert_close(adversary.generator_loss(fake), value)


def test_a_loss_by_image_averages_its_patches_first() -> None:
    adversary = Adversary(ToyJudge(), AdversarialConfig(loss="non-saturating", generator_loss="non-saturating"))
    patches, images = torch.randn(4, 1, 3, 3), torch.randn(4, 1, 1, 1)
    means = patches.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(adversary.generator_loss(patches), adversary.generator_loss(means))
    torch.testing.assert_close(
        adversary.discriminator_loss(images, patches), adversary.discriminator_loss(images, means)
    )


@pytest.mark.parametrize("adaptive", [True, False])
def test_neither_side_gets_a_gradient_of_the_others_loss(adaptive: bool) -> None:
    objective = against_a_judge(adaptive=adaptive, weight=0.7).train()
    assert objective.adversary is not None
    total = forward(objective).total
    plain, judge = against_a_judge().train(), objective.adversary
    plain.beside.clear()
    torch.manual_seed(0)
    reconstruction = forward(plain)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    posterior = plain.tokenizer.posterior(images)
    decoded = plain.tokenizer.decode_raw(plain.tokenizer.sample_posterior(posterior, Noise.seeded(0)))
    adversarial = -judge.judge(decoded).mean()
    weight = 0.7
    if adaptive:
        pixels = (decoded - images).abs().mean()
        weight *= gradient_ratio(pixels, adversarial, plain.tokenizer.last_layer).item()
    expected = gradients(plain.tokenizer, reconstruction.total)
    expected = [g + weight * a for g, a in zip(expected, gradients(plain.tokenizer, adversarial), strict=True)]
    torch.testing.assert_close(gradients(objective.tokenizer, total), expected, rtol=1e-4, atol=1e-7)

    real, fake = judge.judge(images), judge.judge(decoded.detach())
    own = judge.discriminator_loss(real, fake) + 0.1 * judge.lecam(real, fake)
    torch.testing.assert_close(gradients(judge, total), gradients(judge, own), rtol=1e-4, atol=1e-7)


@given(scale=st.floats(0.01, 100))
@settings(deadline=None, max_examples=20)
def test_the_adaptive_weight_follows_the_scale_of_the_reconstruction(scale: float) -> None:
    objective = against_a_judge().train()
    objective.config = ReconstructionConfig(reconstruction_weight=scale)
    one = forward(against_a_judge().train()).terms["adversarial_weight"]
    torch.testing.assert_close(forward(objective).terms["adversarial_weight"], scale * one, rtol=1e-4, atol=0.0)


def test_a_measurement_leaves_everything_as_it_is_and_counts_no_opponent() -> None:
    objective = against_a_judge().eval()
    before = {name: tensor.clone() for name, tensor in objective.state_dict().items()}
    with torch.no_grad():
        measured = forward(objective)
    assert measured.total.item() == pytest.approx(
        (measured.terms["reconstruction"] + 1e-6 * measured.terms["kl"]).item()
    )
    assert {"logits_real", "logits_fake", "adversarial", "discriminator", "lecam"} <= measured.terms.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())


def test_nothing_of_it_happens_before_its_first_step(tmp_path: Path) -> None:
    late = toy_run(tmp_path / "late", objective=against_a_judge(start_step=6), steps=6)
    alone = against_a_judge()
    alone.beside.clear()
    toy_run(tmp_path / "alone", objective=alone, steps=6)
    assert (tmp_path / "late" / WEIGHTS).read_bytes() == (tmp_path / "alone" / WEIGHTS).read_bytes()
    assert "discriminator" not in late.losses
    then = toy_run(tmp_path / "then", objective=against_a_judge(start_step=3), steps=6, log_every=4)
    assert then.losses["discriminator"] > 0.5  # a mean over the steps that had it
    assert (tmp_path / "then" / WEIGHTS).read_bytes() != (tmp_path / "alone" / WEIGHTS).read_bytes()


@pytest.mark.parametrize("stop", [2, 5])  # before and after the discriminator's first step
def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path, stop: int) -> None:
    how = {"validation": ToyImages(8), "evaluate_every": 1, "micro_batch": 3, "checkpoint_every": 1}
    for name, steps in (("whole", (8,)), ("parts", (stop, 8))):
        for number, until in enumerate(steps):
            objective = against_a_judge(start_step=3)
            toy_run(tmp_path / name, objective=objective, steps=until, resume=number > 0, **how)
    assert log(tmp_path / "parts") == log(tmp_path / "whole")
    for part in ("raw", "ema", "optimizer", "discriminator", "discriminator_optimizer"):
        ended = [read_sharded(tmp_path / name / "checkpoints" / "step-00000008" / part) for name in ("parts", "whole")]
        assert ended[0].keys() == ended[1].keys() and ended[0]
        assert all(torch.equal(tensor, ended[1][key]) for key, tensor in ended[0].items())
    judge = read_sharded(tmp_path / "whole/checkpoints/step-00000008/discriminator")
    assert judge["mean_real"] != 0 and judge["discriminator.layers.1.num_batches_tracked"] > 0
    assert load_file(tmp_path / "whole" / WEIGHTS).keys() == against_a_judge().tokenizer.state_dict().keys()


def test_moving_means_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    means = []
    for micro_batch in (None, 3):
        objective = against_a_judge(lecam_decay=0.5, adaptive=False)
        result = toy_run(tmp_path / str(micro_batch), objective=objective, steps=1, micro_batch=micro_batch)
        assert objective.adversary is not None
        assert objective.adversary.mean_real == pytest.approx(0.5 * result.losses["logits_real"], rel=1e-6)
        assert objective.adversary.mean_fake == pytest.approx(0.5 * result.losses["logits_fake"], rel=1e-6)
        means.append(objective.adversary.mean_real)
    assert means[0] != 0


@pytest.mark.parametrize("how", [{"precision": "bf16"}, {"clip": 1e-3}, {"schedule": "cosine", "warmup_steps": 2}])
def test_both_learn_however_they_are_trained(tmp_path: Path, how: dict) -> None:
    objective, begun = against_a_judge(), against_a_judge()
    result = toy_run(tmp_path / "run", objective=objective, steps=4, **how)
    assert all(torch.isfinite(torch.tensor(value)) for value in result.losses.values())
    for now, then in zip(objective.parameters(), begun.parameters(), strict=True):
        assert now.dtype == torch.float32 and not torch.equal(now, then)


def test_the_discriminator_has_its_own_rate(tmp_path: Path) -> None:
    moved = []
    for rate in (None, 1e-2, 1e-4):
        objective, begun = against_a_judge(learning_rate=rate), against_a_judge()
        toy_run(tmp_path / str(rate), objective=objective, steps=1, learning_rate=1e-2, clip=None)
        pairs = zip(objective.adversary.parameters(), begun.adversary.parameters(), strict=True)
        moved.append(max((now - then).abs().max().item() for now, then in pairs))
    assert moved[0] == moved[1] == pytest.approx(100 * moved[2], rel=1e-3)


def test_what_it_cannot_do_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^training\.parallel: fsdp does not shard a discriminator; use ddp$"):
        toy_run(tmp_path / "run", objective=against_a_judge(), parallel="fsdp")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="PoolTokenizer has no last_layer"):
        ContinuousReconstruction(
            PoolTokenizer(), None, ReconstructionConfig(), Adversary(ToyJudge(), AdversarialConfig())
        )
    toy_run(tmp_path / "run", objective=against_a_judge(), steps=2)
    with pytest.raises(UserError, match="discriminator was"):
        toy_run(tmp_path / "run", objective=against_a_judge(weight=0.1), steps=4, resume=True)


def test_compiled_blocks_bear_an_adaptive_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functorch, "donated_buffer", True)
    compile_with = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_with(module, backend="aot_eager"))
    plain, compiled = against_a_judge().train(), against_a_judge().train()
    compiled.compile_parts()
    found = []
    for objective in (plain, compiled):
        losses = forward(objective)
        losses.total.backward()
        found.append([losses.total.item(), losses.terms["adversarial_weight"].item()])
    torch.compiler.reset()
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def test_a_gradient_of_the_discriminator_that_is_not_finite_is_named(tmp_path: Path) -> None:
    objective = against_a_judge()
    objective.adversary.discriminator.layers[3].bias.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(UserError, match=r"gradient of beside.discriminator.discriminator.layers.3.bias of images"):
        toy_run(tmp_path / "run", objective=objective)


def test_a_discriminator_that_diverges_stops_the_run(tmp_path: Path) -> None:
    objective = against_a_judge()
    with torch.no_grad():
        objective.adversary.discriminator.layers[0].weight.fill_(float("inf"))
    with pytest.raises(
        UserError, match=r"first in process 0: weights beside.discriminator.discriminator.layers.0.weight;"
    ):
        toy_run(tmp_path / "run", objective=objective)

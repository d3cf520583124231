from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mixar_core.noise import Noise
from mixar_core.training.reconstruction import ContinuousReconstruction, DiscreteReconstruction, ReconstructionConfig
from mixar_core.training.usage import CodeUsage, LatentUsage
from mixar_core.types import Posterior
from tests.core.test_training_reconstruction import LearntSigns, LinearTokenizer, images
from tests.core.training_toys import toy_run


def alone(tensor: Tensor) -> Tensor:
    """One process's sum is its own."""
    return tensor


def test_a_window_of_one_code_and_one_of_all_codes():
    usage = CodeUsage(1000)
    usage.add(torch.full((5, 200), 7))
    one = usage.take(alone)
    assert one["codes_perplexity"] == pytest.approx(1.0)
    assert one["codes_used"] == pytest.approx(1 / (1000 * (1 - (1 - 1 / 1000) ** 1000)))
    usage.add(torch.arange(1000).repeat(20)[None])
    every = usage.take(alone)
    assert every["codes_perplexity"] == pytest.approx(1000) and every["codes_used"] == pytest.approx(1.0, abs=1e-3)
    assert usage.take(alone) == {}, "a new window has begun"


@given(st.integers(2, 2**18), st.integers(1, 4000), st.integers(0, 2**31))
def test_codes_drawn_evenly_are_all_in_use_however_large_the_codebook(codes: int, drawn: int, seed: int):
    """A batch shows a large codebook's smallest part; the share does not take that for a collapse."""
    usage = CodeUsage(codes)
    usage.add(torch.randint(codes, (1, drawn), generator=torch.Generator().manual_seed(seed)))
    found = usage.take(alone)
    assert found["codes_used"] == pytest.approx(1.0, abs=6 / math.sqrt(min(drawn, codes)))
    assert 1.0 <= found["codes_perplexity"] <= min(codes, drawn) * (1 + 1e-9)


def test_processes_are_counted_together():
    one, other = CodeUsage(4), CodeUsage(4)
    one.add(torch.tensor([[0, 0, 1]]))
    other.add(torch.tensor([[2, 2, 3]]))
    together = one.take(lambda tensor: tensor + other.counts_V)
    whole = CodeUsage(4)
    whole.add(torch.tensor([[0, 0, 1, 2, 2, 3]]))
    assert together == whole.take(alone)


def test_latents_that_are_noise_are_not_in_use():
    usage, generator = LatentUsage(3), torch.Generator().manual_seed(0)
    mean = torch.randn(64, 3, 4, 4, generator=generator) * torch.tensor([2.0, 0.01, 0.5])[:, None, None] + 5.0
    logvar = torch.tensor([0.0, 0.0, -4.0])[:, None, None].expand_as(mean)
    for part in (slice(0, 24), slice(24, 64)):
        usage.add(Posterior(mean[part], logvar[part]))
    found = usage.take(alone)
    assert found["channels_used"] == pytest.approx(2 / 3)
    expected = (mean.var(dim=(0, 2, 3), correction=0) + logvar[0, :, 0, 0].exp()).mean().sqrt().item()
    assert found["latent_std"] == pytest.approx(expected, rel=1e-4)
    assert usage.take(alone) == {}


@pytest.mark.parametrize("kind", ["codes", "latents"])
def test_what_is_trained_is_counted_and_validation_is_not(kind):
    config = ReconstructionConfig()
    objective = (
        DiscreteReconstruction(LearntSigns(), None, config)
        if kind == "codes"
        else ContinuousReconstruction(LinearTokenizer(), None, config)
    )
    objective.eval()
    with torch.no_grad():
        objective(images(), step=0, steps=1, noise=Noise.seeded(0))
    assert objective.window(alone) == {}
    objective.train()
    objective(images(), step=0, steps=1, noise=Noise.seeded(0))
    expected = {"codes_used", "codes_perplexity"} if kind == "codes" else {"latent_std", "channels_used"}
    assert set(objective.window(alone)) == expected
    assert not any(name.startswith("usage") for name in objective.state_dict()), "checkpoints stay as they are"


def test_every_report_has_the_figures_of_its_window(tmp_path):
    objective = DiscreteReconstruction(LearntSigns(), None, ReconstructionConfig())
    toy_run(tmp_path / "run", objective=objective, steps=4, log_every=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    reports = [line["losses"] for line in lines if line["kind"] == "train"]
    assert len(reports) == 2
    for losses in reports:
        assert losses["codes_used"] == pytest.approx(1.0, abs=0.01) and 1 < losses["codes_perplexity"] <= 8

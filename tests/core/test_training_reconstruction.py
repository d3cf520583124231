from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixar_core.distributed import Processes
from mixar_core.noise import Noise
from mixar_core.perceptual import FeatureExtractor, perceptual_distance_B
from mixar_core.prior import DiscretePrior
from mixar_core.training.objective import PriorObjective
from mixar_core.training.reconstruction import (
    ContinuousReconstruction,
    DiscreteReconstruction,
    ReconstructionConfig,
)
from mixar_core.training.sources import shared_batches
from mixar_core.types import Condition, DrawnCodes, ImageBatch, Losses, Posterior, Quantized
from tests.core.training_toys import ToyImages, toy_config, toy_run
from tests.toys import PoolTokenizer, SignTokenizer


class Edges(FeatureExtractor):
    feature_dim = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Conv2d(3, 4, 3)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        return self.maps(images_B3HW)[0].mean((2, 3))

    def maps(self, images_B3HW: Tensor) -> list[Tensor]:
        shallow = self.layer(images_B3HW)
        return [shallow, F.relu(F.max_pool2d(shallow, 2))]


class LinearTokenizer(PoolTokenizer):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 6, 1)

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        return Posterior(*self.inner(F.avg_pool2d(images_B3HW, self.stride)).chunk(2, dim=1))


class LearntSigns(SignTokenizer):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(3, 3, 1)

    def quantize(self, images_B3HW: Tensor) -> Quantized:
        found = super().quantize(images_B3HW)
        return Quantized(
            found.vectors_BEhw, found.codes_BN, {"quantizer": torch.ones(()), "entropy": torch.tensor(2.0)}
        )

    def decode_vectors(self, vectors_BEhw: Tensor) -> Tensor:
        return super().decode_vectors(self.out(vectors_BEhw))


class CountingPrior(DiscretePrior):
    def __init__(self) -> None:
        super().__init__(layout=SignTokenizer().layout, codebook_size=8, num_classes=5)
        self.logits = nn.Parameter(torch.zeros(8))

    def sample_steps(self, condition, *, noise, steps=None, cfg=None, temperature=None, given_BN=None):
        yield DrawnCodes(torch.full((len(condition), self.layout.tokens), int(self.logits.argmax())))

    def loss(self, codes_BN: Tensor, condition: Condition, *, noise: Noise) -> Losses:
        return Losses(F.cross_entropy(self.logits.expand(codes_BN.numel(), 8), codes_BN.flatten()))


def images(count: int = 4) -> ImageBatch:
    return ImageBatch(
        torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1, torch.zeros(count)
    )


def forward(objective, step: int = 0) -> Losses:
    objective.train()
    return objective(images(), step=step, steps=10, noise=Noise.seeded(0))


def test_perceptual_distance_is_zero_for_a_copy_and_has_a_gradient_anywhere():
    extractor, real = Edges(), images().images_B3HW
    assert perceptual_distance_B(extractor, real, real).tolist() == [0.0] * 4
    flat = torch.zeros_like(real, requires_grad=True)
    distance = perceptual_distance_B(extractor, real, flat)
    assert distance.shape == (4,) and (distance > 0).all() and (distance < 4).all()
    distance.sum().backward()
    assert flat.grad.isfinite().all() and flat.grad.abs().sum() > 0


def test_the_continuous_loss_is_the_sum_of_its_weighted_terms():
    config = ReconstructionConfig(loss="l2", perceptual_weight=0.5, kl_weight=1e-3, reconstruction_weight=2.0)
    losses = forward(ContinuousReconstruction(LinearTokenizer(), Edges(), config))
    terms = losses.terms
    expected = 2.0 * terms["reconstruction"] + 0.5 * terms["perceptual"] + 1e-3 * terms["kl"]
    torch.testing.assert_close(losses.total.detach(), expected)
    assert set(terms) == {"reconstruction", "psnr", "perceptual", "kl"}


def test_the_discrete_loss_counts_entropy_more_at_first():
    config = ReconstructionConfig(quantizer_weight=3.0, entropy_annealing_factor=2.0, entropy_annealing_steps=10)
    objective = DiscreteReconstruction(LearntSigns(), None, config)
    for step, quantizer in ((0, 1 + 2 * 2.0), (5, 1 + 1 * 2.0), (20, 1.0)):
        losses = forward(objective, step)
        assert losses.total.item() == pytest.approx(losses.terms["reconstruction"].item() + 3 * quantizer)
    assert losses.terms["codes_in_use"] == 8


def test_an_extractor_is_frozen_and_asked_for():
    extractor = Edges()
    objective = ContinuousReconstruction(LinearTokenizer(), extractor, ReconstructionConfig(perceptual_weight=1.0))
    forward(objective).total.backward()
    assert all(p.grad is None for p in extractor.parameters())
    with pytest.raises(ValueError, match="perceptual_weight"):
        ContinuousReconstruction(LinearTokenizer(), None, ReconstructionConfig(perceptual_weight=1.0))


def test_latents_are_measured_into_the_weights(tmp_path):
    tokenizer = LinearTokenizer()
    objective = ContinuousReconstruction(tokenizer, None, ReconstructionConfig())
    toy_run(tmp_path / "run", objective=objective, steps=3)
    data = ToyImages()
    pixels = torch.stack([data[index][0] for index in range(len(data))]).float() / 127.5 - 1.0
    posterior = tokenizer.posterior(pixels)
    noise = torch.randn(200, *posterior.mean_BChw.shape, generator=torch.Generator().manual_seed(0))
    sampled = posterior.mean_BChw + noise * (posterior.logvar_BChw / 2).exp()
    torch.testing.assert_close(tokenizer.latent_mean_C, sampled.mean((0, 1, 3, 4)), rtol=0.05, atol=0.01)
    torch.testing.assert_close(tokenizer.latent_std_C, sampled.std((0, 1, 3, 4)), rtol=0.01, atol=0.0)
    latents = tokenizer.encode(pixels, Noise.seeded(0))
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(3), rtol=0.15, atol=0.0)


def statistics(
    rank: int, world: int, count: int, limit: int = 50_000, reduce=lambda values: values
) -> tuple[LinearTokenizer, int]:
    """What one of several processes measures over its share of `count` images, two at a time; its passes."""
    tokenizer, data = LinearTokenizer(), ToyImages(count)
    passes, posterior = [], tokenizer.posterior

    def counted(images_B3HW: Tensor) -> Posterior:
        passes.append(len(images_B3HW))
        return posterior(images_B3HW)

    tokenizer.load_state_dict({name: torch.full_like(t, 0.1) for name, t in tokenizer.state_dict().items()})
    tokenizer.posterior = counted
    objective = ContinuousReconstruction(tokenizer, None, ReconstructionConfig(statistics_images=limit))
    processes = Processes(rank, world, torch.device("cpu"))
    config = toy_config(micro_batch=2)
    objective.finish(shared_batches(data, objective.finish_images, config, processes), reduce)
    return tokenizer, len(passes)


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("count", [1, 3, 5, 8, 13])
def test_all_processes_measure_in_equally_many_passes(world, count):
    """Under FSDP a process that has one batch more would wait for the others' weights for ever."""
    alone, _ = statistics(0, 1, count)
    said, meeting = [None] * world, threading.Barrier(world, timeout=20)

    def measured(rank: int):
        def sum_over_threads(values: Tensor) -> Tensor:
            said[rank] = values
            meeting.wait()
            return sum(said)

        return statistics(rank, world, count, reduce=sum_over_threads)

    with ThreadPoolExecutor(world) as pool:
        found = list(pool.map(measured, range(world)))
    assert {passes for _, passes in found} == {-(-len(range(0, count, world)) // 2)}
    for tokenizer, _ in found:
        torch.testing.assert_close(tokenizer.latent_mean_C, alone.latent_mean_C)
        torch.testing.assert_close(tokenizer.latent_std_C, alone.latent_std_C)


def test_no_more_images_are_measured_than_asked_for():
    assert [statistics(0, 1, 8, limit)[1] for limit in (1, 2, 3, 7, 8, 9)] == [1, 1, 2, 4, 4, 4]


def test_previews():
    for objective in (
        ContinuousReconstruction(LinearTokenizer(), None, ReconstructionConfig()),
        DiscreteReconstruction(LearntSigns(), None, ReconstructionConfig()),
        PriorObjective(CountingPrior(), SignTokenizer()),
    ):
        rows = objective.eval().preview(images(), noise=Noise.seeded(0))
        assert all(row.shape == (4, 3, 16, 16) and row.abs().max() <= 1.0 for row in rows.values())


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_prior_learns_from_codes(tmp_path, cache):
    prior = CountingPrior()
    toy_run(
        tmp_path / "run", objective=PriorObjective(prior, SignTokenizer()), steps=40, learning_rate=0.1, cache=cache
    )
    data, tokenizer = ToyImages(), SignTokenizer()
    codes = [tokenizer.encode(data[index][0][None] / 127.5 - 1.0) for index in range(len(data))]
    shares = torch.cat(codes).flatten().bincount(minlength=8) / (20 * 16)
    torch.testing.assert_close(prior.logits.softmax(0).detach(), shares, atol=0.05, rtol=0.0)

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mixar_core.distributed import Processes
from mixar_core.perceptual import psnr_B
from mixar_core.types import Posterior
from mixar_eval.features import as_saved, extract
from mixar_eval.tokenizer_meter import CodeCounter, LatentCounter, TokenizerMeter
from tests.eval.test_scores import Means
from tests.fake_device import GPU, fake_gpu, place
from tests.toys import PoolTokenizer, SignTokenizer

ALONE = Processes(0, 1, torch.device("cpu"))


def images(count: int = 6) -> Tensor:
    return as_saved(torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1)


def test_code_usage_is_counted_over_batches():
    counter = CodeCounter(SignTokenizer())
    counter.add(torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]))
    counter.add(torch.tensor([[7, 7, 7, 7], [0, 0, 0, 0]]))
    usage = counter.found(ALONE)
    assert (usage["codebook_size"], usage["used"], usage["codes"]) == (8, 3, 16)
    assert usage["entropy_bits"] == pytest.approx(1.5) and usage["perplexity"] == pytest.approx(2**1.5)
    assert usage["share_used"] == 3 / 8 and usage["bits_per_image"] == 16 * 3
    alone = CodeCounter(SignTokenizer())
    alone.add(torch.zeros(2, 16, dtype=torch.int64))
    assert alone.found(ALONE)["entropy_bits"] == 0.0 and alone.found(ALONE)["perplexity"] == 1.0


def test_latent_statistics_are_those_of_a_sample_of_the_posterior():
    tokenizer = PoolTokenizer()
    tokenizer.latent_mean_C.copy_(torch.tensor([1.0, 0.0, 0.0]))
    tokenizer.latent_std_C.fill_(2.0)
    generator = torch.Generator().manual_seed(0)
    mean, logvar = torch.randn(400, 3, 4, 4, generator=generator), torch.randn(400, 3, 4, 4, generator=generator)
    counter = LatentCounter(tokenizer)
    for rows in (slice(0, 150), slice(150, 400)):
        counter.add(Posterior(mean[rows], logvar[rows]))
    found = counter.found(ALONE)
    channels = {name: torch.tensor(values) for name, values in found.items() if isinstance(values, list)}
    sample = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=generator)
    torch.testing.assert_close(channels["mean"], sample.mean(dim=(0, 2, 3)), atol=0.06, rtol=0)
    torch.testing.assert_close(channels["std"], sample.std(dim=(0, 2, 3)), rtol=0.05, atol=0)
    torch.testing.assert_close(channels["normalised_mean"][0], (channels["mean"][0] - 1.0) / 2.0)
    torch.testing.assert_close(channels["normalised_std"], channels["std"] / 2.0)
    assert found["kl_nats"] == pytest.approx(float(Posterior(mean, logvar).kl_B().mean()), rel=1e-5)
    assert found["kl_bits"] == pytest.approx(found["kl_nats"] / math.log(2)) and found["values_per_image"] == 48


def test_a_meter_measures_every_way_to_reconstruct_as_a_png_holds_it():
    tokenizer, real = PoolTokenizer(), images()
    meter = TokenizerMeter(tokenizer, Means(), seed=0)
    for rows in torch.arange(6).split(4):
        decoded = meter.add(real[rows], rows)
    assert set(decoded) == {"mean", "sample"} and decoded["mean"].dtype == torch.uint8
    ways, latents = meter.ways(ALONE), meter.counter.found(ALONE)
    expected = as_saved(tokenizer.decode(tokenizer.encode(real)))
    torch.testing.assert_close(ways["mean"]["psnr"], psnr_B(real, expected))
    torch.testing.assert_close(ways["mean"]["features"], Means()(expected))
    assert ways["mean"]["ssim"].shape == ways["mean"]["perceptual"].shape == (6,)
    assert meter.counter.name == "latents" and latents["values_per_image"] == 48
    discrete = TokenizerMeter(SignTokenizer(), Means(), seed=0)
    assert set(discrete.add(real, torch.arange(6))) == {"codes"}
    assert discrete.counter.found(ALONE)["codes"] == 96


def test_a_sample_depends_on_the_seed_and_the_images_position_alone():
    class Vague(PoolTokenizer):
        def posterior(self, images_B3HW: Tensor) -> Posterior:
            return Posterior(super().posterior(images_B3HW).mean_BChw, torch.zeros(len(images_B3HW), 3, 4, 4))

    def samples(parts: list[Tensor], seed: int = 0) -> Tensor:
        meter = TokenizerMeter(Vague(), Means(), seed=seed)
        return torch.cat([meter.add(images()[rows], rows)["sample"] for rows in parts])

    together = samples([torch.arange(6)])
    assert torch.equal(together, samples([torch.tensor([0, 1]), torch.tensor([2, 3, 4, 5])]))
    assert torch.equal(together[[5, 0]], samples([torch.tensor([5, 0])]))
    assert not torch.equal(together, samples([torch.arange(6)], seed=1))


def test_measuring_is_done_where_the_images_are(monkeypatch):
    # counting is done on the host, with values that a GPU that is not there does not have
    monkeypatch.setattr(CodeCounter, "add", lambda self, codes_BN: None)
    tokenizer, extractor = SignTokenizer(), Means()
    with fake_gpu():
        for module in (tokenizer, extractor):
            place(module, GPU)
        pixels_B3HW = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
        found = extract(pixels_B3HW.to(GPU), extractor)
        assert found["features"].device.type == found["logits"].device.type == "cpu"
        meter = TokenizerMeter(tokenizer, extractor, seed=0)
        assert meter.add(as_saved(pixels_B3HW.to(GPU)), torch.arange(2))["codes"].device == GPU

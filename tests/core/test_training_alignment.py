from __future__ import annotations

import json
import math
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.perceptual import perceptual_distance_B
from mixar_core.training.adversarial import gradient_ratio
from mixar_core.training.alignment import Alignment, AlignmentConfig, alignment_of, features_at
from mixar_core.training.reconstruction import ContinuousReconstruction, ReconstructionConfig
from mixar_core.types import Grid, TokenLayout
from mixar_plugins.extractors.timm_model import TimmConfig, TimmExtractor
from tests.core.test_training_reconstruction import Edges, LinearTokenizer, forward, images
from tests.core.training_toys import toy_run
from tests.networks import TIMM_MODEL, write_timm


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(config: AlignmentConfig, channels: int = 4) -> Alignment:
    """An alignment whose projection changes nothing."""
    alignment = Alignment(channels, channels, config)
    with torch.no_grad():
        alignment.projection.weight.copy_(torch.eye(channels)[:, :, None, None])
    return alignment


def test_the_losses_are_the_papers_sums_place_by_place():
    config = AlignmentConfig(margin_cos=0.3, margin_dist=0.2)
    alignment = Alignment(4, 6, config)
    latents, features = normal(2, 4, 3, 2), normal(2, 6, 3, 2, seed=1)
    cos, dist = alignment.losses(latents, features)
    projection = alignment.projection.weight.detach()[:, :, 0, 0].double().numpy()
    ours = numpy.einsum("fc,bcn->bnf", projection, latents.flatten(2).double().numpy())
    theirs = features.flatten(2).double().numpy().transpose(0, 2, 1)

    def cosine(a: numpy.ndarray, b: numpy.ndarray) -> float:
        return float(a @ b / (numpy.linalg.norm(a) * numpy.linalg.norm(b)))

    each = [max(0.0, 1 - 0.3 - cosine(ours[b, n], theirs[b, n])) for b in range(2) for n in range(6)]
    pairs = [
        max(0.0, abs(cosine(ours[b, n], ours[b, m]) - cosine(theirs[b, n], theirs[b, m])) - 0.2)
        for b in range(2)
        for n in range(6)
        for m in range(6)
    ]
    assert cos.item() == pytest.approx(numpy.mean(each), rel=1e-5)
    assert dist.item() == pytest.approx(numpy.mean(pairs), rel=1e-5)


def test_known_angles_and_what_a_margin_forgives():
    same = normal(2, 4, 2, 2)
    assert [loss.item() for loss in plain(AlignmentConfig(margin_cos=0, margin_dist=0)).losses(same, 3 * same)] == [
        pytest.approx(0, abs=1e-6)
    ] * 2
    one, other = torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2)
    one[0, 0, 0], other[0, 1, 0] = 1.0, 1.0  # both places alike in each, and at right angles between them
    assert [loss.item() for loss in plain(AlignmentConfig()).losses(one, other)] == [0.5, 0.0]
    other[0, :, 0, 1] = -other[0, :, 0, 0]  # the features of the two places are opposite, the latents are the same
    assert plain(AlignmentConfig()).losses(one, other)[1].item() == pytest.approx((2 - 0.25) / 2)
    forgiving = plain(AlignmentConfig(margin_cos=1.0, margin_dist=1.99))
    assert forgiving.losses(one, one.roll(1, dims=1))[0].item() == 0.0


@given(st.floats(1e-2, 1e2), st.integers(0, 1000))
def test_neither_scale_nor_the_order_of_places_matters(scale: float, seed: int):
    alignment = Alignment(4, 6, AlignmentConfig(margin_cos=0.1, margin_dist=0.05))
    latents, features = normal(2, 4, 2, 3, seed=seed), normal(2, 6, 2, 3, seed=seed + 1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))

    def moved(map_BCHW: Tensor) -> Tensor:
        return map_BCHW.flatten(2)[:, :, order].unflatten(2, (2, 3))

    for ours, theirs in ((scale * latents, features), (latents, scale * features), (moved(latents), moved(features))):
        torch.testing.assert_close(
            alignment.losses(ours, theirs), alignment.losses(latents, features), rtol=1e-4, atol=1e-5
        )


def test_the_adaptive_weight_makes_its_gradient_a_share_of_the_reconstructions():
    alignment = Alignment(4, 6, AlignmentConfig(weight=0.3)).train()
    layer = nn.Parameter(normal(4, 4))
    latents = torch.einsum("dc,bchw->bdhw", layer, normal(2, 4, 2, 2))
    reconstruction = 50.0 * latents.square().mean()
    added, terms = alignment(latents, normal(2, 6, 2, 2, seed=1), reconstruction=reconstruction, layer=layer)
    wanted, found = (torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in (reconstruction, added))
    assert found.item() == pytest.approx(0.3 * wanted.item(), rel=1e-2)
    at_latents, _ = alignment(latents, normal(2, 6, 2, 2, seed=1), reconstruction=reconstruction, layer=None)
    ratio = gradient_ratio(
        reconstruction, sum(alignment.losses(latents, normal(2, 6, 2, 2, seed=1))), latents, most=1e8
    )
    plain_sum = terms["alignment_cos"] + terms["alignment_dist"]
    torch.testing.assert_close(at_latents.detach(), 0.3 * ratio * plain_sum)
    added, terms = alignment.eval()(latents, normal(2, 6, 2, 2), reconstruction=reconstruction, layer=layer)
    assert added.item() == 0.0 and "alignment_weight" not in terms


def test_features_come_from_the_deepest_map_that_is_fine_enough():
    class Three(Edges):
        def maps(self, images_B3HW: Tensor) -> list[Tensor]:
            return [F.avg_pool2d(images_B3HW, factor).repeat(1, factor, 1, 1) for factor in (2, 4, 8)]

    picture = images().images_B3HW  # 16 px: maps of 8, 4 and 2
    assert features_at(Three(), picture, height=4, width=4).shape == (4, 12, 4, 4)
    assert features_at(Three(), picture, height=3, width=3).shape == (4, 12, 3, 3)
    assert features_at(Three(), picture, height=2, width=2).shape == (4, 24, 2, 2)
    assert features_at(Three(), picture, height=16, width=16).shape == (4, 24, 16, 16)
    level = torch.full_like(picture, 0.25)
    torch.testing.assert_close(features_at(Three(), level, height=3, width=3), torch.full((4, 12, 3, 3), 0.25))


def objective(weight: float = 0.5) -> ContinuousReconstruction:
    torch.manual_seed(0)
    config = ReconstructionConfig(kl_weight=1e-3)
    return ContinuousReconstruction(
        LinearTokenizer(), None, config, aligned_to=Edges(), alignment=AlignmentConfig(weight=weight)
    )


def test_the_loss_has_the_weighted_sum_on_top():
    losses = forward(objective())
    terms = losses.terms
    aligned = terms["alignment_weight"] * (terms["alignment_cos"] + terms["alignment_dist"])
    torch.testing.assert_close(losses.total.detach(), terms["reconstruction"] + aligned + 1e-3 * terms["kl"])


def test_the_projection_is_trained_and_resumed_and_not_written(tmp_path):
    begun = objective().beside["alignment"].state_dict()["projection.weight"]
    toy_run(tmp_path / "whole", objective=objective(), steps=6)
    toy_run(tmp_path / "cut", objective=objective(), steps=3)
    toy_run(tmp_path / "cut", objective=objective(), steps=6, resume=True)
    weights = [load_file(tmp_path / run / "weights.safetensors") for run in ("whole", "cut")]
    assert weights[0].keys() == LinearTokenizer().state_dict().keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    def kept(run: str) -> dict[str, Tensor]:
        (file,) = (tmp_path / run / "checkpoints" / "step-00000006" / "alignment").iterdir()
        return load_file(file)

    whole, cut = kept("whole"), kept("cut")
    assert whole.keys() == {"projection.weight"}, "the foundation model is in no checkpoint"
    assert torch.equal(whole["projection.weight"], cut["projection.weight"])
    assert not torch.equal(whole["projection.weight"], begun)


def test_training_brings_latents_nearer_to_the_features(tmp_path):
    toy_run(tmp_path / "run", objective=objective(5.0), steps=150, log_every=25)
    lines = [json.loads(line)["losses"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    held = [line["alignment_cos"] + line["alignment_dist"] for line in lines]
    assert held[-1] < 0.8 * held[0] and all(map(math.isfinite, held))


def test_latents_without_places_are_refused():
    class Row(LinearTokenizer):
        layout = TokenLayout("sequence", (Grid(1, 4),))

    with pytest.raises(UserError, match="have no places"):
        alignment_of(Row(), Edges(), AlignmentConfig())


def test_an_adaptive_weight_needs_an_encoder_that_is_trained():
    class Named(LinearTokenizer):
        @property
        def encoder_layer(self) -> nn.Parameter:
            return self.inner.weight

    tokenizer = Named()
    tokenizer.inner.requires_grad_(False)
    with pytest.raises(UserError, match=r"last layer is frozen.*alignment\.adaptive=false"):
        alignment_of(tokenizer, Edges(), AlignmentConfig())
    assert alignment_of(tokenizer, Edges(), AlignmentConfig(adaptive=False))
    assert alignment_of(Named(), Edges(), AlignmentConfig())


def test_a_vision_transformer_serves_alignment_and_perceptual_loss(tmp_path: Path):
    weights = str(write_timm(tmp_path / "vit.safetensors"))
    vit = TimmExtractor(TimmConfig(TIMM_MODEL, weights, size=64, layers=(-1,), norm=True))
    config = ReconstructionConfig(perceptual_weight=1.0)
    built = ContinuousReconstruction(
        LinearTokenizer(), TimmExtractor(TimmConfig(TIMM_MODEL, weights, size=64)), config, aligned_to=vit
    )
    losses = forward(built)
    assert {"perceptual", "alignment_cos", "alignment_dist"} <= losses.terms.keys()
    losses.total.backward()
    for name, parameter in [*built.tokenizer.named_parameters(), *built.beside.named_parameters()]:
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name
    assert not any(parameter.requires_grad for parameter in vit.parameters())
    real = images().images_B3HW
    assert perceptual_distance_B(vit, real, real).tolist() == [0.0] * 4
    assert (perceptual_distance_B(vit, real, -real) > 0).all()
    built.eval()
    with torch.no_grad():
        built(images(), step=0, steps=1, noise=Noise.seeded(0))


def test_shards_are_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(UserError, match=r"^training\.parallel: fsdp does not shard an alignment; use ddp$"):
        toy_run(tmp_path / "run", objective=objective(), parallel="fsdp")
    assert not (tmp_path / "run").exists()

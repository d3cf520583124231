"""Tokens in any layout: residual and pyramid quantizers, tokens without a place, priors, a MixAR over all of them."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mixar_core.data.tokens import FrozenTokenizers
from mixar_core.errors import UserError
from mixar_core.masking import split_by_order
from mixar_core.mixture import TIMixConfig
from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.testing import check_continuous_tokenizer, check_discrete_tokenizer, check_prior
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import Condition, DrawnCodes, Grid, ImageBatch, Quantized, TokenBatch, TokenLayout
from mixar_plugins.backbones.masked import MaskedBackbone, MaskedConfig
from mixar_plugins.heads.diffusion import DiffusionHead, DiffusionHeadConfig
from mixar_plugins.priors.masked_transformer import BitTokenPrior, EmbeddingTokenPrior, MaskBitConfig, MaskGitConfig
from mixar_plugins.samplers.cosine import CosineConfig, CosineSampler
from mixar_plugins.tokenizers.quantizers import LookupQuantizer, QuantizerWeights
from mixar_plugins.tokenizers.residual import (
    DepthQuantizer,
    PyramidConfig,
    PyramidQuantizer,
    PyramidTokenizer,
    ResidualQuantizer,
    RVQConfig,
    RVQTokenizer,
)
from tests.layout_toys import LengthConfig, SequenceTokenizer, SphereSequence
from tests.toys import PoolTokenizer, SignTokenizer, injector

SMALL: dict[str, Any] = {"channels": 8, "channel_multipliers": (1, 1, 1), "blocks": 1, "codebook_size": 16}
WEIGHTS = QuantizerWeights(entropy_weight=0.0)
seeds = st.integers(0, 2**16)


def rvq(**changes: Any) -> RVQTokenizer:
    return RVQTokenizer(RVQConfig(**{**SMALL, "code_width": 3, "depth": 3, **changes}), image_size=16)


def pyramid(**changes: Any) -> PyramidTokenizer:
    config = PyramidConfig(**{**SMALL, "code_width": 3, "scales": (1, 2, 4), "smoothing": 1, **changes})
    return PyramidTokenizer(config, image_size=16)


def sequence() -> SequenceTokenizer:
    return SequenceTokenizer(LengthConfig(), image_size=16)


#: name -> a tokenizer of 16 pixels and stride 4, so that those with a place stand on 4x4
MAKERS = {"grid": SignTokenizer, "depth": rvq, "pyramid": pyramid, "sequence": sequence}


def images(count: int = 3, seed: int = 0) -> Tensor:
    return Noise.seeded(seed).uniform((count, 3, 16, 16), "cpu") * 2 - 1


def books(count: int, *, codes: int = 8, width: int = 2, zero: bool = False) -> list[LookupQuantizer]:
    """Codebooks with large vectors, the first of them zero if asked to."""
    found = [LookupQuantizer(codes, width, WEIGHTS) for _ in range(count)]
    for book in found:
        torch.nn.init.normal_(book.embedding.weight)
        if zero:
            torch.nn.init.zeros_(book.embedding.weight[0])
    return found


# ---------------------------------------------------------------- quantizers


@given(seed=seeds, depth=st.integers(1, 4), shared=st.booleans())
@settings(deadline=None, max_examples=15)
def test_more_stages_never_lie_further_off(seed: int, depth: int, shared: bool) -> None:
    torch.manual_seed(seed)
    stages = books(1 if shared else depth, zero=True)
    encoded = torch.randn(2, 2, 3, 3)
    errors = [
        (DepthQuantizer(stages, count, WEIGHTS)(encoded).vectors_BEhw - encoded).square().sum(dim=1)
        for count in range(1, depth + 1)
    ]
    assert all(bool((later <= before + 1e-5).all()) for before, later in pairwise(errors))


def test_a_residual_of_one_stage_is_the_quantizer_itself() -> None:
    torch.manual_seed(0)
    (book,) = books(1)
    encoded = torch.randn(2, 2, 4, 4)
    plain, residual = book(encoded), DepthQuantizer([book], 1, WEIGHTS)(encoded)
    assert torch.equal(plain.codes_BN, residual.codes_BN)
    assert torch.equal(plain.vectors_BEhw, residual.vectors_BEhw)
    assert {name: loss.item() for name, loss in plain.losses.items()} == pytest.approx(
        {name: loss.item() for name, loss in residual.losses.items()}
    )


def test_codes_of_a_place_stand_in_a_row_and_each_quantizes_what_is_left() -> None:
    quantizer = DepthQuantizer(books(2, width=1, codes=3), 2, WEIGHTS)
    for book, values in zip(quantizer.stages, ([0.0, 10.0, 20.0], [-1.0, 0.0, 1.0]), strict=True):
        book.embedding.weight.data = torch.tensor(values)[:, None]
    encoded = torch.tensor([[9.2, 0.8], [20.1, 10.9]])[None, None]
    found = quantizer(encoded)
    assert found.codes_BN.tolist() == [[1, 0, 0, 2, 2, 1, 1, 2]]
    assert found.vectors_BEhw.flatten().tolist() == [9.0, 1.0, 20.0, 11.0]
    first, second = ((encoded - torch.tensor(stage).view(1, 1, 2, 2)) for stage in ([10, 0, 20, 10], [9, 1, 20, 11]))
    wanted = (first.square().mean() + second.square().mean()) / 2
    torch.testing.assert_close(found.losses["codebook"], wanted)
    torch.testing.assert_close(found.losses["commitment"], 0.25 * wanted)


def test_a_pyramid_goes_from_coarse_to_fine() -> None:
    quantizer = PyramidQuantizer(books(2, width=1, codes=3), (1, 2), WEIGHTS, upsample="nearest", smoothing=0)
    for book, values in zip(quantizer.stages, ([0.0, 5.0, 10.0], [-2.0, 0.0, 2.0]), strict=True):
        book.embedding.weight.data = torch.tensor(values)[:, None]
    found = quantizer(torch.tensor([[11.9, 9.6], [8.3, 10.1]])[None, None])
    assert found.codes_BN.tolist() == [[2, 2, 1, 0, 1]]
    assert found.vectors_BEhw.flatten().tolist() == [12.0, 10.0, 8.0, 10.0]
    assert quantizer.layout(Grid(2, 2)) == TokenLayout("pyramid", (Grid(1, 1), Grid(2, 2)))


@given(seed=seeds, smoothing=st.integers(0, 3), upsample=st.sampled_from(["bicubic", "nearest"]))
@settings(deadline=None, max_examples=15)
def test_codes_tell_the_whole_sum(seed: int, smoothing: int, upsample: Any) -> None:
    torch.manual_seed(seed)
    pyramidal = PyramidQuantizer(books(3), (1, 2, 3), WEIGHTS, upsample=upsample, smoothing=smoothing)
    deep = DepthQuantizer(books(3), 3, WEIGHTS)
    encoded = torch.randn(2, 2, 3, 3)
    found = pyramidal(encoded)
    torch.testing.assert_close(pyramidal.on_grid(found.codes_BN), found.vectors_BEhw.flatten(2).transpose(1, 2))
    found = deep(encoded)
    by_place = deep.vectors(found.codes_BN).unflatten(1, (-1, 3)).sum(dim=2)
    torch.testing.assert_close(by_place, found.vectors_BEhw.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("make", [rvq, pyramid])
def test_gradients_go_straight_through_and_the_losses_teach_the_codebooks(make: Any) -> None:
    tokenizer = make(shared=False, entropy_weight=0.0)
    quantizer: ResidualQuantizer = tokenizer.quantizer
    encoded, direction = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    found = quantizer(encoded)
    (found.vectors_BEhw * direction).sum().backward(retain_graph=True)
    assert torch.equal(encoded.grad, direction)
    assert all(parameter.grad is None for parameter in quantizer.parameters())
    found.losses["quantizer"].backward()
    assert all(bool(parameter.grad.any()) for parameter in quantizer.parameters())


@pytest.mark.parametrize(("make", "shared", "separate"), [(rvq, 1, 3), (pyramid, 1, 3)])
def test_a_shared_codebook_is_stored_once(make: Any, shared: int, separate: int) -> None:
    for setting, count in ((True, shared), (False, separate)):
        assert sum("embedding" in name for name in make(shared=setting).state_dict()) == count


def test_a_pyramid_of_images_that_are_not_square_has_pairs_for_scales() -> None:
    config = PyramidConfig(**{**SMALL, "code_width": 3, "scales": (1, (2, 3), (4, 6)), "smoothing": 1})
    check_discrete_tokenizer(lambda: PyramidTokenizer(config, image_size=(16, 24)))
    layout = PyramidTokenizer(config, image_size=(16, 24)).layout
    assert layout.scales == (Grid(1, 1), Grid(2, 3), Grid(4, 6)) and layout.tokens == 31
    for wrong in ((1, (2, 7), (4, 6)), (1, 2, 4), (1, (4, 6), (4, 6))):
        with pytest.raises(UserError, match=r"must rise to image_size / stride, \[4, 6\]"):
            PyramidTokenizer(evolve(config, scales=wrong), image_size=(16, 24))


@pytest.mark.parametrize("scales", [(1, 2), (1, 2, 8), (2, 1, 4), (1, 4, 4)])
def test_scales_must_rise_to_the_encoders_grid(scales: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"pyramid: scales are .*; they must rise to image_size / stride, 4"):
        pyramid(scales=scales)


# ---------------------------------------------------------------- contracts, of any layout


def test_tokens_without_a_place_keep_the_contracts() -> None:
    check_discrete_tokenizer(sequence)
    check_continuous_tokenizer(lambda: SphereSequence(LengthConfig(), image_size=16))


class Placed(SequenceTokenizer):
    def vectors_on_grid(self, codes_BN: Tensor) -> Tensor:
        return self.code_vectors(codes_BN)


class Reversed(RVQTokenizer):
    def quantize(self, images_B3HW: Tensor) -> Quantized:
        found = super().quantize(images_B3HW)
        return Quantized(found.vectors_BEhw, found.codes_BN.flip(1), found.losses)


class Halving(SphereSequence):
    def project(self, latents: Tensor) -> Tensor:
        return 0.5 * latents


class Together(SphereSequence):
    def project(self, latents: Tensor) -> Tensor:
        return latents / latents.norm()


def test_broken_layouts_fail() -> None:
    length = LengthConfig()
    config = RVQConfig(**SMALL, depth=2)
    for check, make, message in (
        (check_discrete_tokenizer, lambda: Placed(length, image_size=16), "raises no TypeError"),
        (check_discrete_tokenizer, partial(SequenceTokenizer, length, image_size=16), "if squares are all it knows"),
        (check_discrete_tokenizer, lambda: Reversed(config, image_size=16), "not those of its codes"),
        (check_continuous_tokenizer, lambda: Halving(length, image_size=16), "changes when it is projected again"),
        (check_continuous_tokenizer, lambda: Together(length, image_size=16), "depends on those beside it"),
    ):
        with pytest.raises(AssertionError, match=message):
            check(make)


@pytest.mark.parametrize(
    ("kind", "scales", "depth", "message"),
    [
        ("grid", (Grid(2, 2), Grid(4, 4)), 1, "2 scales of a grid"),
        ("sequence", (Grid(1, 4),), 2, "depth 2 of a sequence"),
        ("tree", (Grid(2, 2),), 1, "'kind' must be in"),
    ],
)
def test_a_layout_is_one_of_four(kind: Any, scales: tuple[Grid, ...], depth: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TokenLayout(kind, scales, depth=depth)


# ---------------------------------------------------------------- priors


def prior(tokenizer: DiscreteTokenizer, num_classes: int = 5) -> EmbeddingTokenPrior:
    sizes: dict[str, Any] = {"width": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "steps": 3}
    bits = tokenizer.codebook_size.bit_length() - 1
    config = MaskGitConfig(bits=bits, stride=4, **sizes)
    return EmbeddingTokenPrior(config, tokenizer=tokenizer, num_classes=num_classes)


@pytest.mark.parametrize("layout", [name for name in MAKERS if name != "grid"])
def test_priors_draw_codes_of_any_layout(layout: str) -> None:
    tokenizer = MAKERS[layout]()
    if layout == "depth":  # a prior sees of a layout but the number of tokens
        check_prior(lambda: prior(tokenizer))
    bits: dict[str, Any] = {"bits": 4, "stride": 4, "width": 8, "depth": 1, "heads": 2, "mlp_dim": 8, "steps": 3}
    bit_prior = BitTokenPrior(MaskBitConfig(**bits), tokenizer=tokenizer, num_classes=0)
    drawn = bit_prior.sample(Condition(torch.full((2,), -1)), noise=Noise.seeded(0))
    assert drawn.codes_BN.shape == (2, tokenizer.layout.tokens)
    assert tokenizer.decode(drawn.codes_BN).shape == (2, 3, 16, 16)


# ---------------------------------------------------------------- MixAR


def mixar(name: str, discrete: DiscreteTokenizer, continuous: ContinuousTokenizer, **settings: Any) -> MixAR:
    torch.manual_seed(0)
    inject = injector(name, discrete, 16)
    body = MaskedBackbone(
        MaskedConfig(width=16, depth=1, heads=2, buffer=2),
        layout=continuous.layout,
        token_dim=3,
        num_classes=5,
        memory="memory" in inject.opens,
    )
    head = DiffusionHead(
        DiffusionHeadConfig(depth=1, width=16, samples_per_token=2, sampling_steps=4),
        token_dim=3,
        width=16,
        layout=continuous.layout,
    )
    for parameter in head.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return MixAR(
        backbone=body,
        injector=inject,
        head=head,
        sampler=CosineSampler(CosineConfig()),
        continuous_tokenizer=continuous,
        discrete_tokenizer=discrete,
        prior=prior(discrete),
        **settings,
    )


FITS = [
    *(("dc-mix", layout) for layout in ("depth", "pyramid")),
    *(("dc-sa", layout) for layout in ("pyramid", "sequence")),
    *(("dc-ca", layout) for layout in ("depth", "sequence")),
]


@pytest.mark.parametrize(("name", "layout"), FITS)
def test_a_mixar_learns_and_draws_with_codes_of_any_layout(name: str, layout: str) -> None:
    discrete = MAKERS[layout]()
    discrete.quantizer.apply(lambda m: torch.nn.init.normal_(m.weight) if hasattr(m, "embedding_dim") else None)
    model = mixar(name, discrete, PoolTokenizer())
    codes_BN = discrete.eval().encode(images())
    batch = TokenBatch(model.continuous_tokenizer.encode(images()), codes_BN, torch.arange(3))
    model.loss(batch, noise=Noise.seeded(0)).total.backward()
    assert all(parameter.grad is not None for parameter in model.trained.parameters())
    model.eval()
    sampling, labels = SamplingConfig(steps=3), Condition(torch.arange(3))
    drawn = model.generate(labels, settings=sampling, noise=Noise.seeded(1))
    assert drawn.images_B3HW.shape == (3, 3, 16, 16)
    assert drawn.codes_BN is not None and drawn.codes_BN.shape == (3, discrete.layout.tokens)
    same, other = (
        model.generate(labels, settings=sampling, noise=Noise.seeded(1), codes_BN=codes)
        for codes in (codes_BN, (codes_BN + 1) % discrete.codebook_size)
    )
    assert not torch.equal(same.latents_BChw, other.latents_BChw)


def test_what_fills_a_place_is_the_sum_of_its_codes() -> None:
    for discrete in (rvq(), pyramid()):
        model = mixar("dc-mix", discrete, PoolTokenizer()).eval()
        found = discrete.quantize(images())
        fill_BND = model.guidance(DrawnCodes(found.codes_BN)).fill_BND
        assert fill_BND is not None
        torch.testing.assert_close(fill_BND[..., :3], found.vectors_BEhw.flatten(2).transpose(1, 2))


def test_a_sampler_hears_of_all_codes_of_a_place_together(monkeypatch: pytest.MonkeyPatch) -> None:
    for discrete, places in ((rvq(depth=3), 16), (pyramid(), None)):
        model, heard = mixar("dc-ca", discrete, PoolTokenizer()).eval(), []
        plan = model.sampler.plan
        monkeypatch.setattr(
            model.sampler, "plan", lambda task, heard=heard, plan=plan, **kw: heard.append(task) or plan(task, **kw)
        )
        codes = DrawnCodes(
            *(t[:, : discrete.layout.tokens] for t in (torch.zeros(2, 99).long(), -torch.arange(198.0).view(2, 99)))
        )
        model.plan(Condition(torch.tensor([0, 1])), SamplingConfig(), noise=Noise.seeded(0), codes=codes)
        (task,) = heard
        if places is None:
            assert task.confidence_BN is None  # its codes stand on no token's place
        else:
            assert torch.equal(task.confidence_BN, codes.confidence_BN.view(2, places, 3).sum(dim=2))


def test_ti_mix_replaces_all_codes_of_a_masked_place() -> None:
    discrete = rvq()
    model = mixar("dc-mix", discrete, PoolTokenizer(), ti_mix=TIMixConfig(schedule="linear")).eval()
    split = split_by_order(torch.arange(16).expand(2, -1), 5)
    codes_BN, seen = torch.zeros(2, 48, dtype=torch.int64), {}
    assert model.prior is not None

    def predict(codes_BN: Tensor, masked_BN: Tensor, condition: Condition, *, noise: Noise) -> Any:
        seen["masked"] = masked_BN
        return DrawnCodes(torch.where(masked_BN, 7, codes_BN))

    model.prior.predict = predict  # type: ignore[method-assign]
    labels = Condition(torch.zeros(2, dtype=torch.int64))
    mixed = model.mixed_codes(codes_BN, split, labels, lam=0.0, noise=Noise.seeded(0))
    by_place = mixed.codes_BN.unflatten(1, (16, 3))
    assert torch.equal(seen["masked"].unflatten(1, (16, 3)).all(dim=2), split.masked_BN)
    assert torch.equal((by_place == 7).all(dim=2), split.masked_BN)
    assert torch.equal((by_place == 7).any(dim=2), split.masked_BN)


@pytest.mark.parametrize("name", ["none", "dc-sa", "dc-ca"])
@pytest.mark.parametrize("discrete", ["grid", "sequence"])
def test_latents_without_a_place_are_learned_and_drawn(name: str, discrete: str) -> None:
    continuous = SphereSequence(LengthConfig(), image_size=16)
    model = mixar(name, MAKERS[discrete](), continuous)
    tokenizers = FrozenTokenizers(continuous, model.discrete_tokenizer)
    batch = ImageBatch(images(), torch.arange(3))
    tokens = tokenizers.draw(tokenizers.encode(batch), noise=Noise.seeded(0))
    assert tokens.latents_BChw.shape == (3, 3, 1, 6)
    loss = model.loss(tokens, noise=Noise.seeded(0)).total
    loss.backward()
    assert loss.isfinite() and all(parameter.grad is not None for parameter in model.trained.parameters())
    drawn = model.eval().generate(
        Condition(torch.arange(3)), settings=SamplingConfig(steps=4, cfg=2.0), noise=Noise.seeded(1)
    )
    assert drawn.latents_BChw.shape == (3, 3, 1, 6) and drawn.images_B3HW.shape == (3, 3, 16, 16)
    torch.testing.assert_close(drawn.latents_BChw.norm(dim=1), torch.ones(3, 1, 6))  # each was projected

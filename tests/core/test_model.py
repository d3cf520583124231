"""What MixAR must keep whatever its weights: who sees what, what costs what, where gradients go."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixar_core.blocks import Dropout, dropped
from mixar_core.errors import UserError
from mixar_core.masking import put, random_orders, split_by_order, take
from mixar_core.mixture import TIMixConfig
from mixar_core.model import MixAR, SamplingConfig
from mixar_core.noise import Noise
from mixar_core.types import NO_CLASS, Condition, DiscreteTokens, DrawnCodes, Guidance, ImageBatch, TokenBatch, Z
from mixar_plugins.injectors.dc_mix import DCMix, DCMixConfig
from tests.toys import SignTokenizer, small_mixar

INJECTORS = ("none", "dc-mix", "dc-mix-projected", "dc-sa", "dc-ca")
seeds = st.integers(0, 2**31 - 1)


def batch_of(model: MixAR, size: int = 3, seed: int = 0) -> TokenBatch:
    images = Noise.seeded(seed).uniform((size, 3, 16, 16), "cpu") * 2 - 1
    assert model.discrete_tokenizer is not None
    codes = model.discrete_tokenizer.encode(images)
    return TokenBatch(model.continuous_tokenizer.encode(images), codes, torch.arange(size) % 5)


def z_of(model: MixAR, tokens, split, labels, codes):
    """z at the masked positions of (B, N, D), zero elsewhere."""
    z_BKD = model.backbone(tokens, split, Condition(labels), model.guidance(DrawnCodes(codes)))
    return put(torch.zeros(*tokens.shape[:2], z_BKD.shape[2]), split.masked_BK, z_BKD)


@pytest.mark.parametrize("name", INJECTORS)
@given(seeds, st.integers(1, 15))
@settings(max_examples=10, deadline=None)
def test_masked_latents_are_never_seen(name: str, seed: int, masked: int) -> None:
    model = small_mixar(name).eval()
    batch, noise = batch_of(model, seed=seed), Noise.seeded(seed)
    tokens = model.patchify(batch.latents_BChw)
    split = split_by_order(random_orders(3, 16, noise=noise, device="cpu"), masked)
    other = torch.where(split.masked_BN[..., None], noise.normal(tokens.shape, "cpu"), tokens)
    with torch.no_grad():
        a = z_of(model, tokens, split, batch.labels_B, batch.codes_BN)
        b = z_of(model, other, split, batch.labels_B, batch.codes_BN)
    assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["dc-mix", "dc-mix-projected", "dc-sa", "dc-ca"])
def test_codes_at_visible_positions_matter_only_where_they_are_attended_to(name: str) -> None:
    model = small_mixar(name).eval()
    batch, noise = batch_of(model), Noise.seeded(1)
    tokens = model.patchify(batch.latents_BChw)
    split = split_by_order(random_orders(3, 16, noise=noise, device="cpu"), 9)
    assert batch.codes_BN is not None
    at_visible = torch.where(split.masked_BN, batch.codes_BN, (batch.codes_BN + 3) % 8)
    at_masked = torch.where(split.masked_BN, (batch.codes_BN + 3) % 8, batch.codes_BN)
    with torch.no_grad():
        z = z_of(model, tokens, split, batch.labels_B, batch.codes_BN)
        z_visible = z_of(model, tokens, split, batch.labels_B, at_visible)
        z_masked = z_of(model, tokens, split, batch.labels_B, at_masked)
    assert torch.equal(z, z_visible) == name.startswith("dc-mix")
    assert not torch.allclose(z, z_masked)


def count(model: MixAR) -> int:
    return sum(p.numel() for p in model.trained.parameters())


def test_dc_mix_costs_nothing() -> None:
    mar, mix = small_mixar("none"), small_mixar("dc-mix")
    assert count(mix) == count(mar)
    lengths = {}
    for name, model in (("mar", mar), ("mix", mix)):
        seen = lengths[name] = []
        for block in model.backbone.blocks():
            block.register_forward_hook(lambda _m, args, _out, seen=seen: seen.append(args[0].shape[1]))
        model.loss(batch_of(model), noise=Noise.seeded(0))
    assert lengths["mix"] == lengths["mar"]


def test_what_the_other_injectors_cost() -> None:
    mar, width, codes, tokens = count(small_mixar("none")), 16, 8, 16
    embedding = (codes + tokens) * width
    assert count(small_mixar("dc-sa")) - mar == embedding
    cross = 2 * width + 4 * (width * width + width)  # norm; q, k, v, proj
    assert count(small_mixar("dc-ca")) - mar == embedding + 2 * width + 4 * cross


@pytest.mark.parametrize("name", INJECTORS)
def test_the_gradient_reaches_masked_targets_only(name: str) -> None:
    model = small_mixar(name)
    batch = batch_of(model)
    tokens = model.patchify(batch.latents_BChw)
    split = split_by_order(random_orders(3, 16, noise=Noise.seeded(2), device="cpu"), 10)
    z = z_of(model, tokens, split, batch.labels_B, batch.codes_BN).detach().requires_grad_()
    target = tokens.clone().requires_grad_()
    asked = Z(take(z, split.masked_BK), split.masked_BK)
    loss = model.head.loss(asked, take(target, split.masked_BK), noise=Noise.seeded(3))
    loss.mean().backward()
    assert z.grad is not None and target.grad is not None
    for grad in (z.grad, target.grad):
        touched = grad.abs().sum(-1) > 0
        assert torch.equal(touched, split.masked_BN)


@pytest.mark.parametrize("name", INJECTORS)
def test_every_trained_parameter_is_in_the_graph(name: str) -> None:
    """DistributedDataParallel waits for a gradient of every parameter."""
    model = small_mixar(name)
    model.loss(batch_of(model), noise=Noise.seeded(0)).total.backward()
    assert [n for n, p in model.trained.named_parameters() if p.grad is None] == []


def test_activation_checkpointing_changes_no_gradient() -> None:
    grads = []
    for checkpointing in (False, True):
        model = small_mixar("dc-ca", activation_checkpointing=checkpointing)
        model.loss(batch_of(model), noise=Noise.seeded(0)).total.backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.trained.parameters() if p.grad is not None]))
    assert torch.equal(*grads)


def test_ti_mix_shows_the_model_the_priors_codes_at_masked_positions() -> None:
    model = small_mixar("dc-mix")
    batch = batch_of(model)
    split = split_by_order(random_orders(3, 16, noise=Noise.seeded(2), device="cpu"), 10)
    assert batch.codes_BN is not None
    condition = Condition(batch.labels_B)
    mixed = model.mixed_codes(batch.codes_BN, split, condition, lam=0.0, noise=Noise.seeded(4)).codes_BN
    assert torch.equal(mixed[~split.masked_BN], batch.codes_BN[~split.masked_BN])
    assert not torch.equal(mixed, batch.codes_BN)
    at_one = model.loss(batch, lam=1.0, noise=Noise.seeded(5)).total
    at_zero = model.loss(batch, lam=0.0, noise=Noise.seeded(5)).total
    assert not torch.equal(at_one, at_zero)


def test_ti_mix_without_a_prior_says_so() -> None:
    model = small_mixar("dc-mix")
    model.prior = None
    model.ti_mix = TIMixConfig(schedule="linear")
    with pytest.raises(UserError, match="needs a prior"):
        model.loss(batch_of(model), lam=0.5, noise=Noise.seeded(0))


@pytest.mark.parametrize("name", INJECTORS)
@pytest.mark.parametrize("num_classes", [0, 5])
def test_generation_fills_every_token_once_and_repeats_by_seed(name: str, num_classes: int) -> None:
    model = small_mixar(name, num_classes=num_classes).eval()
    labels = Condition(torch.tensor([0, 1, 2]) if num_classes else torch.full((3,), NO_CLASS))
    how = SamplingConfig(steps=6, cfg=2.0)
    steps = list(model.generation_steps(labels, settings=how, noise=Noise.seeded(7)))
    assert [s.index for s in steps] == list(range(6))
    for before, after in pairwise(steps):
        known = before.known_BN.view(3, 1, 4, 4)
        assert (after.known_BN | ~before.known_BN).all()
        assert torch.equal(before.latents_BChw * known, after.latents_BChw * known)
    assert steps[-1].known_BN.all()
    first, second = (model.generate(labels, settings=how, noise=Noise.seeded(7)) for _ in range(2))
    assert torch.equal(first.images_B3HW, second.images_B3HW)
    assert torch.equal(first.latents_BChw, steps[-1].latents_BChw)
    assert first.images_B3HW.shape == (3, 3, 16, 16) and first.images_B3HW.abs().max() <= 1


def test_labels_guidance_and_given_codes_steer_generation() -> None:
    model = small_mixar("dc-mix").eval()

    def latents(label=0, cfg=1.0, codes=None):
        how = SamplingConfig(steps=3, cfg=cfg)
        condition = Condition(torch.tensor([label]))
        return model.generate(condition, settings=how, noise=Noise.seeded(3), codes_BN=codes).latents_BChw

    fixed = torch.zeros(1, 16, dtype=torch.long)
    assert not torch.equal(latents(codes=fixed), latents(1, codes=fixed))
    assert not torch.equal(latents(codes=fixed), latents(cfg=3.0, codes=fixed))
    assert not torch.equal(latents(codes=fixed), latents(codes=fixed + 5))


def test_guidance_is_repeated_as_the_batch_is() -> None:
    fill = torch.randn(2, 4, 3)
    doubled = Guidance(fill_BND=fill).repeat(2)
    assert doubled.fill_BND is not None and doubled.prefix_BPD is None
    assert torch.equal(doubled.fill_BND, torch.cat([fill, fill]))


def test_frozen_parts_stay_frozen_and_in_evaluation_mode() -> None:
    model = small_mixar("dc-mix").train()
    assert model.trained.training and not model.continuous_tokenizer.training
    assert ImageBatch(torch.zeros(2, 3, 4, 4), torch.zeros(2)).__len__() == 2
    assert not any(p.requires_grad for p in model.continuous_tokenizer.parameters())


@pytest.mark.parametrize(
    ("doors", "message"),
    [
        ({}, "Careless opens the doors none; its class announces (`opens`): fill"),
        ({"fill_BND": (3, 16, 20), "memory_BMD": (3, 1, 16)}, "Careless opens the doors fill, memory; its class"),
        ({"fill_BND": (3, 1, 20)}, "Careless: its fill has the shape (3, 1, 20); needed: (3, 16, 20)"),
        ({"fill_BND": (3, 16, 16)}, "Careless: its fill has the shape (3, 16, 16); needed: (3, 16, 20)"),
        ({"fill_BND": (1, 16, 20)}, "Careless: its fill has the shape (1, 16, 20); needed: (3, 16, 20)"),
        ({"fill_BND": (3, 16)}, "Careless: its fill has the shape (3, 16); needed: (3, 16, 20)"),
        ({"prefix_BPD": (3, 5, 20)}, "Careless: its prefix has the shape (3, 5, 20); needed: (3, any length, 16)"),
        ({"memory_BMD": (2, 5, 16)}, "Careless: its memory has the shape (2, 5, 16); needed: (3, any length, 16)"),
    ],
)
def test_an_injector_that_does_not_keep_its_word_is_named(doors: dict[str, tuple[int, ...]], message: str) -> None:
    class Careless(DCMix):
        opens = frozenset({"fill"} if len(doors) != 1 else {next(iter(doors)).partition("_")[0]})

        def forward(self, tokens: DiscreteTokens) -> Guidance:
            return Guidance(**{door: torch.zeros(shape) for door, shape in doors.items()})

    model = small_mixar("dc-mix", decoder_width=20)
    model.trained["injector"] = Careless(DCMixConfig(), tokenizer=SignTokenizer(), width=20)
    with pytest.raises(UserError, match=re.escape(message)):
        model.loss(batch_of(model), noise=Noise.seeded(0))


@pytest.mark.parametrize("losses", [torch.Tensor.mean, lambda loss_BK: loss_BK[:, :1]], ids=["mean", "of-one"])
def test_a_head_that_gives_no_loss_a_token_is_named(losses, monkeypatch) -> None:
    model = small_mixar("none")
    honest = model.head.loss
    monkeypatch.setattr(model.head, "loss", lambda *given, noise: losses(honest(*given, noise=noise)))
    with pytest.raises(UserError, match=r"head DiffusionHead: its loss has shape \((3, 1)?\), not one a token: \(3, "):
        model.loss(batch_of(model), noise=Noise.seeded(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_takes_its_share_and_keeps_the_mean(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(3, 333, 301, dtype=dtype, requires_grad=True)
    out = dropped(x, 0.1)
    assert sorted(out.unique().tolist()) == [0.0, torch.tensor(1.0 / 0.9).to(dtype).item()]
    assert abs((out == 0.0).float().mean().item() - 0.1) < 5 * (0.1 * 0.9 / x.numel()) ** 0.5
    out.sum().backward()
    assert x.grad is not None and torch.equal(x.grad, out)  # of ones, what each is multiplied by
    torch.manual_seed(0)
    assert torch.equal(dropped(x, 0.1), out)
    assert dropped(x, 0.0) is x
    layer = Dropout(0.5)
    assert layer.eval()(x) is x and (layer.train()(x) == 0.0).any()


@pytest.mark.parametrize("name", ["steps", "head_steps", "prior_steps"])
def test_steps_that_would_take_days_are_refused(name: str) -> None:
    assert getattr(SamplingConfig(**{name: 2**16}), name) == 2**16
    with pytest.raises(ValueError, match=f"'{name}' must be <= 65536: 1000000000"):
        SamplingConfig(**{name: 10**9})

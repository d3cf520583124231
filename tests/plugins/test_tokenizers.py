"""The tokenizers' own invariants; what every tokenizer owes is in the contracts, exact values are in tests/parity."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.types import Grid, TokenLayout
from mixar_plugins.tokenizers import quantizers
from mixar_plugins.tokenizers.kl import KLAutoencoder, KLConfig
from mixar_plugins.tokenizers.layers import make_norm
from mixar_plugins.tokenizers.maskbit import ConvTokenizer, LFQConfig, LFQTokenizer, VQConfig, VQTokenizer
from mixar_plugins.tokenizers.quantizers import (
    LookupFreeQuantizer,
    LookupQuantizer,
    Quantizer,
    QuantizerWeights,
    code_entropies,
)

SMALL: dict[str, Any] = {"channels": 8, "channel_multipliers": (1, 2), "blocks": 1}


def kl(image_size: int = 16, **changes: Any) -> KLAutoencoder:
    config = {**SMALL, "latent_channels": 3, "encoder_attention": (2,), **changes}
    return KLAutoencoder(KLConfig(**config), image_size=image_size)


def lfq(image_size: int = 16, **changes: Any) -> LFQTokenizer:
    return LFQTokenizer(LFQConfig(**{**SMALL, "bits": 5, **changes}), image_size=image_size)


def vq(image_size: int = 16, **changes: Any) -> VQTokenizer:
    return VQTokenizer(VQConfig(**{**SMALL, "codebook_size": 12, "code_width": 5, **changes}), image_size=image_size)


def images(count: int = 2, size: int = 16) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


# ---------------------------------------------------------------- grids and shapes


@pytest.mark.parametrize(("make", "levels"), list(product((kl, lfq, vq), (1, 2, 3))))
@pytest.mark.parametrize("cells", [1, 3])
def test_grid_is_image_size_over_stride(make: Any, levels: int, cells: int) -> None:
    stride = 2 ** (levels - 1)
    changes = {"encoder_attention": (1,)} if make is kl else {}
    tokenizer = make(cells * stride, channel_multipliers=(1,) * levels, **changes).eval()
    assert (tokenizer.layout, tokenizer.stride) == (TokenLayout("grid", (Grid(cells, cells),)), stride)
    batch = images(2, cells * stride)
    tokens = tokenizer.encode(batch)
    assert tuple(tokens.shape) == ((2, 3, cells, cells) if make is kl else (2, cells**2))
    decoded = tokenizer.decode(tokens)
    assert decoded.shape == batch.shape
    assert decoded.abs().max() <= 1


@pytest.mark.parametrize("make", [kl, lfq, vq])
@pytest.mark.parametrize("size", [0, 1, 15])
def test_image_size_must_be_a_multiple_of_the_stride(make: Any, size: int) -> None:
    with pytest.raises(UserError, match=f"image_size {size} is not a multiple of its stride 2"):
        make(size)


def test_attention_sits_at_strides_that_exist() -> None:
    with pytest.raises(UserError, match=r"kl: decoder_attention names stride 4; its levels have strides \[1, 2\]"):
        kl(decoder_attention=(2, 4))


@pytest.mark.parametrize("changes", [{"blocks": 0}, {"channels": -1}, {"channel_multipliers": ()}, {"norm": "batch"}])
def test_settings_out_of_range_are_refused(changes: dict[str, Any]) -> None:
    for make in (kl, lfq, vq):
        with pytest.raises(ValueError, match=next(iter(changes))):
            make(**changes)


# ---------------------------------------------------------------- the KL autoencoder


def test_latents_start_with_the_configured_statistics() -> None:
    tokenizer = kl(latent_mean=0.5, latent_std=4.0).eval()
    raw = tokenizer.posterior(images()).mean_BChw
    torch.testing.assert_close(tokenizer.encode(images()), (raw - 0.5) / 4.0)
    torch.testing.assert_close(tokenizer.decode((raw - 0.5) / 4.0), tokenizer.decode_raw(raw).clamp(-1, 1))


def test_log_variance_is_clamped() -> None:
    tokenizer = kl().eval()
    torch.nn.init.constant_(tokenizer.quant_conv.bias, 1000.0)
    assert torch.equal(tokenizer.posterior(images()).logvar_BChw.unique(), torch.tensor([20.0]))


def test_encoding_with_noise_samples_the_posterior() -> None:
    tokenizer = kl().eval()
    posterior = tokenizer.posterior(images())
    sampled = tokenizer.encode(images(), Noise.seeded(1))
    assert torch.equal(sampled, tokenizer.encode(images(), Noise.seeded(1)))
    assert not torch.allclose(sampled, posterior.mean_BChw, atol=1e-3)


def test_moments_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = kl().posterior(images())
    assert posterior.mean_BChw.dtype == posterior.logvar_BChw.dtype == torch.float32


# ---------------------------------------------------------------- options for small tokenizers


@pytest.mark.parametrize(("channels", "groups"), [(128, 32), (96, 32), (48, 16), (24, 8), (5, 1)])
def test_group_norm_has_32_groups_or_what_divides(channels: int, groups: int) -> None:
    assert make_norm("group", channels).num_groups == groups


@pytest.mark.parametrize("make", [kl, lfq, vq])
def test_norm_none_leaves_no_norm_in_residual_blocks(make: Any) -> None:
    tokenizer = make(norm="none")
    names = [n for n, m in tokenizer.named_modules() if isinstance(m, torch.nn.GroupNorm)]
    assert all("attn" in name or name.endswith(".norm_out") for name in names)
    tokenizer.decode(tokenizer.encode(images()))


@pytest.mark.parametrize("input_shortcut", [False, True])
def test_shortcut_passes_the_input_on_only_if_asked_to(input_shortcut: bool) -> None:
    block = lfq(input_shortcut=input_shortcut).encoder.down[1].res_blocks[0]
    torch.nn.init.zeros_(block.conv2.weight)
    assert bool(block(torch.ones(1, 8, 4, 4)).any()) == input_shortcut


def test_middle_attention_can_be_left_out() -> None:
    assert not [name for name in kl(mid_attention=False, encoder_attention=()).state_dict() if "attn" in name]


def test_pooling_has_no_convolution_to_downsample() -> None:
    assert not [name for name in lfq(downsample="pool").state_dict() if "down_conv" in name]
    assert lfq(downsample="pool").encode(images()).shape == (2, 64)


# ---------------------------------------------------------------- codes and vectors


@settings(deadline=None, max_examples=30)
@given(bits=st.integers(1, 18), seed=st.integers(0, 2**16))
def test_lfq_codes_and_vectors_are_one_to_one(bits: int, seed: int) -> None:
    quantizer = LookupFreeQuantizer(bits, QuantizerWeights())
    codes = torch.randint(2**bits, (2, 7), generator=torch.Generator().manual_seed(seed))
    vectors = quantizer.vectors(codes)
    assert vectors.shape == (2, 7, bits)
    assert torch.equal(vectors.abs(), torch.ones_like(vectors))
    assert torch.equal(quantizer.nearest(vectors.flatten(0, 1)), codes.flatten())
    # Bit k of a code is whether its vector's entry k is positive.
    assert torch.equal((vectors > 0).long(), (codes[..., None] >> torch.arange(bits)) & 1)


def test_lfq_codebook_lists_all_vectors_in_order() -> None:
    quantizer = LookupFreeQuantizer(6, QuantizerWeights())
    assert torch.equal(quantizer.nearest(quantizer.codebook), torch.arange(64))


@settings(deadline=None, max_examples=20)
@given(codes=st.integers(1, 40), width=st.integers(1, 9), seed=st.integers(0, 2**16))
def test_lookup_takes_the_nearest_vector(codes: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    quantizer = LookupQuantizer(codes, width, QuantizerWeights())
    torch.nn.init.normal_(quantizer.embedding.weight)
    points = torch.randn(50, width)
    distance = torch.cdist(points, quantizer.embedding.weight)
    chosen = distance.gather(1, quantizer.nearest(points)[:, None])[:, 0]
    torch.testing.assert_close(chosen, distance.min(dim=1).values)


@pytest.mark.parametrize("make", [lfq, vq])
def test_quantized_vectors_are_the_codes_own(make: Any) -> None:
    tokenizer: ConvTokenizer = make().eval()
    quantized = tokenizer.quantize(images())
    assert quantized.codes_BN.dtype == torch.int64
    assert quantized.codes_BN.max() < tokenizer.codebook_size
    vectors_BNE = tokenizer.code_vectors(quantized.codes_BN)
    assert torch.equal(quantized.vectors_BEhw.flatten(2).transpose(1, 2), vectors_BNE)
    assert torch.equal(
        tokenizer.decode(quantized.codes_BN), tokenizer.decode_vectors(quantized.vectors_BEhw).clamp(-1, 1)
    )


@pytest.mark.parametrize("make", [lfq, vq])
def test_gradient_goes_straight_through_to_the_encoder(make: Any) -> None:
    tokenizer: ConvTokenizer = make(entropy_weight=0.0)
    encoded = torch.randn(2, 5, 4, 4, requires_grad=True)
    direction = torch.randn(2, 5, 4, 4)
    (tokenizer.quantizer(encoded).vectors_BEhw * direction).sum().backward()
    assert torch.equal(encoded.grad, direction)
    tokenizer.decode_vectors(tokenizer.quantize(images()).vectors_BEhw).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in tokenizer.encoder.parameters())


def test_networks_see_pixels_from_zero_to_one() -> None:
    tokenizer = lfq().eval()
    seen: list[Tensor] = []
    tokenizer.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    codes = tokenizer.encode(images())
    torch.testing.assert_close(seen[0], (images() + 1) / 2)
    vectors = tokenizer.quantizer(tokenizer.encoder((images() + 1) / 2)).vectors_BEhw
    torch.testing.assert_close(tokenizer.decode(codes), (tokenizer.decoder(vectors) * 2 - 1).clamp(-1, 1))


def test_legacy_is_another_order_of_the_same_levels() -> None:
    new, old = vq(channel_multipliers=(1, 2, 3)), vq(channel_multipliers=(1, 2, 3), legacy=True)
    assert [s.res_blocks[0].conv2.out_channels for s in new.decoder.up] == [24, 16, 8]
    assert [s.res_blocks[0].conv2.out_channels for s in old.decoder.up] == [8, 16, 24]
    last = len(old.decoder.up) - 1
    state = {
        ".".join([*name.split(".")[:2], str(last - int(name.split(".")[2])), *name.split(".")[3:]])
        if name.startswith("decoder.up.") else name: tensor
        for name, tensor in new.state_dict().items()
    }  # fmt: skip
    old.load_state_dict(state)
    assert torch.equal(new.eval().decode(new.encode(images())), old.eval().decode(old.encode(images())))


# ---------------------------------------------------------------- losses


def by_definition(quantizer: Quantizer, encoded_RE: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Both entropies from distances to every code vector, in float64."""
    codebook = quantizer.vectors(torch.arange(quantizer.codes)).double()
    distance = torch.cdist(encoded_RE.double(), codebook).square()
    p = torch.softmax(-distance / temperature, dim=-1)
    mean = p.mean(dim=0)
    return -(p * p.clamp_min(1e-5).log()).sum(1).mean(), -(mean * mean.clamp_min(1e-5).log()).sum()


@pytest.mark.parametrize("entries", [2**24, 100])
@pytest.mark.parametrize(("make", "width"), [(LookupFreeQuantizer, 1), (LookupFreeQuantizer, 5), (LookupQuantizer, 4)])
def test_entropies_are_exact_in_one_piece_and_in_many(
    entries: int, make: Any, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizers, "TABLE_ENTRIES", entries)
    torch.manual_seed(0)
    weights = QuantizerWeights(entropy_temperature=0.5)
    quantizer: Quantizer = make(*((width,) if make is LookupFreeQuantizer else (32, width)), weights)
    encoded, reference = (torch.randn(53, width, generator=torch.Generator().manual_seed(1)) * 0.3 for _ in range(2))
    got = code_entropies(quantizer.entropy_totals, encoded.requires_grad_(), codes=quantizer.codes)
    expected = by_definition(quantizer, reference.requires_grad_(), 0.5)
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    (got[0] - got[1]).backward()
    (expected[0] - expected[1]).backward()
    torch.testing.assert_close(encoded.grad, reference.grad.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("make", [lfq, vq])
def test_losses_add_up_and_entropy_is_for_training(make: Any) -> None:
    tokenizer = make(entropy_weight=0.1, entropy_gamma=0.7)
    losses = tokenizer.quantize(images()).losses
    torch.testing.assert_close(losses["entropy"], 0.1 * (losses["per_sample_entropy"] - losses["average_entropy"]))
    parts = losses["commitment"] + losses["entropy"] + losses.get("codebook", torch.zeros(()))
    torch.testing.assert_close(losses["quantizer"], parts)
    evaluated = tokenizer.eval().quantize(images()).losses
    assert evaluated.keys() == losses.keys()
    assert evaluated["entropy"] == 0
    torch.testing.assert_close(evaluated["commitment"], losses["commitment"])


def test_lookup_learns_its_codebook_from_the_codebook_loss_alone() -> None:
    tokenizer = vq(entropy_weight=0.0)
    quantized = tokenizer.quantize(images())
    codebook = tokenizer.quantizer.embedding.weight
    assert torch.autograd.grad(quantized.losses["codebook"], codebook, retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(quantized.vectors_BEhw.sum(), codebook, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(quantized.losses["commitment"], codebook, allow_unused=True) == (None,)


@pytest.mark.parametrize("make", [lfq, vq])
def test_losses_are_float32_under_autocast(make: Any) -> None:
    tokenizer = make()
    with torch.autocast("cpu", torch.bfloat16):
        encoded = tokenizer.encoder((images() + 1) / 2)
        quantized = tokenizer.quantizer(encoded)
    assert encoded.dtype == quantized.vectors_BEhw.dtype == torch.bfloat16
    exact = tokenizer.quantizer(encoded.float())
    assert torch.equal(quantized.codes_BN, exact.codes_BN)
    for name, loss in quantized.losses.items():
        assert torch.equal(loss, exact.losses[name]), name


# ---------------------------------------------------------------- without memory, and copies


@pytest.mark.parametrize("make", [kl, lfq, vq])
@pytest.mark.parametrize("how", ["meta", "fake"])
def test_runs_without_memory(make: Any, how: str) -> None:
    with torch.device("meta") if how == "meta" else FakeTensorMode():
        tokenizer = make()
        batch = torch.empty(2, 3, 16, 16)
        assert tokenizer.decode(tokenizer.encode(batch)).shape == batch.shape
        if make is kl:
            assert tokenizer.posterior(batch).kl_B().shape == (2,)
        else:
            assert tokenizer.quantize(batch).losses["quantizer"].shape == ()


@pytest.mark.parametrize("make", [kl, lfq, vq])
def test_copies_and_state_dicts_carry_everything(make: Any) -> None:
    one, two = make().eval(), make().eval()
    two.load_state_dict(one.state_dict())
    for other in (two, copy.deepcopy(one)):
        assert torch.equal(one.decode(one.encode(images())), other.decode(other.encode(images())))

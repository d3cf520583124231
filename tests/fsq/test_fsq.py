"""The library's quantizers: contracts, what codes mean, and a training in miniature."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixar.assembly import build
from mixar.cost import estimate
from mixar.plugins import Registry
from mixar.recipe import load_recipe
from mixar.run import train
from mixar_core import Grid, TokenLayout, UserError
from mixar_core.testing import check_discrete_tokenizer
from mixar_fsq.tokenizers import FSQConfig, FSQTokenizer, ResidualVQConfig, ResidualVQTokenizer

NETWORK = {"channels": 8, "channel_multipliers": (1, 1, 2), "blocks": 1}
RESIDUAL = {**NETWORK, "codebook_size": 16, "code_width": 4}


@pytest.mark.parametrize(
    "make",
    [
        partial(FSQTokenizer, FSQConfig(**NETWORK, levels=(4, 3))),
        partial(FSQTokenizer, FSQConfig(**{**NETWORK, "blocks": 0})),
        partial(ResidualVQTokenizer, ResidualVQConfig(**RESIDUAL, depth=3)),
        partial(ResidualVQTokenizer, ResidualVQConfig(**RESIDUAL, depth=1)),
    ],
    ids=["fsq", "fsq, no blocks", "residual-vq", "residual-vq, one code"],
)
def test_they_keep_their_contract(make: partial[FSQTokenizer | ResidualVQTokenizer]) -> None:
    assert make(image_size=16).last_layer.shape[0] == 3
    check_discrete_tokenizer(partial(make, image_size=16))


@settings(max_examples=20)
@given(levels=st.lists(st.integers(3, 9), min_size=1, max_size=4))
def test_codes_and_their_vectors_are_one_to_one(levels: list[int]) -> None:
    tokenizer = FSQTokenizer(FSQConfig(**NETWORK, levels=tuple(levels)), image_size=4)
    assert tokenizer.codebook_size == math.prod(levels) and tokenizer.code_width == len(levels)
    codes_BN = torch.arange(tokenizer.codebook_size)[None]
    vectors_BNE = tokenizer.code_vectors(codes_BN)
    assert vectors_BNE.abs().max() <= 1.0
    assert torch.equal(tokenizer.quantizer.codes_to_indices(vectors_BNE).long(), codes_BN)


def test_a_residual_codes_vector_is_of_the_codebook_of_its_depth() -> None:
    tokenizer = ResidualVQTokenizer(ResidualVQConfig(**RESIDUAL, depth=2), image_size=16)
    assert tokenizer.layout == TokenLayout("depth", (Grid(4, 4),), depth=2)
    codes_BN = torch.arange(32)[None] % 16
    books_QVE = tokenizer.quantizer.codebooks
    expected = torch.stack([books_QVE[n % 2, code] for n, code in enumerate(codes_BN[0].tolist())])
    assert torch.equal(tokenizer.code_vectors(codes_BN)[0], expected)


def test_gradients_of_pixels_reach_the_encoder_and_the_loss_reaches_the_codebooks() -> None:
    torch.manual_seed(0)
    tokenizer = ResidualVQTokenizer(ResidualVQConfig(**RESIDUAL, depth=2), image_size=16).train()
    quantized = tokenizer.quantize(torch.rand(2, 3, 16, 16) * 2 - 1)
    tokenizer.decode_vectors(quantized.vectors_BEhw).square().mean().backward()
    assert tokenizer.encoder[0].weight.grad.any()
    assert all(layer._codebook.embed.grad is None for layer in tokenizer.quantizer.layers)
    tokenizer.quantize(torch.rand(2, 3, 16, 16)).losses["quantizer"].backward()
    assert all(layer._codebook.embed.grad.any() for layer in tokenizer.quantizer.layers)


def test_what_does_not_fit_is_refused(registry: Registry) -> None:
    with pytest.raises(UserError, match=r"discrete_tokenizer \(fsq\): image_size 36 is not a multiple of the stride 8"):
        build(load_recipe("digits_fsq", ["image_size=36"], registry=registry), registry, meta=True)
    with pytest.raises(UserError, match=r"discrete_tokenizer.levels.*>= 3"):
        load_recipe("digits_fsq", ["discrete_tokenizer.levels=[2, 5]"], registry=registry)


@pytest.mark.parametrize("name", ["fsq", "residual-vq"])
def test_it_takes_the_place_of_the_default_by_one_set(
    name: str, tmp_path: Path, family: Path, registry: Registry
) -> None:
    small = [f"discrete_tokenizer.type={name}", "discrete_tokenizer.channel_multipliers=[1, 1, 1]"]
    recipe = load_recipe(family / "recipes/discrete.yaml", [*small, "discrete_tokenizer.channels=4"], registry=registry)
    found = estimate(build(recipe, registry, meta=True))
    assert isinstance(found.training_gflop["total"], float) and isinstance(found.memory_gb["training"], float)
    train(recipe, tmp_path / "run", registry=registry)
    weights = [f"discrete_tokenizer.weights={tmp_path / 'run'}"]
    mixed = load_recipe(
        family / "recipes/mixar.yaml",
        [*weights, "prior=null", "ti_mix=null", "injector.projection=true"],
        registry=registry,
    )
    tokenizer = build(mixed, registry).discrete_tokenizer
    assert tokenizer is not None and tokenizer.layout.grid == Grid(4, 4)

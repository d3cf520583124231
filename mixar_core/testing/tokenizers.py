"""Contracts of tokenizers."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.testing.common import (
    BATCH,
    check_gradients,
    check_module,
    codes_of,
    expect,
    expect_alone,
    expect_equal,
    expect_error,
    expect_tensor,
    images_of,
    near,
    normal,
    taking_pairs,
    topic,
    unchanged,
)
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer, Tokenizer
from mixar_core.types import Grid

T = TypeVar("T", bound=Tokenizer)


def check_continuous_tokenizer(
    make: Callable[[], ContinuousTokenizer], *, tokenizer: DiscreteTokenizer | None = None
) -> None:
    """Raise AssertionError where a continuous tokenizer breaks its contract.

    Args:
        make: builds one, small enough to run in a moment; if it takes `image_size`, as `partial(Class, config,
            image_size=16)` does, also for images that are not square.
        tokenizer: the same that `make` shows a tokenizer that `needs_codes`.
    """
    _check_continuous(make, tokenizer)
    if (oblong := _oblong(make)) is not None:
        topic("images that are not square")
        _check_continuous(oblong, tokenizer)


def check_discrete_tokenizer(make: Callable[[], DiscreteTokenizer]) -> None:
    """Raise AssertionError where a discrete tokenizer breaks its contract.

    Args:
        make: see `check_continuous_tokenizer`.
    """
    _check_discrete(make)
    if (oblong := _oblong(make)) is not None:
        topic("images that are not square")
        _check_discrete(oblong)


def _oblong(make: Callable[..., T]) -> Callable[[], T] | None:
    """`make` for images one token wider than high; None where it has no say in their size, or knows squares only."""
    if "image_size" not in inspect.signature(make).parameters or (square := make()).squares_only:
        return None
    pixels = Grid.of_pixels(square.image_size)
    wide = partial(make, image_size=(pixels.height, pixels.height + square.stride))
    with suppress(UserError), taking_pairs():  # where it is refused, its settings are those of a square
        expect(wide().image_size == wide.keywords["image_size"], "image_size is not what it was built with")
        return wide
    return None


def _check_continuous(make: Callable[[], ContinuousTokenizer], discrete: DiscreteTokenizer | None) -> None:
    def codes(device: str = "cpu") -> Tensor | None:
        return None if discrete is None else codes_of(discrete.codebook_size, discrete.layout.tokens, device)

    def exercise(module: ContinuousTokenizer, device: str) -> dict[str, Tensor]:
        images_B3HW, codes_BN = images_of(module, device), codes(device)
        latents_BChw = normal(*_latent_shape(module), device=device)
        module = module.beside(codes_BN)
        with unchanged(images=images_B3HW, latents=latents_BChw, codes=codes_BN):
            posterior = module.posterior(images_B3HW)
            return {
                "posterior's mean": posterior.mean_BChw,
                "posterior's logvar": posterior.logvar_BChw,
                "encode": module.encode(images_B3HW),
                "encode with noise": module.encode(images_B3HW, Noise.seeded(0)),
                "decode_raw": module.decode_raw(latents_BChw),
                "decode": module.decode(latents_BChw),
                "project": module.project(_tokens_BNC(latents_BChw)),
            }

    alone, found = check_module(make, exercise)
    tokenizer, codes_BN = alone.beside(codes()), codes()
    _check_layout(tokenizer)
    state = tokenizer.state_dict()
    for name in ("latent_mean_C", "latent_std_C"):
        expect(name in state, f"{name} is not in the state dict: the statistics would not travel with the weights")
        expect_tensor(name, state[name], (tokenizer.latent_channels,))
    expect(bool((state["latent_std_C"] > 0).all()), "latent_std_C is not positive")

    images_B3HW, latents_BChw = images_of(tokenizer), normal(*_latent_shape(tokenizer))
    for name in ("posterior's mean", "posterior's logvar", "encode", "encode with noise"):
        expect_tensor(name, found[name], latents_BChw.shape)
    expect_tensor("decode_raw", found["decode_raw"], images_B3HW.shape)
    expect_tensor("decode", found["decode"], images_B3HW.shape, within=(-1.0, 1.0))
    topic("normalised latents")
    with torch.no_grad():
        std, mean = (tokenizer.get_buffer(name)[:, None, None] for name in ("latent_std_C", "latent_mean_C"))
        raw = {"latents": found["encode"] * std + mean}
        expect_equal("encode is not (raw - mean) / std", raw, {"latents": found["posterior's mean"]}, rtol=1e-4)
        first = tokenizer.beside(None if codes_BN is None else codes_BN[:1])
        of_first = {"encode": first.encode(images_B3HW[:1]), "decode": first.decode(latents_BChw[:1])}
        tokens_BNC, projected = _tokens_BNC(latents_BChw), {"project": found["project"]}
        expect_tensor("project", found["project"], tokens_BNC.shape)
        again = {"project": tokenizer.project(found["project"])}
        expect_equal("what is projected changes when it is projected again", projected, again, rtol=1e-4)
        by_token = torch.stack([tokenizer.project(token_BC) for token_BC in tokens_BNC.unbind(1)], dim=1)
        expect_equal("a token depends on those beside it", projected, {"project": by_token}, rtol=1e-4)
    expect_alone(found, of_first)
    if discrete is not None and codes_BN is not None:
        topic("codes")
        expect(alone.needs_codes, "it does not say `needs_codes`")
        expect_error(UserError, lambda: alone.decode(latents_BChw), "decoding without codes")
        with torch.no_grad():
            others = alone.beside((codes_BN + 1) % discrete.codebook_size)
            same = near(tokenizer.decode(latents_BChw), others.decode(latents_BChw))
            own = alone.beside(discrete.encode(images_B3HW))
            by_codes = {"encode": own.encode(images_B3HW)}
            expect(not same, "a latent decodes to the same image beside other codes")
            message = "without codes it is not what it is beside the images' own"
            expect_equal(message, {"encode": alone.encode(images_B3HW)}, by_codes, rtol=1e-5)
        return  # trained is the discrete tokenizer

    tokenizer.train()
    images_B3HW.requires_grad_()
    posterior, raw_BChw, decoded = tokenizer.reconstruct(images_B3HW, noise=Noise.seeded(0))
    expect_tensor("reconstruct's images", decoded.detach(), images_B3HW.shape)
    expect_tensor("reconstruct's sample", raw_BChw.detach(), posterior.mean_BChw.shape)
    check_gradients(tokenizer, decoded.square().mean() + posterior.kl_B().mean(), images_B3HW)


def _check_discrete(make: Callable[[], DiscreteTokenizer]) -> None:
    def exercise(module: DiscreteTokenizer, device: str) -> dict[str, Tensor]:
        images_B3HW = images_of(module, device)
        codes_BN = codes_of(module.codebook_size, module.layout.tokens, device)
        with unchanged(images=images_B3HW, codes=codes_BN):
            quantized = module.quantize(images_B3HW)
            placed = {} if module.layout.grid is None else {"vectors_on_grid": module.vectors_on_grid(codes_BN)}
            return {
                "quantize's vectors": quantized.vectors_BEhw,
                "quantize's codes": quantized.codes_BN,
                "encode": module.encode(images_B3HW),
                "code_vectors": module.code_vectors(codes_BN),
                "decode": module.decode(codes_BN),
                **placed,
            }

    tokenizer, found = check_module(make, exercise)
    _check_layout(tokenizer)
    layout, width = tokenizer.layout, tokenizer.code_width
    place = layout.grid or layout.shape
    images_B3HW, codes_BN = images_of(tokenizer), codes_of(tokenizer.codebook_size, layout.tokens)
    expect_tensor("quantize's vectors", found["quantize's vectors"], (BATCH, width, place.height, place.width))
    codes = (0, tokenizer.codebook_size - 1)
    for name in ("quantize's codes", "encode"):
        expect_tensor(name, found[name], (BATCH, layout.tokens), dtype=torch.int64, within=codes)
    expect_tensor("code_vectors", found["code_vectors"], (BATCH, layout.tokens, width))
    if layout.grid is not None:
        expect_tensor("vectors_on_grid", found["vectors_on_grid"], (BATCH, layout.grid.tokens, width))
    expect_tensor("decode", found["decode"], images_B3HW.shape, within=(-1.0, 1.0))
    with torch.no_grad():
        topic("codes and their vectors")
        if layout.grid is None:
            expect_error(TypeError, lambda: tokenizer.vectors_on_grid(codes_BN), "vectors_on_grid of a sequence")
        vectors_of = tokenizer.code_vectors if layout.grid is None else tokenizer.vectors_on_grid
        by_code = vectors_of(found["quantize's codes"]).transpose(1, 2).unflatten(2, (place.height, -1))
        vectors = {"quantize's vectors": found["quantize's vectors"]}
        expect_equal("they are not those of its codes, row by row", vectors, {"quantize's vectors": by_code}, rtol=1e-5)
        alone = {"encode": tokenizer.encode(images_B3HW[:1]), "decode": tokenizer.decode(codes_BN[:1])}
    expect_alone(found, alone)

    tokenizer.train()
    images_B3HW.requires_grad_()
    quantized = tokenizer.quantize(images_B3HW)
    topic("losses")
    expect("quantizer" in quantized.losses, "in training mode the losses have no `quantizer`, the sum to train on")
    for name, loss in quantized.losses.items():
        expect_tensor(f"loss {name}", loss, ())
    decoded = tokenizer.decode_vectors(quantized.vectors_BEhw)
    check_gradients(tokenizer, decoded.square().mean() + quantized.losses["quantizer"], images_B3HW)


def _latent_shape(tokenizer: ContinuousTokenizer) -> tuple[int, int, int, int]:
    shape = tokenizer.layout.shape
    return BATCH, tokenizer.latent_channels, shape.height, shape.width


def _tokens_BNC(latents_BChw: Tensor) -> Tensor:
    return latents_BChw.flatten(2).transpose(1, 2)


def _check_layout(tokenizer: Tokenizer) -> None:
    layout = tokenizer.layout
    pixels, stride = Grid.of_pixels(tokenizer.image_size), tokenizer.stride
    whole = pixels.height % stride == 0 == pixels.width % stride
    expect(whole, "the image's size is not a multiple of the stride")
    square = isinstance(tokenizer.image_size, int) or pixels.height != pixels.width
    expect(square, "image_size of a square is a pair, and not the one number that it was given")
    expect(layout.kind == "pyramid" or len(layout.scales) == 1, f"a {layout.kind} has one grid, not {layout.scales}")
    if layout.kind == "sequence":
        expect(layout.scales[0].height == 1, f"a sequence is one row, not {layout.scales[0]}")
        return
    expect(layout.grid == Grid(pixels.height // stride, pixels.width // stride), "the grid is not image_size / stride")
    sizes = [grid.tokens for grid in layout.scales]
    expect(sizes == sorted(set(sizes)), f"the scales do not rise: {', '.join(map(str, layout.scales))}")

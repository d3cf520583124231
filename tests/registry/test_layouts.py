"""Tokens in any layout through recipes: what fits is trained and drawn, what does not is refused with both named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mixar import strict_yaml
from mixar.assembly import build
from mixar.cache import make_cache, open_cache
from mixar.cost import estimate
from mixar.folder import save_model
from mixar.model import load
from mixar.plugins import Registry
from mixar.recipe import Recipe, load_recipe, to_yaml
from mixar.run import train
from mixar_core.errors import UserError
from tests.tiny import plain_base

CONV: dict[str, Any] = {"channels": 4, "channel_multipliers": [1, 1, 1], "blocks": 1, "norm": "none"}
VQ: dict[str, Any] = {**CONV, "codebook_size": 4, "code_width": 3}
CODES: dict[str, dict[str, Any]] = {
    "grid": {"type": "vq", **VQ},
    "fine": {"type": "vq", **VQ, "channel_multipliers": [1, 1]},
    "depth": {"type": "rvq", **VQ, "depth": 3},
    "pyramid": {"type": "pyramid", **VQ, "scales": [1, 2, 4], "smoothing": 1},
    "sequence": {"type": "toy-sequence", "length": 6, "codebook_size": 4},
}
LATENTS: dict[str, dict[str, Any]] = {
    "grid": {"type": "kl", "latent_channels": 3, **CONV, "encoder_attention": [], "mid_attention": False},
    "sequence": {"type": "toy-sphere", "length": 5},
}
TOKENS = {"grid": 16, "depth": 48, "pyramid": 21, "sequence": 6}
SIZES: dict[str, Any] = {"width": 8, "depth": 1, "heads": 2}
Mixar = Callable[..., Recipe]


@pytest.fixture
def layouts(with_plugin: Callable[[str], Registry]) -> Registry:
    return with_plugin("tests.layout_toys")


@pytest.fixture
def mixar(family: Path, layouts: Registry, tmp_path: Path) -> Mixar:
    """mixar(codes, latents="grid", injector="dc-sa", overrides): a recipe; the codes' prior is untrained."""

    def make(codes: str, latents: str = "grid", injector: str = "dc-sa", *overrides: str) -> Recipe:
        prior = {"type": "maskgit", "bits": 2, "stride": 2 if codes == "fine" else 4, **SIZES, "mlp_dim": 8, "steps": 2}
        plain = {
            **plain_base(family),
            "trains": "mixar",
            "continuous_tokenizer": LATENTS[latents],
            "discrete_tokenizer": CODES[codes],
            "prior": prior,
            "injector": {"type": injector},
            "backbone": {"type": "masked", **SIZES, "buffer": 1},
            "head": {"type": "diffusion", "depth": 1, "width": 8, "sampling_steps": 3},
            "sampling": {"steps": 2},
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(strict_yaml.dump(plain))
        return load_recipe(path, overrides, registry=layouts)

    return make


PATCHED, MIXED = "backbone.patch_size=2", "ti_mix.schedule=linear"


@pytest.mark.parametrize(
    ("codes", "latents", "injector", "overrides", "one", "other"),
    [
        ("sequence", "grid", "dc-mix", [], "a fill for latents on grid 4x4", "codes on sequence of 6"),
        ("fine", "grid", "dc-mix", [], "a fill for latents on grid 4x4", "codes on grid 8x8"),
        ("pyramid", "grid", "dc-mix", [PATCHED], "on grid 2x2 (after patch_size 2)", "on pyramid 1x1, 2x2, 4x4"),
        ("grid", "sequence", "dc-mix", [], "a fill for latents on sequence of 5", "codes on grid 4x4"),
        ("sequence", "sequence", "dc-mix", [], "a fill for latents on sequence of 5", "codes on sequence of 6"),
        ("pyramid", "grid", "dc-mix", [MIXED], "schedule linear, latents on grid 4x4", "on pyramid 1x1, 2x2, 4x4"),
        ("sequence", "grid", "dc-sa", [MIXED], "schedule linear, latents on grid 4x4", "codes on sequence of 6"),
        ("fine", "grid", "dc-ca", [MIXED], "schedule linear, latents on grid 4x4", "codes on grid 8x8"),
        ("grid", "sequence", "none", [PATCHED], "sequence of 5", "patch_size 2"),
        ("depth", "grid", "dc-sa", ["prior.stride=8"], "prior.stride is 8", "the discrete tokenizer's is 4"),
        ("depth", "grid", "dc-sa", ["prior.bits=3"], "8 codes", "the discrete tokenizer has 4"),
    ],
)
def test_a_misfit_is_refused_with_both_sides_named(
    mixar: Mixar,
    layouts: Registry,
    codes: str,
    latents: str,
    injector: str,
    overrides: list[str],
    one: str,
    other: str,
) -> None:
    with pytest.raises(UserError) as caught:
        build(mixar(codes, latents, injector, *overrides), layouts, meta=True)
    assert one in str(caught.value) and other in str(caught.value) and "\n" not in str(caught.value)


def test_an_order_over_a_grid_is_refused_where_there_is_none(mixar: Mixar, layouts: Registry) -> None:
    system = build(mixar("sequence", "sequence", "dc-sa", "sampler={type: cosine, order: halton}"), layouts, meta=True)
    with pytest.raises(
        UserError, match=r"sampler.order: halton; it needs tokens on a grid, and these are a sequence of 5"
    ):
        estimate(system)


@pytest.mark.parametrize(
    ("codes", "injector", "latents"),
    [
        ("depth", "dc-mix", "grid"),
        ("sequence", "dc-sa", "grid"),
        ("pyramid", "dc-ca", "sequence"),
    ],
)
def test_costs_count_the_codes_where_they_go(
    mixar: Mixar, layouts: Registry, codes: str, injector: str, latents: str
) -> None:
    overrides = [MIXED] if codes == "depth" else []
    found = estimate(build(mixar(codes, latents, injector, *overrides), layouts, meta=True))
    tokens = 16 if latents == "grid" else 5
    front = 1 + (TOKENS[codes] if injector == "dc-sa" else 0)
    assert found.tokens["sampling_encoder_first"] == front
    assert found.tokens["sampling_decoder"] == front + tokens
    figures = {**found.training_gflop, **found.sampling_gflop}
    assert not any(isinstance(figure, str) for figure in figures.values()), figures


def trained(recipe: Recipe, folder: Path, registry: Registry) -> Path:
    """A model folder with random weights."""
    torch.manual_seed(0)
    system = build(recipe, registry)
    save_model(folder, recipe_yaml=to_yaml(recipe), tensors=system.trained.state_dict(), facts={})
    return folder


@pytest.mark.parametrize(
    ("codes", "latents", "injector"),
    [("pyramid", "grid", "dc-mix"), ("sequence", "sequence", "dc-sa")],
)
def test_codes_are_cached_learned_drawn_and_decoded(
    mixar: Mixar, layouts: Registry, tmp_path: Path, codes: str, latents: str, injector: str
) -> None:
    for key, trains in (("discrete", "discrete_tokenizer"), ("continuous", "continuous_tokenizer")):
        trained(mixar(codes, latents, injector, f"trains={trains}"), tmp_path / key, layouts)
    discrete = f"discrete_tokenizer.weights={tmp_path / 'discrete'}"
    whole = mixar(codes, latents, injector, discrete, f"continuous_tokenizer.weights={tmp_path / 'continuous'}")
    tokens = TOKENS[codes]
    make_cache(whole, tmp_path / "cache", layouts)
    cache = open_cache(tmp_path / "cache", whole, layouts)
    rows = cache.rows(torch.arange(9), torch.zeros(9, dtype=torch.bool))
    assert rows.codes_BN is not None and rows.codes_BN.shape == (9, tokens)
    assert cache.latent_shape == ((3, 4, 4) if latents == "grid" else (3, 1, 5))

    prior = mixar(codes, latents, injector, discrete, "trains=prior")
    train(prior, tmp_path / "prior", registry=layouts)
    run = mixar(
        codes,
        latents,
        injector,
        discrete,
        f"continuous_tokenizer.weights={tmp_path / 'continuous'}",
        f"prior.weights={tmp_path / 'prior'}",
        f"training.cache={tmp_path / 'cache'}",
    )
    train(run, tmp_path / "run", registry=layouts)
    model = load(tmp_path / "run", registry=layouts)
    drawn = model.sample_codes([0, 1], seed=1)
    assert drawn.shape == (2, tokens)
    assert model.decode_codes(drawn).shape == (2, 3, 16, 16)
    assert model.generate([0, 1], codes=drawn, seed=1).images.shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match=rf"needed: whole numbers \(B, {tokens}\)"):
        model.decode_codes(drawn[:, :-1])

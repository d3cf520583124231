"""HART's residual as a MixAR's continuous part: exact, in every way of using a model, and refused where it cannot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from torch import Tensor

import mixar
from mixar import strict_yaml
from mixar.assembly import build
from mixar.cache import make_cache
from mixar.folder import read_provenance, read_tensors, save_model
from mixar.measuring import measure
from mixar.memory import training_memory
from mixar.plugins import Registry
from mixar.publish import publish
from mixar.recipe import Recipe, load_recipe, to_yaml
from mixar.run import train
from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.testing import check_continuous_tokenizer
from mixar_core.testing.parts import StandInTokenizer
from mixar_eval.bench import sampling_rows
from mixar_eval.tokenizers import open_tokenizers
from mixar_plugins.tokenizers.hart import HARTConfig, HARTResidual, HARTResidualConfig, HARTTokenizer
from mixar_plugins.tokenizers.llamagen import LlamaGenConfig, LlamaGenTokenizer
from mixar_plugins.tokenizers.titok import TiTok, TiTokConfig
from tests.eval.test_scores import Means
from tests.tiny import plain_base, plain_recipes

SMALL = {"channels": 4, "channel_multipliers": [1, 1, 1], "blocks": 1, "attention": False, "norm": "none"}
HART = {**SMALL, "codebook_size": 16, "latent_channels": 4, "scales": [1, 2, 4], "smoothing": 2}
PRIOR = {"type": "hart", "width": 8, "depth": 1, "heads": 2, "context_width": 6, "mlp_width": 8, "top_k": 0}
EXACT = {"rtol": 1e-5, "atol": 1e-5}


def tokenizer(size: Any = 16, **settings: float) -> HARTTokenizer:
    """The same weights every time."""
    scales = (1, 2, 4) if size == 16 else ((1, 1), (2, 3), (4, 6))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = HARTTokenizer(HARTConfig(**{**HART, "scales": scales, **settings}), image_size=size)
        for parameter in made.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return made.eval().requires_grad_(False)


def residual(discrete: HARTTokenizer, **settings: float) -> HARTResidual:
    return HARTResidual(HARTResidualConfig(**settings), image_size=discrete.image_size, tokenizer=discrete)


def images(count: int = 3, seed: int = 0, height: int = 16, width: int = 16) -> Tensor:
    return Noise.seeded(seed).uniform((count, 3, height, width), "cpu") * 2 - 1


# ---------------------------------------------------------------- the part


@pytest.mark.parametrize("size", [16, (16, 24)])
def test_it_keeps_the_contract(size: Any) -> None:
    check_continuous_tokenizer(lambda: residual(tokenizer(size), latent_mean=0.1), tokenizer=tokenizer(size))


@hypothesis(max_examples=10)
@given(seed=st.integers(0, 99), mean=st.floats(-1, 1), std=st.floats(0.1, 3), other=st.integers(0, 15))
def test_codes_and_residual_are_all_of_the_features(seed: int, mean: float, std: float, other: int) -> None:
    """Beside any codes, not only the image's own: what is decoded is the decoder's image of the encoder's features."""
    discrete, x_B3HW = tokenizer(), images(seed=seed)
    latents_of = residual(discrete, latent_mean=mean, latent_std=std)
    whole_B3HW = discrete.decode_vectors(discrete.encoded(x_B3HW)).clamp(-1, 1)
    own_BN = discrete.encode(x_B3HW)
    for codes_BN in (own_BN, torch.full_like(own_BN, other)):
        beside = latents_of.beside(codes_BN)
        torch.testing.assert_close(beside.decode(beside.encode(x_B3HW)), whole_B3HW, **EXACT)
    # no residual is what the codes alone decode to
    nothing = torch.zeros(3, 4, 4, 4)
    torch.testing.assert_close(latents_of.beside(own_BN).decode_raw(nothing).clamp(-1, 1), discrete.decode(own_BN))
    assert not list(latents_of.parameters()) and latents_of.beside(own_BN) is not latents_of


def test_of_codes_on_a_sphere_what_is_decoded_lies_on_it() -> None:
    """The decoder has seen vectors of length 1 alone: not the encoder's raw output."""
    torch.manual_seed(0)
    discrete, x_B3HW = LlamaGenTokenizer(LlamaGenConfig(**SMALL, codebook_size=16), image_size=16).eval(), images()
    codes_BN = discrete.encode(x_B3HW)
    made = HARTResidual(HARTResidualConfig(), image_size=16, tokenizer=discrete).beside(codes_BN)
    whole_BEhw = made.posterior(x_B3HW).mean_BChw + made.summed(codes_BN)
    torch.testing.assert_close(whole_BEhw.norm(dim=1), torch.ones(3, 4, 4))


@hypothesis(max_examples=5)
@given(seed=st.integers(0, 99), share=st.sampled_from([0.0, 0.5, 1.0]))
def test_in_training_an_image_is_decoded_from_its_codes_or_with_its_residual(seed: int, share: float) -> None:
    made, x_B3HW = tokenizer(codes_alone=share).train(), images(8, seed)
    features_BEhw, plain = made.encoded(x_B3HW), tokenizer().train().quantize(x_B3HW)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        found = made.quantize(x_B3HW)
    assert torch.equal(found.codes_BN, plain.codes_BN) and torch.equal(
        found.losses["quantizer"], plain.losses["quantizer"]
    )
    ways = [torch.isclose(found.vectors_BEhw, way).flatten(1).all(dim=1) for way in (plain.vectors_BEhw, features_BEhw)]
    assert torch.equal(ways[0], ~ways[1])
    assert {0.0: not ways[0].any(), 0.5: True, 1.0: bool(ways[0].all())}[share]


def test_what_has_no_features_on_a_grid_is_refused() -> None:
    sizes = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "tokens": 6}
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
    config = TiTokConfig(**sizes, **decoder, legacy=False)
    for other in (StandInTokenizer(), TiTok(config, image_size=16)):
        with pytest.raises(UserError, match="hart-residual: needs features that codes on a grid are made of"):
            HARTResidual(HARTResidualConfig(), image_size=16, tokenizer=other)


# ---------------------------------------------------------------- a MixAR over it


def recipes(folder: Path, data: Path) -> Mapping[str, dict[str, Any]]:
    mine = plain_recipes(folder)["mixar"]
    return {
        "discrete": {"trains": "discrete_tokenizer", "discrete_tokenizer": {"type": "hart", **HART}},
        "prior": {
            "trains": "prior",
            "discrete_tokenizer": {"weights": str(folder / "models/discrete")},
            "prior": PRIOR,
        },
        "residual": {
            "trains": "continuous_tokenizer",
            "continuous_tokenizer": {"type": "hart-residual"},
            "discrete_tokenizer": {"weights": str(folder / "models/discrete")},
            "reconstruction": {"statistics_images": 9},
        },
        "mixar": {
            **mine,
            "continuous_tokenizer": {"type": "hart-residual"},
            "prior": {"weights": str(folder / "models/prior")},
            "ti_mix": None,
        },
    }


@pytest.fixture(scope="module")
def home(family: Path, tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Path:
    """Recipes, a discrete tokenizer, a prior, and a MixAR that was trained for two steps."""
    folder = tmp_path_factory.mktemp("hart")
    (folder / "recipes").mkdir()
    for name, plain in recipes(folder, family).items():
        (folder / f"recipes/{name}.yaml").write_text(strict_yaml.dump({**plain_base(family), **plain}))
        if name in ("discrete", "prior"):
            recipe = read(folder, name, registry)
            torch.manual_seed(0)
            system = build(recipe, registry)
            for parameter in system.trained.parameters():
                parameter.data.add_(0.2 * torch.randn_like(parameter))
            facts = {"class_names": ["cat", "dog", "owl"]}
            tensors = system.trained.state_dict()
            save_model(folder / "models" / name, recipe_yaml=to_yaml(recipe), tensors=tensors, facts=facts)
    train(read(folder, "mixar", registry), folder / "run", device="cpu", registry=registry)
    return folder


def read(folder: Path, name: str, registry: Registry, *changes: str) -> Recipe:
    return load_recipe(folder / f"recipes/{name}.yaml", changes, registry=registry)


def same(one: Path, two: Path) -> bool:
    first, second = read_tensors(one / "weights.safetensors"), read_tensors(two / "weights.safetensors")
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_it_goes_on_to_the_same_bits_from_images_memory_and_disk(home: Path, tmp_path: Path, registry: Registry):
    one = read(home, "mixar", registry, "training.steps=1")
    train(one, tmp_path / "run", device="cpu", registry=registry)
    train(read(home, "mixar", registry), tmp_path / "run", resume=True, device="cpu", registry=registry)
    assert same(tmp_path / "run", home / "run")
    assert read_provenance(home / "run")["frozen"].keys() == {"discrete_tokenizer", "prior"}
    make_cache(one, tmp_path / "cache", registry, device="cpu")
    for name, cache in (("kept", "memory"), ("cached", str(tmp_path / "cache"))):
        recipe = read(home, "mixar", registry, f"training.cache={cache}")
        train(recipe, tmp_path / name, device="cpu", registry=registry)
    assert same(tmp_path / "kept", tmp_path / "cached")


def test_a_cache_beside_other_codes_is_refused(home: Path, tmp_path: Path, registry: Registry) -> None:
    make_cache(read(home, "mixar", registry), tmp_path / "cache", registry, device="cpu")
    tensors = read_tensors(home / "models/discrete/weights.safetensors")
    recipe = read(home, "discrete", registry)
    moved = {key: tensor + 0.01 if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    save_model(tmp_path / "other", recipe_yaml=to_yaml(recipe), tensors=moved, facts={})
    changes = (f"training.cache={tmp_path / 'cache'}", f"discrete_tokenizer.weights={tmp_path / 'other'}", "prior=null")
    with pytest.raises(UserError, match="made by another discrete tokenizer: weights_sha256"):
        train(read(home, "mixar", registry, *changes), tmp_path / "run", device="cpu", registry=registry)


def test_true_codes_and_true_residual_decode_to_what_hart_reconstructs(home: Path, registry: Registry) -> None:
    model = mixar.load(home / "run", device="cpu", registry=registry)
    mixed, discrete = model.system.model, model.system.discrete_tokenizer
    assert mixed is not None and isinstance(discrete, HARTTokenizer)
    x_B3HW = images(2)
    codes_BN = discrete.encode(x_B3HW)
    beside = mixed.continuous_tokenizer.beside(codes_BN)
    reconstructed = discrete.decode_vectors(discrete.encoded(x_B3HW)).clamp(-1, 1)
    torch.testing.assert_close(beside.decode(beside.encode(x_B3HW)), reconstructed, **EXACT)
    drawn = model.generate([0, 1], codes=codes_BN, seed=1)
    assert torch.equal(drawn.codes, codes_BN)
    again, others = (model.generate([0, 1], codes=codes_BN, seed=seed).images for seed in (1, 2))
    assert torch.equal(drawn.images, again) and not torch.equal(drawn.images, others)
    assert not torch.equal(drawn.images, model.decode_codes(codes_BN))
    sampled = model.generate([0, 1], seed=1, keep_steps=True)
    assert sampled.codes is not None and torch.equal(sampled.steps[-1], sampled.images)


def test_edits_keep_the_codes_or_all_latents(home: Path, registry: Registry) -> None:
    model = mixar.load(home / "run", device="cpu", registry=registry)
    x = ((images(1)[0] + 1) * 127.5).round().to(torch.uint8)
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:8, :8] = True
    edited = model.edit(x, mask, 0, paste=False)
    assert edited.level == "latents" and edited.latents is not None
    discrete, latents_of = model.system.discrete_tokenizer, model.system.continuous_tokenizer
    assert discrete is not None and latents_of is not None
    floats = x[None].float() / 127.5 - 1
    assert torch.equal(edited.codes, discrete.encode(floats))
    kept_BN = ~edited.redrawn
    true_BNC, now_BNC = (part.flatten(2).transpose(1, 2) for part in (latents_of.encode(floats), edited.latents))
    assert torch.equal(now_BNC[kept_BN], true_BNC[kept_BN]) and not torch.equal(now_BNC, true_BNC)
    other = (edited.codes + 1) % 16  # latents that are kept are then what these codes leave over
    given_codes = model.edit(x, mask, 0, paste=False, codes=other, peek=True)
    beside_BNC = latents_of.beside(other).encode(floats).flatten(2).transpose(1, 2)
    assert torch.equal(given_codes.latents.flatten(2).transpose(1, 2)[kept_BN], beside_BNC[kept_BN])
    with pytest.raises(UserError, match=r"level 'both' of model .*, whose latents are what its codes leave over"):
        model.edit(x, mask, 0, level="both")


def test_it_is_measured_published_and_timed(home: Path, tmp_path: Path, registry: Registry) -> None:
    measure(read(home, "residual", registry), tmp_path / "measured", registry, device="cpu")
    kept = read_tensors(tmp_path / "measured/weights.safetensors")
    assert set(kept) == {"latent_mean_C", "latent_std_C"} and bool((kept["latent_std_C"] != 0.6).all())
    changes = (f"continuous_tokenizer.weights={tmp_path / 'measured'}", "training.steps=1")
    recipe = read(home, "mixar", registry, *changes)
    train(recipe, tmp_path / "run", device="cpu", registry=registry)
    publish(tmp_path / "run", tmp_path / "whole", device="cpu", registry=registry)
    run, whole = (mixar.load(tmp_path / name, device="cpu", registry=registry) for name in ("run", "whole"))
    assert torch.equal(run.generate([0, 2], seed=1).images, whole.generate([0, 2], seed=1).images)
    floats = images(2)
    normalised = run.system.continuous_tokenizer.encode(floats)
    assert not torch.equal(normalised, mixar.load(home / "run").system.continuous_tokenizer.encode(floats))
    # measured beside another tokenizer's codes, it would say nothing of these
    other = tmp_path / "other"
    recipe_yaml, discrete = to_yaml(read(home, "discrete", registry)), run.system.discrete_tokenizer
    tensors = {
        key: value + 0.01 if value.is_floating_point() else value for key, value in discrete.state_dict().items()
    }
    save_model(other, recipe_yaml=recipe_yaml, tensors=tensors, facts={})
    with pytest.raises(UserError, match=r"continuous_tokenizer .* and discrete_tokenizer .* do not fit"):
        build(read(home, "mixar", registry, changes[0], f"discrete_tokenizer.weights={other}", "prior=null"), registry)

    assert isinstance(training_memory(build(recipe, registry, meta=True))["training"], float)
    timed = {row["part"]: row["gflop"] for row in sampling_rows(run, registry, batch=1, repeats=1)}
    assert all(timed[part] for part in ("continuous_tokenizer", "prior", "head", "backbone"))


def test_evaluation_reconstructs_beside_the_images_codes(home: Path, registry: Registry) -> None:
    entries = open_tokenizers([str(home / "run")], registry, torch.device("cpu"))
    found = {}
    for entry in entries:
        meter = entry.meter(Means(), seed=0)
        found |= meter.add(images(2), torch.arange(2))
    discrete = entries[1].tokenizer
    assert isinstance(discrete, HARTTokenizer)
    whole = discrete.decode_vectors(discrete.encoded(images(2))).clamp(-1, 1)
    for way in ("mean", "sample"):
        assert ((found[way].float() / 127.5 - 1) - whole).abs().max() <= 1 / 127
    assert not torch.equal(found["codes"], found["mean"])


REFUSED = {
    "injector.type=none": "need of an image's codes against that it takes none",
    "discrete_tokenizer=null": "need of an image's codes against absence",
    "also_trained=[discrete_tokenizer, prior]": "discrete_tokenizer: both tokenizers stay as they are",
    "ti_mix={schedule: linear}": "puts other codes in their place; set ti_mix=null",
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_cannot_be_is_refused_in_a_line(change: str, home: Path, registry: Registry) -> None:
    changes = (change, "prior=null") if change.startswith("discrete") else (change,)
    with pytest.raises(UserError) as caught:
        build(read(home, "mixar", registry, *changes), registry, meta=True)
    assert REFUSED[change] in str(caught.value) and "\n" not in str(caught.value)


def test_there_is_nothing_to_train_in_it(home: Path, tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(UserError, match=r"hart-residual.*has no weights that could be trained"):
        train(read(home, "residual", registry), tmp_path / "run", device="cpu", registry=registry)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match=r"discrete_tokenizer\.weights: required"):
        untrained = f"discrete_tokenizer={json.dumps({'type': 'hart', **HART})}"
        measure(read(home, "residual", registry, untrained), tmp_path / "out", registry, device="cpu")

"""Autoencoders of diffusers as tokenizers: the contract of four classes with random weights, trained and pretrained."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mixar.assembly import build
from mixar.cost import estimate
from mixar.folder import read_provenance, read_tensors
from mixar.measuring import measure
from mixar.model import load
from mixar.plugins import Registry
from mixar.recipe import load_recipe, to_plain
from mixar.run import train
from mixar_core import UserError
from mixar_core.testing import check_continuous_tokenizer
from mixar_diffusers.tokenizers import Autoencoder, AutoencoderConfig, Pretrained, PretrainedConfig

THREE = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
KL = {**THREE, "block_out_channels": [4, 4, 8], "norm_num_groups": 4, "latent_channels": 2}
DC = {
    "latent_channels": 2,
    **{f"{half}_block_out_channels": [4, 4, 8] for half in ("encoder", "decoder")},
    **{f"{half}_layers_per_block": [1, 1, 1] for half in ("encoder", "decoder")},
    **{f"{half}_qkv_multiscales": [[], [], []] for half in ("encoder", "decoder")},
}
TINY = {
    **{f"{half}_block_out_channels": [4, 4, 4] for half in ("encoder", "decoder")},
    **{f"num_{half}_blocks": [1, 1, 1] for half in ("encoder", "decoder")},
    "latent_channels": 2,
}
ASYMMETRIC = {
    **THREE,
    "down_block_out_channels": [4, 4, 8],
    "up_block_out_channels": [4, 4, 8],
    "norm_num_groups": 4,
    "latent_channels": 2,
}
VQ = {**KL, "num_vq_embeddings": 16}
#: class, settings, whether its latents have noise
SMALL = {
    "AutoencoderKL": (KL, True),
    "AutoencoderDC": (DC, False),
    "AutoencoderTiny": (TINY, False),
    "AsymmetricAutoencoderKL": (ASYMMETRIC, True),
}


def write(folder: Path, name: str, settings: dict[str, Any], **more: Any) -> Path:
    import diffusers

    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(diffusers, name)(**settings, **more).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", SMALL)
def test_a_class_that_is_trained_here_keeps_the_contract(name: str) -> None:
    settings, noisy = SMALL[name]
    make = partial(Autoencoder, AutoencoderConfig(name, settings), image_size=16)
    check_continuous_tokenizer(make)
    tokenizer = make()
    if name != "AutoencoderTiny":
        assert tokenizer.last_layer is not None and tokenizer.last_layer.shape[0] == 3
        assert tokenizer.encoder_layer is not None and tokenizer.encoder_layer.shape[0] == 2 * (1 + noisy)
    assert (tokenizer.stride, tokenizer.latent_channels) == (4, 2)
    with torch.no_grad():
        posterior = tokenizer.posterior(torch.zeros(1, 3, 16, 16))
    assert (posterior.logvar_BChw > -29).all() == noisy
    assert tokenizer.latent_mean_C.tolist() == [0, 0] and tokenizer.latent_std_C.tolist() == [1, 1]


@pytest.mark.parametrize(("name", "settings"), [("AutoencoderDC", DC), ("VQModel", VQ)])
def test_a_pretrained_class_keeps_the_contract(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    config = PretrainedConfig(str(write(tmp_path / "model", name, settings, scaling_factor=0.5)))
    check_continuous_tokenizer(lambda: Pretrained(config, image_size=16))
    tokenizer = Pretrained(config, image_size=16)
    assert tokenizer.latent_std_C.tolist() == [2, 2]
    frozen = {name for name, parameter in tokenizer.named_parameters() if not parameter.requires_grad}
    assert frozen == ({"model.quantize.embedding.weight"} if name == "VQModel" else set())


def test_a_subfolder_and_its_shift_are_read(tmp_path: Path) -> None:
    write(tmp_path / "pipeline/vae", "AutoencoderKL", KL, scaling_factor=0.25, shift_factor=0.5)
    tokenizer = Pretrained(PretrainedConfig(str(tmp_path / "pipeline"), subfolder="vae"), image_size=16)
    assert tokenizer.latent_mean_C.tolist() == [0.5, 0.5] and tokenizer.latent_std_C.tolist() == [4, 4]


@pytest.mark.parametrize(
    ("config", "size", "said"),
    [
        (AutoencoderConfig("AutoencoderKLX"), 16, r"model AutoencoderKLX: no autoencoder of diffusers .*AutoencoderDC"),
        (AutoencoderConfig("UNet2DModel"), 16, r"model UNet2DModel: no autoencoder of diffusers"),
        (AutoencoderConfig("VQModel", VQ), 16, r"model VQModel: only a pretrained one"),
        (AutoencoderConfig("AutoencoderKL", {"depth": 2}), 16, r"settings: AutoencoderKL does not take them: .*depth"),
        (AutoencoderConfig("AutoencoderKL", KL), 18, r"AutoencoderKL and images of 18 pixels do not go together"),
        (PretrainedConfig("/nowhere/vae"), 16, r"source /nowhere/vae: no such folder$"),
        (PretrainedConfig("owner/name"), 16, r"source owner/name: no such folder; of one at the hub, give its rev"),
    ],
)
def test_what_cannot_be_is_refused(config: Any, size: int, said: str) -> None:
    kind: Any = Autoencoder if isinstance(config, AutoencoderConfig) else Pretrained
    with pytest.raises(UserError, match=said):
        kind(config, image_size=size)


def test_pickles_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", "AutoencoderKL", KL)
    weights = read_tensors(folder / "diffusion_pytorch_model.safetensors")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(weights, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"cannot be loaded: .*safetensors"):
        Pretrained(PretrainedConfig(str(folder)), image_size=16)


def test_the_hub_is_not_asked_when_it_must_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="source owner/name: cannot be loaded: "):
        Pretrained(PretrainedConfig("owner/name", revision="main"), image_size=16)


def test_a_recipe_says_where_a_pretrained_one_lies(
    tmp_path: Path, family: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "vae", "AutoencoderKL", KL)
    monkeypatch.chdir(tmp_path)

    def source_of(text: str) -> str:
        settings = ["continuous_tokenizer.type=diffusers-pretrained", f"continuous_tokenizer.source={text}"]
        recipe = load_recipe(family / "recipes/continuous.yaml", settings, registry=registry)
        return str(to_plain(recipe)["continuous_tokenizer"]["source"])

    assert source_of("vae") == source_of("./vae") == str(tmp_path / "vae")
    assert source_of("owner/name") == "owner/name"


def test_trained_here_it_takes_the_place_of_the_default(tmp_path: Path, family: Path, registry: Registry) -> None:
    part = {"type": "diffusers", "model": "AutoencoderDC", "settings": DC}
    recipe = load_recipe(family / "recipes/continuous.yaml", {"continuous_tokenizer": part}, registry=registry)
    found = estimate(build(recipe, registry, meta=True))
    assert isinstance(found.training_gflop["total"], float) and isinstance(found.memory_gb["training"], float)
    train(recipe, tmp_path / "run", registry=registry)
    mixed = load_recipe(
        family / "recipes/mixar.yaml", [f"continuous_tokenizer.weights={tmp_path / 'run'}"], registry=registry
    )
    train(mixed, tmp_path / "mixar", registry=registry)
    assert load(tmp_path / "mixar", registry=registry).generate([0]).images.shape == (1, 3, 16, 16)


def test_a_pretrained_one_needs_no_weights_and_is_measured(tmp_path: Path, family: Path, registry: Registry) -> None:
    folder = write(tmp_path / "vae", "AutoencoderDC", DC, scaling_factor=0.5)
    part = {"continuous_tokenizer": {"type": "diffusers-pretrained", "source": str(folder)}}
    recipe = load_recipe(family / "recipes/mixar.yaml", part, registry=registry)
    train(recipe, tmp_path / "mixar", registry=registry)
    assert "continuous_tokenizer" in read_provenance(tmp_path / "mixar")["frozen"]
    measure(load_recipe(family / "recipes/continuous.yaml", part, registry=registry), tmp_path / "measured", registry)
    measured = read_tensors(tmp_path / "measured/weights.safetensors")
    assert (measured["latent_std_C"] != 2).all() and (measured["latent_mean_C"] != 0).all()


def test_the_classes_of_the_library_that_take_images_are_found() -> None:
    import diffusers

    taken: list[str] = []
    make: Callable[..., Any] = lambda name: Autoencoder(AutoencoderConfig(name), image_size=256)  # noqa: E731
    for name in ("AutoencoderKLWan", "AutoencoderOobleck"):  # of videos, of sound
        assert hasattr(diffusers, name)
        with torch.device("meta"), pytest.raises(UserError, match=f"{name}.* do not go together"):
            make(name)
    with torch.device("meta"):
        for name in ("AutoencoderKL", "AutoencoderDC", "AutoencoderTiny", "AsymmetricAutoencoderKL"):
            taken.append(f"{make(name).stride} x {make(name).latent_channels}")
    assert taken == ["1 x 4", "32 x 32", "8 x 4", "1 x 4"]

"""The image autoencoders of diffusers as continuous tokenizers."""

from __future__ import annotations

from pathlib import Path

from mixar import Part, hookimpl

#: the version of mixar's interface that this was written for
MIXAR_INTERFACE = 2


@hookimpl
def mixar_parts() -> list[Part]:
    """The continuous tokenizers `diffusers` and `diffusers-pretrained`."""
    from mixar_diffusers.tokenizers import Autoencoder, AutoencoderConfig, Pretrained, PretrainedConfig

    return [
        Part("continuous-tokenizer", "diffusers", Autoencoder, AutoencoderConfig),
        Part("continuous-tokenizer", "diffusers-pretrained", Pretrained, PretrainedConfig),
    ]


@hookimpl
def mixar_recipe_folders() -> list[Path]:
    """Recipes of the digits, on the zoo's data."""
    return [Path(__file__).parent / "recipes"]

"""Discrete tokenizers whose quantizers are vector-quantize-pytorch's, as they are."""

from __future__ import annotations

from pathlib import Path

from mixar import Part, hookimpl

#: the version of mixar's interface that this was written for
MIXAR_INTERFACE = 2


@hookimpl
def mixar_parts() -> list[Part]:
    """The discrete tokenizers `fsq` and `residual-vq`."""
    from mixar_fsq.tokenizers import FSQConfig, FSQTokenizer, ResidualVQConfig, ResidualVQTokenizer

    return [
        Part("discrete-tokenizer", "fsq", FSQTokenizer, FSQConfig),
        Part("discrete-tokenizer", "residual-vq", ResidualVQTokenizer, ResidualVQConfig),
    ]


@hookimpl
def mixar_recipe_folders() -> list[Path]:
    """Recipes of the digits, on the zoo's data."""
    return [Path(__file__).parent / "recipes"]

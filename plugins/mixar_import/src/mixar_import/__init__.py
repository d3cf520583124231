"""Released weights: files that others published become model folders, by `mixar weights import`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mixar import Part, hookimpl

if TYPE_CHECKING:
    import typer


@hookimpl
def mixar_kinds() -> Mapping[str, type]:
    """A kind of part: what translates one kind of published file."""
    from mixar_import.importer import Importer

    return {"importer": Importer}


@hookimpl
def mixar_parts() -> list[Part]:
    """An importer for each kind of file."""
    from mixar_import.autoencoders import AutoencoderImportConfig, KL16Importer, VAVAEImporter
    from mixar_import.mar import MarImportConfig, MarImporter
    from mixar_import.maskbit import (
        GeneratorImportConfig,
        MaskBitGeneratorImporter,
        MaskBitTokenizerImporter,
        MaskGITGeneratorImporter,
        MaskGITTokenizerImporter,
        TokenizerImportConfig,
        VQGANPlusTokenizerImporter,
    )

    return [
        Part("importer", "mar", MarImporter, MarImportConfig),
        Part("importer", "kl16", KL16Importer, AutoencoderImportConfig),
        Part("importer", "vavae", VAVAEImporter, AutoencoderImportConfig),
        Part("importer", "maskbit-tokenizer", MaskBitTokenizerImporter, TokenizerImportConfig),
        Part("importer", "maskbit-generator", MaskBitGeneratorImporter, GeneratorImportConfig),
        Part("importer", "vqgan-plus-tokenizer", VQGANPlusTokenizerImporter, TokenizerImportConfig),
        Part("importer", "maskgit-tokenizer", MaskGITTokenizerImporter, TokenizerImportConfig),
        Part("importer", "maskgit-generator", MaskGITGeneratorImporter, GeneratorImportConfig),
    ]


@hookimpl
def mixar_commands(app: typer.Typer) -> None:
    """`mixar weights ...`."""
    from mixar_import.cli import weights_app

    app.add_typer(weights_app, name="weights")

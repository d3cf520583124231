"""Released weights: files that others published become model folders, by `mixar weights import`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mixar import Part, hookimpl

if TYPE_CHECKING:
    import typer

#: the version of mixar's interface that this was written for
MIXAR_INTERFACE = 2


@hookimpl
def mixar_kinds() -> Mapping[str, type]:
    """A kind of part: what translates one kind of published file."""
    from mixar_import.importers import Importer

    return {"importer": Importer}


@hookimpl
def mixar_parts() -> list[Part]:
    """An importer for each kind of file."""
    from mixar_import import continuous, generators, importers, next, tokenizers

    kinds = {
        "mar": importers.MarImporter,
        "ear": importers.EarImporter,
        "detok-mar": importers.DeTokMarImporter,
        "detok-ar": continuous.DeTokARImporter,
        "acdit": continuous.ACDiTImporter,
        "flowar": continuous.FlowARImporter,
        "kl16": importers.KL16Importer,
        "vavae": importers.VAVAEImporter,
        "maskbit-tokenizer": importers.MaskBitTokenizerImporter,
        "maskbit-generator": importers.MaskBitGeneratorImporter,
        "vqgan-plus-tokenizer": importers.VQGANPlusTokenizerImporter,
        "maskgit-tokenizer": importers.MaskGITTokenizerImporter,
        "maskgit-generator": importers.MaskGITGeneratorImporter,
        "llamagen-tokenizer": tokenizers.LlamaGenTokenizerImporter,
        "var-tokenizer": tokenizers.VARTokenizerImporter,
        "detok": tokenizers.DeTokImporter,
        "maskgit-vqgan-tokenizer": tokenizers.MaskGITVQGANImporter,
        "hart-tokenizer": tokenizers.HARTTokenizerImporter,
        "open-magvit2-tokenizer": tokenizers.OpenMagvit2Importer,
        "titok-tokenizer": tokenizers.TiTokImporter,
        "titok-vae-tokenizer": tokenizers.TiTokVAEImporter,
        "titok-generator": generators.TiTokGeneratorImporter,
        **next.KINDS,
    }
    return [Part("importer", name, importer, importers.ImporterConfig) for name, importer in kinds.items()]


@hookimpl
def mixar_commands(app: typer.Typer) -> None:
    """`mixar weights ...`."""
    from mixar_import.cli import weights_app

    app.add_typer(weights_app, name="weights")

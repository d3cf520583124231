"""What the tests of published weights share."""

from __future__ import annotations

from pathlib import Path

import pytest

from mixar.plugins import Registry
from mixar_import.imports import import_weights
from tests.weights.files import write_all


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One small file of every kind in the authors' wrapping; tests must not change them."""
    folder = tmp_path_factory.mktemp("published")
    write_all(folder)
    return folder


@pytest.fixture(scope="session")
def models(files: Path, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them imported, a folder each; tests must not change them."""
    folder = tmp_path_factory.mktemp("imported")

    def take(kind: str, file: str, name: str, *, tokenizer: str = "", statistics: str = "") -> None:
        import_weights(
            kind,
            str(files / file),
            folder / name,
            registry,
            recipe=str(files / f"{name}.yaml"),
            tokenizer=str(folder / tokenizer) if tokenizer else None,
            statistics=str(files / statistics) if statistics else None,
        )

    take("kl16", "kl16.ckpt", "kl16")
    take("mar", "checkpoint-last.pth", "mar", tokenizer="kl16")
    take("vavae", "vavae.pt", "vavae", statistics="latents_stats.pt")
    take("maskbit-tokenizer", "maskbit_tokenizer.bin", "maskbit_tokenizer")
    take("maskbit-generator", "maskbit_generator.bin", "maskbit_generator", tokenizer="maskbit_tokenizer")
    take("vqgan-plus-tokenizer", "vqgan_plus.bin", "vqgan_plus")
    take("maskgit-tokenizer", "maskgit_tokenizer.bin", "maskgit_tokenizer")
    take("maskgit-generator", "maskgit_generator.bin", "maskgit_generator", tokenizer="maskgit_tokenizer")
    return folder

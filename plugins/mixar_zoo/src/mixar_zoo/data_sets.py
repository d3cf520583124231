"""The zoo's two data sets as parts: Parquet files that lie in this package."""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from mixar_plugins.datasets.parquet import ParquetConfig, ParquetDataset

DATA = Path(__file__).parent / "data"


@frozen
class NoSettings:
    """Nothing to set: which images, which classes and which split is fixed, so that numbers compare."""


class Emoji64(ParquetDataset):
    """3,812 emoji, 64x64 over white, by two vendors, in 9 categories (3,380 to train on, 432 for validation)."""

    def __init__(self, config: NoSettings, *, split: str, image_size: int) -> None:
        super().__init__(ParquetConfig(str(DATA / "emoji64.parquet")), split=split, image_size=image_size)


class Digits(ParquetDataset):
    """5,000 MNIST digits, 32x32, white on black (4,000 to train on, 1,000 for validation, balanced)."""

    def __init__(self, config: NoSettings, *, split: str, image_size: int) -> None:
        super().__init__(ParquetConfig(str(DATA / "digits.parquet")), split=split, image_size=image_size)

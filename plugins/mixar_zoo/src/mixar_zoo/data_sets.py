"""The zoo's two data sets as parts: Parquet files that lie in this package."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from attrs import frozen
from torch import Tensor

from mixar_core.data.dataset import ImageDataset, names_of_split
from mixar_core.data.images import read_image
from mixar_core.types import ImageSize

DATA = Path(__file__).parent / "data"


@frozen
class NoSettings:
    """Nothing to set: which images, which classes and which split is fixed, so that numbers compare."""


@frozen
class Emoji64Config:
    """Of Emoji64.

    Args:
        subcategories: there are 107 classes, the 9 categories and their 98 subcategories, `Flags / country-flag`; every
            training image counts twice, under its category and under its subcategory, so that a model draws either.
            Validation images stay as they are, under their categories.
    """

    subcategories: bool = False


class _InPackage(ImageDataset):
    """The encoded images and labels of a split of a file of this package, a few megabytes, in memory."""

    name: str

    def __init__(self, config: NoSettings | Emoji64Config, *, split: str, image_size: ImageSize) -> None:
        names_of_split(split)
        self._name, self.image_size = f"{self.name}, {split}", image_size
        table = self._table(["image", "label"], split)
        features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
        self.class_names = tuple(features["label"]["names"])
        self.num_classes = len(self.class_names)
        self._images: list[bytes] = [image["bytes"] for image in table["image"].to_pylist()]
        self._labels: list[int] = table["label"].to_pylist()

    def _table(self, columns: list[str], split: str) -> pa.Table:
        return pq.read_table(DATA / f"{self.name}.parquet", columns=columns, filters=[("split", "==", split)])

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels = read_image(self._images[index], self.image_size, where=f"{self._name}, row {index}")
        return pixels, self._labels[index]

    def labels(self) -> list[int]:
        return list(self._labels)


class Emoji64(_InPackage):
    """3,812 emoji, 64x64 over white, by two vendors, in 9 categories (3,380 to train on, 432 for validation)."""

    name = "emoji64"

    def __init__(self, config: Emoji64Config, *, split: str, image_size: ImageSize) -> None:
        super().__init__(config, split=split, image_size=image_size)
        if not config.subcategories:
            return
        # of the training images in either case: both splits have the same classes
        finer = [
            f"{row['category']} / {row['subcategory']}"
            for row in self._table(["category", "subcategory"], "train").to_pylist()
        ]
        self.class_names += tuple(sorted({*finer}, key=lambda name: (self._of(name), name)))
        self.num_classes = len(self.class_names)
        if split == "train":
            self._labels += [self.class_names.index(name) for name in finer]
            self._images *= 2

    def _of(self, subcategory: str) -> int:
        """The number of a subcategory's category."""
        return self.class_names.index(subcategory.partition(" / ")[0])


class Digits(_InPackage):
    """5,000 MNIST digits, 32x32, white on black (4,000 to train on, 1,000 for validation, balanced)."""

    name = "digits"

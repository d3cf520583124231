"""Small token caches of the toy images, and the tokenizers that made them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import attrs
import torch
from torch import Tensor

from mixar_core.data.cache import CacheSettings, TokenCache
from mixar_core.data.cache_pieces import dataset_pieces
from mixar_core.data.cache_writer import begin, finish, write_shards
from mixar_core.data.loader import load_readable
from mixar_core.data.tokens import FrozenTokenizers
from mixar_core.errors import UserError
from mixar_core.storage import FolderLock
from mixar_core.types import ImageBatch, Posterior
from tests.core.training_toys import ToyImages
from tests.toys import PoolTokenizer, SignTokenizer

CPU = torch.device("cpu")
COUNT, ROWS = 20, 6


class WideTokenizer(PoolTokenizer):
    """Its posterior has a width of its own everywhere."""

    def posterior(self, images_B3HW: Tensor) -> Posterior:
        mean = super().posterior(images_B3HW).mean_BChw
        return Posterior(mean, mean.square() - 2.0)


class Torn(ToyImages):
    """Images 0, 7 and 8 cannot be read."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index in (0, 7, 8):
            raise UserError(f"image {index} is torn")
        return super().__getitem__(index)


def tokenizers() -> FrozenTokenizers:
    continuous = WideTokenizer()
    continuous.latent_mean_C.fill_(0.25)
    return FrozenTokenizers(continuous, SignTokenizer())


def plan(**changes: object) -> CacheSettings:
    base = CacheSettings(
        image_size=16,
        num_classes=5,
        class_names=tuple("abcde"),
        split="train",
        flip=True,
        stores="moments",
        dtype="float32",
        seed=0,
        latent_shape=(3, 4, 4),
        tokens=16,
        code_dtype="int16",
        rows_per_shard=ROWS,
        batch=4,
        tokenizers={"continuous": {"type": "pool"}, "discrete": {"type": "sign"}},
        source={"type": "toys"},
    )
    return attrs.evolve(base, **changes)


def begun(folder: Path, about: CacheSettings):
    with closing(FolderLock(folder)) as lock:
        return begin(folder, about, lock)


def write(folder: Path, *, data: ToyImages | None = None, frozen=None, limit: int = 0, world: int = 1, **changes):
    """A whole cache, its shards written by `world` writers one after the other."""
    data, about = data or ToyImages(COUNT), plan(**changes)
    assert begun(folder, about) is None
    shards = -(-len(data) // about.rows_per_shard)
    for rank in reversed(range(world)):
        pieces = dataset_pieces(data, about, range(shards)[rank::world], workers=0)
        assert write_shards(folder, about, frozen or tokenizers(), pieces, device=CPU, max_unreadable=limit)[0]
    finish(folder, about, shards, max_unreadable=limit)
    return TokenCache.open(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def encoded(indices: Tensor, flip: Tensor):
    found = load_readable(ToyImages(COUNT), indices.tolist())
    images = found.pixels_B3HW.float() / 127.5 - 1.0
    images = torch.where(flip[:, None, None, None], images.flip(-1), images)
    return tokenizers().encode(ImageBatch(images, found.labels_B))

"""Caches of streams, and of latents in the form in which others publish them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mixar_core.data.cache import PROGRESS, TokenCache
from mixar_core.data.cache_pieces import StreamPieces
from mixar_core.data.cache_writer import finish, noted_shards, write_shards
from mixar_core.data.dataset import EncodedImage, ImageStream
from mixar_core.data.images import read_image
from mixar_core.data.streams import Stream, step_noise
from mixar_core.data.tokens import FrozenTokenizers
from mixar_core.errors import UserError
from tests.core.cache_toys import (
    COUNT,
    CPU,
    ROWS,
    begun,
    content,
    plan,
    tokenizers,
    write,
)
from tests.core.training_toys import ToyImages
from tests.toys import PoolTokenizer


class Roll(ImageStream):
    """The toy images as PNG, one after the other; image 7 is torn."""

    def __init__(self, count: int) -> None:
        self.count, self.passes = count, 0

    def __iter__(self) -> Iterator[EncodedImage]:
        import io

        from PIL import Image

        self.passes += 1
        for index, (pixels, label) in enumerate(ToyImages(COUNT)[i] for i in range(self.count)):
            buffer = io.BytesIO()
            Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(buffer, "PNG")
            yield EncodedImage(b"torn" if index == 7 else buffer.getvalue(), label, f"row {index}")


@pytest.mark.parametrize("world", [1, 2])
def test_a_stream_becomes_the_same_cache(tmp_path: Path, world):
    assert torch.equal(read_image(next(iter(Roll(1))).data, 16, where="")[None], ToyImages(1)[0][0][None])
    folder, about = tmp_path / "stream", plan()
    begun(folder, about)
    for rank in range(world):
        pieces = StreamPieces(Roll(COUNT), about, lambda number, rank=rank: number % world == rank, workers=2)
        assert write_shards(folder, about, tokenizers(), pieces, device=CPU, max_unreadable=1)[0]
        assert pieces.count == COUNT
    index = finish(folder, about, 4, max_unreadable=1)
    assert [(each.index, each.reason) for each in index.skipped] == [
        (7, "row 7: unreadable image: not an image Pillow knows")
    ]

    class Torn7(ToyImages):
        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index == 7:
                raise UserError("row 7: unreadable image: not an image Pillow knows")
            return super().__getitem__(index)

    write(tmp_path / "random", data=Torn7(COUNT), limit=1)
    assert content(folder) == content(tmp_path / "random")


def test_a_stopped_stream_leaves_no_half_shard(tmp_path: Path):
    about = plan()
    begun(tmp_path / "cut", about)

    def stop() -> bool:
        return pieces.count >= ROWS + 1

    pieces = StreamPieces(Roll(COUNT), about, lambda number: True, stop=stop)
    assert not write_shards(tmp_path / "cut", about, tokenizers(), pieces, device=CPU, stop=stop)[0]
    assert noted_shards(tmp_path / "cut") == []  # the first was not saved yet: the next one had not begun


def test_latents_in_the_published_form(tmp_path: Path):
    """Shards of samples with labels and no index, as LightningDiT's extract_features.py writes them."""
    latents, labels = torch.randn(13, 3, 4, 4), torch.tensor([0, 2, 4, 1] * 3 + [6])
    for number, part in enumerate(torch.arange(13).split(5)):
        save_file(
            {"latents": latents[part], "latents_flip": latents[part].flip(-1), "labels": labels[part]},
            tmp_path / f"latents_rank00_shard{number:03d}.safetensors",
            metadata={"total_size": str(len(part)), "dtype": "torch.float32", "device": "cpu"},
        )
    torch.save({"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}, tmp_path / "latents_stats.pt")
    cache = TokenCache.open(tmp_path)
    assert len(cache) == 13 and cache.num_classes == 7 and cache.class_names == tuple("0123456")
    assert not cache.has_codes and cache.flip and cache.stores == "samples" and cache.settings is None
    tokens = cache.rows(torch.tensor([12, 0, 7]), torch.tensor([True, False, False]))
    expected = torch.stack([latents[12].flip(-1), latents[0], latents[7]])
    assert torch.equal(tokens.posterior.mean_BChw, expected) and tokens.labels_B.tolist() == [6, 0, 1]
    frozen = FrozenTokenizers(PoolTokenizer(), None)
    assert torch.equal(frozen.draw(tokens, noise=step_noise(Stream.TOKENS, seed=0, step=0)).latents_BChw, expected)
    with pytest.raises(UserError, match=r"has no index.json, and so no checksums"):
        cache.verify()
    assert not (tmp_path / PROGRESS).exists()

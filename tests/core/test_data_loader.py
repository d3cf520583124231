from __future__ import annotations

import os
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixar_core.data import loader
from mixar_core.data.loader import (
    BatchShard,
    LoadedRows,
    ShuffledOrder,
    check_unreadable,
    each_once,
    load_batches,
    load_readable,
)
from mixar_core.data.source import Source, flips, images_in_memory, read_images
from mixar_core.data.streams import Stream, seed_of, step_noise
from mixar_core.errors import UserError
from tests.core.training_toys import ToyImages

CPU = torch.device("cpu")


def source(
    share: BatchShard | None = None,
    *,
    data: ToyImages | None = None,
    batch_size: int = 8,
    flip: bool = False,
    workers: int = 0,
    in_memory: bool = False,
    max_unreadable: int = 0,
) -> Source:
    data, noted = data or ToyImages(), {}
    order, share = ShuffledOrder(len(data), batch_size, seed=3), share or BatchShard(0, batch_size, batch_size)
    read = read_images(data, workers=workers)
    if in_memory:
        how = {"batch_size": 256, "workers": workers, "max_unreadable": max_unreadable, "unreadable": noted}
        read = images_in_memory(each_once(data, torch.arange(len(data)), **how), len(data))
    return Source(read, order, share, device=CPU, flip=flip, unreadable=noted)


@settings(deadline=None, max_examples=30)
@given(size=st.integers(1, 30), batch_size=st.integers(1, 70), seed=st.integers(0, 2**63 - 1))
def test_every_epoch_sees_every_image_once(size, batch_size, seed):
    order = ShuffledOrder(size, batch_size, seed=seed)
    stream = torch.cat([order.indices(step) for step in range(3 * size)])[: 3 * size]
    for epoch in stream.split(size):
        assert epoch.sort().values.tolist() == list(range(size))


def test_a_batch_is_a_function_of_seed_and_step():
    order, fresh = ShuffledOrder(20, 8, seed=1), ShuffledOrder(20, 8, seed=1)
    for step in range(9):
        order.indices(step)
    assert torch.equal(order.indices(9), fresh.indices(9))
    assert not torch.equal(ShuffledOrder(20, 8, seed=2).indices(9), fresh.indices(9))


def test_shares_put_together_are_the_batch():
    whole = list(source(flip=True).batches(0, 6))
    parts = [list(source(BatchShard.of(8, rank=rank, world=4), flip=True).batches(0, 6)) for rank in range(4)]
    for step in range(6):
        assert torch.equal(whole[step].images_B3HW, torch.cat([part[step].images_B3HW for part in parts]))
        assert torch.equal(whole[step].labels_B, torch.cat([part[step].labels_B for part in parts]))
    with pytest.raises(UserError, match=r"batch_size 8 .* 3 processes"):
        BatchShard.of(8, rank=0, world=3)


@pytest.mark.parametrize("settings", [{"workers": 2}, {"in_memory": True}, {"in_memory": True, "workers": 1}])
def test_how_images_are_loaded_changes_nothing(settings):
    expected = list(source(flip=True).batches(2, 7))
    got = list(source(flip=True, **settings).batches(2, 7))
    assert len(got) == 5
    assert all(torch.equal(a.images_B3HW, b.images_B3HW) for a, b in zip(expected, got, strict=True))


class Torn(ToyImages):
    """Some images cannot be read."""

    def __init__(self, count: int, torn: set[int]) -> None:
        super().__init__(count)
        self.torn = torn

    def __getitem__(self, index: int):
        if index in self.torn:
            raise UserError(f"image {index} is torn")
        return super().__getitem__(index)


@settings(deadline=None, max_examples=20)
@given(torn=st.sets(st.integers(0, 9), max_size=9), indices=st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_the_next_readable_image_stands_in(torn, indices):
    data = Torn(10, torn)
    found = load_readable(data, indices)
    for row, index in enumerate(indices):
        stand_in = next(i % 10 for i in range(index, index + 10) if i % 10 not in torn)
        pixels, label = data[stand_in]
        assert torch.equal(found.pixels_B3HW[row], pixels) and found.labels_B[row] == label
    assert {i for i in indices if i in torn} <= found.unreadable.keys() <= torn
    assert all(found.unreadable[i] == f"image {i} is torn" for i in found.unreadable)


@pytest.mark.parametrize("settings", [{}, {"workers": 2}, {"in_memory": True, "max_unreadable": 3}])
def test_batches_do_not_depend_on_who_finds_the_unreadable(settings):
    data = Torn(20, {0, 7, 19})
    sources = [source(BatchShard.of(8, rank=rank, world=2), data=data, flip=True, **settings) for rank in (0, 1)]
    parts = [list(each.batches(0, 5)) for each in sources]
    for step, batch in enumerate(source(data=data, flip=True).batches(0, 5)):
        assert torch.equal(batch.images_B3HW, torch.cat([part[step].images_B3HW for part in parts]))
    reasons = {0: "image 0 is torn", 7: "image 7 is torn", 19: "image 19 is torn"}
    assert sources[0].unreadable | sources[1].unreadable == reasons


def test_more_unreadable_images_than_may_be_stop_reading():
    data = Torn(20, {3, 7})
    assert len(source(data=data, in_memory=True, max_unreadable=2).unreadable) == 2
    with pytest.raises(UserError, match=r"^image 3 is torn$"):
        source(data=Torn(20, {3}), in_memory=True)
    with pytest.raises(UserError, match=r"image 7 is torn; 2 images cannot be read, 1 may be \(max_unreadable\)"):
        list(each_once(data, torch.arange(20), batch_size=4, max_unreadable=1))
    noted: dict[int, str] = {}
    swept = torch.cat(
        [b.labels_B for b in each_once(data, torch.arange(20), batch_size=4, max_unreadable=2, unreadable=noted)]
    )
    assert swept.tolist()[:8] == [0, 1, 2, 4, 4, 0, 1, 3] and noted.keys() == {3, 7}
    check_unreadable({}, 0, count=0)
    with pytest.raises(UserError, match="5 images cannot be read, 4 may be"):
        check_unreadable({}, 4, count=5)


def test_images_in_memory_need_room_and_no_more_than_once(monkeypatch):
    size = 300 * (ToyImages(1)[0][0].nbytes + 8)  # and the label
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": size}[name])
    (batch,) = source(data=ToyImages(300), batch_size=300, in_memory=True).batches(0, 1)
    assert sorted(batch.labels_B.tolist()) == sorted(ToyImages(300).labels())
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": size - 1}[name])
    with pytest.raises(UserError, match=r"cache: memory needs .* for 300 images, and cpu has .*; use cache: none"):
        source(data=ToyImages(300), in_memory=True)


def test_images_in_memory_are_not_copied_at_the_end(monkeypatch):
    batches = []

    def watched(*words, **settings):
        for loaded in load_batches(*words, **settings):
            assert sum(batch() is not None for batch in batches) <= 1  # the last one
            batches.append(weakref.ref(loaded))
            yield loaded

    monkeypatch.setattr(loader, "load_batches", watched)
    kept = source(data=ToyImages(600), in_memory=True).read
    assert len(batches) == 3
    (every,) = kept([(torch.arange(600), torch.zeros(600, dtype=torch.bool))])
    assert every.labels_B.tolist() == ToyImages(600).labels()


@pytest.mark.parametrize("workers", [0, 1])
def test_no_readable_image_is_one_line(workers):
    with pytest.raises(UserError) as caught:
        list(source(data=Torn(3, {0, 1, 2}), workers=workers).batches(0, 3))
    assert str(caught.value).startswith("no image of 3 can be read: image ")


def test_pixels_become_numbers_from_minus_one_to_one():
    pixels = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2)[None]
    images = LoadedRows(pixels, torch.zeros(1), {}).to(CPU).images_B3HW
    assert images.min() == -1.0 and images.max() == 1.0


def test_half_the_rows_are_mirrored():
    drawn = flips(0, seed=0, share=BatchShard(0, 1000, 1000))
    assert 420 < drawn.sum() < 580
    assert torch.equal(drawn[250:500], flips(0, seed=0, share=BatchShard(250, 250, 1000)))
    images = LoadedRows(torch.randn(2, 3, 2, 4), torch.zeros(2), {})
    mirrored = images.mirrored(torch.tensor([False, True])).pixels_B3HW
    assert torch.equal(mirrored[0], images.pixels_B3HW[0])
    assert torch.equal(mirrored[1], images.pixels_B3HW[1].flip(-1))


def test_streams_are_apart():
    seeds = {seed_of(seed, step, stream) for seed in range(4) for step in range(50) for stream in Stream}
    assert len(seeds) == 4 * 50 * len(Stream)
    assert all(0 <= seed < 2**63 for seed in seeds)
    whole = step_noise(Stream.LOSS, seed=1, step=2, total=6).normal((6, 3), CPU)
    part = step_noise(Stream.LOSS, seed=1, step=2, first=4, total=6).normal((2, 3), CPU)
    assert torch.equal(whole[4:], part)

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mixar_core.data.loader import ImageSource, Share, ShuffledOrder, flipped, flips, to_images
from mixar_core.data.streams import Stream, seed_of, step_noise
from mixar_core.errors import UserError
from mixar_core.types import ImageBatch
from tests.core.training_toys import ToyImages

CPU = torch.device("cpu")


def source(
    share: Share | None = None, *, data: ToyImages | None = None, batch_size: int = 8, **settings
) -> ImageSource:
    data = data or ToyImages()
    order = ShuffledOrder(len(data), batch_size, seed=3)
    return ImageSource(data, order, share or Share(0, batch_size, batch_size), seed=3, device=CPU, **settings)


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
    parts = [list(source(Share.of(8, rank=rank, world=4), flip=True).batches(0, 6)) for rank in range(4)]
    for step in range(6):
        assert torch.equal(whole[step].images_B3HW, torch.cat([part[step].images_B3HW for part in parts]))
        assert torch.equal(whole[step].labels_B, torch.cat([part[step].labels_B for part in parts]))
    with pytest.raises(UserError, match=r"batch_size 8 .* 3 processes"):
        Share.of(8, rank=0, world=3)


@pytest.mark.parametrize("settings", [{"workers": 2}, {"in_memory": True}, {"in_memory": True, "workers": 1}])
def test_how_images_are_loaded_changes_nothing(settings):
    expected = list(source(flip=True).batches(2, 7))
    got = list(source(flip=True, **settings).batches(2, 7))
    assert len(got) == 5
    assert all(torch.equal(a.images_B3HW, b.images_B3HW) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(workers):
    with pytest.raises(UserError) as caught:
        list(source(data=ToyImages(broken=7), workers=workers).batches(0, 3))
    assert str(caught.value) == "image 7 cannot be read"


def test_pixels_become_numbers_from_minus_one_to_one():
    pixels = torch.tensor([0, 255], dtype=torch.uint8).expand(3, 1, 2)[None]
    images = to_images(pixels, torch.zeros(1), CPU).images_B3HW
    assert images.min() == -1.0 and images.max() == 1.0


def test_half_the_rows_are_mirrored():
    drawn = flips(0, seed=0, share=Share(0, 1000, 1000))
    assert 420 < drawn.sum() < 580
    assert torch.equal(drawn[250:500], flips(0, seed=0, share=Share(250, 250, 1000)))
    images = ImageBatch(torch.randn(2, 3, 2, 4), torch.zeros(2))
    mirrored = flipped(images, torch.tensor([False, True])).images_B3HW
    assert torch.equal(mirrored[0], images.images_B3HW[0])
    assert torch.equal(mirrored[1], images.images_B3HW[1].flip(-1))


def test_streams_are_apart():
    seeds = {seed_of(seed, step, stream) for seed in range(4) for step in range(50) for stream in Stream}
    assert len(seeds) == 4 * 50 * len(Stream)
    assert all(0 <= seed < 2**63 for seed in seeds)
    whole = step_noise(Stream.LOSS, seed=1, step=2, total=6).normal((6, 3), CPU)
    part = step_noise(Stream.LOSS, seed=1, step=2, first=4, total=6).normal((2, 3), CPU)
    assert torch.equal(whole[4:], part)

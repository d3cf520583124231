"""Pictures, masks and boxes on the model's canvas; their tokens and pixels; pasting, and the seam's figures."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixar.regions import filled, make_canvas, measure_seam, paste_into, pixels_of, shaded, tokens_in
from mixar_core.errors import UserError
from mixar_core.types import Grid, TokenLayout

SIZE = 16
GRID = TokenLayout("grid", (Grid(4, 4),))
DEPTH = TokenLayout("depth", (Grid(4, 4),), depth=3)
PYRAMID = TokenLayout("pyramid", (Grid(1, 1), Grid(2, 2), Grid(4, 4)))


def picture(width: int = SIZE, height: int = SIZE, seed: int = 0) -> numpy.ndarray:
    return numpy.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype="uint8")


masks = st.integers(1, 2**31).map(lambda seed: torch.rand(2, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)))


@settings(max_examples=30)
@given(masks, st.floats(0.0, 0.2), st.sampled_from([GRID, DEPTH, PYRAMID]))
def test_a_token_is_in_a_mask_if_any_of_its_pixels_is(noise_BHW, share, layout) -> None:
    mask_BHW = noise_BHW < share
    expected = []
    for grid in layout.scales:
        side = SIZE // grid.height
        for row in range(grid.height):
            for column in range(grid.width):
                part = mask_BHW[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
                expected += [part.any(dim=(1, 2))] * layout.depth
    tokens_BN = tokens_in(mask_BHW, layout)
    assert tokens_BN.shape == (2, layout.tokens) and torch.equal(tokens_BN, torch.stack(expected, dim=1))
    grown_BHW = pixels_of(tokens_BN, layout, SIZE)
    assert (grown_BHW >= mask_BHW).all() and torch.equal(tokens_in(grown_BHW, layout), tokens_BN)


def test_tokens_without_a_place_have_no_region() -> None:
    with pytest.raises(UserError, match="sequence of 8"):
        tokens_in(torch.ones(1, SIZE, SIZE, dtype=torch.bool), TokenLayout("sequence", (Grid(1, 8),)))


@settings(max_examples=12)
@given(masks, st.floats(0.01, 0.1), st.integers(0, 6))
def test_pasting_keeps_the_input_beyond_the_feather_and_the_drawing_inside(noise_BHW, share, feather) -> None:
    region_BHW = noise_BHW < share
    original, drawn = (torch.from_numpy(picture(seed=seed)).permute(2, 0, 1).expand(2, -1, -1, -1) for seed in (1, 2))
    pasted = paste_into(original, drawn, region_BHW, feather)
    assert pasted.dtype == torch.uint8
    for image in range(2):
        at = region_BHW[image].nonzero()
        for y in range(SIZE):
            for x in range(SIZE):
                away = int((at - torch.tensor([y, x])).abs().amax(dim=1).min()) if len(at) else SIZE
                share_drawn = max(0.0, 1 - away / (feather + 1))
                expected = share_drawn * drawn[image, :, y, x].float() + (1 - share_drawn) * original[image, :, y, x]
                assert (pasted[image, :, y, x].float() - expected).abs().max() <= 0.501
                if away > feather:
                    assert torch.equal(pasted[image, :, y, x], original[image, :, y, x])
                if away == 0:
                    assert torch.equal(pasted[image, :, y, x], drawn[image, :, y, x])


def test_the_seam_of_known_images() -> None:
    region_BHW = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    region_BHW[:, 4:12, 4:12] = True
    original = torch.full((1, 3, SIZE, SIZE), 100, dtype=torch.uint8)
    drawn = original + 20 * region_BHW[:, None]  # a step of 20 at the edge, and nothing beside it
    seam = measure_seam(original, drawn, region_BHW)
    assert [value.item() for value in (seam.kept, seam.near, seam.across, seam.beside)] == [0, 0, 20, 0]
    brighter = measure_seam(original, original + 7, region_BHW)
    assert [value.item() for value in (brighter.kept, brighter.near, brighter.across)] == [7, 7, 0]
    far = original.clone()
    far[..., 0] += 192 // 16  # a column of 12 more, of which NEAR (4) pixels from the region half are not near
    assert measure_seam(original, far, region_BHW).kept.item() == pytest.approx(12 / 12)
    ramp = (torch.arange(SIZE) * 5).expand(1, 3, SIZE, SIZE).to(torch.uint8)
    even = measure_seam(ramp, ramp, region_BHW)  # rows step by nothing, columns by 5
    assert even.across.item() == even.beside.item() == 2.5
    everything = measure_seam(original, drawn, torch.ones_like(region_BHW))
    assert everything.kept.isnan().all() and everything.across.isnan().all()


def test_every_way_to_give_a_mask_gives_the_same(tmp_path: Path) -> None:
    array = numpy.zeros((SIZE, SIZE), dtype=bool)
    array[3:8, 5:7] = True
    grey = Image.fromarray(array * numpy.uint8(255))
    grey.save(tmp_path / "grey.png")
    grey.convert("1").save(tmp_path / "bits.png")
    clear = Image.new("RGBA", (SIZE, SIZE), "black")
    clear.putalpha(Image.fromarray(~array * numpy.uint8(255)))  # transparent is white on a page
    clear.save(tmp_path / "clear.png")
    soft = numpy.where(array, 128, 127).astype("uint8")
    given = (array, torch.from_numpy(array), grey, soft, (5, 3, 2, 5), *map(str, tmp_path.iterdir()))
    for mask in given:
        assert torch.equal(make_canvas(picture(), mask, SIZE).mask_HW, torch.from_numpy(array)), mask
        outside = make_canvas(picture(), mask, SIZE, outside=True)
        assert torch.equal(outside.mask_HW, ~torch.from_numpy(array))


def test_every_way_to_give_an_image_gives_the_same(tmp_path: Path) -> None:
    array = picture()
    Image.fromarray(array).save(tmp_path / "image.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    for image in (array, tensor, Image.fromarray(array), tmp_path / "image.png", str(tmp_path / "image.png")):
        canvas = make_canvas(image, None, SIZE)
        assert torch.equal(canvas.image_3HW, tensor) and canvas.mask_HW.all() and canvas.note == ""


def test_a_larger_image_is_cropped_and_its_mask_with_it() -> None:
    large = Image.fromarray(picture(64, 32))
    canvas = make_canvas(large, (16, 0, 16, 16), SIZE)  # of the middle square, the left upper quarter
    expected = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    expected[:8, :8] = True
    assert torch.equal(canvas.mask_HW, expected)
    assert canvas.note == "the image: 64x32 pixels, its middle square scaled to 16x16 as training images are"
    with pytest.raises(UserError, match="the mask is empty at 16x16"):
        make_canvas(large, (0, 0, 16, 16), SIZE)


def test_a_photo_is_turned_as_viewers_show_it(tmp_path: Path) -> None:
    photo = Image.new("RGB", (16, 32), "black")
    photo.paste("white", (0, 0, 16, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: what was above is at the right
    photo.save(tmp_path / "photo.jpg", exif=exif)
    canvas = make_canvas(tmp_path / "photo.jpg", (0, 0, 32, 16), SIZE)
    assert canvas.image_3HW[:, :, -1].min() > 200 or canvas.image_3HW.float().mean() < 50
    assert canvas.note.startswith("photo.jpg: 32x16 pixels")


@settings(max_examples=20)
@given(masks, st.floats(0.02, 0.98))
def test_a_hole_is_filled_from_its_edge_and_nothing_else_changes(noise_BHW, share) -> None:
    hole_BHW = noise_BHW < share
    hole_BHW[:, 0, 0] = False
    images = torch.from_numpy(picture(seed=3)).permute(2, 0, 1).expand(2, -1, -1, -1)
    full = filled(images, hole_BHW)
    assert torch.equal(full.movedim(1, -1)[~hole_BHW], images.movedim(1, -1)[~hole_BHW])
    other = torch.where(hole_BHW[:, None], 255 - images, images)
    assert torch.equal(filled(other, hole_BHW), full), "what was in it is not seen"
    even = torch.full_like(images, 77)
    assert torch.equal(filled(torch.where(hole_BHW[:, None], images, even), hole_BHW), even)


def test_a_placed_image_has_its_edge_s_colours_around_it() -> None:
    array = picture(8, 4)
    array[0], array[-1], array[:, 0], array[:, -1] = 200, 200, 200, 200
    canvas = make_canvas(array, None, SIZE, place=(4, 4, 8))
    kept = torch.from_numpy(array).permute(2, 0, 1)
    assert torch.equal(canvas.image_3HW[:, 4:8, 4:12], kept)
    assert (canvas.image_3HW[:, canvas.mask_HW] == 200).all()
    assert (~canvas.mask_HW).sum() == 32 and not canvas.mask_HW[4:8, 4:12].any()
    assert canvas.note == "the image: 8x4 pixels, scaled to 8x4 at 4,4"


def test_the_region_is_shaded_and_nothing_else() -> None:
    original = torch.full((1, 3, SIZE, SIZE), 100, dtype=torch.uint8)
    mask_BHW = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask_BHW[:, 5, 5] = True
    region_BHW = pixels_of(tokens_in(mask_BHW, GRID), GRID, SIZE)
    changed = (shaded(original, mask_BHW, region_BHW) != original).any(dim=1)
    assert torch.equal(changed, region_BHW)


@pytest.mark.parametrize(
    ("image", "mask", "place", "message"),
    [
        ("nowhere.png", None, None, "nowhere.png: no such file"),
        (picture(), "nowhere.png", None, "nowhere.png: no such file"),
        (Path(__file__), None, None, "test_regions.py: unreadable image: not an image Pillow knows"),
        (picture().astype("float32"), None, None, "the image is a float32"),
        (torch.zeros(16, 16, 3, dtype=torch.uint8), None, None, "the image is a torch.uint8|the image is a uint8"),
        (3, None, None, "the image is a int"),
        (picture(), numpy.ones((8, 8), dtype=bool), None, "different sizes: 8x8 and 16x16"),
        (picture(), numpy.zeros((16, 16), dtype=bool), None, "the mask is empty"),
        (picture(), numpy.ones((16, 16)), None, "the mask is a float64"),
        (picture(), (10, 0, 7, 4), None, "region 10,0,7,4: not inside the image of 16x16"),
        (picture(), (-1, 0, 4, 4), None, "not inside"),
        (picture(), (0, 0, 0, 4), None, "not inside"),
        (picture(), (0, 0.5, 4, 4), None, "not 4 whole numbers"),
        (picture(), None, (4, 4), "not 3 whole numbers"),
        (picture(), None, (4, 4, 13), "becomes 13x13 pixels, not inside the canvas of 16x16"),
        (picture(), None, (0, 0, 16), "covers the canvas"),
        (picture(), (0, 0, 4, 4), (0, 0, 8), "mask and place: give one"),
    ],
)
def test_what_cannot_be_is_refused(image, mask, place, message) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_canvas(image, mask, SIZE, place=place)
    assert "\n" not in str(caught.value)

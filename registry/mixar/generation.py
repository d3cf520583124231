"""Images drawn, with their labels and codes, and the picture of all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import attrs
import torch
from PIL import Image
from torch import Tensor

from mixar.labels import checked_number
from mixar.recipe import Recipe
from mixar.text import first_of
from mixar_core.data.streams import seed_of
from mixar_core.errors import UserError
from mixar_core.noise import Noise
from mixar_core.pictures import labelled_grid, legible, to_pil, to_uint8
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import NO_CLASS

#: called with steps done and steps in all
Progress = Callable[[int, int], None]

#: images in a picture of many at most, and in a row of it
SHOWN, WIDEST = 64, 16


@attrs.frozen(eq=False, repr=False)
class Generation:
    """Images drawn; a notebook shows them.

    Args:
        images: uint8 (B, 3, H, W).
        labels: one an image, NO_CLASS (-1) where unconditional. names: their class names, or the labels as text.
        codes: int64 (B, N), what the prior drew or was given; None for a model without discrete tokens.
        steps: uint8 (T, B, 3, H, W), the image after each step, unknown latents at their mean; None unless asked for.
        recipe: of the model that drew them, by which `mixar.evaluate` knows who may judge it.
    """

    images: Tensor
    labels: tuple[int, ...]
    names: tuple[str, ...]
    codes: Tensor | None = None
    steps: Tensor | None = None
    recipe: Recipe | None = None

    def pil(self) -> list[Image.Image]:
        """One PIL image each."""
        return [to_pil(image) for image in self.images]

    def grid(self, *, columns: int | None = None) -> Image.Image:
        """All images in one picture, each with its name."""
        return grid_picture(self.images, self.names, self.labels, columns=columns)

    def __repr__(self) -> str:
        count, _, height, width = self.images.shape
        more = f"; a notebook shows {SHOWN}" if count > SHOWN else ""
        names = first_of(list(dict.fromkeys(self.names)))
        return f"{type(self).__name__}({count} of {width}x{height} pixels: {names}{more})"

    def _repr_png_(self) -> bytes | None:
        some = slice(SHOWN)
        return grid_picture(self.images[some], self.names[some], self.labels[some])._repr_png_()


def batch_noise(seed: int, index: int) -> Noise:
    """The noise of the batch with this index: of no other batch, and the same wherever it is drawn."""
    return Noise.seeded(seed_of(seed, index))


def batches(images: int, seed: object, batch_size: object) -> list[tuple[slice, Noise]]:
    """Rows and noise of every batch; of no size given, of one.

    Raises:
        UserError: a number is not allowed.
    """
    first = checked_number(seed, "seed", low=0, whole=True, needed=True)
    size = checked_number(batch_size, "batch_size", low=1, whole=True) or images
    return [(slice(start, start + size), batch_noise(first, k)) for k, start in enumerate(range(0, images, size))]


@torch.no_grad()
def decoded(
    tokenizer: ContinuousTokenizer | DiscreteTokenizer, coded: Tensor, codes_BN: Tensor | None = None
) -> Tensor:
    """Images as uint8, on the CPU. One that is not finite would become a black one, and be measured as that.

    Args:
        coded: latents, or codes. codes_BN: those of the images whose latents they are.
    """
    if isinstance(tokenizer, ContinuousTokenizer):
        tokenizer = tokenizer.beside(codes_BN)
    with torch.autocast(coded.device.type, enabled=False):
        images_B3HW = tokenizer.decode(coded)
    bad = ~images_B3HW.isfinite().flatten(1).all(dim=1)
    if bad.any():
        raise UserError(
            f"{int(bad.sum())} of {len(bad)} images drawn are not finite: try float32, a bound on the head's x_0 "
            "(head.clip), or other weights"
        )
    return to_uint8(images_B3HW).cpu()


def label_name(label: int, names: Sequence[str]) -> str:
    """A class's name, or its number where names are not known."""
    return names[label] if 0 <= label < len(names) else ("no class" if label == NO_CLASS else str(label))


def grid_picture(
    images_B3HW: Tensor,
    names: Sequence[str],
    labels: Sequence[int] | None = None,
    *,
    columns: int | None = None,
    side: int = 96,
) -> Image.Image:
    """uint8 images (B, 3, H, W) in one picture, each with its name; small ones enlarged so that the name fits.

    Args:
        labels: numbers to show instead of names that the font has no letters for.
        side: pixels an image is wide at least, as far as whole multiples go.

    Raises:
        UserError: `columns` is no whole number above zero.
    """
    if labels is not None:
        names = [name if legible(name) else str(label) for name, label in zip(names, labels, strict=True)]
    columns = checked_number(columns, "columns", low=1, whole=True) or math.ceil(math.sqrt(len(names)))
    return labelled_grid(images_B3HW, names, columns=columns, scale=max(1, side // images_B3HW.shape[-1]))


def overview(
    read: Callable[[int], Tensor], labels: Sequence[int], class_names: Sequence[str], classes: int
) -> tuple[Image.Image, int]:
    """A picture of the first of many images, and of how many; classes drawn in turn stand in columns.

    Args:
        read: gives the first so many images, uint8 (B, 3, H, W).
        labels: of all images. classes: how many are drawn.
    """
    columns = WIDEST - WIDEST % classes if 1 < classes <= WIDEST else None
    labels = labels[: SHOWN - SHOWN % (columns or 1)]
    names = [label_name(label, class_names) for label in labels]
    return grid_picture(read(len(labels)), names, labels, columns=columns), len(labels)

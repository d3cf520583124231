"""Sets of images to measure, from what a person gives: words of a command line, a path, a tensor, a data set."""

from __future__ import annotations

import unicodedata
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy
import torch
from attrs import evolve, frozen
from torch import Tensor

from mixar.assembly import open_data
from mixar.generation import Generation
from mixar.labels import checked_number
from mixar.plugins import Registry
from mixar.recipe import Recipe
from mixar.sampling import MANIFEST, manifest_beside, plan_of, read_manifest, with_timing
from mixar.stores import images_crc32
from mixar.text import choices, first_of
from mixar_core.data.dataset import ImageDataset
from mixar_core.data.loader import load_batches
from mixar_core.errors import UserError
from mixar_core.storage import user_path
from mixar_core.types import NO_CLASS, Grid, ImageSize
from mixar_eval.extractors import part_config
from mixar_eval.image_files import ArrayImages, PngFolder, npz_images

#: the splits of a data set, each with the other one
OTHER = {"train": "validation", "validation": "train"}
#: what `data` alone stands for
DATA = "data"


@frozen(eq=False)
class ImageSet:
    """Images of one size, and what a report says of them.

    Args:
        labels: one an image; None where they are not known.
        class_names: of all classes that there should be; empty where they are not known.
        split: which whole split they are; None where they are not known to be one.
        drawn: how they were drawn, as `mixar sample` noted it; None: not known.
        format: of the files, or how else they are stored.
        notes: what a person should read once: what was left out.
        rows: which images of `data` these are, in this order; None: all.
    """

    data: ImageDataset
    description: str
    height: int
    width: int
    labels: list[int] | None = None
    class_names: tuple[str, ...] = ()
    split: str | None = None
    drawn: Mapping[str, Any] | None = None
    format: str = "as the data set reads them"
    notes: tuple[str, ...] = ()
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.data) if self.rows is None else len(self.rows)

    @property
    def image_size(self) -> ImageSize:
        """Pixels of an image, as a recipe has them."""
        return Grid(self.height, self.width).image_size

    def take(self, indices_A: Tensor) -> ImageSet:
        """Some images of a whole set, in its order."""
        rows = indices_A.sort().values
        labels = None if self.labels is None else [self.labels[row] for row in rows]
        return evolve(self, rows=rows, labels=labels, split=self.split if len(rows) == len(self) else None)

    def batches(self, indices: Tensor | None = None, batch_size: int = 64, workers: int = 0) -> Iterator[Tensor]:
        """Images uint8 (B, 3, H, W) at `indices`, in that order; all of them by default."""
        wanted = torch.arange(len(self)) if indices is None else indices
        wanted = wanted if self.rows is None else self.rows[wanted]
        for loaded in load_batches(self.data, [some.tolist() for some in wanted.split(batch_size)], workers=workers):
            for reason in loaded.unreadable.values():  # training goes on with another image, a measurement must not
                raise UserError(reason)
            yield loaded.pixels_B3HW

    def readable(self) -> ImageSet:
        """Those that can be read, with a note of the others; every image is decoded."""
        good, reasons = list[int](), list[str]()
        for row in range(len(self)) if self.rows is None else self.rows.tolist():
            try:
                self.data[row]
                good.append(row)
            except UserError as error:
                reasons.append(str(error))
        if not reasons:
            return self
        left = f"{len(reasons):,} images cannot be read and are left out: {first_of(reasons)}"
        labels = None
        if self.labels is not None:
            rows = range(len(self)) if self.rows is None else self.rows.tolist()
            label_of = dict(zip(rows, self.labels, strict=True))
            labels = [label_of[row] for row in good]
        described = self.description.replace(f"{len(self):,} images", f"{len(good):,} images")
        return evolve(self, rows=torch.tensor(good), labels=labels, description=described, notes=(*self.notes, left))

    def named_as(self, names: Sequence[str]) -> ImageSet:
        """The same, its labels those of `names`, a reference's classes, if its own class names are all among them.

        A folder cannot tell that a class is missing from it, but the reference can. (An .npz has mere numbers: they
        are the reference's, where it has as many.) Else as it is.
        """
        real, mine = ([unicodedata.normalize("NFC", name) for name in each] for each in (names, self.class_names))
        if self.labels is None or self.drawn is not None or len(real) < len(mine):
            return self
        if mine == [str(label) for label in range(len(mine))]:
            return evolve(self, class_names=tuple(names))
        if not set(mine) <= set(real) or len(set(mine)) < len(mine):
            return self
        place = {NO_CLASS: NO_CLASS} | {label: real.index(name) for label, name in enumerate(mine)}
        return evolve(self, labels=[place[label] for label in self.labels], class_names=tuple(names))


def checked_size(value: object, what: str) -> ImageSize | None:
    """Pixels of an image: the side of a square, or a pair of height and width; None stays None.

    Raises:
        UserError: it is neither, or a side is below 1.
    """
    if isinstance(value, tuple | list) and len(value) == 2:
        height, width = (checked_number(side, what, low=1, whole=True, needed=True) for side in value)
        return Grid(height, width).image_size
    size: int | None = checked_number(value, what, low=1, whole=True)
    return size


#: what `open_images` takes
Images: TypeAlias = str | Path | Tensor | numpy.ndarray | Generation | ImageDataset | ImageSet


def open_images(
    source: Images,
    registry: Registry,
    *,
    recipe: Recipe | None = None,
    image_size: ImageSize | None = None,
    num_classes: int = 0,
    option: str = "--data",
) -> ImageSet:
    """The images that `source` is, or names.

    Args:
        source: `data:validation` (the recipe's; `data` alone is `data:train`), `PART:SPLIT` or
            `PART:SPLIT,setting=value` (a data set part, such as `image-folder:validation,path=/data/imagenet`), a
            folder of PNGs or of class folders of PNGs, or an `.npz` with `arr_0` uint8 (N, H, W, 3) and perhaps labels
            `arr_1`; from Python also uint8 images (N, 3, H, W), what `Model.generate` gives, or a data set.
        recipe: the evaluated model's, if there is one.
        image_size: pixels that the images must have; None: those of the first one of a folder or file.
        num_classes: labels must be below it; 0: any.
        option: how an error names where `source` came from.

    Raises:
        UserError: there is no such set, it is not as described above, a stream, or of fewer than 2 images.
    """
    if isinstance(source, ImageSet):
        return source
    size = recipe.image_size if image_size is None and recipe is not None else image_size
    where = f"{option} {source}" if isinstance(source, str | Path) else option
    if isinstance(source, str):
        found = _of_words(source, registry, recipe, size, where)
    elif isinstance(source, Path):
        found = _of_path(source, registry, size, where)
    elif isinstance(source, ImageDataset):
        found = _of_data(source, where, "{count} images of {size}")
    else:
        found = _of_array(source, size, where)
    wrong = [label for label in found.labels or () if num_classes and not NO_CLASS <= label < num_classes]
    if wrong:
        raise UserError(f"{where}: label {min(wrong)} is out of range; allowed: 0 to {num_classes - 1}")
    return found


def other_images(source: object, registry: Registry, **known: Any) -> ImageSet | None:
    """The images of the same data's other split; None where `source` names no split, or there is no other."""
    if (other := other_split(source)) is not None:
        with suppress(UserError):  # a data set need not have two splits
            return open_images(other, registry, **known)
    return None


def other_split(source: object) -> str | None:
    """The same data's other split, in words; None where `source` names no split."""
    head, split, settings = _words(source) if isinstance(source, str) else ("", "", "")
    return f"{head}:{OTHER[split]}{settings and ','}{settings}" if split in OTHER else None


def _words(text: str) -> tuple[str, str, str]:
    """NAME, SPLIT and settings of `NAME:SPLIT,setting=value`, NAME perhaps qualified; `data` alone is its train."""
    place, _, settings = text.partition(",")
    head, colon, split = place.rpartition(":")
    return (head, split, settings) if colon else (place, "train" if place == DATA else "", settings)


def _of_words(text: str, registry: Registry, recipe: Recipe | None, size: ImageSize | None, where: str) -> ImageSet:
    head, split, settings = _words(text)
    if head != DATA and not (":" in text and registry.offers("dataset", head)):
        return _of_path(text, registry, size, where)
    if head == DATA and settings:  # which are the recipe's
        split = f"{split},{settings}"
    if split not in OTHER:
        raise UserError(f"{where}: no split {split!r}; {choices(OTHER, split)}")
    if head == DATA:
        if recipe is None:
            allowed = "a folder (or a recipe, where one is taken)"
            raise UserError(f"{where}: a model's recipe names its data, and there is no model here; give {allowed}")
        name, size = recipe.data.type if recipe.data is not None else recipe.name, recipe.image_size
        data = open_data(recipe, registry, split)  # type: ignore[arg-type]
    else:
        if size is None:
            raise UserError(f"{where}: at which size is not known without a model; give the size, a folder or an .npz")
        name, part = head, registry.part("dataset", head)
        data = part.component(part_config(part.config, settings, where=where), split=split, image_size=size)
    description = f"{split} split of {name}: {{count}} images at {{size}}"
    return evolve(_of_data(data, where, description, size), split=split)


def _of_path(text: str | Path, registry: Registry, size: ImageSize | None, where: str) -> ImageSet:
    """A folder or an `.npz`, with how `mixar sample` says its images were drawn."""
    path = user_path(text)
    drawn = how_drawn(path)
    if path.is_dir():
        data: ImageDataset = PngFolder(path, drawn=None if drawn is None else drawn[1], image_size=size)
        kind, stored = "PNG images", "PNG"
    elif path.suffix == ".npz" and path.is_file():
        data = npz_images(path, image_size=size)
        kind, stored = "images (arr_0)", "npz, uint8"
    else:
        known = ", ".join(f"{registry.name_of(part)}:SPLIT" for part in registry.parts("dataset"))
        raise UserError(
            f"{where}: no such folder or .npz file; allowed: {DATA}:train, {DATA}:validation, {known}, a folder of "
            f"PNGs, an .npz of images"
        )
    found = evolve(_of_data(data, where, f"{path}: {{count}} {kind} of {{size}}"), format=stored)
    if drawn is None:
        return found
    manifest, labels = drawn
    names = tuple(map(str, manifest.get("class_names") or range(max(labels) + 1)))
    return evolve(found, class_names=names, drawn=manifest)


def how_drawn(path: Path) -> tuple[dict[str, Any], list[int]] | None:
    """What `mixar sample` noted of the images in a folder or an `.npz`, and their labels; None where it noted nothing.

    Raises:
        UserError: what a folder says of its images cannot be read.
    """
    if path.is_dir():
        if not (path / MANIFEST).is_file():
            return None
        manifest, plan = plan_of(path)
        return with_timing(manifest, path), plan.labels_N().tolist()
    with suppress(UserError, OSError, zipfile.BadZipFile, KeyError):  # what lies beside it may be somebody else's
        manifest, plan = read_manifest(manifest_beside(path))
        if manifest.get("arr_0_crc32") == images_crc32(path):
            return manifest, plan.labels_N().tolist()
    return None


def _of_array(source: Any, size: ImageSize | None, where: str) -> ImageSet:
    images, labels = (source.images, source.labels) if isinstance(source, Generation) else (source, None)
    if isinstance(images, Tensor) and images.layout == torch.strided and not images.is_meta:
        images = images.detach().cpu().numpy()
    if not isinstance(images, numpy.ndarray) or numpy.ma.is_masked(images):
        raise UserError(
            f"{where}: {type(images).__name__} is no set of images; give uint8 (N, 3, H, W), a path or words"
        )
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != numpy.uint8:
        raise UserError(f"{where}: images are {images.dtype} {images.shape}; needed: uint8 (N, 3, H, W), 0 to 255")
    data = ArrayImages(images.transpose(0, 2, 3, 1), labels, where=where, image_size=size)
    return evolve(_of_data(data, where, "{count} images of {size}"), format="array, uint8")


def _of_data(data: ImageDataset, where: str, description: str, size: ImageSize | None = None) -> ImageSet:
    """All of a data set, described by their count and size (that of the first one where it is not known)."""
    if len(data) < 2:
        raise UserError(f"{where}: too few images: {len(data)}; a set to measure has at least 2")
    pixels = Grid(*data[0][0].shape[-2:]) if size is None else Grid.of_pixels(size)
    labels = data.labels()
    return ImageSet(
        data,
        description.replace("{count}", f"{len(data):,}").replace("{size}", f"{pixels.width}x{pixels.height}"),
        pixels.height,
        pixels.width,
        labels=None if set(labels) == {NO_CLASS} else labels,
        class_names=tuple(data.class_names),
        notes=tuple(data.notes),
    )

"""Sets of images to measure, from what a person gives: words of a command line, a path, a tensor, a data set."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import attrs
import numpy
import torch
from attrs import frozen
from torch import Tensor

from mixar.assembly import open_data
from mixar.generation import Generation
from mixar.plugins import Registry
from mixar.recipe import Recipe
from mixar.sampling import MANIFEST, manifest_beside, plan_of, read_manifest, with_timing
from mixar.stores import images_crc32
from mixar.text import choices
from mixar_core.data.dataset import ImageDataset
from mixar_core.data.loader import load_batches
from mixar_core.errors import UserError
from mixar_core.storage import user_path
from mixar_core.types import NO_CLASS
from mixar_eval.extractors import part_config
from mixar_eval.image_files import ArrayImages, PngFolder, npz_images

SPLITS = ("train", "validation")
#: what `data` alone stands for
DATA = "data"


@frozen(eq=False)
class ImageSet:
    """Images of one size, and what a report says of them.

    Args:
        labels: one an image; None where they are not known.
        class_names: of all classes that there should be; empty where they are not known.
        split: which split they are; None where they are not known to be one.
        drawn: how they were drawn, as `mixar sample` noted it; None: not known.
        format: of the files, or how else they are stored.
        notes: what a person should read once: what was left out.
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

    def __len__(self) -> int:
        return len(self.data)

    def batches(self, indices: Tensor | None = None, *, batch_size: int = 64, workers: int = 0) -> Iterator[Tensor]:
        """Images uint8 (B, 3, H, W) at `indices`, in that order; all of them by default.

        Raises:
            UserError: one cannot be read.
        """
        wanted = torch.arange(len(self)) if indices is None else indices
        lists = [part.tolist() for part in wanted.split(batch_size) if len(part)]
        for loaded in load_batches(self.data, lists, workers=workers):
            for reason in loaded.unreadable.values():  # training goes on with another image, a measurement must not
                raise UserError(reason)
            yield loaded.pixels_B3HW

    def named_as(self, names: Sequence[str]) -> ImageSet:
        """The same, its labels those of `names`, a reference's classes, if its own class names are all among them.

        A folder cannot tell that a class is missing from it, but the reference can. (An .npz has mere numbers: they
        are the reference's, where it has as many.) Else as it is.
        """
        own = self.class_names
        real = [unicodedata.normalize("NFC", name) for name in names]
        mine = [unicodedata.normalize("NFC", name) for name in own]
        if self.labels is None or self.drawn is not None or len(names) < len(own):
            return self
        if own == tuple(map(str, range(len(own)))):
            return attrs.evolve(self, class_names=tuple(names))
        if not set(mine) <= set(real) or len(set(mine)) < len(mine):
            return self
        place = [real.index(name) for name in mine]
        labels = [label if label == NO_CLASS else place[label] for label in self.labels]
        return attrs.evolve(self, labels=labels, class_names=tuple(names))


#: what `open_images` takes
Images: TypeAlias = str | Path | Tensor | numpy.ndarray | Generation | ImageDataset | ImageSet


def open_images(
    source: Images,
    registry: Registry,
    *,
    recipe: Recipe | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    option: str = "--data",
) -> ImageSet:
    """The images that `source` is, or names.

    Args:
        source: `data:validation` (the recipe's; `data` alone is `data:train`), `PART:SPLIT` or
            `PART:SPLIT,setting=value` (a data set part, such as `image-folder:validation,path=/data/imagenet`), a
            folder of PNGs or of class folders of PNGs, or an `.npz` with `arr_0` uint8 (N, H, W, 3) and perhaps labels
            `arr_1`; from Python also uint8 images (N, 3, H, W), what `Model.generate` gives, or a data set.
        recipe: the evaluated model's, if there is one.
        image_size: side that the images must have; None: that of the first one of a folder or file.
        num_classes: labels must be below it; None: any.
        option: how an error names where `source` came from.

    Raises:
        UserError: there is no such set, it is not as described above, a stream, or of fewer than 2 images.
    """
    image_size = recipe.image_size if image_size is None and recipe is not None else image_size
    words = isinstance(source, str | Path)
    where = f"{option} {source}" if words else option
    if isinstance(source, str):
        found = _of_words(source, registry, recipe, image_size, where)
    elif isinstance(source, Path):
        found = _of_path(user_path(source), registry, image_size, where)
    elif isinstance(source, ImageSet):
        found = source
    else:
        found = _of_values(source, image_size, where)
    _check_count(found.data, where)
    if num_classes is not None:
        wrong = sorted({label for label in found.labels or () if label != NO_CLASS and not 0 <= label < num_classes})
        if wrong:
            allowed = f"0 to {num_classes - 1}" if num_classes else "none, the model has no classes"
            raise UserError(f"{where}: label {wrong[0]} is out of range; allowed: {allowed}")
    return found


def other_split(source: object) -> str | None:
    """The same data's other split; None where `source` names no split."""
    head, _, rest = source.partition(":") if isinstance(source, str) else ("", "", "")
    split, comma, settings = rest.partition(",")
    split = split or ("train" if head == DATA else "")
    if split not in SPLITS:
        return None
    return f"{head}:{SPLITS[1 - SPLITS.index(split)]}{comma}{settings}"


def _of_words(text: str, registry: Registry, recipe: Recipe | None, size: int | None, where: str) -> ImageSet:
    head, colon, rest = text.partition(":")
    split, _, settings = rest.partition(",")
    if head == DATA:
        split = _split(rest if colon else "train", where)
        if recipe is None:
            raise UserError(f"{where}: a model's recipe names its data, and there is no model here; give a folder")
        name = recipe.data.type if recipe.data is not None else recipe.name
        return _of_split(open_data(recipe, registry, split), split, name, recipe.image_size)
    if not colon or head not in {part.name for part in registry.parts("dataset")}:
        return _of_path(user_path(text), registry, size, where)
    if size is None:
        raise UserError(f"{where}: at which size is not known without a model; give a folder or an .npz")
    part = registry.part("dataset", head)
    config = part_config(part.config, settings, where=where)
    return _of_split(part.component(config, split=_split(split, where), image_size=size), split, head, size)


def _split(name: str, where: str) -> Any:
    if name not in SPLITS:
        raise UserError(f"{where}: no split {name!r}; {choices(SPLITS, name)}")
    return name


def _of_split(data: ImageDataset, split: str, name: str, size: int) -> ImageSet:
    return _known(data, f"{split} split of {name}: {len(data):,} images at {size}x{size}", size, size, split=split)


def _of_path(path: Path, registry: Registry, size: int | None, where: str) -> ImageSet:
    """A folder or an `.npz`, with how `mixar sample` says its images were drawn."""
    data: ImageDataset
    if path.is_dir():
        drawn = _drawn_into(path)
        data = PngFolder(path, drawn=None if drawn is None else drawn[1], image_size=size)
        kind, stored = "PNG images", "PNG"
    elif path.suffix == ".npz" and path.is_file():
        drawn, data = _drawn_beside(path), npz_images(path, image_size=size)
        kind, stored = "images (arr_0)", "npz, uint8"
    else:
        known = ", ".join(f"{part.name}:SPLIT" for part in registry.parts("dataset"))
        raise UserError(
            f"{where}: no such folder or .npz file; allowed: {DATA}:train, {DATA}:validation, {known}, a folder of "
            f"PNGs, an .npz of images"
        )
    _check_count(data, where)
    height, width = data[0][0].shape[-2:]
    found = _known(data, f"{path}: {len(data):,} {kind} of {width}x{height}", height, width, format=stored)
    if drawn is None:
        return found
    manifest, labels = drawn
    names = tuple(map(str, manifest.get("class_names") or range(max(labels) + 1)))
    return attrs.evolve(found, class_names=names, drawn=manifest)


def _of_values(source: Any, size: int | None, where: str) -> ImageSet:
    if isinstance(source, ImageDataset):
        _check_count(source, where)
        height, width = source[0][0].shape[-2:]
        return _known(source, f"{len(source):,} images of {width}x{height}", height, width)
    labels = source.labels if isinstance(source, Generation) else None
    images = source.images if isinstance(source, Generation) else source
    images = images.detach().cpu().numpy() if isinstance(images, Tensor) else images
    if not isinstance(images, numpy.ndarray):
        raise UserError(
            f"{where}: {type(images).__name__} is no set of images; give uint8 (N, 3, H, W), a path or words"
        )
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != numpy.uint8:
        raise UserError(f"{where}: images are {images.dtype} {images.shape}; needed: uint8 (N, 3, H, W), 0 to 255")
    data = ArrayImages(images.transpose(0, 2, 3, 1), labels, where=where, image_size=size)
    return _known(
        data, f"{len(data):,} images of {images.shape[3]}x{images.shape[2]}", *images.shape[2:], format="array, uint8"
    )


def _known(data: ImageDataset, description: str, height: int, width: int, **more: Any) -> ImageSet:
    labels = data.labels()
    known = None if all(label == NO_CLASS for label in labels) else labels
    return ImageSet(data, description, height, width, known, tuple(data.class_names), notes=tuple(data.notes), **more)


def _check_count(data: ImageDataset, where: str) -> None:
    if len(data) < 2:
        raise UserError(f"{where}: too few images: {len(data)}; a set to measure has at least 2")


def _drawn_into(folder: Path) -> tuple[dict[str, Any], list[int]] | None:
    """How the samples in a folder were drawn, and their labels, if `mixar sample` wrote them."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest, plan = plan_of(folder)
    return with_timing(manifest, folder), plan.labels_N().tolist()


def _drawn_beside(path: Path) -> tuple[dict[str, Any], list[int]] | None:
    """How the samples in an `.npz` were drawn, if the file beside it was written for these very images."""
    with suppress(UserError, json.JSONDecodeError):  # somebody else's file
        manifest, plan = read_manifest(manifest_beside(path))
        if manifest.get("arr_0_crc32") == images_crc32(path):
            return manifest, plan.labels_N().tolist()
    return None

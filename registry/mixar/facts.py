"""What is in a set of images, seen once: sizes, modes, classes, what is left out, near-duplicates, the `data:` lines.

facts = mixar.look("photos")
facts.counts, facts.image_size, facts.data
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, frozen
from PIL import Image
from torch import Tensor

from mixar.duplicates import Print, imagehash, near_duplicates, print_of
from mixar.origin import of_silence
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import load_recipe
from mixar.structure import structure, unstructure
from mixar_core.data.dataset import ImageDataset
from mixar_core.data.folders import list_images
from mixar_core.data.images import is_enlarged
from mixar_core.data.workers import read_ahead
from mixar_core.errors import UserError, said_of
from mixar_core.pictures import rows_picture, to_pil, write_png
from mixar_core.storage import user_path, write_text, writing
from mixar_core.types import NO_CLASS, Grid, ImageSize

#: sides that are proposed
SIZES = (16, 32, 48, 64, 96, 128, 192, 256)
#: the share of images that a proposed size may enlarge
_ENLARGED = 0.1
#: of a folder without a validation split, the share that is set aside for one
SHARE = 0.1
#: sides that JPEGs keep at least while they are looked at, which takes a third of the time
_LEAST = 256
#: images that a loader process looks at before it reports
_AT_ONCE = 16
#: in a contact sheet
_CLASSES, _EACH, _SHEET_SIDE = 40, 8, 64


@frozen
class DataFacts:
    """What is in a set of images. Images are named by their paths in the folder, or as the data set names them.

    Args:
        data: what a recipe says under `data`, plain values with `type`.
        image_size: what was asked for, or the side of a square that enlarges at most a tenth of the images.
        class_names: in label order; none of an unlabelled set.
        counts: split -> readable images a class, in label order; of an unlabelled set one number. There is no
            "validation" where there are no images for it.
        sizes: (width, height) in pixels, upright -> images; the most frequent first.
        modes: Pillow's (RGB, RGBA, P, I;16 ...) -> images. formats: JPEG, PNG ... -> images.
        turned: images that are to be turned as their EXIF entry says. transparent: that may be so in part.
        animated: that hold several pictures. enlarged: that are smaller than `image_size`.
        left_out: what it is (".txt", "hidden", "in no split") -> files. unreadable: image -> the reason, one line.
        duplicates: groups of near-duplicates; None: not looked for, since imagehash is not installed.
        leaks: (validation image, a near-duplicate of it in train); None as there.
        notes: what a recipe's data set says of itself, as training prints it; of a folder all is told above.
    """

    data: Mapping[str, Any]
    image_size: ImageSize
    class_names: tuple[str, ...]
    counts: Mapping[str, tuple[int, ...]]
    sizes: Mapping[tuple[int, int], int]
    modes: Mapping[str, int]
    formats: Mapping[str, int]
    turned: int
    transparent: int
    animated: int
    enlarged: int
    left_out: Mapping[str, tuple[str, ...]]
    unreadable: Mapping[str, str]
    duplicates: tuple[tuple[str, ...], ...] | None
    leaks: tuple[tuple[str, str], ...] | None
    notes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 for an unlabelled set."""
        return len(self.class_names)

    @property
    def images(self) -> dict[str, int]:
        """Split -> its readable images."""
        return {split: sum(counts) for split, counts in self.counts.items()}

    @property
    def kept(self) -> float:
        """The mean share of an image that training sees: its middle, in the proportion of `image_size`."""
        wanted = Grid.of_pixels(self.image_size)
        across = wanted.width / wanted.height
        shares = [min(w / h / across, across * h / w) * count for (w, h), count in self.sizes.items()]
        return sum(shares) / sum(self.sizes.values())

    def recipe(self) -> dict[str, Any]:
        """What a recipe for these data says of them, as plain values."""
        size = self.image_size if isinstance(self.image_size, int) else list(self.image_size)
        return {"image_size": size, "num_classes": self.num_classes, "data": dict(self.data)}

    def plain(self) -> dict[str, Any]:
        """All of it, as JSON has it; sizes as "640x480"."""
        plain = asdict(self)
        plain["sizes"] = {f"{width}x{height}": count for (width, height), count in self.sizes.items()}
        return {"images": self.images, "kept": self.kept, "num_classes": self.num_classes, **plain}


@frozen
class _Seen:
    """One image, as it was found."""

    name: str
    label: int
    size: tuple[int, int] = (0, 0)
    mode: str = ""
    format: str = ""
    turned: bool = False
    transparent: bool = False
    animated: bool = False
    print: Print | None = None
    problem: str | None = None


def look(
    source: str | Path,
    *,
    image_size: ImageSize | None = None,
    registry: Registry | None = None,
    workers: int = 0,
    progress: Callable[[int, int, int], object] = lambda done, total, fresh: None,
) -> DataFacts:
    """Look at every image once.

    Args:
        source: a folder of images, as the data set `image-folder` takes it; or a recipe by its name or path, for its
            data.
        image_size: None: one that fits the images, or the recipe's.
        workers: processes that read ahead.
        progress: told how many images are done, of how many, and how many of them by this call (all).

    Raises:
        UserError: there is no such folder or recipe, the data cannot be opened, or no image can be read.
    """
    registry, path = registry or plugin_manager(), user_path(source)
    imagehash()  # here, and not in every process that reads
    folder = path.absolute() if path.is_dir() and not (path / "recipe.yaml").is_file() else None
    if folder is not None:
        data: dict[str, Any] = {**of_silence("dataset", "image-folder", registry), "path": str(folder), "orient": True}
        settings, sets = _open_folder(data, registry)
    else:
        with said_of(f"{source}: no folder of images; as a recipe"):
            recipe = load_recipe(source, registry=registry)
        if recipe.data is None:
            raise UserError(f"recipe {recipe.name}: names no data to look at")
        image_size = image_size or recipe.image_size
        settings = {"type": recipe.data.type, **unstructure(recipe.data.config)}
        sets = _open(settings, registry, image_size)
    seen = {split: list[_Seen]() for split in sets}
    done, total = 0, sum(map(len, sets.values()))
    for split, images in sets.items():
        parts = torch.arange(len(images)).split(_AT_ONCE)
        for found in read_ahead(
            partial(_see, images, split, folder), (part.tolist() for part in parts), workers=workers
        ):
            seen[split] += found
            done += len(found)
            progress(done, total, done)
    return _facts(settings, sets, seen, folder, image_size, registry)


def _open_folder(data: dict[str, Any], registry: Registry) -> tuple[dict[str, Any], dict[str, ImageDataset]]:
    """A folder's splits and the settings that give them: with a share set aside where there is no validation split."""
    for more in ({"validation": SHARE}, {}):
        try:
            return data | more, _open(data | more, registry, 1, needed=("train", "validation"))
        except UserError:
            continue
    without = data | {"validation": 0.0}
    try:
        return without, _open(without, registry, 1)
    except UserError:
        return data, _open(data, registry, 1)


def _open(
    data: Mapping[str, Any], registry: Registry, image_size: ImageSize, needed: Sequence[str] = ("train",)
) -> dict[str, ImageDataset]:
    """The splits that there are.

    Raises:
        UserError: one that is needed cannot be opened, or is a stream.
    """
    plain = dict(data)
    part = registry.part("dataset", plain.pop("type"))
    config, sets = structure(plain, part.config, path="data"), {}
    for split in ("train", "validation"):
        try:
            sets[split] = part.component(config, split=split, image_size=image_size)
            len(sets[split])  # a stream has no length, and says so
        except UserError:
            sets.pop(split, None)
            if split in needed:
                raise
    return sets


def _see(images: ImageDataset, split: str, folder: Path | None, indices: Sequence[int]) -> list[_Seen]:
    return [_seen(images, index, split, folder) for index in indices]


def _seen(images: ImageDataset, index: int, split: str, folder: Path | None) -> _Seen:
    """An image, decoded once."""
    encoded = images.encoded(index)
    if encoded is None:
        return _pixels_seen(images, index, f"{split} image {index}")
    name = encoded.where if folder is None else os.path.relpath(encoded.where, folder)
    try:
        header, picture = encoded.header(), encoded.picture(_LEAST)
    except UserError as error:
        reason = str(error).removeprefix(f"{encoded.where}: ").removeprefix("unreadable image: ")
        return _Seen(name, encoded.label, problem=reason)
    return _Seen(
        name,
        encoded.label,
        size=header.size,
        mode=header.mode,
        format=header.format,
        turned=header.turned,
        transparent=header.transparent,
        animated=header.animated,
        print=print_of(picture),
    )


def _pixels_seen(images: ImageDataset, index: int, name: str) -> _Seen:
    """An image of a set that holds pixels."""
    try:
        pixels_3HW, label = images[index]
    except UserError as error:
        return _Seen(name, NO_CLASS, problem=str(error))
    picture = to_pil(pixels_3HW)
    return _Seen(name, label, picture.size, mode="RGB", format="pixels", print=print_of(picture))


def _facts(
    settings: dict[str, Any],
    sets: Mapping[str, ImageDataset],
    seen: Mapping[str, Sequence[_Seen]],
    folder: Path | None,
    image_size: ImageSize | None,
    registry: Registry,
) -> DataFacts:
    every = [(split, image) for split, found in seen.items() for image in found]
    unreadable = {image.name: image.problem for _, image in every if image.problem is not None}
    good = [(split, image) for split, image in every if image.problem is None]
    if not good:
        name, problem = next(iter(unreadable.items()))
        raise UserError(f"{folder or settings['type']}: no image of {len(every):,} can be read: {name}: {problem}")
    images, names = [image for _, image in good], sets["train"].class_names
    turned = sum(image.turned for image in images)
    if folder is not None and not turned:
        settings = {key: value for key, value in settings.items() if key != "orient"}
    size: ImageSize = image_size or fitting_size([min(image.size) for image in images])
    labels = {split: Counter(image.label for image in found if image.problem is None) for split, found in seen.items()}
    groups = None if imagehash() is None else near_duplicates([image.print for image in images if image.print])
    notes = [note for opened in sets.values() for note in opened.notes] if folder is None else []
    return DataFacts(
        data=settings,
        image_size=size,
        class_names=names,
        counts={split: tuple(count[n] for n in range(len(names)) or (NO_CLASS,)) for split, count in labels.items()},
        sizes=dict(Counter(image.size for image in images).most_common()),
        modes=dict(Counter(image.mode for image in images).most_common()),
        formats=dict(Counter(image.format for image in images).most_common()),
        turned=turned,
        transparent=sum(image.transparent for image in images),
        animated=sum(image.animated for image in images),
        enlarged=sum(is_enlarged(*image.size, size) for image in images),
        left_out={} if folder is None else _left_out(folder, {image.name for _, image in every}),
        unreadable=unreadable,
        duplicates=None if groups is None else tuple(tuple(images[index].name for index in group) for group in groups),
        leaks=None if groups is None else tuple(_leaks([[good[index] for index in group] for group in groups])),
        notes=tuple(dict.fromkeys(notes)),
    )


def fitting_size(sides: Sequence[int]) -> int:
    """The largest of `SIZES` that enlarges at most a tenth of images with these shorter sides, or the smallest."""
    ordered = sorted(sides)
    least = ordered[int(len(ordered) * _ENLARGED)]
    return max((size for size in SIZES if size <= least), default=SIZES[0])


def _left_out(folder: Path, read: set[str]) -> dict[str, tuple[str, ...]]:
    found = list_images(folder)
    other = tuple(file for file in found.files if file not in read)
    return dict(found.left_out) | ({"in no split": other} if other else {})


def _leaks(groups: Sequence[Sequence[tuple[str, _Seen]]]) -> list[tuple[str, str]]:
    """Each validation image that has a near-duplicate in train, and that."""
    found = []
    for group in groups:
        train = next((image.name for split, image in group if split == "train"), None)
        if train is not None:
            found += [(image.name, train) for split, image in group if split == "validation"]
    return found


def write_facts(facts: DataFacts, folder: Path, registry: Registry | None = None) -> None:
    """Write `facts.json`, with every file's name, and `contact_sheet.png` into a folder; what is there is replaced.

    Raises:
        UserError: it cannot be written.
    """
    sheet = contact_sheet(facts, registry)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_png(folder / "contact_sheet.png", sheet)
    write_text(folder / "facts.json", json.dumps(facts.plain(), indent=2) + "\n")


def contact_sheet(facts: DataFacts, registry: Registry | None = None) -> Image.Image:
    """A few training images of every class, exactly as training sees them but for mirroring; a row a class."""
    data = _open(facts.data, registry or plugin_manager(), facts.image_size)["train"]
    rows_of: dict[int, list[int]] = {}
    for index, label in enumerate(data.labels()):
        rows_of.setdefault(label, []).append(index)
    rows = {}
    for label, indices in sorted(rows_of.items())[:_CLASSES]:
        shown = list[Tensor]()
        for index in indices[:: max(1, len(indices) // (_EACH + 2))]:
            try:
                shown += [data[index][0]] if len(shown) < _EACH else []
            except UserError:  # it is named among those that cannot be read
                continue
        if shown:
            rows["no class" if label == NO_CLASS else facts.class_names[label]] = torch.stack(shown)
    more = f", {_CLASSES} of {facts.num_classes:,} classes" if facts.num_classes > _CLASSES else ""
    pixels = Grid.of_pixels(facts.image_size)
    title = f"{pixels.width} x {pixels.height}{more}"
    return rows_picture(rows, title=title, scale=-(-_SHEET_SIDE // pixels.height))

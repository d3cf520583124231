"""Where drawn images go: chunks of raw pixels, PNG files, and the one `.npz` that ADM's evaluation suite reads."""

from __future__ import annotations

import re
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from torch import Tensor

from mixar.generation import Generation, grid_picture, label_name
from mixar.sampling import MANIFEST, TIMING, Plan, manifest_beside, with_timing, write_manifest
from mixar_core.errors import UserError
from mixar_core.pictures import to_pil, write_png
from mixar_core.storage import is_free, read_weights, whole_folder, write_weights, write_whole, writing

_PICTURE = re.compile(r"(\d{3,})_.*\.png", re.DOTALL)
#: what a folder of samples holds beside its pictures or chunks
_BESIDE = (MANIFEST, TIMING, "grid.png", "codes_grid.png", "codes", "edit.png", "input.png", "mask.png", "raw")
_CHUNK = re.compile(r"chunk-(\d{6,})\.safetensors")


class RawStore:
    """One safetensors file a chunk: `images` uint8 (B, 3, H, W). What is there is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def done(self) -> set[int]:
        """Numbers of the chunks that are there."""
        return {int(match[1]) for path in self.folder.iterdir() if (match := _CHUNK.fullmatch(path.name))}

    def write(self, chunk: int, images_B3HW: Tensor) -> None:
        """Put a chunk there."""
        write_weights(self._path(chunk), {"images": images_B3HW})

    def read(self, chunk: int) -> Tensor:
        """The images of a chunk that is there, uint8 (B, 3, H, W)."""
        return read_weights(self._path(chunk))["images"]

    def _path(self, chunk: int) -> Path:
        return self.folder / f"chunk-{chunk:06d}.safetensors"


class PNGStore:
    """One PNG file an image, `000012_name.png`, in one folder; its number says which image it is.

    Args:
        names: of the classes, as the folder's manifest has them; empty: not known.
    """

    def __init__(self, folder: Path, plan: Plan, names: Sequence[str]) -> None:
        self.folder, self.plan = folder, plan
        #: file names in the images' order
        self.files = picture_names(label_name(label, names) for label in plan.labels_N().tolist())

    def done(self) -> set[int]:
        """Numbers of the chunks that are there."""
        numbers = {number for path in self.folder.iterdir() if (number := picture_number(path.name)) is not None}
        there = Counter(number // self.plan.batch for number in numbers)
        return {chunk for chunk in range(self.plan.chunks) if there[chunk] == self.plan.size(chunk)}

    def write(self, chunk: int, images_B3HW: Tensor) -> None:
        """Put a chunk there."""
        for file, image_3HW in zip(self.files[self.plan.rows(chunk)], images_B3HW, strict=True):
            write_png(self.folder / file, to_pil(image_3HW))

    def read(self, count: int) -> Tensor:
        """The first images, uint8 (count, 3, H, W)."""
        found = {picture_number(path.name): path for path in self.folder.iterdir()}
        pixels = [numpy.array(Image.open(found[number]).convert("RGB")) for number in range(count)]
        return torch.from_numpy(numpy.stack(pixels)).permute(0, 3, 1, 2)


def picture_names(names: Iterable[str]) -> list[str]:
    """File names of numbered pictures, each with its class's name."""
    parts = [plain_name(name) for name in names]
    digits = max(3, len(str(len(parts) - 1)))
    return [f"{index:0{digits}d}_{part}.png" for index, part in enumerate(parts)]


def picture_number(file: str) -> int | None:
    """The number of a picture of that name; None: it is none of `picture_names`."""
    return int(match[1]) if (match := _PICTURE.fullmatch(file)) else None


def named_pictures(images_B3HW: Tensor, names: Sequence[str], place: str = "") -> dict[str, Image.Image]:
    """uint8 images (B, 3, H, W) as `000_name.png`, in the folder `place`."""
    return {f"{place}{name}": to_pil(image) for name, image in zip(picture_names(names), images_B3HW, strict=True)}


def write_samples(
    folder: Path,
    drawn: Generation,
    manifest: Mapping[str, Any],
    *,
    codes_alone: Tensor | None = None,
    columns: int | None = None,
    replace: bool = False,
) -> None:
    """PNGs `000_name.png`, `grid.png` and MANIFEST; with `codes_alone` (uint8 images) `codes/` and `codes_grid.png`.

    Raises:
        UserError: as `write_folder`.
    """
    pictures: dict[str, Image.Image] = {}
    for place, grid, images in (("", "grid.png", drawn.images), ("codes/", "codes_grid.png", codes_alone)):
        if images is not None:
            pictures |= named_pictures(images, drawn.names, place)
            pictures[grid] = grid_picture(images, drawn.names, drawn.labels, columns=columns)
    write_folder(folder, pictures, manifest, replace=replace)


def write_folder(
    folder: Path, pictures: Mapping[str, Image.Image], manifest: Mapping[str, Any], *, replace: bool
) -> None:
    """Pictures by the file's name, which may have one folder before it, and MANIFEST: all of them, or nothing.

    Args:
        replace: a folder that is there goes.

    Raises:
        UserError: it cannot be written; without `replace`, another call has written into it meanwhile.
    """
    folder = folder.resolve()  # a link to it stays one
    with whole_folder(folder, replace=replace) as new:
        for name, picture in pictures.items():
            (new / name).parent.mkdir(exist_ok=True)
            picture.save(new / name)
        write_manifest(new / MANIFEST, manifest)


def check_ours(folder: Path) -> None:
    """Refuse to replace a folder that holds what samples are not made of: --force never removes a person's files."""
    if not (folder / MANIFEST).is_file():
        raise UserError(f"{folder}: holds something else than samples; give another")
    strange = sorted(
        path.name
        for path in folder.iterdir()
        if path.name not in _BESIDE
        and not path.name.startswith(".")
        and not _CHUNK.fullmatch(path.name)
        and picture_number(path.name) is None
    )
    if strange:
        raise UserError(
            f"{folder}: holds something else beside samples ({strange[0]}); move it, or give another folder"
        )


def check_folder(folder: Path, *, force: bool) -> None:
    """Refuse, before any work is done, a folder that samples cannot go to."""
    if not is_free(folder):
        if not force:
            raise UserError(f"--out {folder}: is there already and not empty; give another, or --force to replace it")
        check_ours(folder)
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()


def write_npz(path: Path, batches: Iterable[Tensor], labels_N: Tensor) -> None:
    """Write images as `arr_0` uint8 (N, H, W, 3) and their labels as `arr_1`, a batch at a time, whole.

    Args:
        batches: uint8 (B, 3, H, W), N images in all.
        labels_N: int64 (N,); of unlabelled images (NO_CLASS) there is no `arr_1`.
    """

    def write(unfinished: Path) -> None:
        first = next(left := iter(batches))
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(labels_N), *first.shape[2:], 3)}
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                numpy.lib.format.write_array_header_1_0(file, header)
                for images_B3HW in chain([first], left):
                    file.write(images_B3HW.permute(0, 2, 3, 1).contiguous().numpy().data)
            if int(labels_N.min()) >= 0:
                with archive.open("arr_1.npy", "w", force_zip64=True) as file:
                    numpy.lib.format.write_array(file, labels_N.numpy(), allow_pickle=False)

    write_whole(path, write)


def parts_of(npz: Path, *, force: bool) -> Path:
    """The folder where the images of an `.npz` wait until all are there; refuses a file that is there already."""
    if npz.suffix != ".npz":
        raise UserError(f"--npz {npz}: a file whose name ends in .npz is needed")
    parts = npz.with_name(f"{npz.name}.parts")
    begun = (parts / MANIFEST).is_file()  # with --force, and interrupted
    if npz.exists() and not force and not begun:
        raise UserError(f"--npz {npz}: is there already; give another, or --force to replace it")
    return parts


def pack_npz(npz: Path, store: RawStore, plan: Plan, manifest: Mapping[str, Any]) -> None:
    """Write all images of a store as one `.npz`, and beside it how they were drawn."""
    write_npz(npz, map(store.read, range(plan.chunks)), plan.labels_N())
    write_manifest(manifest_beside(npz), with_timing(manifest, store.folder) | {"arr_0_crc32": images_crc32(npz)})


def images_crc32(npz: Path) -> int:
    """The checksum of the images in an `.npz`, as the file itself has it: nothing is read."""
    with zipfile.ZipFile(npz) as archive:
        return archive.getinfo("arr_0.npy").CRC


def plain_name(name: str) -> str:
    """A class name as part of a file's name: letters and digits of any script, and hyphens, up to 80 bytes."""
    composed = unicodedata.normalize("NFC", name)
    kept = "".join(c if c == "-" or unicodedata.category(c)[0] in "LMN" else "_" for c in composed)
    short = re.sub("_+", "_", kept).encode(errors="ignore")[:80].decode(errors="ignore")
    return short.strip("_") or "image"

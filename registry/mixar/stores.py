"""Where drawn images go: chunks of raw pixels, PNG files, and the one `.npz` that ADM's evaluation suite reads."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy
from PIL import Image
from torch import Tensor

from mixar.model import label_name
from mixar.sampling import Plan, Store
from mixar_core.errors import UserError
from mixar_core.pictures import to_pil
from mixar_core.storage import read_weights, write_weights, write_whole

_CHUNK = re.compile(r"chunk-(\d{6,})\.safetensors")


class RawStore(Store):
    """One safetensors file a chunk: `images` uint8 (B, 3, H, W), `labels` int64 (B,)."""

    def done(self) -> set[int]:
        return {int(match[1]) for path in self.folder.iterdir() if (match := _CHUNK.fullmatch(path.name))}

    def write(self, chunk: int, images_B3HW: Tensor, labels_B: Tensor) -> None:
        write_weights(self.path(chunk), {"images": images_B3HW, "labels": labels_B})

    def read(self, chunk: int) -> Tensor:
        """The images of a chunk that is there, uint8 (B, 3, H, W).

        Raises:
            UserError: it is not, or not whole.
        """
        tensors = read_weights(self.path(chunk))
        if "images" not in tensors:
            raise UserError(f"{self.path(chunk)}: not a chunk of samples")
        return tensors["images"]

    def path(self, chunk: int) -> Path:
        """The chunk's file."""
        return self.folder / f"chunk-{chunk:06d}.safetensors"


class PNGStore(Store):
    """One PNG file an image, `000012_name.png`, in one folder.

    Args:
        names: of the classes, as the folder's manifest has them; empty: not known.
    """

    def __init__(self, folder: Path, plan: Plan, names: Sequence[str]) -> None:
        super().__init__(folder)
        digits = max(3, len(str(plan.count - 1)))
        self.plan = plan
        #: file names in the images' order
        self.files = [
            f"{index:0{digits}d}_{plain_name(label_name(label, names))}.png"
            for index, label in enumerate(plan.labels_N().tolist())
        ]

    def done(self) -> set[int]:
        there = {path.name for path in self.folder.iterdir()}
        return {
            chunk
            for chunk in range(self.plan.chunks)
            if all(file in there for file in self.files[self.plan.rows(chunk)])
        }

    def write(self, chunk: int, images_B3HW: Tensor, labels_B: Tensor) -> None:
        for file, image_3HW in zip(self.files[self.plan.rows(chunk)], images_B3HW, strict=True):
            write_png(self.folder / file, to_pil(image_3HW))


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture whole.

    Raises:
        UserError: it cannot be written.
    """
    write_whole(path, lambda unfinished: picture.save(unfinished, format="PNG"))


def write_npz(path: Path, batches: Iterable[Tensor], labels_N: Tensor, *, height: int, width: int) -> None:
    """Write images as `arr_0` uint8 (N, H, W, 3) and their labels as `arr_1`, a batch at a time, whole.

    Unlabelled images (NO_CLASS) have no `arr_1`.

    Args:
        batches: uint8 (B, 3, H, W), N images in all.
        labels_N: int64 (N,).

    Raises:
        UserError: it cannot be written.
    """
    shape = (len(labels_N), height, width, 3)

    def write(unfinished: Path) -> None:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as file:
                header = {"descr": "|u1", "fortran_order": False, "shape": shape}
                numpy.lib.format.write_array_header_1_0(file, header)
                for images_B3HW in batches:
                    file.write(images_B3HW.permute(0, 2, 3, 1).contiguous().numpy().data)
            if int(labels_N.min()) >= 0:
                with archive.open("arr_1.npy", "w", force_zip64=True) as file:
                    numpy.lib.format.write_array(file, labels_N.numpy(), allow_pickle=False)

    write_whole(path, write)


def images_crc32(npz: Path) -> int:
    """The checksum of the images in an `.npz`, as the file itself has it: nothing is read."""
    with zipfile.ZipFile(npz) as archive:
        return archive.getinfo("arr_0.npy").CRC


def plain_name(name: str) -> str:
    """A class name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", name).strip("_") or "image"

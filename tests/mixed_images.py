"""A folder of images as people have them: many sizes, modes and formats, some turned, two of them broken."""

from __future__ import annotations

import io
from pathlib import Path

import numpy
from PIL import Image, ImageDraw, features

CLASSES = ("circle", "cross", "ring", "square", "stripes")
SIZES = ((50, 80), (80, 50), (64, 64), (72, 56), (96, 72), (60, 60))
#: mode and format
KINDS = (
    ("RGB", "jpg"),
    ("RGBA", "png"),
    ("P", "png"),
    ("L", "jpg"),
    ("LA", "png"),
    ("CMYK", "jpg"),
    ("I;16", "png"),
    ("RGB", "png"),
    ("RGB", "webp"),
    ("turned", "jpg"),
)
BROKEN = ("cross/broken.jpg", "ring/broken.png")


def write_mixed_images(folder: Path, count: int = 300, *, seed: int = 0) -> Path:
    """Write `count` images, two of them broken, into class folders in `folder`; the same ones for the same seed.

    Each is one shape of its class, of a random colour and place, on a coloured or transparent ground.
    """
    draw = numpy.random.default_rng(seed)
    kinds = [(mode, ending if ending != "webp" or features.check("webp") else "png") for mode, ending in KINDS]
    for number in range(count - len(BROKEN)):
        name, (mode, ending) = CLASSES[number % len(CLASSES)], kinds[int(draw.integers(len(kinds)))]
        path = folder / name / f"{number:04d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(_shape(name, SIZES[int(draw.integers(len(SIZES)))], draw, clear="A" in mode), mode, path)
    (folder / BROKEN[0]).write_bytes(_torn())
    (folder / BROKEN[1]).write_bytes(b"this is no image")
    return folder


def _shape(name: str, size: tuple[int, int], draw: numpy.random.Generator, *, clear: bool) -> Image.Image:
    """One shape on a plain ground: RGBA."""
    ground, colour = (tuple(int(v) for v in draw.integers(*between, 3)) for between in ((150, 256), (0, 140)))
    image = Image.new("RGBA", size, (*ground, 0 if clear else 255))
    pen = ImageDraw.Draw(image)
    radius = int(min(size) * draw.uniform(0.22, 0.38))
    x, y = (int(side / 2 + draw.uniform(-0.1, 0.1) * side) for side in size)
    box, fill, thick = (x - radius, y - radius, x + radius, y + radius), (*colour, 255), max(3, radius // 3)
    if name == "circle":
        pen.ellipse(box, fill=fill)
    elif name == "ring":
        pen.ellipse(box, outline=fill, width=thick)
    elif name == "square":
        pen.rectangle(box, fill=fill)
    elif name == "cross":
        pen.rectangle((x - radius, y - thick // 2, x + radius, y + thick // 2), fill=fill)
        pen.rectangle((x - thick // 2, y - radius, x + thick // 2, y + radius), fill=fill)
    else:
        for top in range(y - radius, y + radius, 2 * thick):
            pen.rectangle((x - radius, top, x + radius, top + thick), fill=fill)
    return image


def _save(image: Image.Image, mode: str, path: Path) -> None:
    if mode == "turned":  # a camera held upright: the pixels lie on their side
        exif = Image.Exif()
        exif[0x0112] = 6
        image.convert("RGB").transpose(Image.Transpose.ROTATE_90).save(path, quality=92, exif=exif)
    elif mode == "I;16":
        grey = numpy.asarray(image.convert("L"), dtype=numpy.uint16)
        Image.fromarray(grey * 257).save(path)
    elif mode == "P":
        image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE).save(path)
    else:
        flat = image if "A" in mode else image.convert("RGB")
        flat.convert(mode).save(path, **({"quality": 92} if path.suffix != ".png" else {}))


def _torn() -> bytes:
    """The first third of a JPEG."""
    buffer = io.BytesIO()
    Image.effect_noise((80, 60), 60).save(buffer, "JPEG")
    return buffer.getvalue()[: len(buffer.getvalue()) // 3]

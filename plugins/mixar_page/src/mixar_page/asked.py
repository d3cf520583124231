"""What a visitor asks for, looked at before anything is computed: every value that arrives may be anything."""

from __future__ import annotations

import base64
import binascii
import io
import json
from typing import Any, get_args

import attrs
from PIL import Image

from mixar.editing import Level
from mixar.labels import checked_number
from mixar_core.errors import UserError
from mixar_core.types import NO_CLASS

#: the most of each that is computed for one press of a button
MOST_STEPS, MOST_CFG, MOST_TEMPERATURE, MOST_PICTURES = 256, 100.0, 10.0, 8
#: seeds are whole numbers below this one: those that a browser's numbers hold exactly
SEEDS = 2**53
#: bytes of a picture as it arrives, and its pixels once unpacked
MOST_BYTES, MOST_PIXELS = 3_000_000, 4_000_000
#: what a data URL of a picture begins with
PREFIX = "data:image/png;base64,"


@attrs.frozen
class Way:
    """How pictures are drawn. None: as the model says."""

    model: str
    preset: str | None = None
    steps: int | None = None
    cfg: float | None = None
    temperature: float | None = None

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that are given, as `Model.generate` takes them."""
        return {key: value for key in ("steps", "cfg", "temperature") if (value := getattr(self, key)) is not None}


@attrs.frozen
class Drawing:
    """One picture: of this class (NO_CLASS, -1, for none), in this way, with this seed.

    Args:
        codes: to draw from instead of the prior's. codes_by: the way whose prior drew them.
    """

    way: Way
    label: int
    seed: int
    codes: tuple[int, ...] | None = None
    codes_by: Way | None = None


@attrs.frozen(eq=False)
class Editing:
    """A picture of the model's size whose masked region is to be drawn anew.

    Args:
        mask: of the picture's size, light where it is to be drawn anew.
        peek: whether the encoders see what the region held.
    """

    way: Way
    label: int
    seed: int
    level: Level
    picture: Image.Image
    mask: Image.Image
    peek: bool = False


def number(value: Any, what: str, low: int, high: float, *, whole: bool = False, needed: bool = False) -> Any:
    """A number from low to high; an empty field (None, or "") is None unless it is `needed`.

    Raises:
        UserError: it is none, or outside.
    """
    if whole and isinstance(value, float) and value.is_integer():
        value = int(value)
    found = checked_number(None if value == "" else value, what, low=low, whole=whole, needed=needed)
    if found is not None and found > high:
        raise UserError(f"{what}: {found:g} is too much here; allowed: {low} to {high:g}")
    return found


def way_of(model: Any, preset: Any = None, steps: Any = None, cfg: Any = None, temperature: Any = None) -> Way:
    """A `Way`, of whatever arrived.

    Raises:
        UserError: a value is not allowed.
    """
    for what, name in (("model", model), ("preset", preset)):
        if name is not None and not isinstance(name, str):
            raise UserError(f"{what}: not a name")
    return Way(
        model or "",
        preset or None,
        number(steps, "steps", 1, MOST_STEPS, whole=True),
        number(cfg, "guidance", 0, MOST_CFG),
        number(temperature, "temperature", 0, MOST_TEMPERATURE),
    )


def seed_of(value: Any) -> int:
    """A seed, of whatever arrived."""
    return int(number(value, "seed", 0, SEEDS - 1, whole=True, needed=True))


def count_of(value: Any) -> int:
    """A number of pictures."""
    return int(number(value, "pictures", 1, MOST_PICTURES, whole=True, needed=True))


def level_of(latents: Any, codes: Any) -> Level:
    """The level at which latents and codes of a region are kept or drawn anew.

    Args:
        latents, codes: "keep" or "redraw".
    """
    levels = {("redraw", "redraw"): "both", ("redraw", "keep"): "latents", ("keep", "redraw"): "codes"}
    asked = (latents, codes)
    if asked == ("keep", "keep"):
        raise UserError("latents and codes are both kept, so nothing would change: choose `redraw` for one of them")
    found = levels.get(asked) if all(isinstance(each, str) for each in asked) else None
    if found not in get_args(Level):
        raise UserError("latents and codes: each is `keep` or `redraw`")
    return found  # type: ignore[return-value]


def picture_of(url: Any, what: str = "picture") -> Image.Image:
    """The RGB picture of a data URL of a PNG, which is what the page sends.

    Raises:
        UserError: it is something else, or too large; its size is looked at before it is unpacked.
    """
    if not isinstance(url, str) or not url.startswith(PREFIX):
        raise UserError(f"the {what}: none there; open a picture, or draw one first")
    if len(url) > MOST_BYTES:
        raise UserError(f"the {what}: {len(url) / 1e6:.1f} MB are too many; allowed: {MOST_BYTES / 1e6:g} MB")
    try:
        packed = io.BytesIO(base64.b64decode(url[len(PREFIX) :], validate=True))
        with Image.open(packed, formats=["PNG"]) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                size = f"{opened.width} x {opened.height}"
                raise UserError(f"the {what}: {size} pixels are too many; allowed: {MOST_PIXELS / 1e6:g} million")
            return flat(opened)
    except (binascii.Error, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"the {what}: not a PNG that can be read") from error


def flat(picture: Image.Image) -> Image.Image:
    """A picture without transparency, on white."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def painted(value: Any) -> tuple[Image.Image, Image.Image]:
    """The picture and the mask that the canvas of the page holds.

    Raises:
        UserError: there is no picture, or nothing is painted.
    """
    try:
        found = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError("no picture to edit: open one, or draw one first")
    picture = picture_of(found.get("picture"))
    mask = picture_of(found.get("mask"), "mask")
    if not mask.convert("L").point(lambda level: 255 * (level >= 128)).getbbox():
        raise UserError("nothing is painted: paint over what is to be drawn anew")
    return picture, mask


def label_of(value: Any) -> int:
    """A class's number, which the model looks at again."""
    return int(number(value, "class", NO_CLASS, SEEDS, whole=True, needed=True))


def sent(event: Any, key: str) -> Any:
    """What an event of the page brings with it."""
    return event._data.get(key) if isinstance(event._data, dict) else None

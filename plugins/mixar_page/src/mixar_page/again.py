"""How a picture is made again without the page: a command, three lines of Python, and the same inside its PNG."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import attrs
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from mixar.cli.common import command_line
from mixar.model import Model
from mixar.stores import picture_names
from mixar_core.types import NO_CLASS
from mixar_page.asked import PREFIX, Drawing, Editing, Way

#: files that the command of an edit reads, beside which the page offers them
INPUT, MASK = "input.png", "mask.png"


@attrs.frozen
class Again:
    """What makes a picture again.

    Args:
        command: of a shell; it writes `file`. python: three lines.
    """

    command: str
    python: str
    file: str


def again(asked: Drawing | Editing, model: Model) -> Again:
    """The command and the Python of one picture; `model` is that of its way."""
    way, label = asked.way, asked.label
    name = model.class_names[label] if 0 <= label < len(model.class_names) else ""
    named = bool(name) and model.class_names.count(name) == 1 and not name.startswith("-")
    said: str | int = name if named else label
    shown = name or ("no class" if label == NO_CLASS else str(label))
    options = [word for key, value in way.changes.items() for word in (f"--{key}", f"{value:g}")]
    options += ["--seed", str(asked.seed), *_loading(way, model)]
    arguments = [f"{key}={value!r}" for key, value in way.changes.items()]
    if isinstance(asked, Editing):
        out, file = "edited", picture_names([shown])[0]
        which = ["--class" if named else "--label", str(said)] if label != NO_CLASS else []
        words = ["edit", way.model, INPUT, "--mask", MASK, *which, "--level", asked.level, *["--peek"] * asked.peek]
        drawn = f'edit("{INPUT}", "{MASK}", {said!r}'
        arguments = [f"level={asked.level!r}", *["peek=True"] * asked.peek, *arguments]
    else:
        out, file = "drawn", picture_names([shown])[0]
        words = ["sample", way.model, "--classes" if named else "--labels", str(said)]
        words += ["--codes", ",".join(map(str, asked.codes))] if asked.codes else []
        drawn = f"generate([{said!r}]"
        arguments = [*["codes=codes"] * bool(asked.codes), *arguments]
    lines = ["import mixar", f"model = {_load(way, model)}"]
    if isinstance(asked, Drawing) and asked.codes_by is not None:
        lines[1] = f"codes = {_load(asked.codes_by, model)}.sample_codes([{said!r}], seed={asked.seed})"
    source = "model" if lines[1].startswith("model") else _load(way, model)
    call = ", ".join([drawn, *arguments, f"seed={asked.seed}"])
    lines.append(f'{source}.{call}).pil()[0].save("{out}.png")')
    return Again(command_line("mixar", *words, *options, "--out", out), "\n".join(lines), f"{out}/{file}")


def noted(picture: Image.Image, how: Again, facts: Mapping[str, Any]) -> Image.Image:
    """A picture that says how it was made: `info` with what `mixar sample` writes beside its pictures, and `how`."""
    said = {"Software": "mixar", "command": how.command, "python": how.python}
    picture.info = {**said, "mixar": json.dumps(facts, ensure_ascii=False)}  # type: ignore[dict-item]
    return picture


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG that keeps what its `info` says."""
    info = PngInfo()
    for key, value in picture.info.items():
        if isinstance(value, str):
            info.add_itxt(str(key), value)
    packed = io.BytesIO()
    picture.save(packed, format="PNG", pnginfo=info)
    return packed.getvalue()


def url(picture: Image.Image) -> str:
    """A picture as a data URL: what is shown needs no file."""
    return PREFIX + base64.b64encode(png(picture)).decode()


def _loading(way: Way, model: Model) -> list[str]:
    """Options that load the model as it is loaded here."""
    preset = ["--preset", way.preset] if way.preset else []
    precision = ["--precision", model.precision] if model.precision != "float32" else []
    return preset + precision + (["--raw"] if model.weights == "raw" else [])


def _load(way: Way, model: Model) -> str:
    arguments = [repr(way.model)] + ([f"preset={way.preset!r}"] if way.preset else [])
    arguments += [f"precision={model.precision!r}"] if model.precision != "float32" else []
    arguments += ["weights='raw'"] if model.weights == "raw" else []
    return f"mixar.load({', '.join(arguments)})"

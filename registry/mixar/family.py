"""A family of recipes for a folder of images: two tokenizers, a prior, MixAR and, to compare with, MAR.

family = mixar.family.plan_family(mixar.facts.look("photos"))
mixar.family.write_family(family, "own")
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import attrs
import torch
from attrs import frozen
from torch import Tensor

from mixar.assembly import build
from mixar.facts import DataFacts
from mixar.family_files import BASE, FILES
from mixar.memory import device_memory, training_memory
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import TRAINABLE, Recipe, load_plain, make_recipe
from mixar.run import make_objective, make_optimizer
from mixar.strict_yaml import dump
from mixar.text import duration
from mixar_core.data.dataset import ImageDataset
from mixar_core.data.folders import as_line
from mixar_core.distributed import own_device
from mixar_core.errors import UserError
from mixar_core.storage import is_free, user_path, whole_folder, write_text
from mixar_core.training.trainer import train as run_trainer
from mixar_core.types import NO_CLASS, Grid, ImageSize

#: in the order of their training
TRAINED = ("continuous", "discrete", "prior", "mixar")
#: fewer training images than this teach a model nothing but themselves
FEW = 100
#: largest sides that are proposed: what a machine trains in an evening
SIDE_CPU, SIDE_GPU = 64, 256
#: the steps of each recipe at `STEPS_AT` training images; they grow with the square root of the images
STEPS, STEPS_AT = {"continuous": 1200, "discrete": 1200, "prior": 600, "mixar": 1500}, 300
#: as few steps as a recipe ever has
LEAST = 5
#: steps that are timed, after one that is not
_TIMED = 3


@frozen
class Family:
    """Recipes that belong together, not written yet.

    Args:
        files: name -> text of a YAML file. Recipes name each other's runs as `runs/NAME`, beside the files.
        steps, seconds: of each recipe that is to be trained; seconds on this machine, empty where none were measured.
        reference: what to measure samples against: `data:validation`, or `data:train` where there is no validation.
        notes: what a person should know before training, a line each.
    """

    facts: DataFacts
    files: Mapping[str, str]
    steps: Mapping[str, int]
    seconds: Mapping[str, float]
    reference: str
    notes: tuple[str, ...]


def plan_family(
    facts: DataFacts,
    *,
    image_size: ImageSize | None = None,
    minutes: float = 240.0,
    device: torch.device | str | None = None,
    registry: Registry | None = None,
    measure: bool = True,
) -> Family:
    """Recipes fit for these images and this machine; their parts are checked to fit, and each is tried for some steps.

    Args:
        image_size: pixels of a side, or height and width; None: by the images, but no more than this machine trains in
            an evening.
        minutes: the longest that all trainings together may take here: steps are cut to it.
        device: None: this process's GPU if there is one.
        measure: False leaves the trial, and so `minutes`, out of account.

    Raises:
        UserError: there are no two training images, a size that cannot be halved, or a device that is not there.
    """
    registry, where = registry or plugin_manager(), own_device(device)
    images = facts.images.get("train", 0)
    if images < 2:
        raise UserError(f"{facts.data.get('path', facts.data['type'])}: {images} training images; needed: at least 2")
    gpu = where.type != "cpu"
    suggested, most = facts.image_size, SIDE_GPU if gpu else SIDE_CPU
    size = image_size or (min(suggested, most) if isinstance(suggested, int) else suggested)
    numbers = _numbers(Grid.of_pixels(size), images, gpu=gpu)
    steps = {name: _rounded(count * max(1.0, images / STEPS_AT) ** 0.5) for name, count in STEPS.items()}
    seconds: dict[str, float] = {}
    recipes = _recipes(_texts(facts, numbers, steps, {}), registry)
    for recipe in recipes.values():
        build(recipe, registry, meta=True)
    numbers |= _fitted(recipes, numbers, where, registry)
    notes = list(_notes(facts, images))
    if measure:
        recipes = _recipes(_texts(facts, numbers, steps, {}), registry)
        each = {name: seconds_a_step(recipes[name], registry, where) for name in TRAINED}
        wanted = sum(steps[name] * each[name] for name in TRAINED)
        if (share := minutes * 60 / wanted) < 1.0:
            steps = {name: _rounded(count * share) for name, count in steps.items()}
            notes.append(
                f"all the steps that so many images are worth would take {wanted / 60:,.0f} minutes here; they are cut "
                f"to {share:.0%} of that, to {minutes:,.0f} minutes (--minutes)"
            )
        seconds = {name: steps[name] * each[name] for name in TRAINED}
    texts = _texts(facts, numbers, steps, seconds)
    reference = "data:validation" if facts.images.get("validation", 0) > 1 else "data:train"
    return Family(facts, texts, steps, seconds, reference, tuple(notes))


def empty_folder(folder: str | Path) -> Path:
    """A folder that files may be written into.

    Raises:
        UserError: it is there already and not empty.
    """
    folder = user_path(folder)
    if not is_free(folder):
        raise UserError(f"{folder} is not an empty folder; choose a new one")
    return folder


def write_family(family: Family, folder: str | Path) -> Path:
    """Write the files into a folder, which appears whole or not at all.

    Raises:
        UserError: it is there already and not empty, or cannot be written.
    """
    folder = empty_folder(folder)
    with whole_folder(folder) as new:
        for name, text in family.files.items():
            write_text(new / f"{name}.yaml", text)
    return folder


def next_commands(family: Family, folder: Path) -> list[tuple[object, ...]]:
    """The words of what to run then, in this order, seen from the working directory."""
    runs, count = folder / "runs", max(10 * max(1, family.facts.num_classes), min(100, family.facts.images["train"]))
    measured = ("--reference", family.reference, "--count", count, "--codes-too", "--nearest")
    return [
        ("mixar", "train", *(folder / f"{name}.yaml" for name in TRAINED), "--out", runs),
        ("mixar", "sample", runs / "mixar", "--out", folder / "samples"),
        ("mixar", "eval", "generation", runs / "mixar", *measured, "--out", folder / "report"),
    ]


def seconds_a_step(recipe: Recipe, registry: Registry, device: torch.device) -> float:
    """Of a few training steps of this recipe, its frozen parts untrained, on noise."""
    assert recipe.training is not None
    batch = recipe.training.batch_size
    settings = attrs.evolve(
        recipe.training, steps=1 + _TIMED, warmup_steps=0, cache="memory", log_every=1, checkpoint_every=0
    )
    planned = build(recipe, registry, meta=True)
    objective = make_objective(build(recipe, registry, device=device), registry)
    with tempfile.TemporaryDirectory(prefix="mixar-new-") as scratch, redirect_stderr(StringIO()):  # notes of noise
        tried = run_trainer(
            objective,
            _Noise(batch, recipe),
            None,
            attrs.evolve(settings, evaluate_every=0, preview_every=0),
            Path(scratch) / "run",
            optimizer=make_optimizer(planned, registry),
            device=device,
        )
        if tried.stopped:  # the trainer took the signal, and would have another trial begin
            raise KeyboardInterrupt
        lines = [json.loads(line) for line in (Path(scratch) / "run/log.jsonl").read_text().splitlines()]
    rates = [line["images_per_second"] for line in lines if line["kind"] == "train"][1:]
    return sum(batch / rate for rate in rates) / len(rates)


class _Noise(ImageDataset):
    """As many images of noise as a batch has."""

    def __init__(self, count: int, recipe: Recipe) -> None:
        self.num_classes = recipe.num_classes
        self.class_names = tuple(str(label) for label in range(self.num_classes))
        draw = torch.Generator().manual_seed(0)
        grid = Grid.of_pixels(recipe.image_size)
        self._pixels = torch.randint(0, 256, (count, 3, grid.height, grid.width), generator=draw, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._pixels[index], self.labels()[index]

    def labels(self) -> list[int]:
        return [index % self.num_classes if self.num_classes else NO_CLASS for index in range(len(self))]


# ---------------------------------------------------------------- numbers


def _rounded(steps: float) -> int:
    """Two digits, and never none."""
    size = 10 ** max(0, int(math.log10(max(steps, 1.0))) - 1)
    return max(LEAST, round(steps / size) * size)


def _numbers(pixels: Grid, images: int, *, gpu: bool) -> dict[str, Any]:
    """What the templates hold, but for times and steps."""
    side, most = max(pixels.height, pixels.width), 256 if gpu else 24  # tokens: a step's time goes with their square
    strides = [size for size in (4, 8, 16, 32) if size > 4 or side < 32]
    fitting = [size for size in strides if pixels.height % size == pixels.width % size == 0]
    stride = next((size for size in fitting if pixels.tokens <= most * size**2), fitting[-1] if fitting else 0)
    if not stride:
        wrong = next(each for each in (pixels.height, pixels.width) if each % strides[0])
        raise UserError(f"image_size {wrong}: not a multiple of 8; {max(8, wrong // 8 * 8)} is one")
    finer = max(8, stride // 2) if stride > 8 else stride  # latents of 8 pixels: what an eye still sees of them
    scale = 0 if images < 2000 else 1 if images < 20_000 or not gpu else 2
    widths = [1, 2, 4, 8, 12, 16]
    at_once = 2 ** int(math.log2(images))  # no batch needs an image twice
    return {
        "image_size": side if pixels.height == pixels.width else [pixels.height, pixels.width],
        "bytes": 3 * pixels.tokens,
        "pixels": _by(pixels, 1),
        "stride": stride,
        "grid": _by(pixels, stride),
        "patch_size": stride // finer,
        "latent_grid": _by(pixels, finer),
        "continuous_levels": widths[: finer.bit_length()],
        "discrete_levels": widths[: stride.bit_length()],
        "channels": 64 if gpu else 24 if side <= 32 else 16,
        "bits": (10, 12, 14)[scale],
        "width": (192, 256, 512)[scale],
        "prior_depth": (6, 8, 12)[scale],
        "depth": (3, 4, 8)[scale],
        "heads": (4, 4, 8)[scale],
        "mlp_dim": 4 * (192, 256, 512)[scale],
        "head_width": (256, 384, 768)[scale],
        "dropout": (0.1, 0.0, 0.1)[scale],
        "batch_images": min(16, at_once),
        "batch_tokens": min(64, at_once),
        "sampling_steps": 32 if gpu else 8,
        "micro_images": "null",
        "micro_tokens": "null",
        "cache": "memory",
        "precision": "bf16" if gpu or "AVX512" in torch.backends.cpu.get_cpu_capability() else "float32",
        "ema": 0.99 if images < 2000 else 0.999,
        "images": images,
    }


def _by(pixels: Grid, stride: int) -> str:
    return f"{pixels.height // stride} x {pixels.width // stride}"


def _fitted(
    recipes: Mapping[str, Recipe], numbers: Mapping[str, Any], device: torch.device, registry: Registry
) -> dict[str, Any]:
    """Passes of fewer images, and images read anew, where the device's memory asks for it."""
    found: dict[str, Any] = {}
    capacity = device_memory(device)
    if capacity is None:
        return found
    host = device_memory(torch.device("cpu")) or capacity
    if 1e-9 * numbers["bytes"] * numbers["images"] > host / 4:
        found["cache"] = "none"
    for key, names in (("images", TRAINED[:2]), ("tokens", TRAINED[2:])):
        micro = batch = numbers[f"batch_{key}"]
        while micro > 1 and any(_needed(recipes[name], micro, registry) > capacity / 2 for name in names):
            micro //= 2
        if micro < batch:
            found[f"micro_{key}"] = micro
    return found


def _needed(recipe: Recipe, micro: int, registry: Registry) -> float:
    """Gigabytes of a training run; 0 where they cannot be counted."""
    assert recipe.training is not None
    changed = attrs.evolve(recipe, training=attrs.evolve(recipe.training, micro_batch=micro))
    needed = training_memory(build(changed, registry, meta=True))["training"]
    return 0.0 if isinstance(needed, str) else needed


def _notes(facts: DataFacts, images: int) -> list[str]:
    notes = []
    if images < FEW:
        notes.append(
            f"{images} training images are few: a model learns them by heart, and its samples will be copies of them; "
            "some hundreds are a beginning, or start from a trained model (init:)"
        )
    if "validation" not in facts.images:
        notes.append("there are no validation images: nothing tells learning from learning by heart")
    elif without := [n for n, count in zip(facts.class_names, facts.counts["validation"], strict=False) if not count]:
        notes.append(
            f"{len(without)} of {facts.num_classes} classes have no validation image: {as_line(', '.join(without))}"
        )
    if facts.leaks:
        notes.append(f"{len(facts.leaks)} validation images look like copies of training images: mixar data names them")
    if facts.kept < 0.75:
        notes.append(
            f"training sees {facts.kept:.0%} of an image's area on average; --image-size HxW takes another shape"
        )
    counts = facts.counts.get("train", ())
    if facts.num_classes == 1:
        notes.append("there is one class, so naming it says nothing; num_classes: 0 would do the same")
    if facts.num_classes > 1 and min(counts) * 20 < max(counts):
        least = facts.class_names[counts.index(min(counts))]
        notes.append(f"classes are uneven: {min(counts)} images of {least}, {max(counts)} of the largest class")
    if facts.unreadable:
        notes.append(f"{len(facts.unreadable)} images cannot be read, and are passed over")
    return notes


# ---------------------------------------------------------------- files


def _texts(
    facts: DataFacts, numbers: Mapping[str, Any], steps: Mapping[str, int], seconds: Mapping[str, float]
) -> dict[str, str]:
    """The files, by name."""
    names = ", ".join(facts.class_names[:5]) + (", ..." if facts.num_classes > 5 else "")
    classes = f"{names}; 0 makes a model without classes" if names else "no class folders: an unconditional model"
    told = {
        "classes": as_line(classes),
        "num_classes": facts.num_classes,
        "data": dump({"data": dict(facts.data)}).rstrip("\n"),
        "of_images": ", ".join(f"{count:,} {split}" for split, count in facts.images.items()),
        "suggested": facts.image_size,
        "max_unreadable": max(100, 2 * len(facts.unreadable)),
    }
    texts = {"base": BASE.format_map({**numbers, **told})}
    for name, text in FILES.items():
        count = steps.get(name, 0)
        batch = numbers["batch_images" if name in TRAINED[:2] else "batch_tokens"]
        own = {
            "steps": count,
            "warmup": max(1, count // 20),
            "evaluate": max(1, count // 5) if "validation" in facts.images else 0,
            "preview": max(1, count // 3),
            "takes": f"; about {duration(seconds[name])} here" if name in seconds else "",
            "seen": f"{max(1, round(count * batch / numbers['images'])):,}",
        }
        texts[name] = text.format_map({**numbers, **told, **own})
    return texts


def _recipes(texts: Mapping[str, str], registry: Registry) -> dict[str, Recipe]:
    """The recipes as if what they name were there: its settings in the place of its weights."""
    with tempfile.TemporaryDirectory(prefix="mixar-new-") as scratch:
        for name, text in texts.items():
            write_text(Path(scratch) / f"{name}.yaml", text)
        load = partial(load_plain, overrides=(), registry=registry)
        plains = {name: load(Path(scratch) / f"{name}.yaml") for name in texts if name != "base"}
    own = {plain["trains"]: plain for plain in plains.values()}
    for plain in plains.values():
        for key in TRAINABLE:
            if isinstance(plain.get(key), Mapping) and "weights" in plain[key]:
                plain[key] = own[key][key]
    return {name: make_recipe(plain, registry, where=f"recipe {name}") for name, plain in plains.items()}

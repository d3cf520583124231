"""Many images of one model: drawn in chunks that the processes of a `torchrun` share, and that survive a kill.

A chunk's noise is seeded by the seed and the chunk's number, so an image depends neither on how many processes there
are nor on interruptions. A finished chunk appears by rename; whoever comes next draws those that are missing.
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import attrs
import torch
from attrs import asdict, evolve, field, frozen
from attrs.validators import ge, in_, min_len
from torch import Tensor

from mixar.assembly import prior_draws_from_data
from mixar.described import plain_default
from mixar.folder import sha256, versions
from mixar.generation import batch_noise
from mixar.model import Model
from mixar.parts import construct
from mixar.plugins import Registry
from mixar.recipe import PART_KEYS, Recipe, to_plain
from mixar.structure import differences, key_of
from mixar.text import first_of
from mixar_core.data.streams import seed_of
from mixar_core.distributed import Processes, StopSignals
from mixar_core.errors import UserError
from mixar_core.model import SamplingConfig
from mixar_core.storage import FolderLock, write_text, writing
from mixar_core.types import NO_CLASS

if TYPE_CHECKING:
    from mixar.stores import PNGStore, RawStore

#: what a folder of samples says about itself, and how long drawing them took
MANIFEST, TIMING = "sample.json", "timing.json"
#: among the parts of a manifest only where codes are drawn from real images: how the data are called there
REAL = "data"
#: parts of a recipe that take part in sampling, besides those of PART_KEYS
_SHAPING = ("trains", "image_size", "num_classes")
_SAMPLER_OF_BEFORE = {"type": "cosine", "order": "random", "tokens_per_step": None}
#: of the manifest, what may differ between a run and its continuation
_FREE = ("name", "versions", "device", "class_names", "continued")
_LABELS = 1  # sub-stream of the seed for random labels; chunks use (seed, k) alone

#: called with images done, images in all, and images drawn by this call
Report = Callable[[int, int, int], object]


@frozen
class Plan:
    """What is drawn: together with the model it decides every image.

    Args:
        count: images. batch: images of a chunk, which are drawn at once. seed: of all noise.
        settings: how an image is drawn.
        classes: class numbers to draw from, NO_CLASS (-1) for none.
        labels: balanced (each of `classes` in turn, so equally often, or as nearly as `count` allows) or random
            (independently, uniformly). So `count` classes that are balanced are the images' labels, one by one.
    """

    count: int = field(validator=ge(1))
    batch: int = field(validator=ge(1))
    seed: int = field(validator=ge(0))
    settings: SamplingConfig
    classes: tuple[int, ...] = field(validator=min_len(1))
    labels: Literal["balanced", "random"] = field(default="balanced", validator=in_(("balanced", "random")))

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return -(-self.count // self.batch)

    @property
    def balanced(self) -> bool:
        """Whether every class is drawn exactly equally often."""
        drawn = Counter(self.labels_N().tolist())
        return self.labels == "balanced" and len({drawn[label] for label in self.classes}) == 1

    @property
    def in_words(self) -> str:
        """How often each class is drawn."""
        classes = len(set(self.classes))
        if classes == 1:
            return "no class" if self.classes[0] < 0 else f"all of class {self.classes[0]}"
        if self.labels == "random":
            return f"classes drawn at random among {classes}"
        low = self.count // classes
        if self.balanced:
            return f"exactly {low:,} of each of {classes:,} classes"
        return f"{low:,} or {low + 1:,} of each of {classes:,} classes ({self.count:,} does not divide by {classes:,})"

    def labels_N(self) -> Tensor:
        """The label of every image, int64 (count,)."""
        if self.labels == "balanced":
            picks = torch.arange(self.count) % len(self.classes)
        else:
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.count, _LABELS))
            picks = torch.randint(len(self.classes), (self.count,), generator=generator)
        return torch.tensor(self.classes)[picks]

    def rows(self, chunk: int) -> slice:
        """Which images a chunk holds."""
        return slice(chunk * self.batch, min((chunk + 1) * self.batch, self.count))

    def size(self, *chunks: int) -> int:
        """How many images these chunks hold."""
        return sum(self.rows(chunk).stop - self.rows(chunk).start for chunk in chunks)


def all_classes(model: Model) -> tuple[int, ...]:
    """Every class of a model; NO_CLASS alone of an unconditional one."""
    return tuple(range(model.recipe.num_classes)) or (NO_CLASS,)


def sampling_as(model: Model, recipe: Recipe, registry: Registry) -> Model:
    """The model, drawing as the sampler and the settings of another recipe of it say; the two share all weights.

    Raises:
        UserError: the model cannot.
    """
    from mixar.cost import planned_steps  # `mixar sample` needs none of what counts FLOP

    system = evolve(model.system, recipe=recipe)
    if (mixar := copy.copy(system.model)) is not None:
        mixar.sampler = construct(recipe, registry, "sampler")
        planned_steps(mixar, recipe.sampling, model.labels(all_classes(model)[0]))
    return evolve(model, system=evolve(system, model=mixar))


def describe(model: Model, plan: Plan) -> dict[str, Any]:
    """What decides the images, as plain values: the model by its parts and the digests of its weights, and the plan."""
    plain = to_plain(model.recipe)
    idle = {"extractor", "optimizer", "callbacks"} | (set() if prior_draws_from_data(model.recipe) else {REAL})
    parts = {key: plain[key] for key in (*_SHAPING, *PART_KEYS) if key in plain and key not in idle}
    for choice in parts.values():
        if isinstance(choice, dict):
            choice.pop("weights", None)  # a path; the file's digest says more
    return {
        "name": model.recipe.name,
        "model": {
            "weights": model.weights,
            "precision": model.precision,
            **({"compiled": True} if model.compiled else {}),
            "sha256": {key: sha256(file) for key, file in sorted(model.files.items())},
            "parts": parts,
        },
        "plan": asdict(plan),
        "class_names": list(model.class_names),
        "versions": versions(),
        "device": device_name(model.device, threads=False),
    }


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write what `describe` gives, and what was added to it, as MANIFEST or beside an `.npz`."""
    write_text(path, json.dumps(manifest, indent=2) + "\n")


def plan_of(folder: Path) -> tuple[dict[str, Any], Plan]:
    """What `read_manifest` gives of a folder of samples."""
    return read_manifest(folder / MANIFEST)


def read_manifest(path: Path) -> tuple[dict[str, Any], Plan]:
    """What a manifest says, and the plan in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        manifest = found if "plan" in found else _of_before(found)
        plain, parts = dict(manifest["plan"]), manifest["model"]["parts"]
        if "type" not in parts.get("backbone", {"type": ""}):  # written when there was one backbone and one sampler
            parts["backbone"]["type"], parts["sampler"] = "masked", dict(_SAMPLER_OF_BEFORE)
        settings = SamplingConfig(**plain.pop("settings"))
        return manifest, Plan(**{**plain, "classes": tuple(plain["classes"])}, settings=settings)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: does not say what was drawn, as mixar writes it; give another folder") from error


def _of_before(found: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest of what an older `mixar sample` wrote without --count: settings and labels in one row."""
    labels = [int(label) for label in found["labels"]]
    settings = {key: found[key] for key in asdict(SamplingConfig()) if key in found}
    plan = {"count": len(labels), "batch": found["batch"], "seed": found["seed"], "classes": labels}
    weights = "raw" if found["raw"] else "ema"
    return {
        "name": found["model"],
        "model": {"weights": weights, "precision": found["precision"], "sha256": {}, "parts": {}},
        "plan": {**plan, "settings": settings},
        "class_names": [],
        "versions": {},
        "device": "not known",
    }


@frozen
class Timing:
    """How long drawing took: images, and seconds summed over the processes that drew them."""

    images: int = 0
    seconds: float = 0.0

    @property
    def seconds_per_image(self) -> float | None:
        """Of one process."""
        return self.seconds / self.images if self.images else None


def timing_of(folder: Path) -> Timing:
    """How long drawing the samples in a folder took, interrupted calls included; empty where nothing is noted."""
    try:
        return Timing(**json.loads((folder / TIMING).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Timing()


def with_timing(manifest: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """How the samples in a folder were drawn: its manifest, and the seconds that one process took for an image."""
    return {**manifest, "seconds_per_image_and_process": timing_of(folder).seconds_per_image}


def _defaults(recipe: Recipe, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of the parts in a manifest, what they do where a setting is not given, as `describe` writes it."""
    configs = {key: getattr(recipe, key).config for key in manifest["model"]["parts"] if key in PART_KEYS}
    plain = {
        key: {
            key_of(f.name): plain_default(f.default)
            for f in attrs.fields(type(config))
            if f.init and f.default is not attrs.NOTHING
        }
        for key, config in configs.items()
    }
    found: dict[str, dict[str, Any]] = json.loads(json.dumps(plain))
    return found


def claim(folder: Path, manifest: Mapping[str, Any], recipe: Recipe | None = None) -> dict[str, Any]:
    """Make `folder` the place of these samples, or see that it is; what it then says of itself.

    Settings of the recipe's parts that it does not have, because there were none such then, have their defaults. Of an
    earlier call's folder that is what it said before, with this call under `continued` where it computes with other
    versions or on another device. A folder of anything else, and of other samples, is refused.
    """
    with writing(folder):
        folder.resolve().mkdir(parents=True, exist_ok=True)
        if not (folder / MANIFEST).is_file():
            if any(not entry.name.endswith(".unfinished") for entry in folder.iterdir()):
                raise UserError(f"{folder}: holds something else than samples; give another folder")
            write_manifest(folder / MANIFEST, manifest)
            return dict(manifest)
        then, plan = plan_of(folder)
        for key, defaults in ({} if recipe is None else _defaults(recipe, manifest)).items():
            then["model"]["parts"][key] = defaults | then["model"]["parts"].get(key, {})
        now = json.loads(json.dumps(manifest))
        changed = differences(*({k: v for k, v in side.items() if k not in _FREE} for side in (then, now)))
        if changed:
            raise UserError(
                f"{folder}: holds other samples ({plan.count:,} of {then['name']}): {first_of(changed)}; "
                "go on with what was, or give another folder"
            )
        with closing(FolderLock(folder)) as lock:
            lock.take()
            for left in folder.glob(".*.unfinished"):  # of a process that was killed while writing
                left.unlink(missing_ok=True)
        means = {key: now[key] for key in ("versions", "device")}
        if means not in (calls := [{key: then.get(key) for key in means}, *then.get("continued", ())]):
            then["continued"] = [*calls[1:], means]
            write_manifest(folder / MANIFEST, then)
        return then


def draw_chunks(
    model: Model,
    plan: Plan,
    store: PNGStore | RawStore,
    processes: Processes,
    *,
    signals: StopSignals,
    report: Report = lambda done, total, fresh: None,
) -> bool:
    """Draw the chunks that are missing, each process its share; every process calls this, another call waits.

    All take a chunk each, then hear of each other: so they stop together, and no one waits longer than for a chunk.
    What one of them cannot do ends all.

    Args:
        signals: of a wish to stop, in any of the processes; the present chunks are finished first.
        report: called in the main process.

    Returns:
        whether all chunks are there.
    """
    with closing(FolderLock(store.folder)) as lock:
        processes.on_main(lock.take)
        return _draw_missing(model, plan, store, processes, signals, report)


def _draw_missing(
    model: Model, plan: Plan, store: PNGStore | RawStore, processes: Processes, signals: StopSignals, report: Report
) -> bool:
    files = processes.all_gather({key: str(file) for key, file in model.files.items()})
    for key, file in files[0].items():
        if other := next((some.get(key) for some in files if some.get(key) != file), None):
            raise processes.common_error(
                f"{key}: some processes found {file}, others {other}: its run wrote one meanwhile; repeat the command"
            )
    missing: list[int] = processes.on_main(lambda: sorted(set(range(plan.chunks)) - store.done()))
    timing, drawn = timing_of(store.folder), 0
    had = plan.count - plan.size(*missing)
    if processes.is_main:
        report(had, plan.count, 0)
    for first in range(0, len(missing), processes.world):
        turn = missing[first : first + processes.world]
        problem, took = None, 0.0
        if processes.rank < len(turn):
            try:
                took = _draw_chunk(model, plan, turn[processes.rank], store)
            except UserError as error:
                problem = str(error)
        stops, problems, times = zip(*processes.all_gather((signals.requested, problem, took)), strict=True)
        if any(problems):
            raise processes.common_error(next(filter(None, problems)))
        fresh = plan.size(*turn)
        drawn, timing = drawn + fresh, Timing(timing.images + fresh, timing.seconds + sum(times))
        if processes.is_main:
            write_text(store.folder / TIMING, json.dumps(asdict(timing)) + "\n")
            report(had + drawn, plan.count, drawn)
        if any(stops):
            return first + len(turn) == len(missing)
    return True


def _draw_chunk(model: Model, plan: Plan, chunk: int, store: PNGStore | RawStore) -> float:
    """Seconds that drawing it took."""
    labels_B = model.labels(plan.labels_N()[plan.rows(chunk)])
    began = time.perf_counter()
    images_B3HW, _, _ = model.draw(labels_B, plan.settings, batch_noise(plan.seed, chunk))
    took = time.perf_counter() - began
    store.write(chunk, images_B3HW)
    return took


def device_name(device: torch.device, *, threads: bool = True) -> str:
    """What computes, in words; `threads`: of a CPU with how many."""
    if device.type == "cuda":
        return f"{device.type} ({torch.cuda.get_device_name(device)})"
    return f"{device.type} ({torch.get_num_threads()} threads)" if device.type == "cpu" and threads else device.type


def manifest_beside(npz: Path) -> Path:
    """Where `mixar sample --npz` says how the images of the file were drawn."""
    return npz.with_name(f"{npz.name}.json")

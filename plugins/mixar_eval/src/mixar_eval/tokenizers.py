"""`mixar eval tokenizer`: several tokenizers over the same images, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from mixar.folder import sha256
from mixar.model import load
from mixar.plugins import Registry
from mixar.recipe import Recipe
from mixar_core.errors import UserError
from mixar_core.tokenizer import ContinuousTokenizer, Tokenizer
from mixar_eval.context import EvalContext
from mixar_eval.features import as_saved, features_of, own_positions, together
from mixar_eval.images import Images, ImageSet, open_images, other_split
from mixar_eval.references import Reference, rank_notes
from mixar_eval.scores import Floor, Scores, distances_of
from mixar_eval.statistics import Gaussian
from mixar_eval.tokenizer_meter import TokenizerMeter, TokenizerScores

#: pixels that SSIM's window needs
SMALLEST = 11


@frozen(eq=False)
class Entry:
    """A tokenizer to measure: its name in the report, what model it is of, and the digest of its weights."""

    name: str
    tokenizer: Tokenizer
    recipe: Recipe
    type: str
    weights_sha256: str | None


@frozen(eq=False)
class Chosen:
    """The images to reconstruct, `indices_A` of `images`; and as many other real ones, where there are so many."""

    images: ImageSet
    indices_A: Tensor
    others: ImageSet | None = None
    others_A: Tensor = field(factory=lambda: torch.empty(0, dtype=torch.int64))
    between: str = ""


@frozen(eq=False)
class Comparison:
    """Everything measured.

    Args:
        chosen: the images.
        reference: what reconstructions are measured against. paired: whether that is their originals.
        floor: real images against other real ones at the same count: what no tokenizer is expected to pass.
        distances: of an entry's reconstructions to the reference, by entry's name and way. scores: by entry's name.
    """

    chosen: Chosen
    reference: Reference
    paired: bool
    floor: Floor
    distances: Mapping[str, Mapping[str, Scores]]
    scores: Mapping[str, TokenizerScores]


def open_tokenizers(names: Sequence[str], registry: Registry, device: torch.device) -> list[Entry]:
    """The tokenizers of these models: a shipped name, a model folder or a run; both of a MixAR.

    Raises:
        UserError: there is no such model, or they are of different image sizes.
    """
    entries: list[Entry] = []
    for name in dict.fromkeys(names):
        model = load(name, device=device, registry=registry)
        there = [
            key for key in ("continuous_tokenizer", "discrete_tokenizer") if getattr(model.system, key) is not None
        ]
        for key in there:
            kind = key.removesuffix("_tokenizer")
            file = model.files.get(key)
            choice = getattr(model.recipe, key)
            entries.append(
                Entry(
                    name if len(there) == 1 and model.recipe.trains == key else f"{name}: {kind}",
                    getattr(model.system, key),
                    model.recipe,
                    f"{kind} ({choice.type})",
                    None if file is None else sha256(file),
                )
            )
    first = entries[0]
    for entry in entries:
        if entry.recipe.image_size != first.recipe.image_size:
            raise UserError(
                f"{first.name} is of {first.recipe.image_size} pixels and {entry.name} of {entry.recipe.image_size}; "
                f"tokenizers of one image size compare"
            )
    if first.recipe.image_size < SMALLEST:
        raise UserError(f"{first.name}: images of {first.recipe.image_size} pixels; SSIM needs {SMALLEST} or more")
    return entries


def choose(data: Images, count: int | None, *, seed: int, least: int, recipe: Recipe, registry: Registry) -> Chosen:
    """`count` images of what `data` names (see `open_images`), at random by `seed`, and as many other real ones.

    Args:
        count: None: all there are. least: of which there must be so many.

    Raises:
        UserError: there are too few.
    """
    images = open_images(data, registry, recipe=recipe)
    count = len(images) if count is None else count
    if not least <= count <= len(images):
        raise UserError(f"--images {count}: {data} has {len(images):,}; allowed: {least} to {len(images)}")

    def shuffled(size: int) -> Tensor:
        return torch.randperm(size, generator=torch.Generator().manual_seed(seed))

    order_A = shuffled(len(images))
    chosen = Chosen(images, order_A[:count].sort().values)
    if len(images) >= 2 * count:
        others_A = order_A[count : 2 * count].sort().values
        return evolve(chosen, others=images, others_A=others_A, between="other images of the same set")
    if (other := other_split(data)) is not None:
        try:
            others = open_images(other, registry, recipe=recipe)
        except UserError:  # a data set need not have two splits
            return chosen
        if len(others) >= count:
            between = f"images of the {others.description.partition(':')[0]}"
            others_A = shuffled(len(others))[:count].sort().values
            return evolve(chosen, others=others, others_A=others_A, between=between)
    return chosen


def compare_tokenizers(
    entries: Sequence[Entry], chosen: Chosen, context: EvalContext, *, reference: Reference | None = None, seed: int = 0
) -> Comparison:
    """Reconstruct and measure; every process calls this with the same arguments.

    Args:
        entries: tokenizers on the processes' device, all of one image size.
        reference: what reconstructions are measured against; None: their originals, as reconstruction FID has it.
        seed: of the samples from continuous tokenizers' posteriors.

    Raises:
        UserError: an image cannot be read. Stopped: a signal came.
    """
    count, extractor, paired = len(chosen.indices_A), context.extractor, reference is None
    real_AF = features_of(chosen.images, context, "originals", indices_A=chosen.indices_A).features_AF
    if reference is not None:
        against, some_AF, what = reference, real_AF, "the originals themselves, to the reference"
    else:
        # Without vectors, and so without a kernel distance: it takes the sets to be drawn independently, and an image
        # and its own reconstruction would bring it below zero.
        gaussian = Gaussian.of(real_AF, extractor=extractor.identity)
        reference = Reference(f"the same {count:,} images", gaussian, None, notes=rank_notes(count, extractor))
        if chosen.others is None:
            against, some_AF = Reference("half", Gaussian.of(real_AF[::2]), None), real_AF[1::2]
            what = "one half of the images, to the other"
        else:
            others = features_of(chosen.others, context, "real images for the floor", indices_A=chosen.others_A)
            against, some_AF, what = reference, others.features_AF, f"{count:,} {chosen.between}, to the originals"
    meters = {entry.name: TokenizerMeter(entry.tokenizer, extractor, seed=seed) for entry in entries}
    _reconstruct(meters, chosen, context)
    scores = {name: meter.scores(context.processes) for name, meter in meters.items()}

    def distances() -> tuple[Floor, dict[str, dict[str, Scores]]]:
        return Floor(distances_of(some_AF, against), what), {
            name: {way: distances_of(found.features_AF, reference) for way, found in result.ways.items()}
            for name, result in scores.items()
        }

    floor, apart = context.processes.on_main(distances)
    return Comparison(chosen, reference, paired, floor, apart, scores)


def _reconstruct(meters: Mapping[str, TokenizerMeter], chosen: Chosen, context: EvalContext) -> None:
    """Put this process's images through every meter.

    Raises:
        UserError, Stopped: see `compare_tokenizers`.
    """
    count, processes, show = len(chosen.indices_A), context.processes, context.show("reconstructing")
    per_image = sum(2 if isinstance(meter.tokenizer, ContinuousTokenizer) else 1 for meter in meters.values())

    def work() -> None:
        mine = own_positions(count, context)
        wanted = chosen.indices_A[torch.cat(mine)] if mine else chosen.indices_A[:0]
        batches = chosen.images.batches(wanted, batch_size=context.batch_size, workers=context.workers)
        done = 0
        for positions_B, pixels_B3HW in zip(mine, batches, strict=True):
            real_B3HW = as_saved(pixels_B3HW.to(processes.device))
            for meter in meters.values():
                meter.add(real_B3HW, positions_B)
            done += len(positions_B)
            if processes.is_main:
                shown = min(done * processes.world, count) * per_image
                show(shown, count * per_image, shown)
            if context.signals.requested:
                return

    together(context, work)


def reconstruct_few(
    entries: Sequence[Entry], chosen: Chosen, context: EvalContext, *, seed: int, count: int
) -> dict[str, Tensor]:
    """A few images, evenly spread, and each tokenizer's reconstructions of them, uint8, by name: rows of a picture."""
    size = len(chosen.indices_A)
    positions_B = torch.linspace(0, size - 1, min(count, size)).long()  # sets often come class after class
    pixels_B3HW = torch.cat(list(chosen.images.batches(chosen.indices_A[positions_B])))
    rows = {"original": pixels_B3HW}
    for entry in entries:
        meter = TokenizerMeter(entry.tokenizer, context.extractor, seed=seed)
        found = meter.add(as_saved(pixels_B3HW.to(context.processes.device)), positions_B)
        rows |= {row_name(entry.name, way): images.cpu() for way, images in found.items()}
    return rows


def row_name(entry: str, way: str) -> str:
    """How a way to reconstruct is called in reports: a discrete tokenizer has but one."""
    return entry if way == "codes" else f"{entry}, {way}"

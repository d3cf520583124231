"""The feature vectors of a set of images: found by all processes together, kept on disk by content if asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from attrs import frozen
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.pictures import to_uint8
from mixar_core.storage import read_weights, write_weights, writing
from mixar_eval.context import EvalContext, Stopped
from mixar_eval.distances import Gaussian, GaussianSum
from mixar_eval.images import ImageSet

_Found = TypeVar("_Found")


@frozen(eq=False)
class Features:
    """What an extractor made of a set: vectors (A, F) and, where it classifies, logits (A, L); float32, on the CPU.

    Args:
        rows_A: which image of the set each is of; None: in the order of the set.
    """

    features_AF: Tensor
    logits_AL: Tensor | None = None
    rows_A: Tensor | None = None

    def __len__(self) -> int:
        return len(self.features_AF)

    def in_order(self) -> Features:
        """The same in the order of the set."""
        if self.rows_A is None:
            return self
        order_A = self.rows_A.argsort()
        return Features(self.features_AF[order_A], None if self.logits_AL is None else self.logits_AL[order_A])


def as_saved(images_B3HW: Tensor) -> Tensor:
    """Images as a PNG holds them, float in [-1, 1] on 256 levels: what every metric must see.

    Args:
        images_B3HW: uint8, or float in [-1, 1] (values outside are clipped).
    """
    pixels = images_B3HW if images_B3HW.dtype == torch.uint8 else to_uint8(images_B3HW)
    return pixels.float() / 127.5 - 1.0


@torch.no_grad()
def extract(images_B3HW: Tensor, extractor: FeatureExtractor) -> dict[str, Tensor]:
    """What the extractor makes of images, as saved (see as_saved), on the same device.

    Returns:
        `features` (B, F) and, where it classifies, `logits` (B, L); float32, on the CPU.
    """
    found = extractor.outputs(as_saved(images_B3HW))
    both = {"features": found.features_BF, "logits": found.logits_BL}
    return {name: rows.float().cpu() for name, rows in both.items() if rows is not None}


class Batches(Protocol):
    """Images that can be had at given places, a batch at a time: an ImageSet, or what is drawn when it is asked for."""

    def __len__(self) -> int: ...

    def batches(self, indices: Tensor, batch_size: int, workers: int) -> Iterator[Tensor]:
        """Images uint8 (B, 3, H, W) at `indices`, in that order."""
        ...


def features_of(images: Batches, context: EvalContext, what: str, *, cache: Path | None = None) -> Features:
    """The features of a set, in every process. Which images make a batch does not depend on how many processes share.

    In the order of the set; with `cache` in an order that is the images' own and not that of their files. (Scores over
    random parts would else depend on the files' order.)

    Args:
        what: shown while it works.
        cache: a folder where a batch's features are kept under a name made of its pixels and the extractor, so that
            they are found again after an interruption and never taken for another's.

    Raises:
        UserError: an image cannot be read or a file not be written, in any of the processes.
        Stopped: a signal came.
    """
    return features_of_each(images, context, [context.extractor], what, cache=cache)[0]


def features_of_each(
    images: Batches,
    context: EvalContext,
    extractors: Sequence[FeatureExtractor],
    what: str,
    *,
    cache: Path | None = None,
) -> list[Features]:
    """What `features_of` gives, of several extractors that see each batch when it is there."""
    device = context.processes.device
    parts: list[tuple[list[int] | list[bytes], Tensor, list[dict[str, Tensor]]]] = []

    def work(positions_B: Tensor, pixels_B3HW: Tensor) -> int:
        if cache is None:
            found = [extract(pixels_B3HW.to(device), extractor) for extractor in extractors]
            parts.append((positions_B.tolist(), positions_B, found))
            return len(pixels_B3HW)
        with writing(cache):
            cache.mkdir(parents=True, exist_ok=True)
        digests = [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in pixels_B3HW]
        found, fresh = [], 0
        for extractor in extractors:
            name = hashlib.sha256(extractor.identity.encode() + b"".join(digests)).hexdigest()[:32]
            path = cache / f"{name}.safetensors"
            if not path.is_file():
                write_weights(path, extract(pixels_B3HW.to(device), extractor))
                fresh = len(pixels_B3HW)
            found.append(read_weights(path))
        parts.append((digests, positions_B, found))
        return fresh

    over_batches(images, context, what, work)
    parts = [part for some in context.processes.all_gather(parts) for part in some]
    keys = [key for some, *_ in parts for key in some]
    order_A = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
    rows_A = torch.cat([positions_B for _, positions_B, _ in parts])[order_A]
    each = []
    for index in range(len(extractors)):
        found = [some[index] for *_, some in parts]
        tensors = {name: torch.cat([rows[name] for rows in found])[order_A] for name in found[0]}
        each.append(Features(tensors["features"], tensors.get("logits"), rows_A))
    return each


def features_of_readable(
    images: ImageSet, context: EvalContext, what: str, *, cache: Path | None = None
) -> tuple[ImageSet, Features]:
    """The features of real images, and the images that they are of: those that cannot be read are left out, as in
    training, with a note. In the order of the set."""
    images, found = _of_readable(images, partial(features_of, context=context, what=what, cache=cache))
    return images, found.in_order()


def gaussian_of_readable(images: ImageSet, context: EvalContext, what: str) -> tuple[ImageSet, Gaussian]:
    """The Gaussian of many real images, none of whose features are kept, and the images that it is of, as of
    `features_of_readable`."""
    return _of_readable(images, partial(_gaussian_of, context=context, what=what))


def _of_readable(images: ImageSet, measure: Callable[[ImageSet], _Found]) -> tuple[ImageSet, _Found]:
    try:
        return images, measure(images)
    except UserError:
        good = images.readable()
        if len(good) in (0, len(images)):
            raise
        return good, measure(good)


def _gaussian_of(images: ImageSet, context: EvalContext, what: str) -> Gaussian:
    total = GaussianSum(context.extractor.feature_dim)

    def work(positions_B: Tensor, pixels_B3HW: Tensor) -> int:
        total.add(extract(pixels_B3HW.to(context.processes.device), context.extractor)["features"])
        return len(pixels_B3HW)

    over_batches(images, context, what, work)
    return total.gaussian(extractor=context.extractor.identity, processes=context.processes)


def over_batches(images: Batches, context: EvalContext, what: str, work: Callable[[Tensor, Tensor], int]) -> None:
    """Hand every batch of a set to `work`, each process every n-th of them, and hear how the others fared.

    Args:
        what: shown while it works.
        work: called with positions (B,) in the set and uint8 images (B, 3, H, W); tells how many were not known before.

    Raises:
        UserError: of the first process where it failed.
        Stopped: a signal came to any of them.
    """
    total, processes, show = len(images), context.processes, context.show(what)
    mine = torch.arange(total).split(context.batch_size)[processes.rank :: processes.world]
    done = fresh = 0
    problem = None
    try:
        # only a set's last batch is shorter, so a process's batches put together part into the same ones again
        loaded = images.batches(torch.cat(mine), context.batch_size, context.workers) if mine else ()
        for positions_B, pixels_B3HW in zip(mine, loaded, strict=True):
            fresh += work(positions_B, pixels_B3HW)
            done += len(positions_B)
            if processes.is_main:
                show(min(done * processes.world, total), total, min(fresh * processes.world, total))
            if context.signals.requested:
                break
    except UserError as error:
        problem = str(error)
    problems, stops = zip(*processes.all_gather((problem, context.signals.requested)), strict=True)
    if any(problems):
        raise processes.common_error(next(filter(None, problems)))
    if any(stops):
        raise Stopped

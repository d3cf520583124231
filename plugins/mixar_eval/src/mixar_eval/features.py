"""The feature vectors of a set of images: found by all processes together, kept on disk by content if asked."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from attrs import frozen
from torch import Tensor

from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.pictures import to_uint8
from mixar_core.storage import read_weights, write_weights, writing
from mixar_core.types import ImageBatch
from mixar_eval.context import EvalContext, Stopped
from mixar_eval.images import ImageSet
from mixar_eval.statistics import Gaussian, GaussianSum


@frozen(eq=False)
class Features:
    """What an extractor made of a set: vectors (A, F) and, where it classifies, logits (A, L); float32, on the CPU."""

    features_AF: Tensor
    logits_AL: Tensor | None = None

    def __len__(self) -> int:
        return self.features_AF.shape[0]


def as_saved(images_B3HW: Tensor) -> Tensor:
    """Images as a PNG holds them, float in [-1, 1] on 256 levels: what every metric must see.

    Args:
        images_B3HW: uint8, or float in [-1, 1] (values outside are clipped).
    """
    pixels = images_B3HW if images_B3HW.dtype == torch.uint8 else to_uint8(images_B3HW)
    return pixels.float() / 127.5 - 1.0


@torch.no_grad()
def collect_features(
    batches: Iterable[Tensor | ImageBatch],
    extractor: FeatureExtractor,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int], object] | None = None,
) -> Features:
    """Run every batch through the extractor, as saved (see as_saved), in order.

    Args:
        batches: images (B, 3, H, W), uint8 or float in [-1, 1], or ImageBatches of them.
        extractor: on `device`.
        progress: called after each batch with its number of images.
    """
    features, logits = [torch.empty(0, extractor.feature_dim)], [torch.empty(0, extractor.logit_dim)]
    for batch in batches:
        images = batch.images_B3HW if isinstance(batch, ImageBatch) else batch
        found = extractor.outputs(as_saved(images.to(device)))
        features.append(found.features_BF.float().cpu())
        if found.logits_BL is not None:
            logits.append(found.logits_BL.float().cpu())
        if progress is not None:
            progress(len(images))
    return Features(torch.cat(features), torch.cat(logits) if extractor.logit_dim else None)


def features_of(
    images: ImageSet,
    context: EvalContext,
    what: str,
    *,
    indices_A: Tensor | None = None,
    cache: Path | None = None,
) -> Features:
    """The features of a set, in every process. Which images make a batch does not depend on how many processes share.

    In the order of `indices_A` (default: all); with `cache` in an order that is the images' own and not that of their
    files. (Scores over random parts would else depend on the files' order.)

    Args:
        what: shown while it works.
        cache: a folder where a batch's features are kept under a name made of its pixels and the extractor, so that
            they are found again after an interruption and never taken for another's.

    Raises:
        UserError: an image cannot be read or a file not be written, in any of the processes.
        Stopped: a signal came.
    """
    indices_A = torch.arange(len(images)) if indices_A is None else indices_A
    keys: list[int | bytes] = []
    parts: list[Features] = []

    def collect() -> None:
        if cache is not None:
            with writing(cache):
                cache.mkdir(parents=True, exist_ok=True)
        for positions, digests, part in _batches(images, indices_A, context, what, cache):
            keys.extend(digests or positions)
            parts.append(part)

    extractor = context.extractor
    together(context, collect)
    features = torch.cat([torch.empty(0, extractor.feature_dim), *(part.features_AF for part in parts)])
    logits = torch.cat([torch.empty(0, extractor.logit_dim), *(p.logits_AL for p in parts if p.logits_AL is not None)])
    all_keys, all_features, all_logits = zip(*context.processes.all_gather((keys, features, logits)), strict=True)
    flat = [key for some in all_keys for key in some]
    order_A = torch.tensor(sorted(range(len(flat)), key=flat.__getitem__), dtype=torch.int64)
    return Features(torch.cat(all_features)[order_A], torch.cat(all_logits)[order_A] if extractor.logit_dim else None)


def gaussian_of(images: ImageSet, context: EvalContext, what: str) -> Gaussian:
    """The Gaussian of a set of many images, none of whose features are kept.

    Raises:
        UserError, Stopped: see `features_of`.
    """
    total = GaussianSum(context.extractor.feature_dim)

    def collect() -> None:
        for _, _, part in _batches(images, torch.arange(len(images)), context, what, None):
            total.add(part.features_AF)

    together(context, collect)
    return total.gaussian(extractor=context.extractor.identity, processes=context.processes)


def together(context: EvalContext, work: Callable[[], None]) -> None:
    """Do this process's part of a work, and hear how the others fared.

    Raises:
        UserError: of the first process where it failed.
        Stopped: a signal came to any of them.
    """
    problem = None
    try:
        work()
    except UserError as error:
        problem = str(error)
    problems, stops = zip(*context.processes.all_gather((problem, context.signals.requested)), strict=True)
    if any(problems):
        raise context.processes.common_error(next(filter(None, problems)))
    if any(stops):
        raise Stopped


def own_positions(count: int, context: EvalContext) -> list[Tensor]:
    """The positions, batch by batch, of this process's part of `count` images: every n-th batch."""
    processes = context.processes
    return list(torch.arange(count).split(context.batch_size)[processes.rank :: processes.world])


def _batches(
    images: ImageSet, indices_A: Tensor, context: EvalContext, what: str, cache: Path | None
) -> Iterator[tuple[list[int], list[bytes], Features]]:
    """Of each of this process's batches the positions, with `cache` the images' digests, and the features."""
    total, world, done, had = len(indices_A), context.processes.world, 0, 0
    mine, show = own_positions(total, context), context.show(what)
    # only a set's last batch is shorter, so a process's batches put together part into the same ones again
    wanted = indices_A[torch.cat(mine)] if mine else indices_A[:0]
    loaded = images.batches(wanted, batch_size=context.batch_size, workers=context.workers)
    for positions_B, pixels_B3HW in zip(mine, loaded, strict=True):
        digests, path = [], None
        if cache is not None:
            digests = [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in pixels_B3HW]
            name = hashlib.sha256(context.extractor.identity.encode() + b"".join(digests)).hexdigest()[:32]
            path = cache / f"{name}.safetensors"
        if path is not None and path.is_file():
            tensors = read_weights(path)
            part = Features(tensors["features"], tensors.get("logits"))
            had += len(pixels_B3HW)
        else:
            part = collect_features([pixels_B3HW], context.extractor, device=context.processes.device)
            if path is not None:
                logits = {} if part.logits_AL is None else {"logits": part.logits_AL}
                write_weights(path, {"features": part.features_AF, **logits})
        done += len(pixels_B3HW)
        if context.processes.is_main:
            show(min(done * world, total), total, min((done - had) * world, total))
        yield positions_B.tolist(), digests, part
        if context.signals.requested:
            return

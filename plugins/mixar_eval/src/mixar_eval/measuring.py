"""From images to figures: features a chunk at a time, kept on disk by content, and the scores made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from attrs import frozen
from torch import Tensor

from mixar.sampling import Report
from mixar_core.data.streams import seed_of
from mixar_core.distributed import Processes, StopSignals
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.storage import read_weights, write_weights, writing
from mixar_eval.distances import SEED, frechet_of, kernel_distance
from mixar_eval.features import Features, collect_features
from mixar_eval.images import ImageSet
from mixar_eval.references import Reference
from mixar_eval.scores import InceptionScore, inception_score, precision_recall
from mixar_eval.statistics import Gaussian

#: splits of the Inception Score, neighbours of precision and recall: as in the papers that introduced them
SPLITS, NEIGHBOURS = 10, 3


class Stopped(Exception):
    """A signal asked to stop; what was finished is on disk, and the same call goes on from there."""


@frozen
class Scores:
    """What was measured of `count` images. None is what could not be: see `scores_of`.

    Args:
        frechet: to the reference; FID where the features are Inception's. kernel: likewise, KID.
        precision, recall: shares of images near the other set's.
    """

    count: int
    frechet: float
    kernel: float | None = None
    inception: InceptionScore | None = None
    precision: float | None = None
    recall: float | None = None


@frozen
class Floor:
    """Real images measured as if they were drawn ones: what no model is expected to pass; `what` says which."""

    scores: Scores
    what: str


def features_of(
    images: ImageSet,
    extractor: FeatureExtractor,
    folder: Path,
    processes: Processes,
    *,
    signals: StopSignals,
    batch: int = 64,
    workers: int = 0,
    report: Report | None = None,
) -> Features | None:
    """The features of a set, in the main process, in an order that is the images' own and not that of their files.

    A chunk's features are kept under a name made of its pixels and the extractor, so that they are found again after
    an interruption and never taken for another's. (Scores over random parts would else depend on the files' order.)

    Args:
        folder: where features are kept. batch: images of a chunk.
        report: called in the main process.

    Raises:
        UserError: an image cannot be read or a file not be written, in any of the processes.
        Stopped: a signal came.
    """
    identity = extractor.identity
    chunks = torch.arange(len(images)).split(batch)
    mine = chunks[processes.rank :: processes.world]
    found: list[tuple[str, list[bytes]]] = []
    problem, had, done = None, 0, 0
    try:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        # only a set's last chunk is shorter, so a process's chunks put together part into the same ones again
        indices = torch.cat(mine) if mine else torch.arange(0)
        for pixels_B3HW in images.batches(indices, batch_size=batch, workers=workers):
            digests = [hashlib.blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in pixels_B3HW]
            name = hashlib.sha256(identity.encode() + b"".join(digests)).hexdigest()[:32]
            path = folder / f"{name}.safetensors"
            if path.is_file():
                had += len(pixels_B3HW)
            else:
                _write(path, collect_features([pixels_B3HW], extractor, device=processes.device))
            found.append((name, digests))
            done += len(pixels_B3HW)
            if report is not None and processes.is_main:
                everyone = min(done * processes.world, len(images))
                report(everyone, len(images), min((done - had) * processes.world, len(images)))
            if signals.requested:
                break
    except UserError as error:
        problem = str(error)
    told = processes.all_gather((found, problem, signals.requested))
    if problem := next((text for _, text, _ in told if text), None):
        raise processes.common_error(problem)
    if any(stop for _, _, stop in told):
        raise Stopped
    if not processes.is_main:
        return None
    parts = [_read(folder / f"{name}.safetensors") for of_process, _, _ in told for name, _ in of_process]
    digests = [digest for of_process, _, _ in told for _, some in of_process for digest in some]
    order = torch.tensor(sorted(range(len(digests)), key=digests.__getitem__))
    logits = [part.logits_AL for part in parts if part.logits_AL is not None]
    features_AF = torch.cat([part.features_AF for part in parts])[order]
    return Features(features_AF, torch.cat(logits)[order] if logits else None)


def scores_of(found: Features, reference: Reference) -> Scores:
    """The scores of a set's features against a reference.

    Without the reference's own vectors there is no kernel distance, precision or recall; without logits, or with fewer
    images than splits, no Inception Score.

    Raises:
        UserError: the set is too small, or its features do not compare.
    """
    try:
        kernel, near = None, None
        if reference.features_AF is not None:
            kernel = kernel_distance(found.features_AF, reference.features_AF)
            if min(len(found), len(reference.features_AF)) > NEIGHBOURS:
                near = precision_recall(found.features_AF, reference.features_AF, neighborhood=NEIGHBOURS)
        score = None
        if found.logits_AL is not None and len(found) >= SPLITS:
            score = inception_score(found.logits_AL, splits=SPLITS)
        return Scores(
            count=len(found),
            frechet=frechet_of(Gaussian.of(found.features_AF), reference.gaussian),
            kernel=kernel,
            inception=score,
            precision=None if near is None else near.precision,
            recall=None if near is None else near.recall,
        )
    except ValueError as error:
        raise UserError(f"cannot be measured: {error}") from error


def floor_of(reference: Reference, count: int, others: Features | None = None) -> Floor | None:
    """Real images against the reference, `count` of them if there are as many.

    Without `others`, images of the reference itself: against its statistics, where those are of other images, as ADM's
    are, and else against the rest of its images, half of them at most. None where it has no vectors. Fewer real images
    than `count` have a higher Frechet distance for that alone, and `what` says so.

    Args:
        others: features of real images that are not the reference's.
    """
    if others is not None:
        return Floor(scores_of(others, reference), f"{len(others):,} real images of the other split")
    vectors_AF = reference.features_AF
    if vectors_AF is None or len(vectors_AF) < 4:
        return None
    total = len(vectors_AF)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed_of(SEED, total)))
    if reference.count != total:
        some = Features(vectors_AF[order[: min(count, total)]])
        statistics = Reference(reference.description, reference.gaussian, None)
        what = f"{len(some):,} of the reference's images against its statistics"
        return Floor(scores_of(some, statistics), what + _fewer(len(some), count))
    size = min(count, total // 2)
    some, rest = Features(vectors_AF[order[:size]]), vectors_AF[order[size:]]
    what = f"{size:,} of the reference's images against its other {total - size:,}"
    what += _fewer(size, count)
    return Floor(scores_of(some, Reference(reference.description, Gaussian.of(rest), rest)), what)


def _fewer(there: int, count: int) -> str:
    return "" if there == count else f": fewer than the {count:,} samples, so its Frechet distance reads too high"


def _write(path: Path, found: Features) -> None:
    logits = {} if found.logits_AL is None else {"logits": found.logits_AL}
    write_weights(path, {"features": found.features_AF, **logits})


def _read(path: Path) -> Features:
    tensors: dict[str, Tensor] = read_weights(path)
    return Features(tensors["features"], tensors.get("logits"))


#: what a command shows while it works: called with what is being done, it gives the report to hand on
Show = Callable[[str], Report]

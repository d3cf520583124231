"""What generated images are measured against: real images, or statistics of them that someone measured before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy
import torch
from attrs import frozen
from torch import Tensor

from mixar.folder import sha256
from mixar.plugins import Registry
from mixar.recipe import Recipe
from mixar_core.distributed import Processes, gathered, share
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_eval.archives import Archive, opened_arrays
from mixar_eval.features import Features, collect_features
from mixar_eval.images import ImageSet, open_images
from mixar_eval.statistics import Gaussian, GaussianSum

#: names of files with the ImageNet 256 statistics that papers compare with: ADM's batch, and what MAR made of it
ADM_IMAGENET_256 = ("VIRTUAL_imagenet256_labeled.npz", "adm_in256_stats.npz")
#: a reference of more images keeps its statistics only: a million vectors would not fit
KEPT = 50_000

#: called with images done and images in all
Progress = Callable[[int, int], object]


@frozen(eq=False)
class Reference:
    """What is measured against.

    Args:
        description: one line for the report.
        gaussian: of its feature vectors; its `count` is None where a file does not say.
        features_AF: the vectors, for kernel distance, precision and recall; None where there are none at hand.
        adm_imagenet: whether it is the reference of published ImageNet 256 figures, as far as a file's name can say it.
        notes: what a reader of the figures must know, one line each.
    """

    description: str
    gaussian: Gaussian
    features_AF: Tensor | None
    adm_imagenet: bool = False
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int | None:
        """How many images the statistics are of; None where a file does not say."""
        return self.gaussian.count

    def save(self, path: Path) -> None:
        """Write all of it to an `.npz` that `open_reference` reads: statistics, and the vectors where there are any.

        Raises:
            UserError: it cannot be written.
        """
        self.gaussian.save(path, features_AF=self.features_AF)


def open_reference(
    text: str,
    *,
    extractor: FeatureExtractor,
    registry: Registry,
    processes: Processes,
    recipe: Recipe | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
    option: str = "--reference",
) -> Reference:
    """The reference that `text` names, seen through the extractor; every process calls this with the same arguments.

    Args:
        text: what `open_images` takes, or an `.npz` with `mu` and `sigma`: ADM's, which are Inception's, or ones that
            `Reference.save` wrote. Distances that need vectors take the file's `features`, or its images' (`arr_0`).
        extractor: on the processes' device.
        progress: called in the main process.

    Raises:
        UserError: there is no such reference, or it is not for these images or this extractor.
    """
    path = Path(text).expanduser()
    where = f"{option} {text}"
    if path.suffix != ".npz" or not path.is_file():
        images = open_images(
            text, registry, recipe=recipe, image_size=image_size, num_classes=num_classes, option=option
        )
        return _of_images(images, extractor, processes, batch_size, workers, progress)
    with opened_arrays(path) as archive:
        if not {"mu", "sigma", "arr_0"} & set(archive.names):
            raise UserError(
                f"{where}: neither statistics (mu, sigma) nor images (arr_0); it has {', '.join(archive.names)}"
            )
        measured = _statistics(archive, extractor, where) if {"mu", "sigma"} & set(archive.names) else None
        vectors_AF = None if measured is None else _vectors(archive, measured, where)
        has_images = "arr_0" in archive.names and vectors_AF is None
    if measured is None and not has_images:
        raise UserError(
            f"{where}: statistics of Inception's features, and {extractor.label} gives others; "
            f"give images, or --extractor inception:weights_file=..."
        )
    seen = None
    if has_images:
        images = open_images(text, registry, image_size=image_size, num_classes=num_classes, option=option)
        seen = _of_images(images, extractor, processes, batch_size, workers, progress)
    if measured is None:
        assert seen is not None
        note = f"the file's statistics are Inception's; those used are {extractor.label}'s of its images"
        return Reference(seen.description, seen.gaussian, seen.features_AF, notes=(*seen.notes, note))
    count = "" if measured.count is None else f" of {measured.count:,} images"
    notes = rank_notes(measured.count, extractor)
    if measured.extractor is None:
        notes = (*notes, f"the statistics do not say whose features they are of; taken to be {extractor.label}'s")
    return Reference(
        f"{path}: statistics{count} (sha256 {sha256(path)[:16]})",
        measured,
        vectors_AF if seen is None else seen.features_AF,
        adm_imagenet=path.name in ADM_IMAGENET_256 and extractor.is_inception and measured.extractor is None,
        notes=notes,
    )


def measure(
    images: ImageSet,
    indices_A: Tensor,
    extractor: FeatureExtractor,
    processes: Processes,
    *,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress | None = None,
) -> Features:
    """The features of the images at `indices_A`, in that order, found by all processes together and had by each."""
    mine = share(indices_A, processes)
    batches = images.batches(mine, batch_size=batch_size, workers=workers)
    done = 0

    def report(size: int) -> None:
        nonlocal done
        done += size
        if progress is not None and processes.is_main:
            progress(min(done * processes.world, len(indices_A)), len(indices_A))

    found = collect_features(batches, extractor, device=processes.device, progress=report)
    total = len(indices_A)
    return Features(
        gathered(found.features_AF, total, processes),
        None if found.logits_AL is None else gathered(found.logits_AL, total, processes),
    )


def _of_images(
    images: ImageSet,
    extractor: FeatureExtractor,
    processes: Processes,
    batch_size: int,
    workers: int,
    progress: Progress | None,
) -> Reference:
    if len(images) > KEPT:
        gaussian = _summed_up(images, extractor, processes, batch_size, workers, progress)
        note = f"of more than {KEPT:,} images the statistics alone are kept: no kernel distance to them, no precision"
        return Reference(images.description, gaussian, None, notes=(note,))
    found = measure(
        images,
        torch.arange(len(images)),
        extractor,
        processes,
        batch_size=batch_size,
        workers=workers,
        progress=progress,
    )
    gaussian = Gaussian.of(found.features_AF, extractor=extractor.identity)
    return Reference(images.description, gaussian, found.features_AF, notes=rank_notes(len(images), extractor))


def _summed_up(
    images: ImageSet,
    extractor: FeatureExtractor,
    processes: Processes,
    batch_size: int,
    workers: int,
    progress: Progress | None,
) -> Gaussian:
    """The Gaussian of many images, none of whose features are kept."""
    total = GaussianSum(extractor.feature_dim)
    mine = share(torch.arange(len(images)), processes)
    for pixels in images.batches(mine, batch_size=batch_size, workers=workers):
        total.add(collect_features([pixels], extractor, device=processes.device).features_AF)
        if progress is not None and processes.is_main:
            progress(min(total.count * processes.world, len(images)), len(images))
    return total.gaussian(extractor=extractor.identity, processes=processes)


def rank_notes(count: int | None, extractor: FeatureExtractor) -> tuple[str, ...]:
    """What to say of a reference of so few images that its covariance lacks rank."""
    if count is not None and count <= extractor.feature_dim:
        return (
            f"the reference has {count:,} images and a feature vector {extractor.feature_dim:,} numbers: the covariance"
            " lacks rank, so read the distance beside its floor alone",
        )
    return ()


def _statistics(archive: Archive, extractor: FeatureExtractor, where: str) -> Gaussian | None:
    """The file's Gaussian; None where it is Inception's and the extractor is not.

    Raises:
        UserError: it is of other shapes, or of another extractor that the file names.
    """
    mean, covariance = archive.load("mu"), archive.load("sigma")
    width = mean.shape[0] if mean.ndim == 1 else 0
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise UserError(f"{where}: mu is {mean.dtype}, sigma {covariance.dtype}; needed: floating point")
    if not width or covariance.shape != (width, width):
        raise UserError(f"{where}: mu has shape {mean.shape}, sigma {covariance.shape}; needed: (F,) and (F, F)")
    if not (numpy.isfinite(mean).all() and numpy.isfinite(covariance).all()):
        raise UserError(f"{where}: mu or sigma holds NaN or infinity")
    identity = str(archive.load("extractor")) if "extractor" in archive.names else None
    if identity is not None and identity != extractor.identity:
        raise UserError(f"{where}: statistics of {identity}'s features; the extractor is {extractor.identity}")
    if identity is None and not extractor.is_inception:
        return None
    if width != extractor.feature_dim:
        raise UserError(
            f"{where}: statistics of {width:,} numbers; {extractor.label} gives vectors of {extractor.feature_dim:,}"
        )
    count = int(archive.load("count")) if "count" in archive.names else None
    mean_F, covariance_FF = (torch.from_numpy(side.astype(numpy.float64)) for side in (mean, covariance))
    return Gaussian(mean_F, covariance_FF, count, identity)


def _vectors(archive: Archive, measured: Gaussian, where: str) -> Tensor | None:
    """The vectors that the file's Gaussian is of, where it has them and says whose they are.

    Raises:
        UserError: they are of another shape or dtype.
    """
    if "features" not in archive.names or measured.extractor is None:
        return None
    features = archive.load("features")
    shape = (measured.count, len(measured.mean_F))
    if features.dtype != numpy.float32 or features.shape != shape:
        raise UserError(f"{where}: features are {features.dtype} {features.shape}; needed: float32 {shape}")
    return torch.from_numpy(features)

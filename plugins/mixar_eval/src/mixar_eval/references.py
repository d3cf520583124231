"""What images are measured against: real images, or statistics of them that someone measured before."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy
import torch
from attrs import evolve, frozen
from torch import Tensor

from mixar.recipe import Recipe
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.storage import user_path, writing
from mixar_core.types import ImageSize
from mixar_eval.context import EvalContext
from mixar_eval.distances import Gaussian
from mixar_eval.features import features_of_readable, gaussian_of_readable
from mixar_eval.images import Images, ImageSet, open_images, other_images
from mixar_eval.npz import NpzArray, array_names

#: The files with the ImageNet 256 statistics that papers compare with, by their content: ADM's batch by its sha256, and
#: what MAR made of it, fid_stats/adm_in256_stats.npz, by git's id of it in LTH14/mar at fe470ac.
PUBLISHED = {
    "b32732719497e42660a9affb4a966068cba0855ac449b82015e34ec376d20758": "VIRTUAL_imagenet256_labeled.npz",
    "1da4c17607fe959d54999fd098105649a0c05e15": "adm_in256_stats.npz",
}
#: a reference of more images keeps its statistics only: a million vectors would not fit
KEPT = 50_000


@frozen(eq=False)
class Reference:
    """What is measured against.

    Args:
        description: one line for the report.
        gaussian: of its feature vectors; its `count` is None where a file does not say.
        features_AF: the vectors, for kernel distance, precision and recall; None where there are none at hand.
        adm_imagenet: whether it is, by its content, the reference of published ImageNet 256 figures.
        notes: what a reader of the figures must know, one line each.
        images: it is of these, where they are at hand. others: of the same data's other split, for the floor.
    """

    description: str
    gaussian: Gaussian
    features_AF: Tensor | None = None
    adm_imagenet: bool = False
    notes: tuple[str, ...] = ()
    images: ImageSet | None = None
    others: ImageSet | None = None

    @property
    def count(self) -> int | None:
        """How many images the statistics are of; None where a file does not say."""
        return self.gaussian.count

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of its images; empty where they are not known."""
        return () if self.images is None else self.images.class_names

    def save(self, path: Path) -> None:
        """Write all of it to an `.npz` that `open_reference` reads: statistics, and the vectors where there are any."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        self.gaussian.save(path, features_AF=self.features_AF)


def open_reference(
    source: Images,
    context: EvalContext,
    *,
    recipe: Recipe | None = None,
    image_size: ImageSize | None = None,
    num_classes: int = 0,
    option: str = "--reference",
    cache: Path | None = None,
) -> Reference:
    """The reference that `source` is, or names, seen through the extractor; every process makes the same call.

    Args:
        source: what `open_images` takes, or an `.npz` with `mu` and `sigma`: ADM's, which are Inception's, or ones that
            `Reference.save` wrote. Distances that need vectors take the file's `features`, or its images' (`arr_0`).
        cache: where features are kept, see `features_of`.

    Raises:
        UserError: there is no such reference, or it is not for these images or this extractor.
        Stopped: a signal came.
    """

    def seen() -> Reference:
        images = open_images(
            source, context.registry, recipe=recipe, image_size=image_size, num_classes=num_classes, option=option
        )
        return _of_images(images, context, cache)

    extractor = context.extractor
    path = user_path(source) if isinstance(source, str | Path) else Path()
    if path.suffix != ".npz" or not path.is_file():
        return evolve(seen(), others=other_images(source, context.registry, recipe=recipe, image_size=image_size))
    where, names = f"{option} {path}", array_names(path)
    if not {"mu", "sigma"} & set(names):
        if "arr_0" not in names:
            raise UserError(f"{where}: neither statistics (mu, sigma) nor images (arr_0); it has {', '.join(names)}")
        return seen()
    stated = _statistics(path, extractor, where)
    if stated is not None:
        vectors_AF = _vectors(path, stated, where)
        images = seen() if vectors_AF is None and "arr_0" in names else None
        return _of_file(path, stated, vectors_AF, images, extractor)
    if "arr_0" not in names:
        raise UserError(
            f"{where}: statistics of Inception's features, and {extractor.label} gives others; "
            f"give images, or --extractor inception:weights_file=..."
        )
    found = seen()
    note = f"the file's statistics are Inception's; those used are {extractor.label}'s of its images"
    return evolve(found, notes=(*found.notes, note))


def rank_notes(count: int | None, extractor: FeatureExtractor) -> tuple[str, ...]:
    """What to say of a reference of so few images that its covariance lacks rank."""
    if count is not None and count <= extractor.feature_dim:
        return (
            f"the reference has {count:,} images and a feature vector {extractor.feature_dim:,} numbers: the covariance"
            " lacks rank, so read the distance beside its floor alone",
        )
    return ()


def _of_images(images: ImageSet, context: EvalContext, cache: Path | None) -> Reference:
    if len(images) > KEPT:
        note = f"of more than {KEPT:,} images the statistics alone are kept: no kernel distance to them, no precision"
        images, gaussian = gaussian_of_readable(images, context, "reference")
        return Reference(images.description, gaussian, notes=(*images.notes, note), images=images)
    images, found = features_of_readable(images, context, "reference", cache=cache)
    features_AF = found.features_AF
    gaussian = Gaussian.of(features_AF, extractor=context.extractor.identity)
    notes = (*images.notes, *rank_notes(len(images), context.extractor))
    return Reference(images.description, gaussian, features_AF, notes=notes, images=images)


def _of_file(
    path: Path, stated: Gaussian, vectors_AF: Tensor | None, seen: Reference | None, extractor: FeatureExtractor
) -> Reference:
    """Statistics with their own vectors, or with those of the images that lie beside them."""
    count = "" if stated.count is None else f" of {stated.count:,} images"
    content = memoryview(numpy.memmap(path, mode="r"))  # type: ignore[arg-type]  # gigabytes, where it holds images
    sha256 = hashlib.sha256(content).hexdigest()
    git_id = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)  # of the size and the content
    git_id.update(content)
    published = PUBLISHED.get(sha256) or PUBLISHED.get(git_id.hexdigest())
    notes = rank_notes(stated.count, extractor)
    if stated.extractor is None:
        notes = (*notes, f"the statistics do not say whose features they are of; taken to be {extractor.label}'s")
    if published is None and path.name in PUBLISHED.values():
        notes = (*notes, f"called {path.name}, but its content is not that of the published file (sha256 {sha256})")
    return Reference(
        f"{path}: statistics{count} (sha256 {sha256[:16]})",
        stated,
        vectors_AF if seen is None else seen.features_AF,
        adm_imagenet=published is not None and extractor.is_inception and stated.extractor is None,
        notes=notes,
        images=None if seen is None else seen.images,
    )


def _statistics(path: Path, extractor: FeatureExtractor, where: str) -> Gaussian | None:
    """The file's Gaussian; None where it is Inception's and the extractor is not."""
    mean, covariance = NpzArray(path, "mu"), NpzArray(path, "sigma")
    width = mean.shape[0] if len(mean.shape) == 1 else 0
    if mean.dtype.kind != "f" or covariance.dtype.kind != "f":
        raise UserError(f"{where}: mu is {mean.dtype}, sigma {covariance.dtype}; needed: floating point")
    if not width or covariance.shape != (width, width):
        raise UserError(f"{where}: mu has shape {mean.shape}, sigma {covariance.shape}; needed: (F,) and (F, F)")
    mean_F, covariance_FF = (torch.from_numpy(side.array.astype(numpy.float64)) for side in (mean, covariance))
    if not (mean_F.isfinite().all() and covariance_FF.isfinite().all()):
        raise UserError(f"{where}: mu or sigma holds NaN or infinity")
    names = array_names(path)
    identity = str(NpzArray(path, "extractor").array) if "extractor" in names else None
    if identity is not None and identity != extractor.identity:
        raise UserError(f"{where}: statistics of {identity}'s features; the extractor is {extractor.identity}")
    if identity is None and not extractor.is_inception:
        return None
    if width != extractor.feature_dim:
        raise UserError(
            f"{where}: statistics of {width:,} numbers; {extractor.label} gives vectors of {extractor.feature_dim:,}"
        )
    count = int(NpzArray(path, "count").array) if "count" in names else None
    return Gaussian(mean_F, covariance_FF, count, identity)


def _vectors(path: Path, stated: Gaussian, where: str) -> Tensor | None:
    """The vectors that the file's Gaussian is of, where it has them and says whose they are."""
    if "features" not in array_names(path) or stated.extractor is None:
        return None
    features = NpzArray(path, "features")
    shape = (stated.count, len(stated.mean_F))
    if features.dtype != numpy.float32 or features.shape != shape:
        raise UserError(f"{where}: features are {features.dtype} {features.shape}; needed: float32 {shape}")
    return torch.from_numpy(numpy.array(features.array))

"""What makes an FID comparable with published ones of ImageNet, and whether a measurement is that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attrs import frozen

from mixar.sampling import REAL
from mixar_core.perceptual import FeatureExtractor
from mixar_core.types import NO_CLASS
from mixar_eval.images import ImageSet
from mixar_eval.references import Reference

#: what the reports of generated images call it
PROTOCOL = "ADM-protocol FID"
#: ADM's protocol, which MAR, MaskBit, LightningDiT and MixAR follow: 50 images of each class of ImageNet, 256 x 256
COUNT, CLASSES, SIZE = 50_000, 1000, 256


@frozen
class ClassCounts:
    """How often each class occurs among samples.

    Args:
        known: number of classes there should be.
        fewest, most: images of the rarest and of the most frequent class, missing ones included.
        missing: class numbers without an image.
    """

    known: int
    fewest: int
    most: int
    missing: tuple[int, ...]

    @property
    def exact(self) -> bool:
        """Whether every class occurs equally often."""
        return self.fewest == self.most


def count_classes(labels: Sequence[int] | None, known: int) -> ClassCounts | None:
    """Counts of labels below `known`; None where labels or classes are not known."""
    if labels is None or known < 1:
        return None
    counts = Counter(label for label in labels if label != NO_CLASS)
    each = [counts[label] for label in range(known)]
    return ClassCounts(known, min(each), max(each), tuple(label for label, times in enumerate(each) if not times))


def draws_real_codes(images: ImageSet) -> bool:
    """Whether the codes of these images are real images' (of the prior ground-truth, say)."""
    return REAL in ((images.drawn or {}).get("model") or {}).get("parts", ())


def basic_reasons(images: ImageSet, extractor: FeatureExtractor, of_reference: str | None) -> list[str]:
    """Why a distance is no FID of 50,000 images of ImageNet's size; `of_reference` is what speaks against that."""
    reasons = []
    if not extractor.is_inception:
        reasons.append("the extractor is not Inception")
    elif not extractor.has_published_weights:
        reasons.append("Inception's weights are not those of the known checksum")
    if of_reference is not None:
        reasons.append(of_reference)
    if len(images) != COUNT:
        reasons.append(f"{len(images):,} images and not {COUNT:,}")
    if (images.height, images.width) != (SIZE, SIZE):
        reasons.append(f"{images.width}x{images.height} pixels and not {SIZE}x{SIZE}")
    return reasons


def reasons_against(images: ImageSet, reference: Reference, extractor: FeatureExtractor) -> list[str]:
    """Why the Frechet distance of drawn images is not comparable with FIDs by ADM's protocol; empty where it is.

    That the images are lossless is not asked: JPEGs are refused wherever images are read.
    """
    of_reference = None if reference.adm_imagenet else "the reference is not ADM's ImageNet statistics"
    reasons = basic_reasons(images, extractor, of_reference)
    classes = count_classes(images.labels, len(images.class_names))
    if classes is None:
        reasons.append("the samples' classes are not known")
    elif classes.known != CLASSES:
        reasons.append(f"{classes.known:,} classes and not {CLASSES:,}")
    elif not classes.exact:
        reasons.append(f"{classes.fewest} to {classes.most} images of a class and not {COUNT // CLASSES} of each")
    if draws_real_codes(images):
        reasons.append("the codes that guide them are real images'")
    return reasons

"""What makes an FID comparable with published ones of ImageNet, and whether a measurement is that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from attrs import frozen

from mixar_core.types import NO_CLASS

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


def extractor_reasons(is_inception: bool, published_weights: bool) -> list[str]:
    """Why an extractor's distances are no FIDs; empty where they are."""
    if not is_inception:
        return ["the extractor is not Inception"]
    return [] if published_weights else ["Inception's weights are not those of the known checksum"]


def reasons_against(
    *,
    is_inception: bool,
    published_weights: bool,
    adm_reference: bool,
    count: int,
    height: int,
    width: int,
    classes: ClassCounts | None,
    real_codes: bool = False,
) -> list[str]:
    """Why a Frechet distance is not comparable with FIDs by ADM's protocol; empty where it is.

    That the images are lossless is not asked: JPEGs are refused wherever images are read.

    Args:
        is_inception: whether the extractor is the Inception network of FID. published_weights: with the weights of
            known checksum.
        adm_reference: whether the reference is, by its content, ADM's ImageNet 256 statistics.
        count, height, width: of the samples. classes: their class counts; None where they are not known.
        real_codes: whether what guides them was taken from real images.
    """
    reasons = extractor_reasons(is_inception, published_weights)
    if not adm_reference:
        reasons.append("the reference is not ADM's ImageNet statistics")
    if count != COUNT:
        reasons.append(f"{count:,} images and not {COUNT:,}")
    if (height, width) != (SIZE, SIZE):
        reasons.append(f"{width}x{height} pixels and not {SIZE}x{SIZE}")
    if classes is None:
        reasons.append("the samples' classes are not known")
    elif classes.known != CLASSES:
        reasons.append(f"{classes.known:,} classes and not {CLASSES:,}")
    elif not classes.exact:
        reasons.append(f"{classes.fewest} to {classes.most} images of a class and not {COUNT // CLASSES} of each")
    if real_codes:
        reasons.append("the codes that guide them are real images'")
    return reasons

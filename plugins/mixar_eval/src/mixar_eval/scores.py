"""Inception Score, precision and recall, through torch-fidelity for any extractor; all scores of a set; the floor."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from attrs import evolve, frozen
from torch import Tensor

from mixar_core.data.streams import seed_of
from mixar_core.errors import UserError
from mixar_eval.context import EvalContext
from mixar_eval.distances import SEED, Gaussian, check_features, frechet_of, kernel_distance, monge_distance
from mixar_eval.features import Features, features_of_readable
from mixar_eval.images import ImageSet
from mixar_eval.references import Reference

#: splits of the Inception Score, neighbours of precision and recall: as in the papers that introduced them
SPLITS, NEIGHBOURS = 10, 3


@frozen
class InceptionScore:
    """Mean and standard deviation over the splits."""

    mean: float
    deviation: float


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: of drawn images near real ones, and of real images near drawn ones."""

    precision: float
    recall: float


def inception_score(logits_AL: Tensor, *, splits: int = SPLITS) -> InceptionScore:
    """exp of the mean KL divergence of an image's classes from the split's (Salimans et al., 2016), over `splits`.

    The rows (A, L), one an image, are shuffled first: in splits of samples that come class after class the score would
    collapse.

    Raises:
        ValueError: there are fewer images than splits.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    if len(logits_AL) < splits:
        raise ValueError(f"{len(logits_AL)} images make no {splits} splits")
    found = isc_features_to_metric(logits_AL.detach().cpu(), splits=splits, shuffle=True, rng_seed=SEED)
    return InceptionScore(found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD])


def precision_recall(features_AF: Tensor, reference_BF: Tensor, *, neighborhood: int = NEIGHBOURS) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al., 2019).

    An image is near a set where it lies no further from one of its members than that one's k-th neighbour in the set.

    Args:
        features_AF: of drawn images, (A, F).
        reference_BF: of real images, (B, F). ADM takes 10,000 real ones beside 50,000 drawn ones.
        neighborhood: k.

    Raises:
        ValueError: a set has no k-th neighbour, or the features do not compare.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    check_features(features_AF, reference_BF)
    if (fewest := min(len(features_AF), len(reference_BF))) <= neighborhood:
        raise ValueError(f"among {fewest} images none has {neighborhood} neighbours")
    found = prc_features_to_metric(
        features_AF.detach().cpu().float(),
        reference_BF.detach().cpu().float(),
        prc_neighborhood=neighborhood,
        prc_batch_size=2000,  # at a time, against the whole other set: memory, not the result, depends on it
        save_cpu_ram=True,
        verbose=False,
    )
    return PrecisionRecall(found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL])


@frozen
class Scores:
    """What was measured of `count` images. None is what could not be: see `scores_of`.

    Args:
        frechet: to the reference; FID where the features are Inception's. kernel: likewise, KID.
        precision, recall: shares of images near the other set's.
        mind: to the reference, MIND.
    """

    count: int
    frechet: float
    kernel: float | None = None
    inception: InceptionScore | None = None
    precision: float | None = None
    recall: float | None = None
    mind: float | None = None


@frozen
class Floor:
    """Real images measured as if they were drawn ones: what no model is expected to pass; `what` says which, `notes`
    what was left out of them."""

    scores: Scores
    what: str
    notes: tuple[str, ...] = ()


def distances_of(features_AF: Tensor, reference: Reference) -> Scores:
    """The distances alone; kernel distance and MIND only to a reference that has vectors."""
    scores = Scores(len(features_AF), frechet_of(Gaussian.of(features_AF), reference.gaussian))
    if (real_BF := reference.features_AF) is None:
        return scores
    return evolve(scores, kernel=kernel_distance(features_AF, real_BF), mind=monge_distance(features_AF, real_BF))


def scores_of(found: Features, reference: Reference) -> Scores:
    """The scores of a set's features against a reference.

    Without the reference's own vectors there is no kernel distance, MIND, precision or recall; without logits, or with
    fewer images than splits, no Inception Score.

    Raises:
        UserError: the set is too small, or its features do not compare.
    """
    real_BF, logits_AL = reference.features_AF, found.logits_AL
    try:
        scores = distances_of(found.features_AF, reference)
        if real_BF is not None and min(len(found), len(real_BF)) > NEIGHBOURS:
            near = precision_recall(found.features_AF, real_BF)
            scores = evolve(scores, precision=near.precision, recall=near.recall)
        if logits_AL is not None and len(found) >= SPLITS:
            scores = evolve(scores, inception=inception_score(logits_AL))
    except ValueError as error:
        raise UserError(f"cannot be measured: {error}") from error
    return scores


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
    order_A = torch.randperm(total, generator=torch.Generator().manual_seed(seed_of(SEED, total)))
    if reference.count != total:
        size, against = min(count, total), Reference("", reference.gaussian)
        what = f"{size:,} of the reference's images against its statistics"
    else:
        size = min(count, total // 2)
        rest_AF = vectors_AF[order_A[size:]]
        against = Reference("", Gaussian.of(rest_AF), rest_AF)
        what = f"{size:,} of the reference's images against its other {total - size:,}"
    if size < count:
        what += f": fewer than the {count:,} samples, so its Frechet distance reads too high"
    return Floor(scores_of(Features(vectors_AF[order_A[:size]]), against), what)


def real_at(
    count: int, reference: Reference, context: EvalContext, *, cache: Path | None = None
) -> tuple[ImageSet, Features] | None:
    """Real images of the reference's other split, `count` of them or all, with their features; None without one."""
    if (others := reference.others) is None:
        return None
    order_A = torch.randperm(len(others), generator=torch.Generator().manual_seed(SEED))
    return features_of_readable(others.take(order_A[:count]), context, "real images for the floor", cache=cache)


def floor_at(count: int, reference: Reference, context: EvalContext) -> Floor | None:
    """The floor at `count` images: from the reference's other split, where it has as many, or from the reference."""
    others = reference.others
    real = real_at(count, reference, context) if others is not None and len(others) >= count else None
    floor: Floor | None = context.processes.on_main(lambda: floor_of(reference, count, real and real[1]))
    return floor if floor is None or real is None else evolve(floor, notes=real[0].notes)

"""What one extractor says of drawn images, of their codes' own decoding, and of real ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import torch
from attrs import evolve, frozen

from mixar_eval.beside import CodesAlone
from mixar_eval.context import EvalContext
from mixar_eval.distances import SEED, Gaussian, frechet_of
from mixar_eval.features import Features, features_of_each
from mixar_eval.images import ImageSet
from mixar_eval.probe import Named, Probe, Ratio, fit_probe, ratio_of
from mixar_eval.references import Reference
from mixar_eval.scores import Floor, Scores, distances_of, floor_of, real_at, scores_of


@frozen(eq=False)
class Drawn:
    """A set of samples; and what makes images of their codes alone, where they have codes."""

    images: ImageSet
    codes: CodesAlone | None = None


@frozen
class ClassNamed:
    """Shares of images in whose class a linear probe believes, each the mean over the classes.

    Args:
        samples: one a set. codes: one a set, of their codes' own decoding. real: of the other split's images.
        ratio: of the samples' share, of all sets, to the real images'.
    """

    samples: tuple[float | None, ...]
    codes: tuple[float | None, ...]
    real: float | None
    ratio: Ratio | None


@frozen(eq=False)
class View:
    """The scores of one extractor.

    Args:
        scores: one a set of samples. codes: one a set, of their codes' own decoding; empty where there are no codes.
        floor: of real images, as many as the samples. real: of the reference's other split, as many or all.
        ratios: to a training split, Frechet distance of samples over that of real images, as many of either; one a set.
        ratio_count: how many those are.
        named: how well their classes are told; None where there is no probe.
        taught: the losses of the model that the extractor stands in, in words; empty: none that is known.
    """

    scores: tuple[Scores, ...]
    codes: tuple[Scores, ...] = ()
    floor: Floor | None = None
    real: Floor | None = None
    ratios: tuple[float, ...] = ()
    ratio_count: int | None = None
    named: ClassNamed | None = None
    taught: str = ""


@frozen
class Spread:
    """Mean, and standard deviation where there are at least two."""

    mean: float
    deviation: float | None


def spread_of(values: Sequence[float | None]) -> Spread | None:
    """Of values over seeds; None of none, or where one is missing."""
    there = [value for value in values if value is not None]
    if not there or len(there) < len(values):
        return None
    return Spread(mean(there), stdev(there) if len(there) > 1 else None)


def views_of(
    sets: Sequence[Drawn], encoders: Sequence[tuple[EvalContext, Reference]], *, cache: Path | None
) -> dict[str, View]:
    """Find the features of all that is to be seen, and score them; every process calls this.

    Args:
        encoders: the context of each extractor, and the reference as it sees it. To the first a linear probe is fitted,
            where the reference is a training split with labels.
        cache: where features are kept, see `features_of`.

    Returns:
        What each says, by its label.

    Raises:
        UserError: the images cannot be measured.
        Stopped: a signal came.
    """
    context, extractors = encoders[0][0], [seeing.extractor for seeing, _ in encoders]
    named = [f" of seed {each.images.drawn['plan']['seed']}" if sets[1:] and each.images.drawn else "" for each in sets]
    found = [
        features_of_each(each.images, context, extractors, f"features{which}", cache=cache)
        for each, which in zip(sets, named, strict=True)
    ]
    alone = [
        features_of_each(each.codes, context, extractors, f"the codes' own decoding{which}")
        for each, which in zip(sets, named, strict=True)
        if each.codes is not None
    ]
    views = {}
    for index, (seeing, reference) in enumerate(encoders):
        real = real_at(len(sets[0].images), reference, seeing, cache=cache)
        mine = [each[index] for each in found], [each[index] for each in alone]
        score = partial(_scored, sets, *mine, real, reference, probing=seeing is context)
        views[seeing.extractor.label] = evolve(context.processes.on_main(score), taught=seeing.taught)
    return views


def _scored(
    sets: Sequence[Drawn],
    found: Sequence[Features],
    alone: Sequence[Features],
    real: tuple[ImageSet, Features] | None,
    reference: Reference,
    *,
    probing: bool,
) -> View:
    count = len(found[0])
    enough = real is not None and len(real[1]) >= count
    floor = floor_of(reference, count, real[1] if real is not None and enough else None)
    view = View(
        scores=tuple(scores_of(each, reference) for each in found),
        codes=tuple(distances_of(each.features_AF, reference) for each in alone),
        floor=floor,
    )
    if real is None:
        return view
    images, of_real = real
    what = f"{len(of_real):,} real images of the {images.split or 'other'} split"
    scores = floor.scores if floor and enough else scores_of(of_real, reference)
    view = evolve(view, real=Floor(scores, what, images.notes))
    if reference.images is not None and reference.images.split == "train":
        view = _with_ratios(view, found, of_real, reference)
    probe = probe_of(reference) if probing else None
    return view if probe is None else _with_named(view, sets, found, alone, real, probe)


def _with_ratios(view: View, found: Sequence[Features], real: Features, reference: Reference) -> View:
    """With each set's Frechet distance over that of the real images, both of as many images: it falls with them."""
    assert view.real is not None
    count = min(len(real), *map(len, found))

    def distance(features: Features, scores: Scores) -> float:
        if len(features) == count:
            return scores.frechet
        order_A = torch.randperm(len(features), generator=torch.Generator().manual_seed(SEED))
        return frechet_of(Gaussian.of(features.features_AF[order_A[:count]]), reference.gaussian)

    of_real = distance(real, view.real.scores)
    if count < 2 or of_real <= 0:
        return view
    ratios = (distance(each, scores) / of_real for each, scores in zip(found, view.scores, strict=True))
    return evolve(view, ratios=tuple(ratios), ratio_count=count)


def probe_of(reference: Reference) -> Probe | None:
    """The probe of a reference that is a training split with labels and vectors; None of another."""
    images = reference.images
    if images is None or images.split != "train" or not images.labels or reference.features_AF is None:
        return None
    try:
        return fit_probe(reference.features_AF, images.labels, len(images.class_names))
    except ValueError:  # one class
        return None


def _with_named(
    view: View,
    sets: Sequence[Drawn],
    found: Sequence[Features],
    alone: Sequence[Features],
    real: tuple[ImageSet, Features],
    probe: Probe,
) -> View:
    """With the shares of images in whose class the probe believes, where their classes are the reference's."""
    real_images, of_real = real
    names = real_images.class_names
    if not real_images.labels or any(each.images.labels is None or each.images.class_names != names for each in sets):
        return view
    of_sets = [_named(probe, each.images, features) for each, features in zip(sets, found, strict=True)]
    codes = [_named(probe, each.images, features) for each, features in zip(sets, alone, strict=False)]
    known, every = _named(probe, real_images, of_real), of_sets[0]
    for more in of_sets[1:]:
        every += more
    samples, alone_too = (tuple(each.share for each in some) for some in (of_sets, codes))
    return evolve(view, named=ClassNamed(samples, alone_too, known.share, ratio_of(every, known)))


def _named(probe: Probe, images: ImageSet, features: Features) -> Named:
    """Of a set's images; of the codes' own decoding the classes are those of the samples that were drawn from them."""
    labels = images.labels
    assert labels is not None
    return probe.named(
        features.features_AF, labels if features.rows_A is None else [labels[row] for row in features.rows_A.tolist()]
    )

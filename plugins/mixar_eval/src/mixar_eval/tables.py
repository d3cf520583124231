"""The tables of a report on generated images: scores of samples beside those of real images, and what encoders say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixar_core.perceptual import FeatureExtractor
from mixar_eval.probe import Ratio
from mixar_eval.report import Section, number, score_names
from mixar_eval.scores import Scores
from mixar_eval.views import Spread, View, spread_of


def figures(scores: Scores) -> dict[str, float | None]:
    """The scores by name, each a number."""
    return {
        "frechet": scores.frechet,
        "kernel": scores.kernel,
        "mind": scores.mind,
        "inception": None if scores.inception is None else scores.inception.mean,
        "precision": scores.precision,
        "recall": scores.recall,
    }


def spreads(sets: Sequence[Scores]) -> dict[str, Spread | None]:
    """Each score over the sets."""
    each = [figures(scores) for scores in sets]
    return {name: spread_of([one[name] for one in each]) for name in each[0]}


def with_spread(spread: Spread | None, digits: int = 4) -> str | None:
    """A mean, and its deviation where there is one."""
    if spread is None or spread.deviation is None:
        return number(None if spread is None else spread.mean, digits)
    return f"{number(spread.mean, digits)} ± {number(spread.deviation, 2)}"


def scores_section(views: Mapping[str, View], extractor: FeatureExtractor) -> Section:
    """What the judge says, with FDr-k over all encoders: a row for the samples, for their codes' own decoding, and for
    real images measured as if they were drawn."""
    view = views[extractor.label]
    several, named = f", {len(view.scores)} seeds" if len(view.scores) > 1 else "", view.named
    rows = [
        _row(f"{view.scores[0].count:,} samples{several}", view.scores, named.samples if named else None, extractor)
    ]
    if view.codes:
        rows.append(_row("the codes' own decoding", view.codes, named.codes if named else None, extractor))
    below = []
    if view.real is not None:
        rows.append(_row(view.real.what, [view.real.scores], [named.real] if named else None, extractor))
    if view.floor is not None and (view.real is None or view.floor.scores.frechet != view.real.scores.frechet):
        rows.append(_row(f"floor: {view.floor.scores.count:,} real images", [view.floor.scores], None, extractor))
        below.append(f"The floor: {view.floor.what}.")
    if view.floor is None:
        below.append("The floor: there are no reference images at hand to measure it with.")
    elif not below:
        below.append(f"The floor: the {view.floor.what}.")
    if (overall := _mean_ratio(views)) is not None:
        below.append(
            f"**FDr-{len(views)}: {with_spread(overall)}**, the mean over encoders of the Frechet distance of samples "
            f"to the training images over that of real images unseen in training, {view.ratio_count:,} of either."
        )
    if named is None:
        rows = [{name: value for name, value in row.items() if name != _NAMED} for row in rows]
    elif named.ratio is not None:
        below.append(_named_line(named.ratio))
    if not extractor.gives_fid:
        below.append(
            f"These are no FIDs: the features are {extractor.identity}'s. Such distances compare at the same count, "
            "extractor and reference only."
        )
    return Section(rows=rows, below=below)


_NAMED = "class named"


def _row(
    what: str, sets: Sequence[Scores], named: Sequence[float | None] | None, extractor: FeatureExtractor
) -> dict[str, object]:
    frechet, kernel, inception = score_names(extractor.gives_fid)
    spread, one = spreads(sets), sets[0].inception
    score: object = with_spread(spread["inception"])
    if len(sets) == 1 and one is not None:
        score = f"{number(one.mean)} ± {number(one.deviation, 2)}"
    return {
        "images": what,
        f"{frechet} (lower is better)": with_spread(spread["frechet"], 5),
        f"{kernel} (lower is better)": with_spread(spread["kernel"]),
        "MIND (lower is better)": with_spread(spread["mind"]),
        f"{inception} (higher is better)": score,
        "precision": with_spread(spread["precision"]),
        "recall": with_spread(spread["recall"]),
        _NAMED: with_spread(spread_of(named or []), 3),
    }


def _named_line(ratio: Ratio) -> str:
    return (
        "Class named: share of the images in whose class a linear probe believes that was fitted to the reference, mean"
        f" over the classes; the samples' is {number(ratio.value, 3)} of the real images' (95% interval "
        f"{number(ratio.low, 3)} to {number(ratio.high, 3)})."
    )


def _mean_ratio(views: Mapping[str, View]) -> Spread | None:
    """The mean over the encoders of their ratios, over the sets."""
    each = [view.ratios for view in views.values()]
    return None if not all(each) else spread_of([sum(ratios) / len(ratios) for ratios in zip(*each, strict=True)])


def plain_ratios(views: Mapping[str, View]) -> dict[str, Any] | None:
    """FDr-k as JSON has it; None where there are no real images beside the reference."""
    if (overall := _mean_ratio(views)) is None:
        return None
    return {
        "k": len(views),
        "mean": overall.mean,
        "deviation": overall.deviation,
        "images": next(iter(views.values())).ratio_count,
        "encoders": {label: list(view.ratios) for label, view in views.items()},
    }


def ratios_section(views: Mapping[str, View]) -> list[Section]:
    """What every encoder says, where there is more than the judge, or where there are real images beside samples."""
    if len(views) == 1 and _mean_ratio(views) is None:
        return []
    rows = []
    for label, view in views.items():
        real, spread = view.real, spreads(view.scores)
        rows.append(
            {
                "encoder": label,
                "Frechet distance": with_spread(spread["frechet"], 5),
                "of real images": real and number(real.scores.frechet, 5),
                "ratio": with_spread(spread_of(view.ratios)),
                "kernel distance": with_spread(spread["kernel"]),
                "kernel distance of real images": real and number(real.scores.kernel),
                "MIND": with_spread(spread["mind"]),
                "in the model's losses": view.taught or "no",
            }
        )
    return [Section("What encoders say", rows)]

"""Reports as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> str:
    """A Markdown table; columns whose index is in `right` are aligned right, None is a dash."""
    rule = ["---:" if index in right else "---" for index in range(len(columns))]
    lines = [columns, rule, *(["-" if cell is None else str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def number(value: float | None, digits: int = 4) -> str | None:
    """A figure with so many significant digits, without an exponent."""
    if value is None:
        return None
    whole = f"{value:,.{digits}g}"
    return f"{value:,.0f}" if "e+" in whole else whole


def facts(plain: Mapping[str, Any]) -> str:
    """A table of names and values; floats with few digits, mappings on one line."""
    rows: list[tuple[str, object]] = []
    for key, value in plain.items():
        if isinstance(value, Mapping):
            value = ", ".join(f"{name} {inner}" for name, inner in value.items())
        rows.append((key, number(value) if isinstance(value, float) else value))
    return table(("what", "value"), rows)


def distance_names(gives_fid: bool) -> tuple[str, str]:
    """What the Frechet and the kernel distance are called."""
    return ("FID", "KID") if gives_fid else ("Frechet distance", "kernel distance")


def generation_text(report: Mapping[str, Any], *, title: str, picture: str) -> str:
    """The report of `mixar eval generation`."""
    samples, extractor, reference = report["samples"], report["extractor"], report["reference"]
    comparable = report["comparable with ADM-protocol FID"]
    frechet, kernel = distance_names(extractor["gives_fid"])
    parts = [f"# {title}\n", f"**Comparable with ADM-protocol FID: {comparable}**\n", _scores(report)]
    notes = list(reference["notes"])
    if samples["count"] <= extractor["feature_dim"]:
        notes.append(
            f"{samples['count']:,} samples are few for vectors of {extractor['feature_dim']:,} numbers: much of the "
            f"{frechet} is its floor, and the {kernel} says more"
        )
    parts += ["".join(f"- Note: {note}.\n" for note in notes)] if notes else []
    if extractor["gives_fid"] is False:
        parts.append(
            f"These are no FIDs: the features are {extractor['identity']}'s. Such distances compare at the same "
            f"count, extractor and reference only.\n"
        )
    parts += ["## Classes\n", _classes(samples["classes"])]
    parts += ["## How the samples were drawn\n", _drawn(samples)]
    settings = report["settings"]
    measured = [
        ("extractor", extractor["identity"]),
        ("features", f"{extractor['feature_dim']:,} numbers an image"),
        ("reference", reference["description"]),
        ("reference vectors", None if reference["vectors"] is None else f"{reference['vectors']:,}"),
        ("image format", samples["format"]),
        (_inception_name(report), f"{settings['inception_score_splits']} splits, shuffled"),
        ("kernel distance", f"{settings['kernel_subsets']} subsets of {settings['kernel_subset_size']:,} or all"),
        ("precision and recall", f"{settings['neighbours']} neighbours, in the extractor's features"),
        ("seed of subsets and shuffling", settings["seed"]),
    ]
    parts += ["## How they were measured\n", table(("what", "value"), measured)]
    parts += ["## Made by\n", facts(report["made"]), f"![The first samples]({picture})\n"]
    return "\n".join(parts)


def score_columns(report: Mapping[str, Any]) -> tuple[str, str, str]:
    """What stands over `score_rows`."""
    floor = report["floor"]
    real = "floor" if floor is None else f"floor: {floor['scores']['count']:,} real images"
    return "score", f"{report['scores']['count']:,} samples", real


def score_rows(report: Mapping[str, Any]) -> list[tuple[str, str | None, str | None]]:
    """Name, figure and floor of every score."""
    scores, floor = report["scores"], report["floor"]
    frechet, kernel = distance_names(report["extractor"]["gives_fid"])
    real = {} if floor is None else floor["scores"]
    inception = scores["inception"]
    spread = inception and f"{number(inception['mean'])} ± {number(inception['deviation'], 2)}"
    return [
        (f"{frechet} (lower is better)", number(scores["frechet"], 5), number(real.get("frechet"), 5)),
        (f"{kernel} (lower is better)", number(scores["kernel"]), number(real.get("kernel"))),
        (f"{_inception_name(report)} (higher is better)", spread, None),
        ("precision", number(scores["precision"]), number(real.get("precision"))),
        ("recall", number(scores["recall"]), number(real.get("recall"))),
    ]


def _inception_name(report: Mapping[str, Any]) -> str:
    return "Inception Score" if report["extractor"]["gives_fid"] else "Inception-like score"


def _scores(report: Mapping[str, Any]) -> str:
    text, floor = table(score_columns(report), score_rows(report), right=(1, 2)), report["floor"]
    below = "there are no reference images at hand to measure it with" if floor is None else floor["what"]
    return f"{text}\nThe floor: {below}.\n"


def _classes(classes: Mapping[str, Any] | None) -> str:
    if classes is None:
        return "Not known.\n"
    lines = [f"{classes['known']:,} classes, {classes['fewest']:,} to {classes['most']:,} images of each."]
    if classes["exactly_balanced"]:
        lines = [f"{classes['known']:,} classes, exactly {classes['most']:,} images of each."]
    if missing := classes["missing"]:
        named = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
        lines.append(f"**{len(missing):,} of them have no image: {named}.**")
    return " ".join(lines) + "\n"


def _drawn(samples: Mapping[str, Any]) -> str:
    rows: list[tuple[str, object]] = [
        ("samples", samples["source"]),
        ("images", f"{samples['count']:,} of {samples['width']}x{samples['height']} pixels"),
    ]
    drawn = samples["drawn"]
    if drawn is None:
        return table(("what", "value"), rows) + "\nHow they were drawn is not known.\n"
    model, plan = drawn["model"], dict(drawn["plan"])
    settings = plan.pop("settings")
    kinds = {"ema": "averaged (EMA)", "raw": "of the last step (raw)"}
    rows += [
        ("model", drawn["name"]),
        ("weights", kinds.get(model["weights"], model["weights"])),
        *((f"sha256 of {key}'s weights", digest) for key, digest in model["sha256"].items()),
        ("precision", {"bf16": "bf16 (autocast; decoders in float32)"}.get(model["precision"], model["precision"])),
        ("seed", plan["seed"]),
        ("labels", f"{plan['labels']}, over {len(plan['classes']):,} classes"),
        ("images of a batch", plan["batch"]),
    ]
    rows += [(key.replace("_", " "), "as the part says" if value is None else value) for key, value in settings.items()]
    for key in ("injector", "head", "prior", "data"):
        if part := model["parts"].get(key):
            told = ", ".join(f"{name} {value}" for name, value in part.items() if name != "type")
            rows.append((key, f"{part['type']}{f' ({told})' if told else ''}"))
    rows.append(("seconds an image, of one process", number(drawn["seconds_per_image_and_process"], 3)))
    for call in (drawn, *drawn.get("continued", ())):
        versions = ", ".join(f"{name} {version}" for name, version in call["versions"].items())
        rows += [("drawn on" if call is drawn else "and on", call["device"]), ("with", versions)]
    return table(("what", "value"), rows)

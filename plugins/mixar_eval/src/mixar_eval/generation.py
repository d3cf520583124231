"""How good a model's images are, or any others: measured against a reference, and told with all that a number
depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import asdict, evolve
from PIL import Image

from mixar.generation import label_name, overview
from mixar.model import Model
from mixar.plugins import Registry
from mixar.sampling import Plan, all_classes, claim, describe, draw_chunks, with_timing
from mixar.stores import PNGStore
from mixar_core.data.folders import list_images
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.storage import user_path
from mixar_eval.beside import CodesAlone, compare_codes, draws_codes, nearest_training
from mixar_eval.context import EvalContext, Stopped
from mixar_eval.distances import KERNEL_SUBSET_SIZE, KERNEL_SUBSETS, PROJECTIONS, SEED
from mixar_eval.images import ImageSet, open_images
from mixar_eval.protocol import PROTOCOL, ClassCounts, count_classes, reasons_against
from mixar_eval.references import Reference
from mixar_eval.report import Report, Section, described, facts, number, score_names
from mixar_eval.scores import NEIGHBOURS, SPLITS
from mixar_eval.tables import plain_ratios, ratios_section, scores_section, spreads
from mixar_eval.views import Drawn, View, views_of

#: what the folder of a report holds besides
SAMPLES, FEATURES, PICTURE, NEAREST = "samples", "features", "samples.png", "nearest.png"
#: samples of further seeds, a folder each
SEEDS = "seeds"
KNOWN = (SAMPLES, FEATURES, PICTURE, NEAREST, SEEDS)


def is_model(text: str, registry: Registry) -> bool:
    """Whether this names a model, and not images; refuses what is neither, or could be either."""
    path, models = user_path(text), registry.models()
    if (path / "recipe.yaml").is_file():
        return True
    shipped = "/" not in text and text in models
    if path.is_dir() and shipped and list_images(path).files:
        raise UserError(
            f"{text}: a folder of images is here, and a shipped model has this name; give ./{text} for the images, "
            f"or {models[text][0]} for the model"
        )
    if not shipped and (path.is_dir() or (path.suffix == ".npz" and path.is_file())):
        return False
    registry.find_model(text)
    return True


def plan(model: Model, *, count: int, batch: int, seed: int, labels: Any = "balanced", **settings: Any) -> Plan:
    """What is drawn: `count` images over all classes of the model.

    Args:
        labels: balanced or random.
        settings: steps, cfg, temperature; None: the recipe's.
    """
    return Plan(count, batch, seed, model.settings(**settings), all_classes(model), labels)


def draw_samples(model: Model, plan: Plan, folder: Path, context: EvalContext, what: str = "sampling") -> ImageSet:
    """Draw what is missing of a model's samples, as PNG files; every process calls this.

    Raises:
        UserError: the folder holds other samples, or cannot be written.
        Stopped: a signal came.
    """
    manifest = context.processes.on_main(lambda: claim(folder, describe(model, plan), model.recipe))
    store = PNGStore(folder, plan, manifest["class_names"])
    if not draw_chunks(model, plan, store, context.processes, signals=context.signals, report=context.show(what)):
        raise Stopped
    images = open_images(folder, context.registry, image_size=model.recipe.image_size)
    # the main process writes how long it took: another might read it too early
    return evolve(images, drawn=context.processes.on_main(lambda: with_timing(manifest, folder)), notes=())


def draw_sets(
    model: Model, plan: Plan, folder: Path, context: EvalContext, *, seeds: int = 1, codes_too: bool | None = None
) -> list[Drawn]:
    """Draw what is missing of the samples of a plan and of its following seeds, beside their report in `folder`.

    Args:
        codes_too: with the codes' own decoding; None: where the model draws codes.

    Raises:
        UserError: the model draws no codes and they are wanted; or as `draw_samples`.
        Stopped: a signal came.
    """
    plans = [evolve(plan, seed=plan.seed + index) for index in range(seeds)]
    codes_too = draws_codes(model) if codes_too is None else codes_too
    codes = [CodesAlone(model, each) if codes_too else None for each in plans]
    sets = []
    for index, (each, alone) in enumerate(zip(plans, codes, strict=True)):
        place = folder / SEEDS / str(each.seed) if index else folder / SAMPLES
        what = "sampling" if seeds == 1 else f"sampling, seed {each.seed}"
        sets.append(Drawn(draw_samples(model, each, place, context, what), alone))
    return sets


def measure(
    sets: Sequence[Drawn],
    encoders: Sequence[tuple[EvalContext, Reference]],
    *,
    cache: Path | None = None,
    title: str = "Generation",
    nearest: bool = False,
) -> Report:
    """The report of sets of images, drawn alike with other seeds; every process calls this.

    Args:
        sets: one or more, of as many images; scores are means over them, with their spread.
        encoders: the context of each extractor and the reference as it sees it; the first judges, others stand beside.
        cache: where features are kept, see `features_of`.
        nearest: show the training images nearest to the samples.

    Raises:
        UserError: the images cannot be measured.
        Stopped: a signal came.
    """
    (context, reference), extractor = encoders[0], encoders[0][0].extractor
    sets = [evolve(each, images=each.images.named_as(reference.class_names)) for each in sets]
    views = views_of(sets, encoders, cache=cache)
    images, view = sets[0].images, views[extractor.label]
    verdict = compare_codes(view.scores, view.codes, reference, extractor.gives_fid) if view.codes else None
    near = nearest_training(images, reference, context, cache=cache) if nearest else None
    classes = count_classes(images.labels, len(images.class_names))
    missing = [label_name(label, images.class_names) for label in classes.missing] if classes else []
    plain = {
        **_plain_scores(views),
        **({} if near is None else {"nearest": near.plain}),
        "samples": _plain_samples(sets, classes, missing),
        **_plain_how(extractor, reference),
    }
    return Report(
        title=title,
        protocol=PROTOCOL,
        reasons=reasons_against(images, reference, extractor),
        figures={name: spread.mean if spread else None for name, spread in spreads(view.scores).items()},
        plain=plain,
        sections=[
            scores_section(views, extractor),
            *ratios_section(views),
            *([] if near is None else [near.section]),
            Section("Classes", lines=[_classes(classes, missing)]),
            _drawn_section(plain["samples"]),
            _measured_section(plain),
        ],
        made=context.made(),
        notes=[
            *([] if verdict is None else [verdict]),
            *([] if near is None else near.notes),
            *images.notes,
            *reference.notes,
            *(view.real.notes if view.real else ()),
            *_notes(images, missing, extractor),
        ],
        pictures={PICTURE: _picture(images)} | ({} if near is None else {NEAREST: near.picture}),
    )


def _plain_how(extractor: FeatureExtractor, reference: Reference) -> dict[str, Any]:
    return {
        "extractor": described(extractor),
        "reference": {
            "description": reference.description,
            "count": reference.count,
            "vectors": None if reference.features_AF is None else len(reference.features_AF),
            "notes": list(reference.notes),
        },
        "settings": {
            "inception_score_splits": SPLITS,
            "kernel_subsets": KERNEL_SUBSETS,
            "kernel_subset_size": KERNEL_SUBSET_SIZE,
            "mind_projections": PROJECTIONS,
            "neighbours": NEIGHBOURS,
            "seed": SEED,
        },
    }


def _plain_scores(views: Mapping[str, View]) -> dict[str, Any]:
    """What was measured, as JSON has it: the judge's in full, of the others what differs."""

    def of(view: View) -> dict[str, Any]:
        codes = {"codes_alone": asdict(view.codes[0])} if view.codes else {}
        scores = {"scores": asdict(view.scores[0]), "floor": view.floor and asdict(view.floor)}
        return {**scores, **codes, "real_images": view.real and asdict(view.real)}

    view, *others = views.values()
    plain = of(view) | {"named": view.named and asdict(view.named), "ratios": plain_ratios(views)}
    if len(view.scores) > 1:
        spread = {name: each and asdict(each) for name, each in spreads(view.scores).items()}
        plain |= {"seeds": [asdict(scores) for scores in view.scores], "spread": spread}
    if others:
        plain["beside"] = {label: of(other) for label, other in zip([*views][1:], others, strict=True)}
    return plain


def _plain_samples(sets: Sequence[Drawn], classes: ClassCounts | None, missing: list[str]) -> dict[str, Any]:
    images = sets[0].images
    counts = None if classes is None else {**asdict(classes), "missing": missing, "exactly_balanced": classes.exact}
    return {
        "source": images.description,
        "count": len(images),
        "width": images.width,
        "height": images.height,
        "format": images.format,
        "classes": counts,
        "drawn": None if images.drawn is None else dict(images.drawn),
        **({"seeds": [each.images.drawn and each.images.drawn["plan"]["seed"] for each in sets]} if sets[1:] else {}),
    }


def _notes(images: ImageSet, missing: list[str], extractor: FeatureExtractor) -> list[str]:
    notes, (frechet, kernel, _) = [], score_names(extractor.gives_fid)
    if len(images) <= extractor.feature_dim:
        notes.append(
            f"{len(images):,} samples are few for vectors of {extractor.feature_dim:,} numbers: much of the {frechet} "
            f"is its floor, and the {kernel} says more"
        )
    if missing:
        notes.append(f"{len(missing)} of {len(images.class_names)} classes have no image: {', '.join(missing)}")
    return notes


def _picture(images: ImageSet) -> Image.Image:
    def read(count: int) -> torch.Tensor:
        return torch.cat(list(images.batches(torch.arange(count))))

    labels = images.labels or images.data.labels()
    return overview(read, labels, images.class_names, len(images.class_names))[0]


def _classes(classes: ClassCounts | None, missing: list[str]) -> str:
    if classes is None:
        return "Not known."
    each = f"exactly {classes.most:,}" if classes.exact else f"{classes.fewest:,} to {classes.most:,}"
    line = f"{classes.known:,} classes, {each} images of each."
    named = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
    return f"{line} **{len(missing):,} of them have no image: {named}.**" if missing else line


def _measured_section(plain: Mapping[str, Any]) -> Section:
    told = {
        "extractor": plain["extractor"]["identity"],
        "numbers of a feature vector": plain["extractor"]["feature_dim"],
        "reference": plain["reference"]["description"],
        "reference vectors": plain["reference"]["vectors"],
        "image format": plain["samples"]["format"],
        **{name.replace("_", " "): value for name, value in plain["settings"].items()},
    }
    return Section("How they were measured", facts(told))


def _drawn_section(samples: Mapping[str, Any]) -> Section:
    told = {
        "samples": samples["source"],
        "images": f"{samples['count']:,} of {samples['width']}x{samples['height']} pixels",
    }
    drawn = samples["drawn"]
    below = ["How they were drawn is not known."] if drawn is None else []
    return Section("How the samples were drawn", facts(told if drawn is None else told | _drawn(drawn)), below=below)


def _drawn(drawn: Mapping[str, Any]) -> dict[str, object]:
    model, plan = drawn["model"], drawn["plan"]
    kinds = {"ema": "averaged (EMA)", "raw": "of the last step (raw)", "bf16": "bf16 (autocast; decoders in float32)"}
    told = {
        "model": drawn["name"],
        "weights": kinds.get(model["weights"], model["weights"]),
        **{f"sha256 of {key}'s weights": digest for key, digest in model["sha256"].items()},
        "precision": kinds.get(model["precision"], model["precision"]),
        "seed": plan["seed"],
        "labels": f"{plan['labels']}, over {len(set(plan['classes'])):,} classes",
        "images of a batch": plan["batch"],
    }
    for key, value in plan["settings"].items():
        told[key.replace("_", " ")] = "as the part says" if value is None else str(value)
    for key in ("injector", "head", "prior", "data"):
        if part := model["parts"].get(key):
            settings = ", ".join(f"{name} {value}" for name, value in part.items() if name != "type")
            told[key] = f"{part['type']}{f' ({settings})' if settings else ''}"
    told["seconds an image, of one process"] = number(drawn["seconds_per_image_and_process"], 3)
    for index, call in enumerate((drawn, *drawn.get("continued", ()))):
        again = f" (continued, {index})" if index else ""
        told[f"drawn on{again}"] = call["device"]
        told[f"with{again}"] = call["versions"]
    return told

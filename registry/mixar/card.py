"""A model card: what a published folder is, in the words of its own recipe, provenance and report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixar.folder import PROVENANCE, WEIGHTS, read_provenance
from mixar.hub import PREFIX, repository
from mixar.strict_yaml import dump
from mixar_core.types import NO_CLASS

if TYPE_CHECKING:
    from PIL import Image

    from mixar.model import Model

#: the picture, and classes that it shows at most
SAMPLES, SHOWN = "samples.png", 16


def picture(model: Model) -> Image.Image | None:
    """Samples of its first classes with seed 0; None of a model that draws nothing."""
    if model.system.model is None and model.system.prior is None:
        return None
    classes = model.recipe.num_classes
    labels = [n % classes for n in range(max(8, min(classes, SHOWN)))] if classes else [NO_CLASS] * 8
    return model.generate(labels, seed=0).grid()


def card(model: Model, folder: Path, *, name: str, licence: str | None = None, report: Path | None = None) -> str:
    """Markdown with the hub's header.

    Args:
        name: how `mixar.load` will find it. licence: None: not said. report: a folder with report.md.
    """
    recipe, facts = model.recipe, read_provenance(folder)
    draws = (folder / SAMPLES).is_file()
    head: dict[str, Any] = {"library_name": "mixar", "tags": ["mixar", "autoregressive", "image-generation"]}
    head |= {"license": licence} if licence else {}
    head |= {"pipeline_tag": "unconditional-image-generation"} if draws else {}
    parts = [f"---\n{dump(head)}---", f"# {recipe.name}", recipe.summary]
    if draws:
        parts.append(f"![Samples with seed 0, from this folder]({SAMPLES})")
        some = model.class_names[0] if model.class_names else 0 if recipe.num_classes else NO_CLASS
        parts.append(
            f"```python\nimport mixar\n\nmodel = mixar.load({name!r})\n"
            f'model.generate([{some!r}], seed=0).grid().save("drawn.png")\n```\n\n`mixar sample {name}` does the same.'
        )
        place, revision = repository(name) if name.startswith(PREFIX) else (name, None)
        pinned = f", revision={revision!r}" if revision else ""
        parts.append(
            "Where mixar-diffusers is installed it is a pipeline of diffusers, too:\n\n```python\n"
            "from diffusers import DiffusionPipeline\n\n"
            f"pipe = DiffusionPipeline.from_pretrained({place!r}{pinned}, trust_remote_code=True)\n"
            f'pipe(class_labels=[{some!r}], seed=0).images[0].save("drawn.png")\n```'
        )
    else:
        parts.append(f"A recipe names it so: `{recipe.trains}: {{weights: {name}}}`.")
    parts += ["## What it is", _table(_settings(model))]
    parts += ["## How it was trained", _table(_training(model, facts))]
    if model.class_names:
        parts.append(f"Classes, in the order of their labels: {', '.join(model.class_names)}.")
    parts += ["## What is in the folder", _table(_files(folder))]
    if report is not None:
        told = (report / "report.md").read_text(encoding="utf-8").strip()
        parts += ["## How it was measured", told.replace("\n# ", "\n### ").removeprefix("# ")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _settings(model: Model) -> list[tuple[str, str]]:
    recipe = model.recipe
    keys = ("continuous_tokenizer", "discrete_tokenizer", "prior", "conditioner", "backbone", "injector", "head")
    size = recipe.image_size
    rows = [("image", f"{size} x {size}" if isinstance(size, int) else f"{size[0]} x {size[1]}")]
    rows += [("classes", str(recipe.num_classes or "none"))]
    rows += [(key, f"`{choice.type}`") for key in keys if (choice := getattr(recipe, key)) is not None]
    return [*rows, ("parameters that were trained", f"{model.system.parameters:,}")]


def _training(model: Model, facts: dict[str, Any]) -> list[tuple[str, str]]:
    recipe = model.recipe
    rows = [("data", f"`{facts['data']}`" if "data" in facts else "not said")]
    if recipe.training is not None:
        steps = facts.get("steps") or recipe.training.steps
        rows.append(("steps", f"{steps or 'not said'}, of {recipe.training.batch_size} images"))
        rows.append(("precision", recipe.training.precision))
    rows += [
        (key.replace("_", " "), str(facts[key])) for key in ("trained_by", "imported_by", "finished") if key in facts
    ]
    rows += [("versions", ", ".join(f"{key} {value}" for key, value in facts.get("versions", {}).items()))]
    kind = "averaged over training" if model.weights == "ema" else "of the last step"
    return [*rows, ("weights", str(facts.get("weights", kind)))]


def _files(folder: Path) -> list[tuple[str, str]]:
    found = sorted(folder.rglob("*.safetensors"), key=lambda file: (len(file.parts), file))
    return [
        (
            f"`{file.relative_to(folder).as_posix()}`",
            f"{file.stat().st_size / 1e6:,.1f} MB" + (f", sha256 `{digest}`" if (digest := _digest(file)) else ""),
        )
        for file in found
    ]


def _digest(file: Path) -> str | None:
    beside = file.name == WEIGHTS and (file.parent / PROVENANCE).is_file()
    return read_provenance(file.parent).get("sha256") if beside else None


def _table(rows: list[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)])

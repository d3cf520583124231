"""A trained model as one folder that needs no other: its frozen parts inside, and a card that says what it is."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch

from mixar import hub, strict_yaml
from mixar.assembly import class_names, frozen_weights
from mixar.card import SAMPLES, card, picture
from mixar.folder import (
    FROM_FOLDER,
    PROVENANCE,
    RECIPE,
    WEIGHTS,
    Kind,
    read_provenance,
    read_tensors,
    sha256,
    weights_file,
)
from mixar.model import load
from mixar.plugins import Registry, registry_without
from mixar.recipe import PART_KEYS, TRAINABLE, PartChoice, Recipe, load_recipe, to_plain
from mixar.registry import OWN, PRESETS
from mixar_core.errors import UserError
from mixar_core.storage import user_path, whole_folder, write_text, write_weights
from mixar_core.training.adversarial import AdversarialConfig
from mixar_core.training.alignment import AlignmentConfig

README = "README.md"
#: How diffusers finds a pipeline in the folder. The code is mixar-diffusers', so that none is copied around.
_INDEX = {"_class_name": ["pipeline", "MixARPipeline"], "model": ["component", "MixARModel"]}
#: the files and the folder that do
_DIFFUSERS = ("model_index.json", "pipeline.py", "model")
_STUB = '''"""For diffusers: the code is in the package mixar-diffusers, which has to be installed."""

from mixar_diffusers.pipeline import {name}

__all__ = ["{name}"]
'''
#: parts that sampling does not use
_FOR_TRAINING = ("data", "extractor", "discriminator", "aligned_to", "optimizer")


def publish(
    model: str | Path,
    to: str | Path,
    *,
    weights: Kind = "ema",
    licence: str | None = None,
    report: Path | None = None,
    private: bool = False,
    replace: bool = False,
    device: torch.device | str | None = None,
    registry: Registry | None = None,
) -> str:
    """Make one folder of a model and all that it keeps frozen, here or at the hub, and draw from it once.

    It holds recipe.yaml, the weights as they are, `continuous_tokenizer/`, `discrete_tokenizer/` and `prior/` (model
    folders themselves), presets, README.md (a model card), samples.png, which was drawn from the folder, and what makes
    it a pipeline of diffusers: model_index.json, pipeline.py and model/.

    Args:
        model: as `load` takes it. to: a folder, or `hf://owner/name` (`@branch` behind it: that branch).
        weights: averaged over training, or those of the last step.
        licence: the hub's name of one, such as `apache-2.0`; goes into the card.
        report: the folder of a `mixar eval generation`, which goes into the card.
        private: whether a repository that is made at the hub is.
        replace: whether a folder that is there goes.

    Returns: what `load` takes to have it: the folder, or the hub's name.

    Raises:
        UserError: no such model or report, a part of it is missing, the folder is there, or the hub refuses.
    """
    registry = registry_without(registry, ())
    source, name, folder = registry.find_model(model), str(to), None
    report = None if report is None else user_path(report)
    if report is not None and not (report / "report.md").is_file():
        raise UserError(f"report {report}: has no report.md; mixar eval generation --out {report} writes one")
    if name.startswith(hub.PREFIX):
        hub.repository(name)
    else:
        folder = user_path(to)
        name = str(folder)
        if folder.exists():
            if not replace:
                raise UserError(f"{folder}: is there already")
            _check_published(folder)
    with _room(folder, replace=replace) as new:
        recipe = load_recipe(source / RECIPE, registry=registry)
        _write_all(source, recipe, new, weights, registry)
        loaded = load(new, device=device, registry=registry)
        pictured = picture(loaded)
        if pictured is not None:
            pictured.save(new / SAMPLES)
            _write_index(new)
        called = name if folder is None else f"./{folder.name}"
        text = card(loaded, new, name=called, licence=licence, report=report)
        for value in to_plain(recipe).get("data", {}).values():  # a report's notes say where the data are
            text = text.replace(value, _last(value)) if _last(value) != value else text
        write_text(new / README, text)
        if folder is None:
            hub.upload(new, name, private=private)
    return name


def _check_published(folder: Path) -> None:
    """Refuse to replace what is no published model, or has more in it: a run has checkpoints, and a person files."""
    parts = [name for key in TRAINABLE for name in (key, f"{key}.safetensors")]
    ours = {RECIPE, WEIGHTS, PROVENANCE, README, SAMPLES, PRESETS, *_DIFFUSERS, *parts}
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    if strange := sorted(found - ours) or ([] if RECIPE in found else [f"no {RECIPE}"]):
        raise UserError(f"{folder}: holds something else than a published model ({strange[0]}); give another folder")


@contextmanager
def _room(folder: Path | None, *, replace: bool) -> Iterator[Path]:
    """Where to write: what becomes `folder` in the end, or a folder that is gone then."""
    if folder is not None:
        with whole_folder(folder, replace=replace) as new:
            yield new
    else:
        with tempfile.TemporaryDirectory(prefix="mixar-publish-") as scratch:
            yield Path(scratch)


def _write_all(source: Path, recipe: Recipe, folder: Path, kind: Kind, registry: Registry) -> None:
    """The model, and each part that it keeps frozen: a model folder, or where there was a bare file, that file."""
    files = frozen_weights(recipe, registry)
    homes = {key: _home(getattr(recipe, key).weights, registry) for key in files}
    places = {key: key if homes[key] else f"{key}.safetensors" for key in files}
    seen = {key: f"./{place}" for key, place in places.items()}
    names = class_names(recipe, source, registry)
    facts = ({"class_names": list(names)} if names else {}) | ({"weights": "of the last step"} if kind == "raw" else {})
    facts |= {"data": recipe.data.type} if recipe.data else {}
    _write_one(source, folder, weights_file(source, kind), _plain(recipe, seen, registry), facts)
    if (source / PRESETS).is_dir():
        shutil.copytree(source / PRESETS, folder / PRESETS)
    for key, file in files.items():
        home = homes[key]
        if home is None:
            shutil.copyfile(file, folder / places[key])
            continue
        part = load_recipe(home / RECIPE, registry=registry)
        own = frozen_weights(part, registry)
        if strangers := [k for k in own if k not in files or sha256(own[k]) != sha256(files[k])]:
            raise UserError(f"{key} {home}: was trained with another {strangers[0]}, which the folder has no place for")
        seen = {k: f"../{places[k]}" for k in own}
        _write_one(home, folder / key, file, _plain(part, seen, registry), {})


def _write_index(folder: Path) -> None:
    """What makes the folder a pipeline of diffusers, too."""
    index, pipeline, model = (folder / name for name in _DIFFUSERS)
    model.mkdir()
    write_text(index, json.dumps(_INDEX, indent=2) + "\n")
    write_text(pipeline, _STUB.format(name="MixARPipeline"))
    write_text(model / "component.py", _STUB.format(name="MixARModel"))


def _home(weights: str, registry: Registry) -> Path | None:
    """The model folder that a recipe's `weights:` names; None where it names a file."""
    return None if hub.is_file(weights) else registry.find_model(weights)


def _write_one(source: Path, folder: Path, weights: Path, plain: dict[str, Any], facts: Mapping[str, Any]) -> None:
    """A model folder of a recipe's plain values; what is known of the source is in its provenance."""
    folder.mkdir(exist_ok=True)
    write_text(folder / RECIPE, strict_yaml.dump(plain))
    if weights.is_dir():  # a run that has not ended: its newest checkpoint
        write_weights(folder / WEIGHTS, read_tensors(weights))
    else:
        shutil.copyfile(weights, folder / WEIGHTS)
    told = {**read_provenance(source), **facts, "sha256": sha256(folder / WEIGHTS), "paths": FROM_FOLDER}
    write_text(folder / PROVENANCE, json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def _last(value: Any) -> Any:
    """Of a path of this machine its last name; what else there is as it is."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _plain(recipe: Recipe, places: Mapping[str, str], registry: Registry) -> dict[str, Any]:
    """A recipe as it is read in the folder.

    Frozen parts stand at their places in it. What training alone uses and comes from a package of its own is left out,
    so that sampling does not need that package; paths of data and of what training began with keep their last names.
    """

    def foreign(choice: PartChoice, kind: str) -> bool:
        return registry.plugin_of(registry.part(kind, choice.type)).package != OWN

    left: dict[str, Any] = {
        key: None
        for key in _FOR_TRAINING
        if (choice := getattr(recipe, key)) is not None and foreign(choice, PART_KEYS[key])
    }
    if "discriminator" in left:
        left["adversarial"] = AdversarialConfig()
    if "aligned_to" in left:
        left["alignment"] = AlignmentConfig()
    own = tuple(choice for choice in recipe.callbacks if not foreign(choice, "callback"))
    plain = to_plain(attrs.evolve(recipe, **left, callbacks=own))
    for key, place in places.items():
        plain[key]["weights"] = place
    for key in plain.keys() & {"data", "init"}:
        plain[key] = {name: _last(value) for name, value in plain[key].items()}
    return plain

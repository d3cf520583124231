"""`mixar weights import`: a published file in, a model folder out. Nothing is loaded loosely."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, frozen
from torch import Tensor

from mixar import hub
from mixar.assembly import System, build
from mixar.folder import PROVENANCE, RECIPE, WEIGHTS, check_fit, is_quantised, save_model, sha256
from mixar.origin import origins
from mixar.plugins import Registry
from mixar.recipe import PART_KEYS, load_recipe, to_yaml
from mixar_core.errors import UserError
from mixar_core.storage import user_path
from mixar_import.entries import StateDict, check_finite, check_stored, flatten, state_dicts
from mixar_import.importers import Importer
from mixar_import.published import read_published
from mixar_import.statistics import read_statistics

_LISTED = 5
_OWN_FILES = {RECIPE, WEIGHTS, PROVENANCE}


@frozen(eq=False)
class Imported:
    """A recipe on torch's meta device, the tensors that fill what it trains, and what the user should read."""

    system: System
    tensors: Mapping[str, Tensor]
    remarks: tuple[str, ...]


def import_weights(
    kind: str,
    file: str,
    folder: Path,
    registry: Registry,
    *,
    recipe: str | None = None,
    tokenizer: str | None = None,
    statistics: str | None = None,
    entry: str | None = None,
    raw: bool = False,
    settings: Sequence[str] = (),
    replace: bool = False,
) -> Imported:
    """Translate a published file into a model folder.

    Args:
        kind: an importer's name.
        file, statistics: paths, or `hf://owner/name/file[@revision]`, of what torch.save wrote or of .safetensors.
        recipe: the recipe, by name or path, whose sizes the file has; None: one of those that the importer names.
        tokenizer: the folder, or a shipped model's name, of the tokenizer that the model works with.
        entry: the file's entry, or the beginning of names, that holds the state dict; None: it is looked for.
        raw: the last step's weights instead of the averaged ones, where the file has both.
        settings: "key.key=value", over the recipe.
        replace: whether a model folder of this name may be replaced.

    Raises:
        UserError: the file cannot be read, is of another kind, or its tensors are not exactly those of a recipe: says
            which recipe is nearest, and what is missing, unexpected and misshapen.
    """
    folder = user_path(folder)
    _check_free(folder, replace=replace)
    part = registry.part("importer", kind)
    importer = part.component(part.config())
    assert isinstance(importer, Importer)
    _check_options(kind, importer, tokenizer, statistics, raw)
    path, source = _locate(file)
    tensors, others = flatten(read_published(path), where=file)
    facts: dict[str, Any] = {"imported_by": f"mixar weights import {kind}"}
    latents = None
    if statistics:
        at, named = _locate(statistics)
        latents = read_statistics(at, where=f"--statistics {statistics}")
        facts["statistics"] = {**named, "sha256": sha256(at)}
    overrides = [*settings, f"{importer.tokenizer_key}.weights={json.dumps(tokenizer)}"] if tokenizer else settings
    try:
        if empty := [name for name, tensor in tensors.items() if tensor.is_meta]:
            raise UserError(f"tensor {empty[0]} is stored in a way that weights are not (without values)")
        found = state_dicts(tensors, importer, entry=entry, raw=raw)
        done = fill(importer, found, registry, recipe=recipe, overrides=overrides, statistics=latents)
        check_stored(done.tensors)
        check_finite(done.tensors)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    if others:
        done = evolve(done, remarks=(*done.remarks, f"left out, because no tensors: {', '.join(others)}"))
    which = ("raw" if raw else "averaged") if importer.averaged_entry else "as published"
    facts |= {
        "source": {**source, "sha256": sha256(path)},
        "weights": f"entry {entry}" if entry else which,
        "recipe": done.system.recipe.name,
        "parts": origins(done.system.recipe, PART_KEYS, registry),
        "remarks": list(done.remarks),
    }
    own = evolve(done.system.recipe, name=folder.name, summary=f"{kind}, imported from {Path(file).name}")
    save_model(folder, recipe_yaml=to_yaml(own), tensors=done.tensors, facts=facts, replace=replace)
    return done


def fill(
    importer: Importer,
    found: Sequence[StateDict],
    registry: Registry,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    statistics: Mapping[str, Tensor] | None = None,
) -> Imported:
    """The first recipe whose trained module has exactly the names and shapes of one of the state dicts.

    Args:
        overrides: "key.key=value", over the recipe; the last one names the tokenizer where the kind needs one.

    Raises:
        UserError: there is none; says which is nearest and what differs.
    """
    names = importer.recipes if recipe is None else (recipe,)
    if not names:
        raise UserError("no recipe is shipped for files of this kind; give --recipe NAME|PATH, one of its sizes")
    tensors, _ = importer.translate(found[0].tensors, statistics)
    own_sizes = importer.sizes(tensors) if recipe is None else []

    def built(name: str, over: Sequence[str]) -> System:
        return build(load_recipe(name, [*importer.settings, *over], registry=registry), registry, meta=True)

    systems: dict[str, System] = {}
    refused: dict[str, UserError] = {}
    for name, sizes in [*((name, []) for name in names), *([(names[0], own_sizes)] if own_sizes else [])]:
        label = f"{name} with {', '.join(sizes)}" if sizes else name
        try:
            systems[label] = built(name, [*sizes, *overrides])
        except UserError as error:
            refused[label] = error
    for state in found:
        translated, remarks = importer.translate(state.tensors, statistics)
        for label, system in systems.items():
            if not _differences(system, translated):
                own = [f"of no shipped size: recipe {label}"] if label not in names else []
                return Imported(system, translated, (*state.remarks, *remarks, *own))
    for label, misfit in refused.items():
        # the file may be of this recipe, which has a tokenizer of its own, and the one named of another
        if not systems or (importer.tokenizer_key and not _differences(built(label, overrides[:-1]), tensors)):
            raise misfit
    nearest = min(systems, key=lambda label: _differences(systems[label], tensors))
    try:
        check_fit(systems[nearest].trained, tensors, where="its state dict", listed=None if recipe else _LISTED)
    except UserError as error:
        which = "is not of" if recipe else f"is of no recipe among {', '.join(names)}; nearest is"
        raise UserError(
            f"{which} {nearest}: {error}; the file has {', '.join([*found[0].tensors][:3])}, ...; sizes are those of a "
            "recipe: --recipe NAME|PATH, with --set KEY=VALUE over it"
        ) from error
    raise AssertionError("a state dict that fits was not taken")


def _differences(system: System, tensors: Mapping[str, Tensor]) -> int:
    """How many names with their shapes, of weights of numbers with a point, are not in both."""
    own = system.trained.state_dict()
    fitting = (
        name in own and own[name].shape == tensor.shape and not is_quantised(tensor, own[name])
        for name, tensor in tensors.items()
    )
    return len(own) + len(tensors) - 2 * sum(fitting)


def _check_free(folder: Path, *, replace: bool) -> None:
    if folder.exists() and not replace:
        raise UserError(f"{folder}: is there already; give another, or --force to replace it")
    # --force must never remove what an import did not write
    if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= _OWN_FILES):
        raise UserError(f"{folder}: holds something else than a model folder; give another")


def _check_options(kind: str, importer: Importer, tokenizer: str | None, statistics: str | None, raw: bool) -> None:
    key = importer.tokenizer_key
    for wrong, complaint in (
        (tokenizer and key is None, f"--tokenizer: a {kind} needs none"),
        (key and not tokenizer, f"--tokenizer: give the folder of its {(key or '').replace('_', ' ')}"),
        (statistics and not importer.takes_statistics, f"--statistics: a {kind} takes none"),
        (raw and importer.averaged_entry is None, f"--raw: a {kind} file has one set of weights"),
    ):
        if wrong:
            raise UserError(complaint)


def _locate(file: str) -> tuple[Path, dict[str, str]]:
    """Where a file lies on this machine, and what provenance says of where it is from."""
    if file.startswith(hub.PREFIX):
        fetched = hub.fetch(file)
        return fetched.path, {"name": file, "commit": fetched.commit}
    return user_path(file), {"name": Path(file).name}

"""`mixar weights import`: a published file in, a model folder out. Nothing is loaded loosely."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import Tensor

from mixar import hub
from mixar.assembly import System, build
from mixar.folder import PROVENANCE, RECIPE, WEIGHTS, check_fit, save_model, sha256
from mixar.plugins import Registry
from mixar.recipe import load_recipe, make_recipe, merge, parse_overrides, read_plain, to_yaml
from mixar.structure import Invalid, structure
from mixar.text import one_line
from mixar_core.errors import UserError
from mixar_core.tokenizer import Tokenizer
from mixar_import.importer import Importer, Published
from mixar_import.published import read_published, state_dict


@frozen(eq=False)
class Imported:
    """What was imported: on torch's meta device, with what the importer had to say."""

    system: System
    tensors: int
    values: int
    remarks: tuple[str, ...]


def import_weights(
    kind: str,
    file: str,
    folder: Path,
    registry: Registry,
    *,
    tokenizer: str | None = None,
    statistics: str | None = None,
    raw: bool = False,
    settings: Sequence[str] = (),
    replace: bool = False,
) -> Imported:
    """Translate a published file into a model folder.

    Args:
        kind: an importer's name.
        file: a path or `hf://owner/name/file[@revision]`, of a file that torch.save wrote or a .safetensors file.
        tokenizer: the folder, or a shipped model's name, of the tokenizer that the model works with.
        statistics: a file with `mean` and `std` of the latents.
        raw: the last step's weights instead of the averaged ones, where the file has both.
        settings: "key=value" for what tensors do not tell.
        replace: whether a folder of this name may be replaced.

    Raises:
        UserError: the file cannot be read, is of another kind, or its tensors are not exactly those of the model whose
            sizes they tell: all that are missing, unexpected or misshapen are listed.
    """
    if folder.exists():
        if not replace:
            raise UserError(f"{folder}: is there already; give another, or --force to replace it")
        # --force must never remove what an import did not write
        if not folder.is_dir() or {path.name for path in folder.iterdir()} - {RECIPE, WEIGHTS, PROVENANCE}:
            raise UserError(f"{folder}: holds something else than a model folder; give another")
    importer = _importer(kind, settings, registry)
    if bool(tokenizer) != (importer.tokenizer_key is not None):
        key = (importer.tokenizer_key or "").replace("_", " ")
        raise UserError(
            f"--tokenizer: a {kind} needs none" if tokenizer else f"--tokenizer: give the folder of its {key}"
        )
    if statistics and not importer.takes_statistics:
        raise UserError(f"--statistics: a {kind} takes none")

    path, source = _locate(file)
    tensors = _choose(read_published(path), importer, raw=raw, kind=kind, where=file)
    published = Published(
        tensors,
        tokenizer=_tokenizer(tokenizer, importer, registry) if tokenizer else None,
        statistics=_statistics(statistics) if statistics else None,
    )
    try:
        translated = importer.translate(published)
        plain = _resolved(translated.recipe, registry)
        if importer.tokenizer_key and tokenizer:
            plain = merge(plain, {importer.tokenizer_key: {"weights": tokenizer}})
        plain |= {"name": folder.name, "summary": f"{kind}, imported from {Path(file).name}"}
        system = build(make_recipe(plain, registry, where="its recipe"), registry, meta=True)
        check_fit(system.trained, translated.tensors, where="its state dict", listed=None)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:  # sizes that only a damaged file has
        raise UserError(f"{file}: no {kind} can be built of its tensors' sizes: {one_line(error)}") from error

    facts: dict[str, Any] = {
        "imported_by": f"mixar weights import {kind}",
        "source": {**source, "sha256": sha256(path)},
        "weights": ("raw" if raw else "averaged") if importer.averaged_entry else "as published",
        "remarks": list(translated.remarks),
    }
    if statistics:
        at, named = _locate(statistics)
        facts["statistics"] = {**named, "sha256": sha256(at)}
    save_model(folder, recipe_yaml=to_yaml(system.recipe), tensors=translated.tensors, facts=facts, replace=replace)
    values = sum(math.prod(tensor.shape) for tensor in translated.tensors.values())
    return Imported(system, len(translated.tensors), values, translated.remarks)


def _importer(kind: str, settings: Sequence[str], registry: Registry) -> Importer:
    part = registry.part("importer", kind)
    try:
        config = structure(parse_overrides(settings), part.config)
    except Invalid as invalid:
        raise UserError(f"--set: {'; '.join(invalid.problems)}") from invalid
    importer = part.component(config)
    assert isinstance(importer, Importer)
    return importer


def _locate(file: str) -> tuple[Path, dict[str, str]]:
    """Where a file lies on this machine, and what provenance says of where it is from."""
    if file.startswith(hub.PREFIX):
        fetched = hub.fetch(file)
        return fetched.path, {"name": file, "commit": fetched.commit}
    return Path(file), {"name": Path(file).name}


def _choose(content: Any, importer: Importer, *, raw: bool, kind: str, where: str) -> dict[str, Tensor]:
    """The state dict wanted, of one or two that a file holds."""
    averaged = importer.averaged_entry
    if averaged is None:
        if raw:
            raise UserError(f"--raw: a {kind} file has one set of weights")
        return state_dict(content, importer.entry, where=where)
    if not isinstance(content, Mapping) or not {averaged, importer.entry} & content.keys():
        if raw:
            raise UserError(f"--raw: {where} has one set of weights, no entries {averaged} and {importer.entry}")
        return state_dict(content, None, where=where)
    wanted, hint = (importer.entry, "") if raw else (averaged, "; --raw takes the others")
    if wanted not in content:
        raise UserError(f"{where}: has no entry {wanted}{hint}")
    return state_dict(content, wanted, where=where, others=hint)


def _tokenizer(name: str, importer: Importer, registry: Registry) -> Tokenizer:
    """The tokenizer of a model folder, on torch's meta device.

    Raises:
        UserError: there is no such folder, or it holds something else.
    """
    recipe = load_recipe(registry.find_model(name) / RECIPE, registry=registry)
    if recipe.trains != importer.tokenizer_key:
        raise UserError(f"--tokenizer {name}: is a model of a {recipe.trains}, not of a {importer.tokenizer_key}")
    trained = build(recipe, registry, meta=True).trained
    assert isinstance(trained, Tokenizer)
    return trained


def _statistics(file: str) -> dict[str, Tensor]:
    path, _ = _locate(file)
    return state_dict(read_published(path), None, where=f"--statistics {file}")


def _resolved(plain: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    """Plain values of an importer's recipe over those of the shipped one it extends."""
    over = {key: value for key, value in plain.items() if key != "extends"}
    if "extends" not in plain:
        return over
    base = read_plain(registry.find_recipe(plain["extends"]), registry)
    return merge(base, over)

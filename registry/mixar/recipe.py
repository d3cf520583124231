"""Recipes: what is built, on which data, and how it is trained and sampled. YAML in, frozen values out, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import field, frozen
from attrs.validators import ge, gt

from mixar import strict_yaml
from mixar.hub import PREFIX, is_file
from mixar.plugins import Registry
from mixar.structure import Invalid, structure, unstructure
from mixar.text import choices
from mixar_core.backbone import BackboneConfig
from mixar_core.errors import UserError
from mixar_core.masking import MaskingConfig
from mixar_core.mixture import TIMixConfig
from mixar_core.model import SamplingConfig
from mixar_core.training.reconstruction import ReconstructionConfig
from mixar_core.training.settings import TrainingConfig

Trains = Literal["mixar", "continuous_tokenizer", "discrete_tokenizer", "prior"]


@frozen
class PartChoice:
    """A part as a recipe names it: its type, its settings (an instance of the Part's config class), its weights.

    `weights` is a shipped model's name, a model folder, a .safetensors file or one at the hub (`hf://owner/name/file`);
    None means freshly initialised.
    """

    type: str
    config: Any
    weights: str | None = None


def _part(kind: str) -> Any:
    return field(default=None, metadata={"kind": kind})


def _section(cls: type, *, factory: bool = True) -> Any:
    return field(default=cls() if factory else None, metadata={"section": cls})


@frozen
class Recipe:
    """A recipe, resolved: nothing left to look up but weights and data. `load_recipe` makes one.

    Args:
        trains: which part is trained. The others are frozen, or absent where that part does not need them.
        image_size: pixels of a side. num_classes: 0 for an unconditional model.
        extractor: of the perceptual loss (reconstruction.perceptual_weight).
        training: None where the recipe does not say how long to train; sampling works without.
    """

    name: str
    trains: Trains
    image_size: int = field(validator=gt(0))
    num_classes: int = field(validator=ge(0))
    summary: str = ""
    data: PartChoice | None = _part("dataset")
    continuous_tokenizer: PartChoice | None = _part("continuous-tokenizer")
    discrete_tokenizer: PartChoice | None = _part("discrete-tokenizer")
    prior: PartChoice | None = _part("prior")
    injector: PartChoice | None = _part("injector")
    head: PartChoice | None = _part("head")
    extractor: PartChoice | None = _part("extractor")
    backbone: BackboneConfig = _section(BackboneConfig)
    masking: MaskingConfig = _section(MaskingConfig)
    ti_mix: TIMixConfig = _section(TIMixConfig)
    reconstruction: ReconstructionConfig = _section(ReconstructionConfig)
    training: TrainingConfig | None = _section(TrainingConfig, factory=False)
    sampling: SamplingConfig = _section(SamplingConfig)
    callbacks: tuple[PartChoice, ...] = field(default=(), metadata={"kind": "callback", "many": True})


#: recipe key -> kind of part
PART_KEYS: dict[str, str] = {f.name: f.metadata["kind"] for f in attrs.fields(Recipe) if "kind" in f.metadata}
#: parts that can have weights of their own, because a recipe can train them
TRAINABLE = ("continuous_tokenizer", "discrete_tokenizer", "prior")
#: recipe key -> config class
SECTIONS: dict[str, type] = {f.name: f.metadata["section"] for f in attrs.fields(Recipe) if "section" in f.metadata}
_PLAIN = ("name", "trains", "image_size", "num_classes", "summary")
_NEEDS: dict[str, tuple[str, ...]] = {
    "mixar": ("continuous_tokenizer", "injector", "head"),
    "continuous_tokenizer": ("continuous_tokenizer",),
    "discrete_tokenizer": ("discrete_tokenizer",),
    "prior": ("discrete_tokenizer", "prior"),
}
#: sections that matter to what is trained; the others are written out only where they differ from the default
_RELEVANT: dict[str, tuple[str, ...]] = {
    "mixar": ("backbone", "masking", "ti_mix", "training", "sampling"),
    "continuous_tokenizer": ("reconstruction", "training"),
    "discrete_tokenizer": ("reconstruction", "training"),
    "prior": ("training",),
}
_DEFAULT_CALLBACKS = ("throughput", "stall-watch", "progress", "tensorboard", "sample-grid")
_DEFAULT_EXTRACTOR = "efficientnet-lite0"


def load_recipe(name_or_path: str | Path, registry: Registry, *, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of this name or path, with `extends` followed and `overrides` ("a.b=value", YAML values) applied.

    Raises:
        UserError: no such recipe, or it is not valid: every problem with path, value and choices.
    """
    path = registry.find_recipe(name_or_path)
    plain = merge(read_plain(path, registry), parse_overrides(overrides))
    plain.setdefault("name", path.parent.name if path.name == "recipe.yaml" else path.stem)
    return make_recipe(plain, registry, where=f"recipe {name_or_path}")


def read_plain(path: Path, registry: Registry, *, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe file's plain values, merged over those of the recipe it extends."""
    where = f"recipe {path}"
    if path.resolve() in _seen:
        raise UserError(f"{where}: extends itself, through {' -> '.join(p.name for p in _seen)}")
    try:
        plain = strict_yaml.load(path.read_text(encoding="utf-8"), where=where)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read: {error}") from error
    if not isinstance(plain, dict):
        raise UserError(f"{where}: a recipe is a mapping of keys to values, this is {type(plain).__name__}")
    parent = plain.pop("extends", None)
    if parent is None:
        return plain
    if not isinstance(parent, str):
        raise UserError(f"{where}: extends: {parent!r} is not a recipe's name or path")
    relative = path.parent / parent  # a path is meant as seen from the file that says it
    base = relative if relative.is_file() else registry.find_recipe(parent)
    inherited = read_plain(base, registry, _seen=(*_seen, path.resolve()))
    for own in ("name", "summary"):
        inherited.pop(own, None)
    return merge(inherited, plain)


def merge(base: Mapping[str, Any], over: Mapping[str, Any], *, whole_parts: bool = True) -> dict[str, Any]:
    """`over` on top of `base`: mappings merge key by key, everything else is replaced.

    A part (a mapping with `type` or `weights`) is replaced as a whole where its type changes, and where `over` names a
    model, because the model brings type and settings with it; without `whole_parts` it is a mapping as any other.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if not isinstance(old, Mapping) or not isinstance(value, Mapping) or (whole_parts and _replaces(old, value)):
            merged[key] = value
        else:
            merged[key] = merge(old, value, whole_parts=whole_parts)
    return merged


def _replaces(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if "type" in new and new["type"] != old.get("type"):
        return True
    return isinstance(new.get("weights"), str) and not is_file(new["weights"])


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Plain values of "a.b=value" strings, as a recipe would hold them; of one key given twice the last value.

    The order of different keys does not matter: what replaces a part is seen when all of them meet the recipe.
    """
    plain: dict[str, Any] = {}
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise UserError(f'--set {text}: not of the form key.key=value, for example "training.steps=100"')
        nested: Any = strict_yaml.load(value, where=f"--set {text}")
        for key in reversed(keys):
            nested = {key: nested}
        plain = merge(plain, nested, whole_parts=False)
    if "extends" in plain:
        raise UserError("--set extends: only a recipe file extends another; give that recipe's name instead")
    return plain


def make_recipe(plain: Mapping[str, Any], registry: Registry, *, where: str) -> Recipe:
    """A recipe from plain values (without `extends`). `where` begins the error message.

    Raises:
        UserError: it is not valid; lists every problem.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    known = [f.name for f in attrs.fields(Recipe)]
    for key in plain:
        if key not in known:
            problems.append(f"{key}: unknown key; {choices([*known, 'extends'], key)}")

    try:
        values |= attrs.asdict(structure({k: plain[k] for k in _PLAIN if k in plain}, _Plain))
    except Invalid as invalid:
        problems += invalid.problems
    for key, cls in SECTIONS.items():
        if plain.get(key) is None:
            continue
        try:
            values[key] = structure(plain[key], cls, path=key)
        except Invalid as invalid:
            problems += invalid.problems
    trains = values.get("trains", "")
    defaults: dict[str, Any] = {"callbacks": [{"type": name} for name in _DEFAULT_CALLBACKS]}
    if trains == "mixar":
        defaults["injector"] = {"type": "none"}
    if isinstance(loss := values.get("reconstruction"), ReconstructionConfig) and loss.perceptual_weight:
        defaults["extractor"] = {"type": _DEFAULT_EXTRACTOR}
    for key, kind in PART_KEYS.items():
        value = plain.get(key)
        value = defaults.get(key) if value is None else value
        try:
            if key == "callbacks":
                values[key] = _callbacks(value, registry)
            elif value is not None:
                values[key] = _choice(value, key, kind, registry)
            elif key in _NEEDS.get(trains, ()):
                names = [part.name for part in registry.parts(kind)]
                raise Invalid([f"{key}: required where a recipe trains {trains}; {choices(names)}"])
        except Invalid as invalid:
            problems += invalid.problems

    if len(problems) == 1:
        raise UserError(f"{where}: {problems[0]}")
    if problems:
        listed = "; ".join(f"({number}) {problem}" for number, problem in enumerate(problems, 1))
        raise UserError(f"{where}: {len(problems)} problems: {listed}")
    return Recipe(**values)


@frozen
class _Plain:
    """The keys that hold one plain value, with the checks of `Recipe`."""

    name: str
    trains: Trains
    image_size: int = field(validator=gt(0))
    num_classes: int = field(validator=ge(0))
    summary: str = ""


def _callbacks(value: Any, registry: Registry) -> tuple[PartChoice, ...]:
    if not isinstance(value, list):
        raise Invalid([f"callbacks: {value!r} is not a list of parts"])
    done, problems = [], []
    for index, item in enumerate(value):
        try:
            done.append(_choice(item, f"callbacks.{index}", "callback", registry))
        except Invalid as invalid:
            problems += invalid.problems
    if problems:
        raise Invalid(problems)
    return tuple(done)


def _choice(value: Any, path: str, kind: str, registry: Registry) -> PartChoice:
    if not isinstance(value, Mapping):
        raise Invalid([f"{path}: {value!r} is not a mapping with a type"])
    settings = dict(value)
    weights = settings.pop("weights", None)
    if weights is not None:
        if path not in TRAINABLE:
            raise Invalid([f"{path}.weights: only {', '.join(TRAINABLE)} have weights of their own"])
        if not isinstance(weights, str):
            raise Invalid([f"{path}.weights: {weights!r} is not a model's name, a model folder or a .safetensors file"])
        # a resolved recipe says all of it, and loads where the model that training began with is no more
        if "type" not in settings or _is_model(weights, registry):
            own = _settings_of_model(weights, path, registry)
            settings = own | settings
            if settings.get("type") != own.get("type", settings.get("type")):
                raise Invalid([f"{path}.type: {settings['type']} is not the type of {weights}, which is {own['type']}"])
        weights = _absolute(weights, registry)
    if "type" not in settings:
        names = [part.name for part in registry.parts(kind)]
        raise Invalid([f"{path}.type: required, and not there; {choices(names)}"])
    name = settings.pop("type")
    try:
        part = registry.part(kind, str(name))
    except UserError as error:
        raise Invalid([f"{path}.type: {error}"]) from error
    return PartChoice(part.name, structure(settings, part.config, path=path), weights)


def _settings_of_model(weights: str, path: str, registry: Registry) -> dict[str, Any]:
    """Type and settings of the part that a model folder holds."""
    if is_file(weights):
        raise Invalid([f"{path}.type: required where weights is a file ({weights}), which does not say its type"])
    try:
        plain = read_plain(registry.find_model(weights) / "recipe.yaml", registry)
    except UserError as error:
        raise Invalid([f"{path}.weights: {error}"]) from error
    trains, part = plain.get("trains"), plain.get(path)
    if trains != path or not isinstance(part, Mapping):
        raise Invalid([f"{path}.weights: {weights} is a model of a {trains}, not of a {path}"])
    return {key: value for key, value in part.items() if key != "weights"}


def _is_model(weights: str, registry: Registry) -> bool:
    """Whether it names a model that is there."""
    if is_file(weights):
        return False
    try:
        registry.find_model(weights)
    except UserError:
        return False
    return True


def _absolute(weights: str, registry: Registry) -> str:
    """A path that holds wherever the resolved recipe is read from; a shipped model's name stays a name."""
    if weights.startswith(PREFIX):
        return weights
    path = Path(weights)
    is_path = "/" in weights or weights.endswith(".safetensors") or (path / "recipe.yaml").is_file()
    return str(path.absolute()) if is_path else weights


def to_plain(recipe: Recipe) -> dict[str, Any]:
    """The plain values that `make_recipe` makes an equal recipe of, every setting written out."""
    plain: dict[str, Any] = {}
    for attribute in attrs.fields(Recipe):
        key, value = attribute.name, getattr(recipe, attribute.name)
        if key in SECTIONS:
            if value is not None and (key in _RELEVANT[recipe.trains] or value != attribute.default):
                plain[key] = unstructure(value)
        elif key == "callbacks":
            plain[key] = [_plain_choice(choice) for choice in value]
        elif isinstance(value, PartChoice):
            plain[key] = _plain_choice(value)
        elif value not in (None, ""):
            plain[key] = value
    return plain


def _plain_choice(choice: PartChoice) -> dict[str, Any]:
    weights = {} if choice.weights is None else {"weights": choice.weights}
    return {"type": choice.type, **weights, **unstructure(choice.config)}


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return strict_yaml.dump(to_plain(recipe))

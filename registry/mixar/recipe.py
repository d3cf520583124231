"""Recipes: what is built, on which data, and how it is trained and sampled. YAML in, frozen values out, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import field, frozen
from attrs.validators import ge

from mixar import strict_yaml
from mixar.folder import FROM_FOLDER, read_provenance
from mixar.hub import PREFIX, is_file
from mixar.image_sizes import as_size, positive
from mixar.origin import chosen_part, of_silence, same_type, settled
from mixar.overrides import merge as merge
from mixar.overrides import parse_overrides as parse_overrides
from mixar.plugins import Registry, registry_without
from mixar.presets import with_preset
from mixar.structure import Invalid, structure, unstructure
from mixar.text import choices
from mixar.written import Text, bare, path_of, placed
from mixar_core.errors import UserError, said_of
from mixar_core.masking import MaskingConfig
from mixar_core.mixture import TIMixConfig
from mixar_core.model import SamplingConfig
from mixar_core.training.adversarial import AdversarialConfig
from mixar_core.training.alignment import AlignmentConfig
from mixar_core.training.reconstruction import ReconstructionConfig
from mixar_core.training.settings import TrainingConfig
from mixar_core.types import ImageSize

Trains = Literal["mixar", "continuous_tokenizer", "discrete_tokenizer", "prior"]
AlsoTrained = Literal["continuous_tokenizer", "discrete_tokenizer", "prior", "conditioner"]


@frozen
class PartChoice:
    """A part as a recipe names it: its type, its settings (an instance of the Part's config class), its weights.

    `weights` is a shipped model's name, a model folder, a .safetensors file, or a model or file at the hub
    (`hf://owner/name`, `hf://owner/name/file`); None means freshly initialised.
    """

    type: str
    config: Any
    weights: str | None = None

    def __str__(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in attrs.asdict(self.config).items())
        return f"{self.type} ({settings})" if settings else self.type


@frozen
class InitChoice:
    """The trained model that a new run starts from.

    Args:
        from_: `from` in a recipe: a model's name, a model folder, or a .safetensors file.
        classes: `match`: what is learned of a class is taken where a class has the same name; `fresh`: made anew.
        freeze: parts, or beginnings of tensors' names (`backbone.encoder_blocks`), that are not trained.
    """

    from_: str = field(metadata={"path": lambda text, _: path_of(text, holding="recipe.yaml") is not None})
    classes: Literal["match", "fresh"] = "match"
    freeze: tuple[str, ...] = ()


def _part(kind: str) -> Any:
    return field(default=None, metadata={"kind": kind})


@frozen
class Recipe:
    """A recipe, resolved: nothing left to look up but weights and data, every path absolute. `load_recipe` makes one.

    Args:
        trains: which part is trained. The others are frozen, or absent where that part does not need them.
        image_size: pixels of a square's side, or [height, width]. num_classes: 0 for an unconditional model.
        extractor: of the perceptual loss (reconstruction.perceptual_weight).
        discriminator: what a tokenizer is trained against, as `adversarial` says; None: nothing.
        aligned_to: what a continuous tokenizer's latents are held to, as `alignment` says (VA-VAE).
        accept_other_classes: data whose class names are not those that a frozen prior, a cache or the run began with
            are used all the same: label 0 means the same class in both, and so on.
        init: what a new run starts from; None: nothing but the parts' own weights.
        also_trained: parts of a MixAR that are trained with it, by their own losses beside its own; its weights file
            then holds them, too.
        optimizer: of the training; None is adamw, which recipes of before there was a choice mean.
        training: None where the recipe does not say how long to train; sampling works without.
    """

    name: str
    trains: Trains
    image_size: ImageSize = field(converter=as_size, validator=positive)
    num_classes: int = field(validator=ge(0))
    summary: str = ""
    accept_other_classes: bool = False
    data: PartChoice | None = _part("dataset")
    continuous_tokenizer: PartChoice | None = _part("continuous-tokenizer")
    discrete_tokenizer: PartChoice | None = _part("discrete-tokenizer")
    prior: PartChoice | None = _part("prior")
    conditioner: PartChoice | None = _part("conditioner")
    backbone: PartChoice | None = _part("backbone")
    injector: PartChoice | None = _part("injector")
    head: PartChoice | None = _part("head")
    sampler: PartChoice | None = _part("sampler")
    extractor: PartChoice | None = _part("extractor")
    discriminator: PartChoice | None = _part("discriminator")
    aligned_to: PartChoice | None = _part("extractor")
    optimizer: PartChoice | None = _part("optimizer")
    init: InitChoice | None = None
    also_trained: tuple[AlsoTrained, ...] = ()
    masking: MaskingConfig = MaskingConfig()
    ti_mix: TIMixConfig = TIMixConfig()
    reconstruction: ReconstructionConfig = ReconstructionConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    alignment: AlignmentConfig = AlignmentConfig()
    training: TrainingConfig | None = None
    sampling: SamplingConfig = SamplingConfig()
    callbacks: tuple[PartChoice, ...] = field(default=(), metadata={"kind": "callback"})

    def __attrs_post_init__(self) -> None:
        if self.also_trained and self.trains != "mixar":
            raise ValueError(f"also_trained: only where a recipe trains mixar, and this one trains {self.trains}")
        if absent := [key for key in self.also_trained if getattr(self, key) is None]:
            raise ValueError(f"also_trained: {absent[0]}, and the recipe has none")
        if "discrete_tokenizer" in self.also_trained and self.prior and "prior" not in self.also_trained:
            raise ValueError("also_trained: discrete_tokenizer: codes will mean something else; train the prior, too")
        if self.discriminator is not None and not self.trains.endswith("tokenizer"):
            raise ValueError(f"discriminator: only where a tokenizer is trained, and this recipe trains {self.trains}")
        if self.discriminator is None and self.adversarial != AdversarialConfig():
            raise ValueError("adversarial: is about a discriminator, and the recipe has none; set both or none")
        if self.aligned_to is not None and self.trains != "continuous_tokenizer":
            raise ValueError(f"aligned_to: is for a continuous_tokenizer, and this recipe trains {self.trains}")
        if self.aligned_to is None and self.alignment != AlignmentConfig():
            raise ValueError("alignment: is about a foundation model, aligned_to, and the recipe has none")
        own = getattr(self, self.trains, None)
        if self.init is not None and own is not None and own.weights is not None:
            raise ValueError(f"init.from and {self.trains}.weights both say what training starts from; set one of them")

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """Keys of what its weights file holds: what it trains, and what is trained with it."""
        return (self.trains, *self.also_trained)


#: recipe key -> kind of part
PART_KEYS: dict[str, str] = {f.name: f.metadata["kind"] for f in attrs.fields(Recipe) if "kind" in f.metadata}
#: parts that can have weights of their own, because a recipe can train them
TRAINABLE = ("continuous_tokenizer", "discrete_tokenizer", "prior")
#: keys that must have a value; null is the same as silence for the others
_PLAIN = ("name", "trains", "image_size", "num_classes", "summary", "accept_other_classes")
_NEEDS: dict[str, tuple[str, ...]] = {
    "mixar": ("continuous_tokenizer", "backbone", "injector", "head", "sampler"),
    "continuous_tokenizer": ("continuous_tokenizer",),
    "discrete_tokenizer": ("discrete_tokenizer",),
    "prior": ("discrete_tokenizer", "prior"),
}
#: the parts of a MixAR whose silence means these
_DEFAULT_PARTS = {"backbone": "masked", "injector": "none", "sampler": "cosine"}
#: what is written out whatever its value, beside training and callbacks; the rest where it is not the default
_RELEVANT: dict[str, tuple[str, ...]] = {
    "mixar": ("masking", "ti_mix", "sampling"),
    "continuous_tokenizer": ("reconstruction",),
    "discrete_tokenizer": ("reconstruction",),
    "prior": (),
}
_DEFAULT_CALLBACKS = ("throughput", "stall-watch", "health", "progress", "tensorboard", "sample-grid")


def load_recipe(
    name_or_path: str | Path,
    overrides: Sequence[str] | Mapping[str, object] = (),
    *,
    registry: Registry | None = None,
    without_plugins: Sequence[str] = (),
) -> Recipe:
    """The recipe of this name or path, with `extends` followed and `overrides` applied.

    Args:
        overrides: `{"training.steps": 100}`, or as on the command line `["training.steps=100"]`.
        without_plugins: names of installed plugins to leave out.

    Raises:
        UserError: no such recipe, or it is not valid: every problem with path, value and choices.
    """
    registry = registry_without(registry, without_plugins)
    return make_recipe(load_plain(name_or_path, overrides, registry), registry, where=f"recipe {name_or_path}")


def load_plain(
    name_or_path: str | Path, overrides: Sequence[str] | Mapping[str, object], registry: Registry
) -> dict[str, Any]:
    """What `load_recipe` makes a recipe of: the models that it names need not be there yet.

    Raises:
        UserError: no such recipe, or it is no mapping.
    """
    path = registry.find_recipe(name_or_path)
    over = with_preset(parse_overrides(overrides, PART_KEYS.keys() - {"callbacks"}), registry, path.parent)
    plain = merge(read_plain(path, registry), settled(over, PART_KEYS, registry))
    plain.setdefault("name", path.parent.name if path.name == "recipe.yaml" else path.stem)
    return plain


def read_plain(path: Path, registry: Registry, *, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A recipe file's plain values, merged over those of the recipe it extends.

    Relative paths are seen from the file that says them. Those of a shipped recipe, or of one that a run or an import
    wrote (before they were written out in full), mean the working directory, and stay relative while nothing is there.
    Those of a published model are seen from its folder again.
    """
    where = f"recipe {path}"
    if path.resolve() in _seen:
        raise UserError(f"{where}: extends itself, through {' -> '.join(p.name for p in _seen)}")
    plain = strict_yaml.read(path, where=where)
    if not isinstance(plain, dict):
        raise UserError(f"{where}: a recipe is a mapping of keys to values, this is {type(plain).__name__}")
    parent, folder = plain.pop("extends", None), path.absolute().parent
    plain = with_preset(plain, registry, folder)
    shipped = registry.shipped_by(path)
    own = shipped is None and not (path.name == "recipe.yaml" and (folder / "provenance.json").is_file())
    whole = not own and read_provenance(folder).get("paths") == FROM_FOLDER
    plain = placed(plain, folder if own or whole else Path.cwd(), own=own)
    plain = settled(plain, PART_KEYS, registry, read_from=path)
    if parent is None:
        return _with_typed_backbone(plain, registry)
    with said_of(f"{where}: extends"):
        parent = parent if shipped is None else registry.own_name("recipe", parent, shipped)
        base = registry.find_recipe(Text(parent, folder))
    inherited = read_plain(base, registry, _seen=(*_seen, path.resolve()))
    for key in ("name", "summary"):
        inherited.pop(key, None)
    return _with_typed_backbone(merge(inherited, plain), registry)


def _with_typed_backbone(plain: dict[str, Any], registry: Registry) -> dict[str, Any]:
    typed = {"backbone": _with_type(plain["backbone"], "backbone", registry)} if "backbone" in plain else {}
    return plain | typed


def make_recipe(plain: Mapping[str, Any], registry: Registry, *, where: str) -> Recipe:
    """A recipe from plain values (without `extends`). `where` begins the error message.

    Raises:
        UserError: it is not valid; lists every problem.
    """
    values = {key: value for key, value in plain.items() if key in _PLAIN or bare(value) is not None}
    trains, loss = str(bare(values.get("trains"))), values.get("reconstruction")
    callbacks = [of_silence("callback", name, registry) for name in _DEFAULT_CALLBACKS]
    values.setdefault("callbacks", [choice for choice in callbacks if _is_at_hand(choice["type"], registry)])
    if "training" in values:
        values.setdefault("optimizer", of_silence("optimizer", "adamw", registry))
    if trains == "mixar":
        for key, name in _DEFAULT_PARTS.items():
            values.setdefault(key, of_silence(PART_KEYS[key], name, registry))
        values |= {key: _with_type(values[key], key, registry) for key in ("backbone", "sampler")}
    if isinstance(loss, Mapping) and bare(loss.get("perceptual_weight")):
        values.setdefault("extractor", of_silence("extractor", "efficientnet-lite0", registry))
    for key, kind in PART_KEYS.items():
        value = values.get(key)
        if key == "callbacks" and isinstance(value, list):
            values[key] = [partial(_choice, item, f"{key}.{n}", kind, registry) for n, item in enumerate(value)]
        elif key != "callbacks" and (key in values or key in _NEEDS.get(trains, ())):
            values[key] = partial(_choice, value, key, kind, registry, user=f"where a recipe trains {trains}")
    try:
        recipe: Recipe = structure(values, Recipe)
    except Invalid as invalid:
        said, count = str(invalid), len(invalid.problems)
        if count > 1:
            listed = (f"({number}) {problem}" for number, problem in enumerate(invalid.problems, 1))
            said = f"{count} problems: {'; '.join(listed)}"
        raise UserError(f"{where}: {said}") from invalid
    return recipe


def _with_type(choice: Any, key: str, registry: Registry) -> Any:
    """Settings alone are those of the default part; recipes of before there was a choice of backbones have no more."""
    if isinstance(choice, Mapping) and "type" not in choice:
        return of_silence(PART_KEYS[key], _DEFAULT_PARTS[key], registry) | dict(choice)
    return choice


def _is_at_hand(callback: str, registry: Registry) -> bool:
    """Whether the packages of a default callback are installed; asked for by name, it says which one is not."""
    needed = getattr(registry.part("callback", callback).component, "requires", ())
    return all(find_spec(package) is not None for package in needed)


def _choice(value: Any, path: str, kind: str, registry: Registry, *, user: str = "") -> PartChoice:
    """The part that a recipe describes at `path`, which begins the message of an error."""
    known = choices(registry.name_of(part) for part in registry.parts(kind))
    if value is None:
        raise UserError(f"required {user}; {known}")
    if not isinstance(value, Mapping):
        raise UserError(f"{bare(value)!r} is not a mapping with a type, nor a type's name")
    settings = {name: item for name, item in value.items() if name != "weights" or bare(item) is not None}
    weights = settings.pop("weights", None)
    if weights is not None:
        weights, settings = _weights(weights, settings, path, registry)
    if "type" not in settings:
        raise UserError(f"{path}.type: required, and not there; {known}")
    with said_of(f"{path}.type"):
        part = chosen_part(kind, settings.pop("type"), registry)
    return PartChoice(registry.name_of(part), structure(settings, part.config, path=path), weights)


def _weights(weights: Any, settings: dict[str, Any], key: str, registry: Registry) -> tuple[str, dict[str, Any]]:
    """Where the weights are, for whoever reads the resolved recipe; and the settings, with those of the model."""
    where = f"{key}.weights"
    if key not in TRAINABLE:
        raise UserError(f"{where}: only {', '.join(TRAINABLE)} have weights of their own")
    with said_of(where):
        path = None if str(weights).startswith(PREFIX) else path_of(weights, holding="recipe.yaml")
    place = str(path or weights)
    if is_file(place):
        return place, settings
    try:
        plain = read_plain(registry.find_model(weights) / "recipe.yaml", registry)
    except UserError as error:
        # a resolved recipe says all of it, and loads where the model that training began with is no more
        if "type" in settings:
            return place, settings
        raise UserError(f"{where}: {error}") from error
    own = plain.get(key)
    if plain.get("trains") != key or not isinstance(own, Mapping):
        raise UserError(f"{where}: {weights} is a model of a {plain.get('trains')}, not of a {key}")
    settings = {**own, **settings}
    settings.pop("weights", None)
    if not same_type(own.get("type"), settings.get("type")):
        raise UserError(f"{key}.type: {settings['type']} is not the type of {weights}, which is {own['type']}")
    return place, settings


def to_plain(recipe: Recipe) -> dict[str, Any]:
    """The plain values that `make_recipe` makes an equal recipe of, every setting written out."""
    plain, written = unstructure(recipe), ("training", "callbacks", *_RELEVANT[recipe.trains])
    written += ("reconstruction",) if {"continuous_tokenizer", "discrete_tokenizer"} & {*recipe.also_trained} else ()
    written += ("adversarial",) if recipe.discriminator is not None else ()
    written += ("alignment",) if recipe.aligned_to is not None else ()
    for key in PART_KEYS:
        for choice in [plain[key]] if isinstance(plain[key], dict) else plain[key] or ():
            settings, weights = choice.pop("config"), choice.pop("weights")
            choice.update(({} if weights is None else {"weights": weights}) | settings)
    return {
        f.name: plain[f.name]
        for f in attrs.fields(Recipe)
        if plain[f.name] is not None and (f.name in written or getattr(recipe, f.name) != f.default)
    }


def standing_alone(recipe: Recipe) -> Recipe:
    """The recipe with what a shipped one says of data that are not there yet meaning the same from anywhere."""
    if recipe.data is None:
        return recipe
    config = structure(placed(unstructure(recipe.data.config), Path.cwd()), type(recipe.data.config))
    return attrs.evolve(recipe, data=attrs.evolve(recipe.data, config=config))


def to_yaml(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    return strict_yaml.dump(to_plain(recipe))

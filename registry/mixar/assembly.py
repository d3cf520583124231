"""From a recipe to modules: checks on the meta device that the parts fit, then builds them and loads their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from attrs import frozen
from torch import nn

from mixar.folder import RECIPE, find_weights, load_into, read_provenance, read_tensors, sha256
from mixar.hub import is_file
from mixar.plugins import Registry, plugin_manager
from mixar.recipe import PART_KEYS, TRAINABLE, PartChoice, Recipe, checked_recipe, read_plain
from mixar_core.backbone import Backbone
from mixar_core.data.cache import TokenCache
from mixar_core.data.dataset import ImageDataset, class_misfit
from mixar_core.distributed import available_device
from mixar_core.errors import UserError
from mixar_core.head import ContinuousHead
from mixar_core.injector import GuidanceInjector
from mixar_core.model import MixAR
from mixar_core.prior import DiscretePrior
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer, Tokenizer
from mixar_core.types import Grid


@frozen(eq=False)
class System:
    """What a recipe describes, built. Parts that what is trained does not need are None."""

    recipe: Recipe
    continuous_tokenizer: ContinuousTokenizer | None
    discrete_tokenizer: DiscreteTokenizer | None
    prior: DiscretePrior | None
    model: MixAR | None

    @property
    def trained(self) -> nn.Module:
        """The module that this recipe trains and that its weights file holds; for a MixAR backbone, injector, head."""
        module = self.model.trained if self.model is not None else getattr(self, self.recipe.trains)
        assert isinstance(module, nn.Module)
        return module

    @property
    def parameters(self) -> int:
        """Number of trainable parameters of `trained`."""
        return sum(parameter.numel() for parameter in self.trained.parameters())


def build(
    recipe: Recipe,
    registry: Registry | None = None,
    *,
    device: torch.device | str = "cpu",
    meta: bool = False,
    load_weights: bool = True,
    trained_weights: Path | None = None,
    data: ImageDataset | None = None,
    checked: bool = False,
) -> System:
    """The modules a recipe describes, checked to fit and in evaluation mode. What it does not train is frozen.

    Args:
        device: where the modules end up.
        meta: stop after the check; the modules have shapes and no memory.
        load_weights: whether parts whose choice names weights get them; without, they are freshly initialised.
        trained_weights: a file with the weights of what the recipe trains.
        data: the training split, for a prior that draws from it (ground-truth).
        checked: this recipe was built with `meta` before, and need not be checked again.

    Raises:
        UserError: two parts do not fit, weights do not fit a part, or the device is not there.
    """
    registry, recipe, device = registry or plugin_manager(), checked_recipe(recipe), available_device(device)
    if meta or not checked:
        _check_prior_model(recipe, registry)
        with torch.device("meta"):
            system = _assemble(recipe, registry, data)
    if meta:
        return system
    system = _assemble(recipe, registry, data)
    if load_weights:
        for key in TRAINABLE:
            module, choice = getattr(system, key), getattr(recipe, key)
            if module is None or choice.weights is None or (key == recipe.trains and trained_weights):
                continue
            load_into(module, read_tensors(weights_of(recipe, key, registry)), where=_of(key, choice))
    if trained_weights is not None:
        load_into(system.trained, read_tensors(trained_weights), where=f"weights {trained_weights}")
    for module in (system.continuous_tokenizer, system.discrete_tokenizer, system.prior, system.model):
        if module is not None:
            module.to(device).eval()
    return system


def weights_of(recipe: Recipe, key: str, registry: Registry) -> Path:
    """The file of weights that a recipe names for one of its parts.

    Raises:
        UserError: it is not there; says which key names it.
    """
    try:
        return find_weights(_chosen(recipe, key).weights or "", registry)
    except UserError as error:
        raise UserError(f"recipe {recipe.name}: {key}.weights: {error}") from error


def open_data(recipe: Recipe, registry: Registry, split: Literal["train", "validation"]) -> ImageDataset:
    """A split of the recipe's data.

    Raises:
        UserError: the recipe names no data, they cannot be opened, or have another number of classes.
    """
    if recipe.data is None:
        raise UserError(f"recipe {recipe.name}: data: required here, and not there")
    return _fitting(recipe, construct(recipe, registry, "data", split=split, image_size=recipe.image_size))


def _fitting(recipe: Recipe, data: ImageDataset) -> ImageDataset:
    if recipe.num_classes not in (0, data.num_classes):  # labelled data may train an unconditional model
        raise _misfit(recipe, "data", f"{data.num_classes} classes", "num_classes", str(recipe.num_classes))
    return data


def try_data(recipe: Recipe, registry: Registry) -> str:
    """What there is to say of the recipe's data, which need not be on this machine: a line of numbers, and notes.

    Raises:
        UserError: they are, and have other classes than the recipe or its frozen prior.
    """
    if recipe.data is None:
        return "none named"
    measured = recipe.training is not None and recipe.training.evaluate_every
    opened, notes = {}, []
    for split in ("train", "validation") if measured else ("train",):
        try:
            data = construct(recipe, registry, "data", split=split, image_size=recipe.image_size)
        except UserError as error:
            if split == "train":
                return f"cannot be opened here: {error}"
            notes = [f"validation cannot be opened here: {error}"]
        else:
            opened[split] = _fitting(recipe, data)
    train = opened["train"]
    size = "a stream of images" if train.stream is not None else f"{len(train):,} training images"
    notes += data_notes(recipe, registry, **opened)
    return "\n".join([f"{size} of {train.num_classes} classes ({recipe.data.type})", *(f"note: {n}" for n in notes)])


def data_notes(recipe: Recipe, registry: Registry, **sets: ImageDataset | TokenCache | None) -> list[str]:
    """What a person should read once about data: what was left out, and whose classes have numbers in place of names.

    Args:
        sets: the training split and whatever else has classes, by what it is.

    Raises:
        UserError: two of them, or one and the frozen prior, do not name the same classes in the same order.
    """
    there = {name: data for name, data in sets.items() if data is not None}
    notes = [note for data in there.values() if isinstance(data, ImageDataset) for note in data.notes]
    names = {f"data ({name})": tuple(data.class_names) for name, data in there.items()}
    if recipe.trains == "mixar" and recipe.prior is not None and recipe.prior.weights is not None:
        names |= {_of("prior", recipe.prior): trained_classes(recipe.prior.weights, registry)}
    first, *others = names
    notes += [note for other in others if (note := compare_classes(recipe, first, other, names))]
    return list(dict.fromkeys(notes))


def trained_classes(weights: str, registry: Registry) -> tuple[str, ...]:
    """The class names that a model was trained with; empty where they are not known."""
    try:
        folder = None if is_file(weights) else registry.find_model(weights)
    except UserError:  # a resolved recipe is read where the model is no more
        folder = None
    return tuple(map(str, (read_provenance(folder).get("class_names") or ()) if folder else ()))


def compare_classes(recipe: Recipe, one: str, other: str, names: Mapping[str, Sequence[str]]) -> str | None:
    """See that a label means the same class in both. Where only one of them names its classes that cannot be seen.

    Returns:
        A line that says so.

    Raises:
        UserError: they name other classes, or in another order.
    """
    if recipe.accept_other_classes or recipe.num_classes == 0 or not names[one] or not names[other]:
        return None
    if misfit := class_misfit(names[one], names[other]):
        raise UserError(
            f"recipe {recipe.name}: {one} and {other} do not have the same classes: {misfit}; where a label means the "
            "same in both, set accept_other_classes=true"
        )
    if has_names(names[one]) == has_names(names[other]):
        return None
    labels = f'label 0 is "{names[one][0]}" and "{names[other][0]}"'
    return f"only one of {one} and {other} names its classes: {labels}; see that a label means the same in both"


def has_names(classes: Sequence[str]) -> bool:
    """Whether classes are known by name: numbers in place of names say nothing."""
    return list(classes) != [str(label) for label in range(len(classes))]


def construct(recipe: Recipe, registry: Registry, key: str, **context: Any) -> Any:
    """Build the part that the recipe chose for `key`; `context` is what the abstract class's docstring names."""
    choice = _chosen(recipe, key)
    component: Callable[..., Any] = registry.part(PART_KEYS[key], choice.type).component
    try:
        return component(choice.config, **context)
    except UserError as error:
        raise UserError(f"recipe {recipe.name}: {_of(key, choice)}: {error}") from error


def _assemble(recipe: Recipe, registry: Registry, data: ImageDataset | None) -> System:
    """Build every part that is needed on torch's current default device, and check the fit."""
    size, trains = recipe.image_size, recipe.trains
    continuous: ContinuousTokenizer | None = None
    discrete: DiscreteTokenizer | None = None
    prior: DiscretePrior | None = None
    if trains in ("mixar", "continuous_tokenizer"):
        continuous = construct(recipe, registry, "continuous_tokenizer", image_size=size)
        _check_stride(recipe, "continuous_tokenizer", continuous)
    if trains != "continuous_tokenizer" and recipe.discrete_tokenizer is not None:
        discrete = construct(recipe, registry, "discrete_tokenizer", image_size=size)
        _check_stride(recipe, "discrete_tokenizer", discrete)
    if trains in ("mixar", "prior") and recipe.prior is not None:
        if discrete is None:
            raise UserError(
                f"recipe {recipe.name}: {_of('prior', recipe.prior)} needs a discrete_tokenizer, there is none"
            )
        prior = construct(recipe, registry, "prior", tokenizer=discrete, num_classes=recipe.num_classes, data=data)
        _check_prior(recipe, prior, discrete)
    model = None
    if trains == "mixar":
        assert continuous is not None
        model = _mixar(recipe, registry, continuous, discrete, prior)
    for key, part in (("continuous_tokenizer", continuous), ("discrete_tokenizer", discrete), ("prior", prior)):
        if part is not None and key != trains:
            part.requires_grad_(False)
    return System(recipe, continuous, discrete, prior, model)


def _mixar(
    recipe: Recipe,
    registry: Registry,
    continuous: ContinuousTokenizer,
    discrete: DiscreteTokenizer | None,
    prior: DiscretePrior | None,
) -> MixAR:
    config = recipe.backbone
    patch = config.patch_size
    latent_grid = continuous.grid
    if latent_grid.height % patch or latent_grid.width % patch:
        raise _misfit(recipe, "continuous_tokenizer", f"grid {latent_grid}", "backbone", f"patch_size {patch}")
    grid = Grid(latent_grid.height // patch, latent_grid.width // patch)
    token_dim = continuous.latent_channels * patch**2
    out_width = config.decoder_width or config.width

    # What stands in the decoder is as wide as the decoder; what the encoder attends to is as wide as the encoder.
    opens = registry.part("injector", _chosen(recipe, "injector").type).component.opens  # type: ignore[attr-defined]
    if "fill" in opens and len(opens) > 1 and out_width != config.width:
        raise _misfit(
            recipe, "injector", f"doors {', '.join(sorted(opens))}", "backbone",
            f"decoder_width {out_width} beside width {config.width}",
        )  # fmt: skip
    injector: GuidanceInjector = construct(
        recipe, registry, "injector", tokenizer=discrete, width=out_width if "fill" in opens else config.width
    )
    if injector.needs_codes and discrete is None:
        raise _misfit(recipe, "injector", "need of codes", "discrete_tokenizer", "absence")
    if injector.needs_codes and discrete is not None and discrete.grid != grid:
        patched = f"grid {grid}" if patch == 1 else f"grid {grid} (after patch_size {patch})"
        raise _misfit(recipe, "continuous_tokenizer", patched, "discrete_tokenizer", f"grid {discrete.grid}")
    if injector.needs_codes and recipe.ti_mix.lambda_at(1.0) < 1.0 and prior is None:
        raise _misfit(recipe, "ti_mix", f"schedule {recipe.ti_mix.schedule}", "prior", "absence")
    head: ContinuousHead = construct(recipe, registry, "head", token_dim=token_dim, width=out_width)
    backbone = Backbone(
        config, grid=grid, token_dim=token_dim, num_classes=recipe.num_classes, memory="memory" in injector.opens
    )
    return MixAR(
        backbone=backbone,
        injector=injector,
        head=head,
        continuous_tokenizer=continuous,
        discrete_tokenizer=discrete,
        prior=prior,
        masking=recipe.masking,
        ti_mix=recipe.ti_mix,
    )


def _chosen(recipe: Recipe, key: str) -> PartChoice:
    choice = getattr(recipe, key)
    if not isinstance(choice, PartChoice):
        raise UserError(f"recipe {recipe.name}: {key}: required where a recipe trains {recipe.trains}")
    return choice


def _check_stride(recipe: Recipe, key: str, tokenizer: Tokenizer) -> None:
    if recipe.image_size % tokenizer.stride:
        raise _misfit(recipe, key, f"stride {tokenizer.stride}", "image_size", str(recipe.image_size))


def _check_prior(recipe: Recipe, prior: DiscretePrior, discrete: DiscreteTokenizer) -> None:
    for what in ("grid", "codebook_size"):
        mine, theirs = getattr(prior, what), getattr(discrete, what)
        if mine != theirs:
            raise _misfit(recipe, "prior", f"{what} {mine}", "discrete_tokenizer", f"{what} {theirs}")
    if prior.num_classes != recipe.num_classes:
        raise _misfit(recipe, "prior", f"num_classes {prior.num_classes}", "num_classes", str(recipe.num_classes))


def _check_prior_model(recipe: Recipe, registry: Registry) -> None:
    """A prior's weights mean something for one tokenizer's codes, one grid and one list of classes only."""
    if recipe.trains != "mixar" or recipe.prior is None or recipe.prior.weights is None:
        return
    if is_file(recipe.prior.weights):  # a bare file does not say what it was trained with
        return
    weights_of(recipe, "prior", registry)  # is there
    folder = registry.find_model(recipe.prior.weights)
    trained = read_plain(folder / RECIPE, registry)
    for key in ("num_classes", "image_size"):
        if trained.get(key) != getattr(recipe, key):
            raise _misfit(recipe, "prior", f"{key} {trained.get(key)}", key, str(getattr(recipe, key)))
    theirs = (trained.get("discrete_tokenizer") or {}).get("weights")
    ours = recipe.discrete_tokenizer.weights if recipe.discrete_tokenizer else None
    if theirs and ours and theirs != ours:
        own = sha256(weights_of(recipe, "discrete_tokenizer", registry))
        try:
            noted = read_provenance(folder).get("frozen", {}).get("discrete_tokenizer")
            noted = noted or sha256(find_weights(theirs, registry))
        except UserError:  # the prior does not say, and what it was trained with is no more where it was
            return
        if noted != own:
            raise _misfit(recipe, "prior", f"codes of {theirs}", "discrete_tokenizer", f"codes of {ours}")


def _misfit(recipe: Recipe, one: str, its: str, other: str, others: str) -> UserError:
    def label(key: str) -> str:
        choice = getattr(recipe, key)
        return _of(key, choice) if isinstance(choice, PartChoice) else key

    return UserError(f"recipe {recipe.name}: {label(one)} and {label(other)} do not fit: {its} against {others}")


def _of(key: str, choice: PartChoice) -> str:
    weights = f", weights {choice.weights}" if choice.weights else ""
    return f"{key} ({choice.type}{weights})"

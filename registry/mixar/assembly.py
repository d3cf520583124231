"""From a recipe to modules: checks on the meta device that the parts fit, then builds them and loads their weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from attrs import Factory, evolve, frozen
from torch import Tensor, nn

from mixar.fits import NEED, check_codes, check_models, check_residual, expect_fit
from mixar.folder import load_into, read_provenance, read_tensors
from mixar.freeze import freeze
from mixar.hub import is_file
from mixar.image_sizes import check_images, check_size
from mixar.parts import chosen, construct, construct_once, named, needs_codes, weights_of
from mixar.plugins import Registry, registry_without
from mixar.recipe import TRAINABLE, Recipe
from mixar_core.backbone import Backbone
from mixar_core.conditioner import Conditioner
from mixar_core.data.cache import TokenCache
from mixar_core.data.dataset import ImageDataset, class_misfit, has_names
from mixar_core.distributed import available_device
from mixar_core.errors import UserError, said_of
from mixar_core.head import ContinuousHead
from mixar_core.injector import GuidanceInjector
from mixar_core.masking import MaskingConfig
from mixar_core.model import MixAR
from mixar_core.plan import Sampler
from mixar_core.prior import DiscretePrior
from mixar_core.storage import user_path
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer
from mixar_core.types import Condition, Grid, Step, TokenLayout


@frozen(eq=False)
class System:
    """What a recipe describes, built. Parts that what is trained does not need are None.

    Args:
        brought: the parts that bring their own weights, by recipe key; with values where the others are on `meta`, too.
    """

    recipe: Recipe
    continuous_tokenizer: ContinuousTokenizer | None
    discrete_tokenizer: DiscreteTokenizer | None
    prior: DiscretePrior | None
    model: MixAR | None
    conditioner: Conditioner | None = None
    brought: Mapping[str, nn.Module] = Factory(dict)
    discriminator: nn.Module | None = None

    def condition(self, labels_B: Tensor) -> Condition:
        """What is drawn for these labels int64 (B,)."""
        return Condition(labels_B) if self.conditioner is None else self.conditioner(labels_B)

    @property
    def trained(self) -> nn.Module:
        """The module that this recipe trains and that its weights file holds; for a MixAR several, by name."""
        module = self.model.trained if self.model is not None else getattr(self, self.recipe.trains)
        assert isinstance(module, nn.Module)
        return module

    @property
    def takes_codes(self) -> bool:
        """Whether it is a MixAR whose injector does."""
        return self.model is not None and self.model.injector.needs_codes

    @property
    def parameters(self) -> int:
        """Number of trainable parameters of `trained`."""
        return sum(parameter.numel() for parameter in self.trained.parameters() if parameter.requires_grad)


def build(
    recipe: Recipe,
    registry: Registry | None = None,
    *,
    device: torch.device | str = "cpu",
    meta: bool = False,
    load_weights: bool = True,
    trained_weights: str | Path | None = None,
    data: ImageDataset | None = None,
    planned: System | None = None,
    without_plugins: Sequence[str] = (),
) -> System:
    """The modules a recipe describes, checked to fit and in evaluation mode. What it does not train is frozen.

    Args:
        device: where the modules end up.
        meta: stop after the check; the modules have shapes and no memory, but `System.brought`.
        load_weights: whether parts whose choice names weights get them; without, they are freshly initialised.
        trained_weights: a file with the weights of what the recipe trains.
        data: the training split, for a prior that draws from it (ground-truth).
        planned: what this recipe gave with `meta`: it is not checked again, and what brings its weights is that which
            was built there.
        without_plugins: names of installed plugins to leave out.

    Raises:
        UserError: two parts do not fit, weights do not fit a part, or the device is not there.
    """
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe {recipe!r}: not a Recipe, which mixar.load_recipe makes of a name or path")
    registry, device = registry_without(registry, without_plugins), available_device(device)
    if planned is None:
        check_models(recipe, registry)
        with torch.device("meta"):
            planned = _assemble(recipe, registry, data, {})
    if meta:
        return planned
    system = _assemble(recipe, registry, data, dict(planned.brought), training=trained_weights is None)
    for key in TRAINABLE if load_weights else ():
        module, choice = getattr(system, key), getattr(recipe, key)
        if module is not None and choice.weights is not None and not (key in recipe.trained_parts and trained_weights):
            load_into(module, read_tensors(weights_of(recipe, key, registry)), where=named(recipe, key))
    if trained_weights is not None:
        load_into(system.trained, read_tensors(user_path(trained_weights)), where=f"weights {trained_weights}")
    parts = (system.continuous_tokenizer, system.discrete_tokenizer, system.prior, system.conditioner, system.model)
    for module in parts:
        if module is not None:
            module.to(device).eval()
    return system


def frozen_weights(recipe: Recipe, registry: Registry, parts: Collection[str] = TRAINABLE) -> dict[str, Path]:
    """Files of weights of those of these parts that a recipe keeps frozen, by their keys; of parts without any, none.

    Raises:
        UserError: one is not there.
    """
    return {
        key: weights_of(recipe, key, registry)
        for key in parts
        if key not in recipe.trained_parts and (choice := getattr(recipe, key)) is not None and choice.weights
    }


# ---------------------------------------------------------------- data


def open_data(recipe: Recipe, registry: Registry, split: Literal["train", "validation"]) -> ImageDataset:
    """A split of the recipe's data.

    Raises:
        UserError: the recipe names no data, they cannot be opened, or have another number of classes.
    """
    if recipe.data is None:
        raise UserError(f"recipe {recipe.name}: data: required here, and not there")
    return _fitting(recipe, construct(recipe, registry, "data", split=split, image_size=recipe.image_size))


def prior_draws_from_data(recipe: Recipe) -> bool:
    """Whether codes may have to come from the data: only a prior without weights of its own can (ground-truth)."""
    return recipe.trains == "mixar" and recipe.prior is not None and recipe.prior.weights is None


def class_names(recipe: Recipe, folder: Path, registry: Registry) -> tuple[str, ...]:
    """As the model's provenance has them, or else its data; empty where neither does."""
    if recipe.num_classes == 0:  # labelled images may have trained it
        return ()
    noted = read_provenance(folder).get("class_names")
    if isinstance(noted, list) and len(noted) == recipe.num_classes:
        return tuple(map(str, noted))
    try:
        return tuple(open_data(recipe, registry, "train").class_names)
    except UserError:  # the data need not be on the machine that samples
        return ()


def _fitting(recipe: Recipe, data: ImageDataset) -> ImageDataset:
    fits = recipe.num_classes in (0, data.num_classes)  # labelled data may train an unconditional model
    expect_fit(recipe, fits, "data", f"{data.num_classes} classes", "num_classes", recipe.num_classes)
    with said_of(f"recipe {recipe.name}: {named(recipe, 'data')}"):
        check_images(data, recipe.image_size)
    return data


def counted_data(recipe: Recipe, registry: Registry) -> tuple[str, int | None]:
    """What there is to say of the recipe's data, which need not be on this machine: a line of numbers, and notes; and
    how many images there are to train on, if that is known.

    Raises:
        UserError: they are, and have other classes than the recipe or its frozen prior.
    """
    if recipe.data is None:
        return "none named", None
    measured = recipe.training is not None and recipe.training.evaluate_every
    opened, failures = {}, []
    for split in ("train", "validation") if measured else ("train",):
        try:
            data = construct(recipe, registry, "data", split=split, image_size=recipe.image_size)
        except UserError as error:
            failures.append(f"cannot be opened here: {error}")
        else:
            opened[split] = _fitting(recipe, data)
    if "train" not in opened:
        return failures[0], None
    train = opened["train"]
    images = None if train.stream is not None else len(train)
    size = "a stream of images" if images is None else f"{images:,} training images"
    notes = [*(f"validation {failure}" for failure in failures), *data_notes(recipe, registry, **opened)]
    lines = [f"{size} of {train.num_classes} classes ({recipe.data.type})", *(f"note: {n}" for n in notes)]
    return "\n".join(lines), images


def data_notes(recipe: Recipe, registry: Registry, **sets: ImageDataset | TokenCache | None) -> list[str]:
    """What a person should read once about data: what was left out, and whose classes have numbers in place of names.

    Args:
        sets: the training split and whatever else has classes, by what it is.

    Raises:
        UserError: two of them, or one and the frozen prior, do not name the same classes in the same order.
    """
    notes = [note for data in sets.values() if isinstance(data, ImageDataset) for note in data.notes]
    names = {f"data ({name})": data.class_names for name, data in sets.items() if data is not None}
    if recipe.trains == "mixar" and recipe.prior is not None and recipe.prior.weights is not None:
        names[named(recipe, "prior")] = _trained_classes(recipe.prior.weights, registry)
    return list(dict.fromkeys(notes + compare_classes(recipe, names)))


def _trained_classes(weights: str, registry: Registry) -> tuple[str, ...]:
    """The class names that a model was trained with; none where they are not known."""
    try:
        noted = {} if is_file(weights) else read_provenance(registry.find_model(weights))
    except UserError:  # a resolved recipe is read where the model is no more
        noted = {}
    return tuple(map(str, noted.get("class_names") or ()))


def compare_classes(recipe: Recipe, names: Mapping[str, Sequence[str]]) -> list[str]:
    """See that a label means the same class in the first and in all others.

    Returns:
        Notes, where only one of two names its classes, so that it cannot be seen.

    Raises:
        UserError: they name other classes, or in another order.
    """
    notes = []
    one, *others = names if recipe.num_classes and not recipe.accept_other_classes else [""]
    for other in others:
        mine, theirs = names[one], names[other]
        if misfit := class_misfit(mine, theirs):
            raise UserError(
                f"recipe {recipe.name}: {one} and {other} do not have the same classes: {misfit}; where a label means "
                "the same in both, set accept_other_classes=true"
            )
        if mine and theirs and has_names(mine) != has_names(theirs):
            labels = f'label 0 is "{mine[0]}" and "{theirs[0]}"'
            notes.append(
                f"only one of {one} and {other} names its classes: {labels}; see that a label means the same in both"
            )
    return notes


# ---------------------------------------------------------------- what fits what


def _assemble(
    recipe: Recipe,
    registry: Registry,
    data: ImageDataset | None,
    brought: dict[str, nn.Module],
    *,
    training: bool = True,
) -> System:
    """Build every part that is needed on torch's current default device, and check the fit; see `construct_once`.

    Without `training`, what is needed for that alone is left out.
    """
    make = partial(construct_once, recipe, registry, brought=brought)
    size, trains = recipe.image_size, recipe.trains
    continuous: ContinuousTokenizer | None = None
    discrete: DiscreteTokenizer | None = None
    prior: DiscretePrior | None = None
    has_latents = trains in ("mixar", "continuous_tokenizer")
    beside = has_latents and needs_codes(recipe, registry)
    if has_latents and not beside:
        continuous = make("continuous_tokenizer", image_size=size)
    if (beside or trains != "continuous_tokenizer") and recipe.discrete_tokenizer is not None:
        discrete = make("discrete_tokenizer", image_size=size)
    if beside:
        expect_fit(recipe, discrete is not None, "continuous_tokenizer", NEED, "discrete_tokenizer", "absence")
        continuous = make("continuous_tokenizer", image_size=size, tokenizer=discrete)
    for key, tokenizer in (("continuous_tokenizer", continuous), ("discrete_tokenizer", discrete)):
        if tokenizer is not None:
            with said_of(f"recipe {recipe.name}: {named(recipe, key)} and image_size do not fit"):
                check_size(tokenizer, size, discrete)
    if trains in ("mixar", "prior") and recipe.prior is not None:
        if discrete is None:
            raise UserError(f"recipe {recipe.name}: {named(recipe, 'prior')} needs a discrete_tokenizer, there is none")
        prior = make("prior", tokenizer=discrete, num_classes=recipe.num_classes, data=data)
        for what, other, theirs in (
            ("layout", "discrete_tokenizer", discrete.layout),
            ("codebook_size", "discrete_tokenizer", discrete.codebook_size),
            ("num_classes", "num_classes", recipe.num_classes),
        ):
            own = getattr(prior, what)
            expect_fit(recipe, own == theirs, "prior", f"{what} {own}", other, f"{what} {theirs}")
    conditioner: Conditioner | None = None
    if trains in ("mixar", "prior") and recipe.conditioner is not None:
        conditioner = make("conditioner", num_classes=recipe.num_classes)
    model: MixAR | None = None
    if continuous is not None and trains == "mixar":
        model = _mixar(recipe, registry, continuous, discrete, prior, conditioner)
    system = System(recipe, continuous, discrete, prior, model, conditioner, brought)
    for key in (*TRAINABLE, "conditioner"):
        if (part := getattr(system, key)) is not None and key not in recipe.trained_parts:
            part.requires_grad_(False)
    if recipe.init is not None:
        with said_of(f"recipe {recipe.name}: init.freeze"):
            freeze(system.trained, recipe.init.freeze)
    if training and recipe.discriminator is not None:
        fits = not recipe.adversarial.adaptive or getattr(system.trained.last_layer, "requires_grad", False)
        expect_fit(recipe, fits, trains, "no trained last_layer", "adversarial.adaptive", "need of it")
        return evolve(system, discriminator=make("discriminator", image_size=size))
    return system


def _mixar(
    recipe: Recipe,
    registry: Registry,
    continuous: ContinuousTokenizer,
    discrete: DiscreteTokenizer | None,
    prior: DiscretePrior | None,
    conditioner: Conditioner | None,
) -> MixAR:
    kind: type[Backbone] = registry.part("backbone", chosen(recipe, "backbone").type).component
    config, latents = chosen(recipe, "backbone").config, continuous.layout
    layout, patch = latents, getattr(config, "patch_size", 1)
    if patch != 1:
        grid = latents.grid if latents.kind == "grid" else None
        whole = grid is not None and grid.height % patch == 0 == grid.width % patch
        expect_fit(recipe, whole, "continuous_tokenizer", str(latents), "backbone", f"patch_size {patch}")
        assert grid is not None
        layout = TokenLayout("grid", (Grid(grid.height // patch, grid.width // patch),))
    token_dim = continuous.latent_channels * patch**2
    width, guidance_width = kind.widths(config)
    if not kind.masks and recipe.masking != MaskingConfig():
        said = f"{named(recipe, 'backbone')} predicts every token in each pass; set masking=null"
        raise UserError(f"recipe {recipe.name}: masking: {said}")
    # What stands in the decoder is as wide as the decoder; what the encoder attends to is as wide as the encoder.
    opens = registry.part("injector", chosen(recipe, "injector").type).component.opens  # type: ignore[attr-defined]
    widths = f"decoder_width {width} beside width {guidance_width}"
    one_width = "fill" not in opens or len(opens) == 1 or width == guidance_width
    expect_fit(recipe, one_width, "injector", f"doors {', '.join(sorted(opens))}", "backbone", widths)
    injector: GuidanceInjector = construct(
        recipe, registry, "injector", tokenizer=discrete, width=width if "fill" in opens else guidance_width
    )
    expect_fit(
        recipe, kind.masks or not injector.follows, "backbone", "no share of known tokens", "injector", "need of it"
    )
    if continuous.needs_codes:
        check_residual(recipe, injector)
    if injector.needs_codes:
        check_codes(recipe, injector, latents, layout, discrete, prior)
    head: ContinuousHead = construct(recipe, registry, "head", token_dim=token_dim, width=width, layout=layout)
    with said_of(f"recipe {recipe.name}: {named(recipe, 'head')}"):
        head.check(Step(temperature=recipe.sampling.temperature, head_steps=recipe.sampling.head_steps))
    sampler: Sampler = construct(recipe, registry, "sampler")
    sizes = {"layout": layout, "token_dim": token_dim, "num_classes": recipe.num_classes}
    sizes |= {"memory": "memory" in injector.opens, "condition_width": 0 if conditioner is None else conditioner.width}
    backbone: Backbone = construct(recipe, registry, "backbone", **sizes)
    apart = backbone.groups is not None and (backbone.groups == head.groups or head.denoises)
    fits = backbone.masks or not head.together or apart
    expect_fit(recipe, fits, "backbone", "z that knows other tokens", "head", "tokens together")
    its, own = ("denoises tokens", "a network of its own") if backbone.denoises else ("denoises none", "need of it")
    expect_fit(recipe, head.denoises == backbone.denoises, "backbone", its, "head", own)
    follows = {"any": True, "raster": sampler.raster, "groups": sampler.groups}[backbone.order]
    other = "another order, or several tokens a step" if backbone.order == "raster" else "steps that are not its groups"
    expect_fit(recipe, follows, "backbone", f"order {backbone.order}", "sampler", other)
    return MixAR(
        backbone=backbone,
        injector=injector,
        head=head,
        sampler=sampler,
        continuous_tokenizer=continuous,
        discrete_tokenizer=discrete,
        prior=prior,
        conditioner=conditioner,
        masking=recipe.masking,
        ti_mix=recipe.ti_mix,
        also_trained=recipe.also_trained,
    )

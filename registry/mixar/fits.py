"""What fits what, in words: refused where two parts do not go together, noted where one does less than it seems."""

from __future__ import annotations

from collections.abc import Sequence

from mixar.folder import RECIPE, find_weights, read_provenance, sha256
from mixar.hub import is_file
from mixar.image_sizes import as_size, as_written
from mixar.parts import named, needs_codes, weights_of
from mixar.plugins import Registry
from mixar.recipe import TRAINABLE, Recipe, read_plain
from mixar_core.errors import UserError
from mixar_core.injector import GuidanceInjector
from mixar_core.mixture import TIMixConfig
from mixar_core.prior import DiscretePrior
from mixar_core.tokenizer import DiscreteTokenizer
from mixar_core.types import TokenLayout


def expect_fit(recipe: Recipe, fits: bool, one: str, its: str, other: str, others: object, hint: str = "") -> None:
    """Refuse two keys of a recipe, with what each of them has, unless they fit.

    Raises:
        UserError: as said.
    """
    if not fits:
        pair = f"{named(recipe, one)} and {named(recipe, other)}"
        raise UserError(f"recipe {recipe.name}: {pair} do not fit: {its} against {others}{hint}")


#: what a continuous tokenizer has whose latents are what codes leave over
NEED = "need of an image's codes"


def check_residual(recipe: Recipe, injector: GuidanceInjector) -> None:
    """See that latents which are what codes leave over are learned and drawn beside those codes, and no others.

    Raises:
        UserError: the injector takes no codes, TI-Mix would change them, or a tokenizer is trained with the MixAR.
    """
    one, mixed = "continuous_tokenizer", recipe.ti_mix.lambda_at(1.0) < 1
    expect_fit(recipe, injector.needs_codes, one, NEED, "injector", "that it takes none")
    schedule = f"schedule {recipe.ti_mix.schedule}, which puts other codes in their place; set ti_mix=null"
    expect_fit(recipe, not mixed, one, NEED, "ti_mix", schedule)
    also = ", ".join(key for key in recipe.also_trained if key in TRAINABLE[:2])
    expect_fit(recipe, not also, one, NEED, "also_trained", f"{also}: both tokenizers stay as they are")


def check_codes(
    recipe: Recipe,
    injector: GuidanceInjector,
    latents: TokenLayout,
    layout: TokenLayout,
    discrete: DiscreteTokenizer | None,
    prior: DiscretePrior | None,
) -> None:
    """What lets codes in needs some; a fill and TI-Mix need their vectors on the latents' grid, TI-Mix one a code.

    Args:
        latents: of the continuous tokenizer. layout: of the backbone's tokens, each of `patch_size` squared of these.

    Raises:
        UserError: something is missing, or does not fit; says which `patch_size` would.
    """
    expect_fit(recipe, discrete is not None, "injector", "need of codes", "discrete_tokenizer", "absence")
    assert discrete is not None
    codes, mixed = discrete.layout, recipe.ti_mix.lambda_at(1.0) < 1
    patch = getattr(getattr(recipe.backbone, "config", None), "patch_size", None)
    patched = str(layout) + ("" if patch in (None, 1) else f" (after patch_size {patch})")
    placed = layout.kind == "grid" and codes.grid == layout.grid
    hint = "" if patch is None else _fitting_patch(latents, codes)
    if "fill" in injector.opens:
        fill = f"a fill for latents on {patched}"
        expect_fit(recipe, placed, "injector", fill, "discrete_tokenizer", f"codes on {codes}", hint)
    if mixed:
        schedule = f"schedule {recipe.ti_mix.schedule}"
        expect_fit(recipe, prior is not None, "ti_mix", schedule, "prior", "absence")
        predicts = prior is not None and prior.predicts
        lack = "that it cannot predict masked codes; set ti_mix=null"
        expect_fit(recipe, predicts, "ti_mix", schedule, "prior", lack)
        each, where = placed and codes.kind in ("grid", "depth"), f"{schedule}, latents on {patched}"
        expect_fit(recipe, each, "ti_mix", where, "discrete_tokenizer", f"codes on {codes}", "" if placed else hint)


def _fitting_patch(latents: TokenLayout, codes: TokenLayout) -> str:
    """Which patch size puts a grid of latents onto that of the codes; empty where none does."""
    if latents.kind != "grid" or latents.grid is None or codes.grid is None:
        return ""
    (down, rest), (across, over) = (
        divmod(latents.grid.height, codes.grid.height),
        divmod(latents.grid.width, codes.grid.width),
    )
    fits = down == across and not rest and not over
    return f"; backbone.patch_size={down} makes them fit" if fits else ""


def check_models(recipe: Recipe, registry: Registry) -> None:
    """A prior's weights mean something for one tokenizer's codes, one grid and one list of classes only.

    So do, but for the classes, what latents were measured where they are what codes leave over.
    """
    if recipe.trains == "mixar":
        _check_model(recipe, registry, "prior", ("num_classes", "image_size"))
        if needs_codes(recipe, registry):
            _check_model(recipe, registry, "continuous_tokenizer", ("image_size",))


def _check_model(recipe: Recipe, registry: Registry, part: str, keys: Sequence[str]) -> None:
    choice = getattr(recipe, part)
    if choice is None or choice.weights is None:
        return
    if part in recipe.also_trained or is_file(choice.weights):  # its file has all; a bare one says nothing
        return
    weights_of(recipe, part, registry)  # is there
    folder = registry.find_model(choice.weights)
    trained = read_plain(folder / RECIPE, registry)
    for key in keys:
        theirs, ours = as_size(trained.get(key)), getattr(recipe, key)
        expect_fit(recipe, theirs == ours, part, f"{key} {as_written(theirs)}", key, as_written(ours))
    theirs = (trained.get("discrete_tokenizer") or {}).get("weights")
    ours = recipe.discrete_tokenizer.weights if recipe.discrete_tokenizer else None
    if theirs and ours and theirs != ours:
        own = sha256(weights_of(recipe, "discrete_tokenizer", registry))
        try:
            noted = read_provenance(folder).get("frozen", {}).get("discrete_tokenizer")
            noted = noted or sha256(find_weights(theirs, registry))
        except UserError:  # the model does not say, and what it was trained with is no more where it was
            return
        expect_fit(recipe, noted == own, part, f"codes of {theirs}", "discrete_tokenizer", f"codes of {ours}")


# ---------------------------------------------------------------- notes


def fit_notes(recipe: Recipe, registry: Registry, *, needs_codes: bool) -> list[str]:
    """What a person should read once of a recipe whose parts fit.

    Args:
        needs_codes: whether the injector of a MixAR takes codes.
    """
    return [*_unused(recipe, needs_codes), *_other_sizes(recipe, registry)]


def is_unused(recipe: Recipe, key: str, *, needs_codes: bool) -> bool:
    """Whether a part of a MixAR's is about codes, and the injector takes none."""
    about_codes = ("discrete_tokenizer", "prior")
    learned = {*about_codes} & {*recipe.also_trained}
    return recipe.trains == "mixar" and not needs_codes and key in about_codes and not learned


def _unused(recipe: Recipe, needs_codes: bool) -> list[str]:
    keys = [key for key in ("prior", "discrete_tokenizer") if is_unused(recipe, key, needs_codes=needs_codes)]
    found = [key for key in keys if getattr(recipe, key) is not None]
    found += ["ti_mix"] if keys and recipe.ti_mix not in (TIMixConfig(), TIMixConfig(schedule="constant")) else []
    if not found or found == ["ti_mix"]:
        return []
    without = " ".join(f"--set {key}=null" for key in found)
    return [f"{named(recipe, 'injector')} takes no codes, and so these are not used: {', '.join(found)} ({without})"]


def _other_sizes(recipe: Recipe, registry: Registry) -> list[str]:
    notes = []
    for key in TRAINABLE[:2]:
        choice = getattr(recipe, key)
        if choice is None or choice.weights is None or key in recipe.trained_parts or is_file(choice.weights):
            continue
        try:
            size = as_size(read_plain(registry.find_model(choice.weights) / RECIPE, registry).get("image_size"))
        except UserError:  # a resolved recipe is read where the model is no more
            continue
        if size != recipe.image_size:
            here = as_written(recipe.image_size)
            said = f"was trained on images of {as_written(size)} pixels, and sees {here} here"
            notes.append(f"{named(recipe, key)}: {said}; look at `mixar eval tokenizer` before you rely on it")
    return notes

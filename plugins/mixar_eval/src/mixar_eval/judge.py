"""Who may judge a model: a network that none of its losses has seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from attrs import evolve, frozen

from mixar.folder import RECIPE, read_provenance
from mixar.parts import construct
from mixar.plugins import Registry
from mixar.recipe import PartChoice, Recipe, load_recipe
from mixar_core.distributed import Processes
from mixar_core.errors import UserError
from mixar_core.perceptual import FeatureExtractor
from mixar_core.storage import user_path
from mixar_eval.context import EvalContext
from mixar_eval.extractors import open_extractor
from mixar_eval.images import how_drawn
from mixar_eval.report import Report

#: extractors whose weights package registries carry, and of which the first that no loss has seen judges
JUDGES = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
#: what measures: one or several, the first of which judges
Extractors: TypeAlias = str | FeatureExtractor | Sequence[str | FeatureExtractor]


@frozen(eq=False)
class Teacher:
    """An extractor that a loss of the model, or of its tokenizers, was computed with.

    Args:
        recipe: of the training. key: where the recipe names it. loss: in words.
    """

    recipe: Recipe
    key: str
    loss: str

    @property
    def type(self) -> str:
        """The part's name."""
        choice: PartChoice = getattr(self.recipe, self.key)
        return choice.type

    def is_(self, extractor: FeatureExtractor, registry: Registry) -> bool:
        """Whether it is this network with these weights, at whatever size."""
        if type(extractor) is not registry.part("extractor", self.type).component:
            return False
        own: FeatureExtractor = construct(self.recipe, registry, self.key)
        return own.weights_digest() == extractor.weights_digest()


def recipes_of(names: Iterable[str], registry: Registry) -> list[Recipe]:
    """Of those that are models', and of the shipped models that drew those that are images, as far as these say so;
    what is wrong with another is said where it is used."""
    found = []
    for name in names:
        try:
            found.append(load_recipe(registry.find_model(name) / RECIPE, registry=registry))
        except UserError:
            found += recipes_that_drew(name, registry)
    return found


def recipes_that_drew(images: str | Path, registry: Registry) -> list[Recipe]:
    """Of the shipped models by whose weights, or frozen parts, the images of a folder or `.npz` say they were drawn."""
    noted = None
    with suppress(UserError):
        noted = how_drawn(user_path(images))
    if noted is None:
        return []
    digests = set(noted[0].get("model", {}).get("sha256", {}).values())
    folders = [folder for same in registry.models().values() for folder in same]
    drew = [folder for folder in folders if read_provenance(folder).get("sha256") in digests]
    return [load_recipe(folder / RECIPE, registry=registry) for folder in drew]


def teachers_of(recipes: Sequence[Recipe], registry: Registry) -> list[Teacher]:
    """Of models, of the models that their frozen parts are from, and of those that training started from; of a part
    whose recipe is not at hand nothing is known."""
    found, asked, left = list[Teacher](), set[str](), list(recipes)
    while left:
        recipe = left.pop(0)
        if recipe.extractor is not None and recipe.reconstruction.perceptual_weight:
            found.append(Teacher(recipe, "extractor", f"the perceptual loss of {recipe.name}"))
        if recipe.aligned_to is not None:
            found.append(Teacher(recipe, "aligned_to", f"the alignment of {recipe.name}"))
        parts = (recipe.continuous_tokenizer, recipe.discrete_tokenizer)
        given = [part.weights for part in parts if part is not None] + [recipe.init.from_ if recipe.init else None]
        names = {str(Path(name).parent) if name.endswith(".safetensors") else name for name in given if name}
        left += recipes_of(sorted(names - asked), registry)
        asked |= names
    return found


def chosen(teachers: Sequence[Teacher], registry: Registry) -> list[str]:
    """The extractors where none is named: the first of JUDGES that is no teacher, then those of JUDGES that are one."""
    components = {registry.part("extractor", each.type).component for each in teachers}
    taught = [name for name in JUDGES if registry.part("extractor", name).component in components]
    return [*[name for name in JUDGES if name not in taught][:1], *taught]


def taught(extractor: FeatureExtractor, teachers: Sequence[Teacher], registry: Registry) -> str:
    """The losses that this extractor stands in, in words; empty of one that has been no teacher."""
    return ", ".join(dict.fromkeys(each.loss for each in teachers if each.is_(extractor, registry)))


def contexts(
    said: Extractors | None,
    *,
    recipes: Sequence[Recipe],
    registry: Registry,
    processes: Processes,
    several: bool = True,
    **shared: Any,
) -> EvalContext:
    """The context of the first extractor, which judges, with those of the others beside it.

    Args:
        said: extractors, or what `open_extractor` takes; None: those that are `chosen` for these models.
        recipes: of the measured models, as far as they are known.
        several: False: the first alone.
        shared: of every context.

    Raises:
        UserError: there is no such extractor, or one is given twice.
    """
    teachers = teachers_of(recipes, registry)
    names = [said] if isinstance(said, str | FeatureExtractor) else list(said or chosen(teachers, registry))
    names = names if several else names[:1]
    made: dict[str, EvalContext] = {}
    for name in names:
        one = open_extractor(name, registry) if isinstance(name, str) else name
        one = one.to(processes.device).eval()
        if one.label in made:
            raise UserError(f"--extractor {one.label}: given twice")
        told = taught(one, teachers, registry)
        made[one.label] = EvalContext(registry=registry, extractor=one, processes=processes, taught=told, **shared)
    first, *others = made.values()
    return evolve(first, beside=tuple(others))


def with_warning(report: Report, context: EvalContext) -> Report:
    """A report that says so where its judge has been the model's teacher."""
    if not context.taught:
        return report
    note = f"{context.extractor.label} stands in {context.taught}: it favours what it has taught, and is no judge of it"
    return evolve(report, notes=[*report.notes, note])

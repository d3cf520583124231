"""A training run from a recipe: builds the parts, opens the data, and hands both to the trainer."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mixar.assembly import System, build, compare_classes, data_notes, open_data
from mixar.cache import open_cache
from mixar.cost import training_flop_per_image
from mixar.fits import fit_notes, is_unused
from mixar.folder import PROVENANCE, RECIPE, read_provenance, sha256, versions
from mixar.init import start_from, told
from mixar.joint import JointObjective
from mixar.memory import check_memory
from mixar.origin import origins
from mixar.parts import check_frozen, construct, named, weights_of
from mixar.plugins import Registry, registry_without
from mixar.recipe import PART_KEYS, TRAINABLE, Recipe, load_recipe, to_plain, to_yaml
from mixar.reference import reference_of
from mixar.structure import differences, flat
from mixar.text import first_of, shortened, tell
from mixar_core.data.dataset import has_names
from mixar_core.distributed import own_device
from mixar_core.errors import UserError, said_of
from mixar_core.storage import state_sha256, user_path
from mixar_core.tokenizer import ContinuousTokenizer
from mixar_core.training.adversarial import Adversary
from mixar_core.training.callback import Callback
from mixar_core.training.objective import MixARObjective, Objective, PriorObjective
from mixar_core.training.optimizer import AdamW, Optimizer, Updates
from mixar_core.training.reconstruction import ContinuousReconstruction, DiscreteReconstruction
from mixar_core.training.trainer import Result
from mixar_core.training.trainer import train as run_trainer
from mixar_core.types import Condition


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    device: torch.device | str | None = None,
    callbacks: Sequence[Callback] | None = None,
    registry: Registry | None = None,
    without_plugins: Sequence[str] = (),
) -> Result:
    """Train what a recipe describes. The folder then is a model folder: `load` samples from it.

    Under `torchrun` every process calls this with the same arguments.

    Args:
        folder: new or empty, or with `resume` that of a run that was stopped.
        device: None takes this process's GPU if there is one.
        callbacks: instead of the recipe's.
        without_plugins: names of installed plugins to leave out.

    Raises:
        UserError: the recipe does not say how long to train, its parts or data do not fit, or see `trainer.train`.
    """
    registry, folder = registry_without(registry, without_plugins), user_path(folder)
    planned, training = build(recipe, registry, meta=True), recipe.training
    if training is None:
        raise UserError(f"recipe {recipe.name}: training: required to train, and not there; set steps or epochs of it")
    optimizer, frozen = make_optimizer(planned, registry), frozen_digests(planned, registry)
    if resume:
        _check_recipe(folder, recipe, registry)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    warning = check_memory(planned, device=own_device(device), processes=processes)

    if training.cache_folder and any(key.endswith("tokenizer") for key in recipe.also_trained):
        raise UserError(f"recipe {recipe.name}: training.cache: has tokens of frozen tokenizers; also_trained has one")
    cache = open_cache(training.cache_folder, recipe, registry, planned=planned) if training.cache_folder else None
    # with a cache, images serve previews and the validation split alone, and need not be there
    train_set = open_data(recipe, registry, "train") if recipe.data or cache is None else None
    validation_set = open_data(recipe, registry, "validation") if recipe.data and training.evaluate_every else None
    notes = data_notes(recipe, registry, train=train_set, cache=cache, validation=validation_set)
    classes = [list(data.class_names) for data in (train_set, cache) if data is not None]
    class_names = next(filter(has_names, classes), classes[0])
    facts: dict[str, Any] = {"class_names": class_names, "frozen": frozen}
    if planned.takes_codes and planned.prior is None:
        notes.append("there is no prior: sampling will need codes, which are given or which a prior draws")
    if resume:
        notes += _check_facts(folder, recipe, facts)
    notes += [*fit_notes(recipe, registry, needs_codes=planned.takes_codes), *_unmeasured(planned)]
    if optimizer is not None and not isinstance(optimizer, AdamW):
        notes.insert(0, f"optimizer {recipe.optimizer}")
    tell(*([f"warning: {warning}"] if warning else []), *(f"note: {note}" for note in notes))

    if cache is not None and train_set is not None and train_set.stream is not None:
        train_set = None  # a stream is for making the cache
    torch.manual_seed(training.seed)  # initial weights
    system = build(recipe, registry, data=train_set, planned=planned)
    if recipe.init is not None and not resume:
        facts["init"] = begun = start_from(system, registry, class_names)
        tell(*(f"note: {line}" for line in told(begun)))
    if callbacks is None:
        callbacks = [registry.part("callback", choice.type).component(choice.config) for choice in recipe.callbacks]
    if not (isinstance(callbacks, list | tuple) and all(isinstance(each, Callback) for each in callbacks)):
        raise UserError(f"callbacks {shortened(repr(callbacks))}: not a list of mixar_core Callbacks")
    made = {"versions": versions(), "parts": origins(recipe, PART_KEYS, registry)}
    provenance = {"trained_by": f"mixar train {recipe.name}", **made, **facts}
    objective = make_objective(system, registry)
    if optimizer is not None:  # what stands beside the model and is not in `planned`: nothing is written yet
        _try_optimizer(optimizer, recipe, objective.beside.values())
    return run_trainer(
        objective,
        train_set,
        validation_set,
        training,
        folder,
        cache=cache,
        callbacks=callbacks,
        optimizer=optimizer,
        files={RECIPE: to_yaml(recipe), PROVENANCE: json.dumps(provenance, indent=2) + "\n"},
        resume=resume,
        device=device,
        flop_per_image=training_flop_per_image(planned),
        reference=reference_of(recipe, registry),
    )


def make_optimizer(system: System, registry: Registry) -> Optimizer | None:
    """The recipe's optimizer, tried on what is trained, a discriminator too; None: AdamW.

    Args:
        system: built with `meta=True`.

    Raises:
        UserError: a package of it is not installed, or it can do nothing for these weights, or there are none.
    """
    recipe = system.recipe
    if recipe.training is not None and not any(True for _ in system.trained.parameters()):
        raise UserError(f"recipe {recipe.name}: {named(recipe, recipe.trains)}: has no weights that could be trained")
    if recipe.optimizer is None or recipe.training is None:
        return None
    optimizer: Optimizer = construct(recipe, registry, "optimizer")
    modules = (system.trained, system.discriminator)
    _try_optimizer(optimizer, recipe, [module for module in modules if module is not None])
    return optimizer


def _try_optimizer(optimizer: Optimizer, recipe: Recipe, modules: Iterable[nn.Module]) -> None:
    """See that the recipe's optimizer takes the weights of each module.

    Raises:
        UserError: it can do nothing for some.
    """
    assert recipe.optimizer is not None and recipe.training is not None
    with said_of(f"recipe {recipe.name}: optimizer ({recipe.optimizer.type})"):
        for module in modules:
            Updates(optimizer, module, recipe.training)


def make_objective(system: System, registry: Registry) -> Objective:
    """What training this system minimises."""
    recipe, parts = system.recipe, cast(Any, system)  # what the recipe trains, and what that needs, is there
    if recipe.trains == "mixar" and not recipe.also_trained:
        return MixARObjective(parts.model, recipe.sampling)
    if recipe.trains == "prior":
        return PriorObjective(parts.prior, parts.discrete_tokenizer, parts.conditioner or Condition)
    extractor = construct(recipe, registry, "extractor") if recipe.reconstruction.perceptual_weight else None
    if recipe.trains == "mixar":
        return JointObjective(parts.model, recipe.sampling, extractor, recipe.reconstruction)
    adversary = None if system.discriminator is None else Adversary(parts.discriminator, recipe.adversarial)
    if recipe.trains == "discrete_tokenizer":
        return DiscreteReconstruction(parts.discrete_tokenizer, extractor, recipe.reconstruction, adversary)
    aligned_to = construct(recipe, registry, "aligned_to") if recipe.aligned_to else None
    with said_of(f"recipe {recipe.name}: aligned_to"):
        return ContinuousReconstruction(
            parts.continuous_tokenizer,
            extractor,
            recipe.reconstruction,
            adversary,
            aligned_to=aligned_to,
            alignment=recipe.alignment,
        )


def frozen_digests(system: System, registry: Registry) -> dict[str, str]:
    """The sha256 of frozen parts' weights, by recipe key: of the file, or of what a part brings.

    One that was never trained would teach what it is used for nothing. One whose training is not over will be another:
    a tokenizer, for one, measures its latents' mean and deviation at the end.
    """
    recipe, digests = system.recipe, {}
    for key in (*TRAINABLE, "conditioner"):
        part, choice = getattr(system, key), getattr(recipe, key)
        unused = is_unused(recipe, key, needs_codes=system.takes_codes)
        if key in recipe.trained_parts or part is None or (unused and choice.weights is None):
            continue
        if choice.weights is not None:
            file = weights_of(recipe, key, registry)
            if file.is_dir():
                raise UserError(
                    f"recipe {recipe.name}: {key}.weights: {choice.weights} is a run that is not finished, its newest "
                    f"state is {file.parent.name}; finish it with --resume, or give a finished model"
                )
            digests[key] = sha256(file)
        elif key in system.brought:
            digests[key] = state_sha256(system.brought[key])
        elif key in TRAINABLE and any(True for _ in part.parameters()):
            raise UserError(
                f"recipe {recipe.name}: {key}.weights: required, because this recipe trains {recipe.trains} and keeps "
                f"{key} as it is; give a model's name, a model folder or a .safetensors file"
            )
    return digests


def _unmeasured(planned: System) -> list[str]:
    """A note where a tokenizer brought its weights, and nobody says how its latents are distributed."""
    recipe, choice = planned.recipe, planned.recipe.continuous_tokenizer
    brought = planned.brought.get("continuous_tokenizer")
    if choice is None or choice.weights is not None or "continuous_tokenizer" in recipe.trained_parts:
        return []
    if not isinstance(brought, ContinuousTokenizer) or brought.latent_mean_C.any() or (brought.latent_std_C != 1).any():
        return []
    return [
        f"{named(recipe, 'continuous_tokenizer')}: its latents are not measured, and are taken as they are; "
        "`mixar measure` measures them"
    ]


#: what may change between a run and its resumption: the trainer looks at `training` itself, and what is computed again
#: instead of kept is the same
_FREE = re.compile(
    r"(name|summary|training|callbacks|sampling|sampler|data|accept_other_classes)(\..*)?|backbone\.activation_checkpointing"
)


def _check_recipe(folder: Path, recipe: Recipe, registry: Registry) -> None:
    """A run goes on as what it was."""
    path = folder / RECIPE
    if not path.is_file():
        raise UserError(f"{folder} holds no run to resume: there is no {RECIPE}")
    then, now = (
        {key: value for key, value in flat(to_plain(side)).items() if not _FREE.fullmatch(key)}
        for side in (load_recipe(path, registry=registry), recipe)
    )
    if changed := differences(then, now):
        raise UserError(
            f"{folder} was started with another recipe: {first_of(changed)}; resume with that, or start anew"
        )


def _check_facts(folder: Path, recipe: Recipe, now: Mapping[str, Any]) -> list[str]:
    """The same names may have other weights, or classes, behind them by now; what a run did not note is not checked.

    Returns:
        Notes, of classes that cannot be compared.
    """
    check_frozen(folder, now["frozen"], "resume with those, or start anew")
    noted = read_provenance(folder).get("class_names") or ()
    names = {f"the run in {folder}": noted, "its data now": now["class_names"]}
    return compare_classes(recipe, names)

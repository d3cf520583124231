"""The latent statistics of a continuous tokenizer that is not trained here, measured and kept with its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from attrs import evolve

from mixar.assembly import build, data_notes, open_data
from mixar.folder import save_model
from mixar.parts import named
from mixar.plugins import Registry
from mixar.recipe import Recipe, to_yaml
from mixar.run import frozen_digests
from mixar.text import tell
from mixar_core.distributed import join_processes
from mixar_core.errors import UserError
from mixar_core.storage import state_sha256
from mixar_core.training.reconstruction import ContinuousReconstruction
from mixar_core.training.settings import TrainingConfig
from mixar_core.training.sources import shared_batches


def measure(recipe: Recipe, folder: Path, registry: Registry, *, device: torch.device | str | None = None) -> None:
    """Measure a tokenizer's latents over `reconstruction.statistics_images` images, and write it as a model folder.

    Raises:
        UserError: the recipe trains something else, its tokenizer has no weights, it names no data, or the folder is
            there already.
    """
    key = "continuous_tokenizer"
    if recipe.trains != key:
        raise UserError(f"recipe {recipe.name}: trains {recipe.trains}; what is measured is a {key}'s latents")
    if folder.exists():
        raise UserError(f"{folder}: is there already")
    planned, choice = build(recipe, registry, meta=True), recipe.continuous_tokenizer
    assert choice is not None
    if choice.weights is None and key not in planned.brought and any(True for _ in planned.trained.parameters()):
        raise UserError(
            f"recipe {recipe.name}: {named(recipe, key)}: has no weights yet: give {key}.weights, or train it, which "
            "measures at the end"
        )
    data = open_data(recipe, registry, "train")
    tell(*(f"note: {note}" for note in data_notes(recipe, registry, train=data)))
    frozen = frozen_digests(planned, registry)
    brought = {key: state_sha256(part) for key, part in planned.brought.items() if choice.weights is None}
    processes = join_processes(device)
    tokenizer = build(recipe, registry, device=processes.device, planned=planned).continuous_tokenizer
    assert tokenizer is not None
    objective = ContinuousReconstruction(tokenizer, None, evolve(recipe.reconstruction, perceptual_weight=0.0)).eval()
    batches = shared_batches(
        data, objective.finish_images, recipe.training or TrainingConfig(steps=1, batch_size=64), processes
    )
    objective.finish(batches, processes.sum)
    facts = {"trained_by": f"mixar measure {recipe.name}", "class_names": list(data.class_names), "brought": brought}
    facts |= {"frozen": frozen} if frozen else {}
    processes.on_main(
        lambda: save_model(folder, recipe_yaml=to_yaml(recipe), tensors=tokenizer.state_dict(), facts=facts)
    )
    processes.leave()

"""The functions behind `import mixar`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mixar import assembly, model, run
from mixar.assembly import System
from mixar.folder import Kind
from mixar.model import Model, Precision
from mixar.plugins import load_plugins, plugin_manager
from mixar.recipe import Recipe
from mixar_core.distributed import refuse_while_starting
from mixar_core.errors import UserError
from mixar_core.training.callback import Callback
from mixar_core.training.trainer import Result


def load(
    name_or_path: str | Path,
    *,
    device: torch.device | str | None = None,
    weights: Kind = "ema",
    precision: Precision = "float32",
) -> Model:
    """A model to sample from: a shipped one by name, a model folder, or the folder of a run.

    Args:
        device: None takes the GPU if there is one.
        weights: averaged over training (`ema`) or those of the last step (`raw`; a run folder has both).
        precision: `bf16` computes all but the decoders under autocast: about twice as fast, and other images.
    """
    return model.load(name_or_path, device=device, weights=weights, precision=precision)


def build(recipe: Recipe, *, device: torch.device | str = "cpu", load_weights: bool = True) -> System:
    """The modules a recipe describes, checked to fit: `.model`, `.continuous_tokenizer`, `.prior`, `.parameters`, ...

    Args:
        load_weights: whether parts whose choice names weights get them.
    """
    return assembly.build(recipe, plugin_manager(), device=device, load_weights=load_weights)


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    resume: bool = False,
    device: torch.device | str | None = None,
    callbacks: Sequence[Callback] | None = None,
) -> Result:
    """Train what a recipe describes; afterwards `load(folder)` samples from it.

    Args:
        folder: new or empty, or with `resume` that of a run that was stopped.
        callbacks: instead of the recipe's.
    """
    return run.train(recipe, folder, resume=resume, device=device, callbacks=callbacks)


def evaluate(*args: Any, **kwargs: Any) -> Any:
    """Measure images against a reference: `mixar_eval.evaluate`, which comes with the package mixar-eval.

    Raises:
        UserError: that package is not installed, or this is a worker process that is still being started.
    """
    refuse_while_starting()
    manager, _ = load_plugins()
    function = manager.hook.mixar_evaluate()
    if function is None:
        raise UserError(
            "mixar.evaluate comes with the package mixar-eval, which is not installed; in a checkout: "
            "pip install ./plugins/mixar_eval"
        )
    return function(*args, **kwargs)

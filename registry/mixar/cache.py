"""Token caches of a recipe's data: made by `mixar cache`, checked before a run reads one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from mixar.assembly import System, build, data_notes, open_data
from mixar.folder import find_weights, load_into, read_tensors, sha256
from mixar.image_sizes import as_written
from mixar.parts import construct_once, weights_of
from mixar.plugins import Registry
from mixar.recipe import PART_KEYS, PartChoice, Recipe
from mixar.registry import OWN
from mixar.structure import differences, unstructure
from mixar.text import tell
from mixar_core.data.cache import CacheSettings, StorageDtype, Stores, TokenCache
from mixar_core.data.cache_writer import Caching, write_cache
from mixar_core.data.tokens import FrozenTokenizers
from mixar_core.distributed import PATIENT, StopSignals, join_processes, naming_lost_processes
from mixar_core.errors import UserError
from mixar_core.storage import state_sha256
from mixar_core.tokenizer import ContinuousTokenizer, DiscreteTokenizer


def open_cache(folder: Path, recipe: Recipe, registry: Registry, *, planned: System | None = None) -> TokenCache:
    """The cache in `folder`, for training what the recipe describes; `planned`: that, if it was built with `meta`.

    One without an index (latents in the published form) does not say which tokenizer made it; a line on stderr warns of
    that.

    Raises:
        UserError: it is none, is damaged, or is not of this recipe's tokenizers, image size and classes, or lacks codes
            or mirrored images that the recipe needs.
    """
    cache = TokenCache.open(folder)
    problem = _misfit(cache, planned or build(recipe, registry, meta=True), registry)
    if problem is not None:
        raise UserError(f"{folder}: {problem}; make one that fits: mixar cache {recipe.name} --out DIR")
    if cache.settings is None:
        tell(f"warning: {folder} does not say which tokenizer made it, so that is not checked")
    return cache


def _misfit(cache: TokenCache, system: System, registry: Registry) -> str | None:
    """Why this cache is not one for the recipe; None: it is."""
    recipe = system.recipe
    continuous, discrete = needed_tokenizers(system)
    settings, classes = cache.settings, cache.num_classes
    if settings is not None and settings.split != "train":
        return f"the cache is of the {settings.split} split, and training reads the train split"
    if settings is not None and settings.image_size != recipe.image_size:
        theirs, ours = as_written(settings.image_size), as_written(recipe.image_size)
        return f"the cache is of images of {theirs} pixels, the recipe of {ours}"
    if recipe.num_classes and (classes > recipe.num_classes if settings is None else classes != recipe.num_classes):
        return f"the cache has {classes} classes, the recipe {recipe.num_classes}"
    if continuous is not None and cache.latent_shape is None:
        return "the cache has no latents, and the recipe trains on them"
    if discrete is not None and not cache.has_codes:
        user = "injector needs" if system.takes_codes else "prior learns"
        return f"the cache has no codes, and the recipe's {user} them"
    if recipe.training is not None and recipe.training.flip and not cache.flip:
        return "the cache has no mirrored images, and training.flip is set"
    for key, used in (("continuous", continuous), ("discrete", discrete)):
        if used is not None and settings is not None:
            then, now = settings.tokenizers.get(key) or {}, fingerprint(system, f"{key}_tokenizer", registry)
            if "package" not in then:  # a cache of before it was noted
                now.pop("package", None)
            if changed := differences(then, now):
                return f"the cache was made by another {key} tokenizer: {', '.join(changed)}"
    if continuous is not None and cache.latent_shape != (shape := _latent_shape(continuous)):
        there, wanted = ("x".join(map(str, each or ())) for each in (cache.latent_shape, shape))
        return f"latents are {there}, the recipe's continuous tokenizer makes {wanted}"
    return None


def make_cache(
    recipe: Recipe,
    folder: Path,
    registry: Registry,
    *,
    split: Literal["train", "validation"] = "train",
    stores: Stores = "moments",
    dtype: StorageDtype = "float32",
    rows_per_shard: int = 1024,
    seed: int = 0,
    flip: bool = True,
    batch: int = 64,
    workers: int = 0,
    max_unreadable: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[int, int | None], object] = lambda done, total: None,
) -> Caching:
    """Write what the recipe's tokenizers make of its data into a token cache; shards that are there are kept.

    Under `torchrun` every process calls this with the same arguments; the files do not depend on how many there are: on
    one kind of device, with as many threads each, they have the same bytes.
    SIGTERM and SIGINT end it between two batches; the same call goes on.

    Args:
        folder: new or empty, or one that was begun with the same arguments.
        seed: of samples.
        workers: loader processes of each process.
        device: None: this process's GPU if there is one, or else the CPU.
        progress: told how many of this process's images are encoded, and of how many (None: not known).

    Raises:
        UserError: the recipe reads images and not tokens, its tokenizers have no weights, the folder holds something
            else, or another call is at work in it, the disk is too small, or more than `max_unreadable` images cannot
            be read.
    """
    data = open_data(recipe, registry, split)
    tell(*(f"note: {note}" for note in data_notes(recipe, registry, **{split: data})))
    system = build(recipe, registry, meta=True)
    continuous, discrete = needed_tokenizers(system)[0], system.discrete_tokenizer  # codes wherever the recipe has them
    settings = CacheSettings(
        image_size=recipe.image_size,
        num_classes=data.num_classes,
        class_names=tuple(data.class_names),
        split=split,
        flip=flip,
        stores=None if continuous is None else stores,
        dtype=dtype,
        seed=seed,
        latent_shape=None if continuous is None else _latent_shape(continuous),
        tokens=None if discrete is None else discrete.layout.tokens,
        code_dtype=None if discrete is None else "int16" if discrete.codebook_size <= 2**15 else "int32",
        rows_per_shard=rows_per_shard,
        batch=batch,
        tokenizers={
            key: None if part is None else fingerprint(system, f"{key}_tokenizer", registry)
            for key, part in (("continuous", continuous), ("discrete", discrete))
        },
        source={**_plain_config(recipe.data), "images": None if data.stream is not None else len(data)},
    )
    codes = None if discrete is None else _trained(system, registry, "discrete_tokenizer")
    beside = {"tokenizer": codes} if continuous is not None and continuous.needs_codes else {}
    latents = None if continuous is None else _trained(system, registry, "continuous_tokenizer", **beside)
    tokenizers = FrozenTokenizers(latents, codes)
    processes = join_processes(device, timeout=PATIENT)
    with StopSignals() as signals, naming_lost_processes(processes):
        made = write_cache(
            folder,
            settings,
            data,
            tokenizers.to(processes.device),
            processes,
            stop=lambda: signals.requested,
            workers=workers,
            max_unreadable=max_unreadable,
            progress=progress,
        )
    processes.leave()
    return made


def _trained(planned: System, registry: Registry, key: str, **beside: DiscreteTokenizer | None) -> Any:
    """A tokenizer of the recipe alone, with its weights; or `beside` the one whose codes its latents need."""
    recipe = planned.recipe
    module = construct_once(recipe, registry, key, dict(planned.brought), image_size=recipe.image_size, **beside)
    choice = getattr(recipe, key)
    if choice.weights is not None:
        load_into(module, read_tensors(weights_of(recipe, key, registry)), where=f"{key} ({choice.weights})")
    elif key not in planned.brought and any(True for _ in module.parameters()):
        raise UserError(
            f"recipe {recipe.name}: {key}.weights: required, because a cache keeps what a trained tokenizer makes; "
            "give a model's name, a model folder or a .safetensors file"
        )
    return module


def needed_tokenizers(system: System) -> tuple[ContinuousTokenizer | None, DiscreteTokenizer | None]:
    """The tokenizers whose tokens training this system reads.

    Raises:
        UserError: it reads images.
    """
    if system.model is not None:
        return system.continuous_tokenizer, system.discrete_tokenizer if system.model.learns_codes else None
    if system.recipe.trains == "prior":
        return None, system.discrete_tokenizer
    raise UserError(f"recipe {system.recipe.name} trains a {system.recipe.trains}, which reads images and not tokens")


def fingerprint(system: System, key: str, registry: Registry) -> dict[str, Any]:
    """What tells a tokenizer from another: type, package, settings, the sha256 of its weights' file or of its own.

    It does not change with what else is installed.
    """
    choice, weights = getattr(system.recipe, key), None
    package = registry.plugin_of(registry.part(PART_KEYS[key], choice.type)).package
    if choice.weights is not None:
        weights = sha256(find_weights(choice.weights, registry))
    elif key in system.brought:
        weights = state_sha256(system.brought[key])
    theirs = {} if package == OWN else {"package": package}
    return {**_plain_config(choice), **theirs, "weights_sha256": weights}


def _plain_config(choice: PartChoice | None) -> dict[str, Any]:
    """A part's type and settings, as JSON gives them back."""
    assert choice is not None
    plain: dict[str, Any] = json.loads(json.dumps(unstructure(choice.config)))
    return {"type": choice.type.rpartition(":")[2], "config": plain}


def _latent_shape(tokenizer: ContinuousTokenizer) -> tuple[int, int, int]:
    return tokenizer.latent_channels, tokenizer.layout.shape.height, tokenizer.layout.shape.width

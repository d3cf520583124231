"""What a run reads: batches for its steps and for the validation, images for its previews and its end."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch

from mixar_core.data.cache import TokenCache
from mixar_core.data.dataset import ImageDataset
from mixar_core.data.loader import BatchShard, ShuffledOrder, each_once
from mixar_core.data.source import Read, Source, images_in_memory, read_cache, read_images, tokens_in_memory
from mixar_core.data.streams import Stream, step_noise
from mixar_core.distributed import Processes
from mixar_core.errors import UserError
from mixar_core.training.objective import Objective
from mixar_core.training.settings import TrainingConfig
from mixar_core.types import ImageBatch

#: Seed of the validation's order and noise: the same in every run, so that curves compare.
VALIDATION_SEED = 0


def make_source(
    objective: Objective,
    data: ImageDataset | TokenCache,
    config: TrainingConfig,
    processes: Processes,
    *,
    validation: bool = False,
) -> Source:
    """What training steps read, or measurements on the validation split.

    The latter are batches of the training's size, or of as many images as there are, in the same order in every run.

    Raises:
        UserError: the validation split has fewer images than there are processes.
    """
    size, seed, flip = config.batch_size, config.seed, config.flip
    if validation:
        size, seed, flip = min(size, len(data) // processes.world * processes.world), VALIDATION_SEED, False
        if size == 0:
            raise UserError(f"data: the validation split has {len(data)} images for {processes.world} processes")
    order = ShuffledOrder(len(data), size, seed=seed)
    share = BatchShard.of(size, rank=processes.rank, world=processes.world)
    count, device, workers, unreadable = len(data), processes.device, config.workers, dict[int, str]()
    pin = device.type == "cuda"
    read: Read
    if isinstance(data, TokenCache):
        read = read_cache(data, _kinds(objective), workers=workers, pin=pin)
    elif config.cache != "memory":
        read = read_images(data, workers=workers, pin=pin)
    else:

        def told(kept: str) -> None:
            if processes.is_main:
                split = "validation" if validation else "training"
                print(f"note: training.cache: memory: the {split} split is kept as {kept}", file=sys.stderr)

        allowed, every = config.max_unreadable, torch.arange(count)
        loaded = each_once(data, every, batch_size=64, workers=workers, max_unreadable=allowed, unreadable=unreadable)
        if objective.takes_tokens:
            read = tokens_in_memory(loaded, count, objective.tokenizers, device=device, flip=flip, told=told)
        else:
            read = images_in_memory(loaded, count, told=told)
    return Source(read, order, share, device=device, flip=flip, unreadable=unreadable)


def _kinds(objective: Objective) -> list[str]:
    """The kinds of a cache's tokens that an objective takes; reading the others would cost up to 100 times as much."""
    parts = {"latents": objective.tokenizers.continuous, "codes": objective.tokenizers.discrete}
    return [kind for kind, tokenizer in parts.items() if tokenizer is not None]


def preview_images(
    objective: Objective, data: ImageDataset | TokenCache, config: TrainingConfig, device: torch.device
) -> ImageBatch:
    """Some images of a data set, always the same; or what some tokens of a cache decode to."""
    count = min(config.preview_images, len(data))
    order = ShuffledOrder(len(data), count, seed=VALIDATION_SEED)
    if isinstance(data, ImageDataset):
        skipped = config.max_unreadable
        return next(each_once(data, order.indices(0), batch_size=count, max_unreadable=skipped)).to(device)
    noise = step_noise(Stream.TOKENS, seed=VALIDATION_SEED, step=0, device=device)
    plain = torch.zeros(count, dtype=torch.bool)
    return objective.detokenize(data.rows(order.indices(0), plain, _kinds(objective)).to(device), noise=noise)


def shared_batches(
    dataset: ImageDataset, count: int, config: TrainingConfig, processes: Processes
) -> Iterator[tuple[ImageBatch, int]]:
    """At most `count` images of a data set, drawn at random, each once: this process's batches of them.

    With each batch comes how many of its rows count. All processes get equally many batches of equal sizes, since under
    FSDP they compute together: the share of one that would have an image less ends with one that does not count.
    """
    order = ShuffledOrder(len(dataset), 1, seed=VALIDATION_SEED).permutation(0)[:count]
    mine = order[processes.rank :: processes.world]
    padding = order[: -(-len(order) // processes.world) - len(mine)]
    size = config.micro_batch or config.batch_size // processes.world
    indices, skipped = torch.cat([mine, padding]), config.max_unreadable
    found = each_once(dataset, indices, batch_size=size, workers=config.workers, max_unreadable=skipped)
    for number, loaded in enumerate(found):
        yield loaded.to(processes.device), min(len(loaded.labels_B), len(mine) - number * size)

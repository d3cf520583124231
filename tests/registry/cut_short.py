"""Writers of caches that are ended in the middle, in processes of their own. (Importing little: each process does.)"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixar.cache import make_cache
from mixar.plugins import plugin_manager
from mixar.recipe import load_recipe
from mixar_core.data import cache_writer
from tests.cli import process


def apart(target: Callable[..., None], *arguments: object) -> int | None:
    """Exit code of a function run in a process of its own."""
    child = multiprocessing.get_context("forkserver").Process(target=target, args=arguments)
    child.start()
    child.join(timeout=60)
    return child.exitcode


def kill_after(family: Path, folder: Path, after: str | None, times: int) -> None:
    """Make a cache of two rows a shard, and get killed when a function of the writer has been called so many times."""
    if after is not None:
        left, function = times, getattr(cache_writer, after)

        def deadly(*arguments: object) -> object:
            nonlocal left
            result = function(*arguments)
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(cache_writer, after, deadly)
    registry = plugin_manager()
    recipe = load_recipe(family / "recipes/mixar.yaml", registry=registry)
    make_cache(recipe, folder, registry, device="cpu", rows_per_shard=2, batch=2)


def stop_in_shard(folder: Path, number: int, *words: str) -> None:
    """Run `mixar`, and get a signal while the second shard is encoded, or the fourth."""
    encode = cache_writer.encode

    def signalling(*arguments: Any) -> Any:
        if len(cache_writer.noted_shards(folder / "cache")) in (1, 3):
            os.kill(os.getpid(), number)
        return encode(*arguments)

    cache_writer.encode = signalling
    process._child(words, str(folder), str(folder / "stdout"), str(folder / "stderr"), -1)

"""Checkpoints: all that a run needs to go on as if it had never stopped.

    checkpoints/step-00000100/
        raw/          what is trained                     ema/    the same, averaged (if an average is kept)
        optimizer/    its state, by moment and name       run.json    step, settings, size and sha256 of every file

The three folders are torch.distributed.checkpoint's, in safetensors: every process writes its share, and any number of
processes reads them. A folder of that name is complete: it is written under another name, forced to disk, and renamed.
Random streams and the order of images are functions of the step, so there is nothing of them to keep.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor

from mixar_core.distributed import TIMEOUT, Processes
from mixar_core.errors import UserError
from mixar_core.storage import file_sha256, sync, write_text, writing
from mixar_core.training.ema import local
from mixar_core.training.settings import TrainingConfig

# A run of one process needs no process group, and torch says so at every save.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")

_NAME = re.compile(r"step-\d{8,}")
_SHOWN = 3
#: What a checkpoint holds: by folder, then by name.
Tensors = Mapping[str, Mapping[str, Tensor]]


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    found = (folder / "checkpoints").glob("step-*")
    return sorted((path for path in found if _NAME.fullmatch(path.name)), key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """Steps done at a checkpoint."""
    return int(path.name.removeprefix("step-"))


def newest_checkpoint(folder: Path) -> tuple[Path, list[str]]:
    """The newest whole checkpoint of a run folder, and what is wrong with the newer ones. Reads every byte of it.

    Raises:
        UserError: there is none.
    """
    damaged: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        if not (problem := _problem(path)):
            return path, damaged
        damaged.append(f"{path}: {problem}")
    if damaged:
        raise UserError(f"{folder} holds no whole checkpoint to resume from: {'; '.join(damaged)}")
    raise UserError(f"{folder} holds no checkpoint to resume from; start anew, without resume and in an empty folder")


def read_run(path: Path) -> dict[str, Any]:
    """A checkpoint's run.json."""
    run: dict[str, Any] = json.loads((path / "run.json").read_text(encoding="utf-8"))
    return run


def load_tensors(path: Path, into: Tensors, processes: Processes) -> None:
    """Fill the tensors of `into` in place.

    Raises:
        UserError: the checkpoint holds other names or shapes.
    """
    for part, tensors in into.items():
        stored, own = (
            {name: tuple(tensor.shape) for name, tensor in each.items()} for each in (stored_in(path / part), tensors)
        )
        wrong = [name for name in sorted({*stored, *own}) if stored.get(name) != own.get(name)]
        if wrong:
            named = ", ".join(f"{n} was {stored.get(n, 'absent')}, is {own.get(n, 'absent')}" for n in wrong[:_SHOWN])
            raise UserError(f"{path} does not fit what is trained: {len(wrong)} tensors differ: {named}")
        reader = HuggingFaceStorageReader(str(path / part))
        load(dict(tensors), storage_reader=reader, no_dist=processes.world == 1)


def read_sharded(folder: Path) -> dict[str, Tensor]:
    """All tensors of one of a checkpoint's folders, whole, on the CPU.

    Raises:
        UserError: a file of it is missing or no whole safetensors file.
    """
    try:
        tensors = stored_in(folder, device="cpu")
        load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    except (OSError, SafetensorError, CheckpointException) as error:
        raise UserError(f"{folder} is not a checkpoint's folder: {_reason(error)}") from error
    return tensors


def stored_in(folder: Path, *, device: str = "meta") -> dict[str, Tensor]:
    """Tensors like those in one of a checkpoint's folders, without their values."""
    known: Any = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {n: torch.empty(about.size, dtype=about.properties.dtype, device=device) for n, about in known.items()}


class Checkpoints:
    """The checkpoints of a run folder. Every process has one, and calls `save` and `wait` at the same steps."""

    def __init__(self, folder: Path, processes: Processes, config: TrainingConfig) -> None:
        self.root, self.processes, self.config = folder / "checkpoints", processes, config
        # A group of its own: its messages must not mix with the training's while both are under way.
        self._group = dist.new_group(backend="gloo", timeout=TIMEOUT) if processes.world > 1 else None
        self._thread = ThreadPoolExecutor(1, "checkpoint") if config.background_checkpoints else None
        self._pending: Future[None] | None = None
        # It copies in the calling thread, without pinned or shared memory: when it returns, training may go on.
        self._stager = DefaultStager(StagingOptions(False, False, False, False))
        self._finished: list[Path] = []

    def clean(self, step: int) -> None:
        """Before a run goes on from `step`; for the main process.

        What a killed run left unfinished is removed, single files of its folder too. Newer checkpoints, which are
        damaged, or they would be gone on with, are renamed to `....damaged`: they must not count as the newest ones.
        """
        for left in self.root.glob(".step-*"):
            shutil.rmtree(left, ignore_errors=True)
        for pattern in (".*.unfinished", ".tmp??????"):  # ours, and safetensors' own
            for left in self.root.parent.glob(pattern):
                left.unlink(missing_ok=True)
        for path in list_checkpoints(self.root.parent):
            if checkpoint_step(path) > step:
                aside = path.with_name(f"{path.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                with writing(path):
                    os.replace(path, aside)
                print(f"warning: {path} is damaged, and is kept as {aside.name}", file=sys.stderr)

    def save(self, tensors: Tensors, step: int, settings: Mapping[str, Any]) -> None:
        """Write a checkpoint, or in the background begin to, once the one before is complete.

        Every process writes its part of the tensors: of sharded ones its shard, of the others those of `own_part`.

        Raises:
            UserError: it cannot be written, or the one before could not; the older ones are as they were.
        """
        self.wait()
        path = self.root / f"step-{step:08d}"
        if self.processes.on_main(lambda: self._open(path)):
            return  # a run that was resumed at its own last step
        tensors = {part: own_part(values, self.processes) for part, values in tensors.items()}
        run = {"step": step, "settings": dict(settings), "processes": self.processes.world}
        if self._thread is None:
            self.processes.together(lambda: self._write(path, tensors, run))
        else:
            staged = {part: {name: self._staged(t) for name, t in values.items()} for part, values in tensors.items()}
            self._pending = self._thread.submit(self._write, path, staged, run)

    def _staged(self, tensor: Tensor) -> Tensor:
        """A copy in the CPU's memory. (torch 2.11's stager fails on a GPU's tensors that are not sharded.)"""
        if not isinstance(tensor, DTensor):
            return tensor.detach().to("cpu", copy=True)
        staged: Any = self._stager.stage({"": tensor})
        copied: Tensor = staged[""]
        return copied

    def wait(self) -> None:
        """Until nothing is being written.

        Raises:
            UserError: what was written in the background could not be.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            self.processes.together(pending.result)

    def close(self) -> None:
        """Until this process writes nothing more, whatever became of it; the others need not call it."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)

    @property
    def failed(self) -> bool:
        """Whether what this process wrote in the background could not be written; `wait` then says why."""
        return self._pending is not None and self._pending.done() and self._pending.exception() is not None

    def finished(self) -> list[Path]:
        """Those that became complete since this was last called; for the main process."""
        finished, self._finished = self._finished, []
        return finished

    def _open(self, path: Path) -> bool:
        """Whether it is there already, and whole; if not, make room for it."""
        if path.exists() and _problem(path) is None:
            return True
        for left in (path, _unfinished(path)):
            shutil.rmtree(left, ignore_errors=True)
        with writing(path):
            _unfinished(path).mkdir(parents=True)
        return False

    def _write(self, path: Path, tensors: Tensors, run: dict[str, Any]) -> None:
        """This process's share of the files; the main one then completes the checkpoint."""
        unfinished = _unfinished(path)
        try:
            with writing(path):
                for part, values in tensors.items():
                    writer = HuggingFaceStorageWriter(str(unfinished / part), save_distributed=True)
                    save(_plain(values), storage_writer=writer, process_group=self._group, no_dist=self._group is None)
                if self.processes.is_main:
                    self._complete(path, run)
        except CheckpointException as error:
            raise UserError(f"{path} cannot be written: {_reason(error)}") from error
        finally:
            if self.processes.is_main:
                shutil.rmtree(unfinished, ignore_errors=True)

    def _complete(self, path: Path, run: dict[str, Any]) -> None:
        """Checksums, the name, and the old ones' removal."""
        unfinished = _unfinished(path)
        files = {str(file.relative_to(unfinished)): _digest(file) for file in sorted(unfinished.rglob("*.*"))}
        write_text(unfinished / "run.json", json.dumps({**run, "files": files}, indent=1))
        for part in {(unfinished / name).parent for name in files}:
            sync(part)
        os.replace(unfinished, path)
        sync(path.parent)
        self._finished.append(path)
        every = self.config.keep_every
        for old in list_checkpoints(self.root.parent)[: -self.config.keep_last]:
            if not every or checkpoint_step(old) % every:
                # Renamed first: a half-removed folder must not look complete.
                doomed = old.with_name(f".{old.name}.removed")
                os.replace(old, doomed)
                shutil.rmtree(doomed, ignore_errors=True)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.unfinished")


def own_part(tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, Tensor]:
    """The tensors that this process writes: its shards, and of what all processes have whole, a share by size."""
    owners, load = {}, [0] * processes.world
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].nbytes):
        if not isinstance(tensor, DTensor):
            owners[name] = load.index(min(load))
            load[owners[name]] += tensor.nbytes
    return {name: tensor for name, tensor in tensors.items() if owners.get(name, processes.rank) == processes.rank}


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors as safetensors takes them: contiguous, and no two of which share memory."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        address = local(tensor).data_ptr() or id(tensor)
        # contiguous: weights of convolutions may be channels_last
        plain[name] = (tensor.clone() if address in seen else tensor).contiguous()
        seen.add(address)
    return plain


def _digest(file: Path) -> dict[str, Any]:
    return {"bytes": file.stat().st_size, "sha256": file_sha256(file)}


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint; None: it is whole."""
    try:
        for name, expected in read_run(path)["files"].items():
            size = (path / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes, not the {expected['bytes']} written"
            if _digest(path / name) != expected:
                return f"{name} is not what was written (checksum)"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"run.json is damaged: {error}"
    return None


def _reason(error: BaseException) -> str:
    """One line of an error, or of the first one that processes met together."""
    if isinstance(error, CheckpointException):
        rank, (first, _) = next(iter(error.failures.items()))
        where = f"process {rank}: " if dist.is_initialized() else ""
        return f"{where}{_reason(first)}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())

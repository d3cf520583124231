"""A training run that is killed again and again and resumed each time, against one that is left alone.

What `benchmarks.endurance` and its small form in the tests share. The training is a small MixAR's, with TI-Mix,
dropout, mirroring, validation and previews, in processes forked from one that has imported everything: an attempt
takes a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from attrs import field, frozen, mutable

from mixar_core.errors import UserError
from mixar_core.mixture import TIMixConfig
from mixar_core.model import SamplingConfig
from mixar_core.training.callback import Callback
from mixar_core.training.checkpoint import checkpoint_step, list_checkpoints, newest_checkpoint
from mixar_core.training.objective import MixARObjective
from mixar_core.training.settings import TrainingConfig
from mixar_core.training.trainer import train
from tests.cli.process import send, tree
from tests.core.training_toys import ToyImages, against_a_judge
from tests.toys import small_mixar

# Python 3.11's fork server does not hand its parent's sys.path to what it imports beforehand.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.core.kills", "tests.cli.warm"])

#: seconds after which a process that should have ended by itself counts as hung
BOUND = 60.0
Parallel = Literal["ddp", "fsdp"]
PARALLEL: tuple[Parallel, ...] = ("ddp", "fsdp")
#: when a kill falls: while the run starts, between saves or anywhere near, as one is seen to begin, in the last files
Moment = Literal["start", "step", "save", "end"]
_MOMENTS: tuple[Moment, ...] = ("save", "step", "save", "start")


@frozen
class Setup:
    """What is run: how many processes share it and how, and whether checkpoints are written in the background.

    Args:
        adversarial: a tokenizer against a discriminator is trained, and no MixAR.
    """

    processes: int = 1
    parallel: Parallel = "ddp"
    background: bool = False
    adversarial: bool = False
    steps: int = 200
    checkpoint_every: int = 5

    @property
    def name(self) -> str:
        """As the table has it."""
        shared = f"{self.processes} processes, {self.parallel.upper()}" if self.processes > 1 else "1 process"
        trained = ", against a discriminator" if self.adversarial else ""
        return f"{shared}{', background checkpoints' if self.background else ''}{trained}"


@mutable
class Outcome:
    """How a run that was killed again and again ended; `problems` is empty where it ended as it must.

    Args:
        kills: processes or groups of them that were killed; `in_save` of them while a checkpoint was unfinished.
        repeated: steps that were done again.
        slowest_end: seconds the slowest process took to end by itself after another one was killed.
    """

    kills: int = 0
    in_save: int = 0
    repeated: int = 0
    slowest_end: float = 0.0
    seconds: float = 0.0
    problems: list[str] = field(factory=list)


# ---------------------------------------------------------------- in the forked processes


def train_one(
    setup: Setup, folder: str, resume: bool, workers: int, environment: Mapping[str, str], output: str
) -> None:
    """One process of an attempt. It ends as `mixar` would: 2 and one line for a UserError."""
    for number in (1, 2):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.update(environment)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of loader processes; a fork server's children have its own
    config = TrainingConfig(
        steps=setup.steps,
        batch_size=8,
        micro_batch=3,
        learning_rate=1e-3,
        learning_rate_per=None,
        schedule="cosine",
        warmup_steps=10,
        flip=True,
        parallel=setup.parallel,
        checkpoint_every=setup.checkpoint_every,
        keep_every=10 * setup.checkpoint_every,
        background_checkpoints=setup.background,
        log_every=1,
        evaluate_every=4 * setup.checkpoint_every,
        evaluate_batches=1,
        preview_every=10 * setup.checkpoint_every,
        preview_images=2,
        workers=workers,
    )
    try:
        train(
            against_a_judge(start_step=5) if setup.adversarial else _mixar(),
            ToyImages(50),
            ToyImages(8),
            config,
            Path(folder),
            callbacks=[_Looks()],
            files={"recipe.yaml": "a: run\n"},
            resume=resume,
            device="cpu",
        )
    except UserError as error:
        print("reported" if error.reported else "error:", " ".join(str(error).split()), flush=True)
        os._exit(2)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    if dist.is_initialized():
        dist.destroy_process_group()


def _mixar() -> MixARObjective:
    model = small_mixar(depth=1, dropout=0.1, attention_dropout=0.1)  # the same in every process
    model.ti_mix = TIMixConfig(schedule="linear")
    return MixARObjective(model, SamplingConfig())


class _Looks(Callback):
    """Wants previews, so that they are drawn."""

    def on_preview(self, run, step, rows) -> None:  # type: ignore[no-untyped-def]
        """Nothing."""


# ---------------------------------------------------------------- from outside


class Meeting:
    """Stands in for torchrun: keeps the store through which the processes of one attempt find each other."""

    def __init__(self, processes: int) -> None:
        self.processes = processes
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def environment(self, rank: int) -> dict[str, str]:
        """What torchrun tells a process."""
        return {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(self.processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(self.store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }


class Attempts:
    """Starts the processes of a run in `folder`, time after time; `work` is what each of them does."""

    def __init__(self, setup: Setup, folder: Path, *, work: Callable[..., None] = train_one) -> None:
        self.setup, self.folder, self._work = setup, folder, work
        self.output = folder.with_suffix(".output")
        self.count = 0
        self.running: list[BaseProcess] = []

    def start(self, *, workers: int = 0) -> None:
        """Go on from the newest checkpoint; where there is none, anew in an empty folder."""
        resume = bool(list_checkpoints(self.folder))
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
        self.output.unlink(missing_ok=True)
        self._meeting = Meeting(self.setup.processes)
        alone = self.setup.processes == 1
        environments = [{} if alone else self._meeting.environment(rank) for rank in range(self.setup.processes)]
        words = (self.setup, str(self.folder), resume, workers)
        self.running = [
            _FORKS.Process(target=self._work, args=(*words, each, str(self.output))) for each in environments
        ]
        for process in self.running:
            process.start()
        self.count += 1

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Until it holds; False where a process ended before it did."""
        while not condition():
            if any(process.exitcode is not None for process in self.running):
                return False
            time.sleep(0.002)
        return True

    def kill(self, which: Sequence[BaseProcess]) -> bool:
        """SIGKILL these; whether one of them was still at work.

        Then their loaders too. They end by themselves within seconds, unless they have only just begun; until then they
        stand still, because one whose run dies while it hands over a batch says so in a traceback.
        """
        loaders = [pid for process in which if process.exitcode is None for pid in tree(process.pid or 0)[1:]]
        send(signal.SIGSTOP, loaders)
        for process in which:
            process.kill()
        for process in which:
            process.join()
        send(signal.SIGKILL, loaders)
        return any(process.exitcode == -signal.SIGKILL for process in which)

    def end(self, seconds: float) -> list[int | None]:
        """Exit codes of all, once they ended; None for one that did not within `seconds`, and was killed."""
        until = time.perf_counter() + seconds
        for process in self.running:
            process.join(max(0.0, until - time.perf_counter()))
        codes = [process.exitcode for process in self.running]
        self.kill(self.running)
        return codes

    def said(self) -> str:
        """What the attempt's processes printed."""
        return self.output.read_text() if self.output.exists() else ""


@frozen
class Pace:
    """How long an undisturbed run took in all, to its first step, and for writing one checkpoint."""

    seconds: float
    start: float
    save: float


def leave_alone(setup: Setup, folder: Path) -> Pace:
    """The run that nothing happens to."""
    nothing = _FORKS.Process(target=int)  # the fork server starts with it
    nothing.start()
    nothing.join()
    attempts, started = Attempts(setup, folder), time.perf_counter()
    looks, unfinished = 0, 0
    attempts.start()
    try:
        attempts.wait_for(lambda: steps_logged(folder) > 0)
        begun = time.perf_counter()
        while all(process.exitcode is None for process in attempts.running):
            looks, unfinished = looks + 1, unfinished + is_saving(folder)
            time.sleep(0.002)
        if any(attempts.end(BOUND)):
            raise RuntimeError(f"{setup.name} failed: {attempts.said()}")
    finally:
        attempts.kill(attempts.running)
    done = time.perf_counter()
    saves = setup.steps / setup.checkpoint_every
    return Pace(done - started, begun - started, (done - begun) * unfinished / looks / saves)


def endure(setup: Setup, folder: Path, alone: Path, pace: Pace, *, kills: int, seed: int = 0) -> Outcome:
    """Kill a run in `folder` so many times, resume it each time, let it end, and compare it with the one in `alone`."""
    draw, outcome, started = random.Random(seed), Outcome(), time.perf_counter()
    attempts = Attempts(setup, folder)
    try:
        while outcome.kills < kills and attempts.count < 2 * kills and not outcome.problems:
            moment = _MOMENTS[attempts.count % len(_MOMENTS)]
            if outcome.kills == kills - 1:
                moment = "end"
            one = setup.processes > 1 and moment in ("step", "save") and attempts.count % 3 == 1
            before = _log(folder)
            attempts.start(workers=attempts.count % 4 == 3)
            target = max(round((outcome.kills + 1) * setup.steps / (kills + 1)), steps_logged(folder) + 1)
            which = draw.sample(attempts.running, 1 if one else setup.processes)
            if _reach(attempts, moment, target, pace, draw) and attempts.kill(which):
                outcome.kills += 1
                _after(attempts, outcome, before)
            elif any(attempts.end(BOUND)):  # else it was done before it could be killed, and is resumed all the same
                outcome.problems.append(f"ended by itself: {attempts.said()}")
        if not outcome.problems:
            attempts.start()
            if any(attempts.end(BOUND)):
                outcome.problems.append(f"did not end well: {attempts.said()}")
    finally:
        attempts.kill(attempts.running)
    if outcome.kills < kills and not outcome.problems:
        outcome.problems.append(f"only {outcome.kills} kills")
    if not outcome.problems:
        outcome.problems += differences(folder, alone)
    outcome.seconds = time.perf_counter() - started
    return outcome


def _reach(attempts: Attempts, moment: Moment, target: int, pace: Pace, draw: random.Random) -> bool:
    """Until the moment to kill; False where the run ended before it came."""
    folder, setup = attempts.folder, attempts.setup
    if moment == "start":
        time.sleep(draw.uniform(0, pace.start))
        return True
    if moment == "end":
        return attempts.wait_for(lambda: (folder / "weights.safetensors").exists() or any(folder.glob(".weights*")))
    if not attempts.wait_for(lambda: steps_logged(folder) >= target):
        return False
    if moment == "step":
        time.sleep(draw.uniform(0, 2 * pace.seconds / setup.steps))
    elif not attempts.wait_for(lambda: is_saving(folder)):
        return False
    else:
        time.sleep((attempts.count % 4 == 3) * draw.random() * pace.save)  # at once, or some time into it
    return True


def _after(attempts: Attempts, outcome: Outcome, before: list[dict[str, Any]]) -> None:
    """See how the others end, and what lies in the folder."""
    killed = time.perf_counter()
    left = [code for code in attempts.end(BOUND) if code != -signal.SIGKILL]
    said = attempts.said()
    if left:
        outcome.slowest_end = max(outcome.slowest_end, time.perf_counter() - killed)
        if any(code != 2 for code in left) or "error: " not in said:
            outcome.problems.append(f"one process was killed, the others ended with {left}: {said}")
    if "Traceback" in said or "not resumed from" in said:
        outcome.problems.append(said)
    outcome.in_save += is_saving(attempts.folder)
    checkpoints = list_checkpoints(attempts.folder)
    if checkpoints and (damaged := newest_checkpoint(attempts.folder)[1]):
        outcome.problems += damaged
    if _log(attempts.folder) != before:
        outcome.repeated += steps_logged(attempts.folder) - (checkpoint_step(checkpoints[-1]) if checkpoints else 0)


def is_saving(folder: Path) -> bool:
    """Whether a checkpoint is unfinished."""
    return any((folder / "checkpoints").glob(".step-*.unfinished"))


def differences(folder: Path, alone: Path) -> list[str]:
    """What a run that was killed and resumed has other than the undisturbed one; what it left lying about."""
    found = [
        f"{name} is not bit by bit the undisturbed run's"
        for name in ("weights.safetensors", "weights_raw.safetensors")
        if (folder / name).read_bytes() != (alone / name).read_bytes()
    ]
    lines = zip_longest(_log(folder), _log(alone))
    found += [f"log.jsonl has {ours}, not {theirs}" for ours, theirs in lines if ours != theirs][:1]
    if left := sorted(str(path.relative_to(folder)) for path in folder.rglob(".*")):
        found.append(f"left over: {', '.join(left)}")
    kept, wanted = ([path.name for path in list_checkpoints(each)] for each in (folder, alone))
    if kept != wanted:
        found.append(f"checkpoints {', '.join(kept)}, not {', '.join(wanted)}")
    return found


def steps_logged(folder: Path) -> int:
    """The step of the last whole line of the log; 0 without one."""
    return int(log[-1]["step"]) if (log := _log(folder)) else 0


def _log(folder: Path) -> list[dict[str, Any]]:
    """The log's lines without what depends on the clock; a torn last line is left out."""
    try:
        lines = (folder / "log.jsonl").read_text().split("\n")[:-1]
    except FileNotFoundError:
        return []
    timed = ("images_per_second", "waiting_share")
    return [{name: value for name, value in json.loads(line).items() if name not in timed} for line in lines]

"""A callback that fails is named and dropped; the run and the other callbacks go on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mixar_core.errors import UserError
from mixar_core.training.callback import Callback, Callbacks, RunInfo, StepReport
from tests.core.training_toys import ToyObjective, toy_run

REPORT = StepReport(7, {"loss": 0.5}, 1e-4, 2.0, 10.0, 1.0, 0.01)


class Watch(Callback):
    """Remembers which hooks were called."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_start(self, run):
        self.seen.append("start")

    def on_step(self, run, report):
        self.seen.append("step")

    def on_preview(self, run, step, rows):
        self.seen.append("preview")

    def on_end(self, run, step):
        self.seen.append("end")


class Broken(Watch):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def on_step(self, run, report):
        super().on_step(run, report)
        raise self.error


class BrokenFromTheStart(Broken):
    def on_start(self, run):
        raise self.error


def info(folder: Path) -> RunInfo:
    return RunInfo("toy", folder, steps=20, batch_size=8, first_step=0)


@pytest.mark.parametrize("error", [ConnectionError("no\nnetwork"), UserError("the disk is full")])
def test_a_failing_callback_is_named_once_and_dropped(tmp_path, capsys, error):
    before, broken, after = Watch(), Broken(error), Watch()
    callbacks, run = Callbacks([before, broken, after]), info(tmp_path)
    callbacks.call(0, lambda each: each.on_start(run), fatal=UserError)
    for _ in range(2):
        callbacks.call(7, lambda each: each.on_step(run, REPORT))
    callbacks.call(20, lambda each: each.on_end(run, 20))
    assert before.seen == after.seen == ["start", "step", "step", "end"]
    assert broken.seen == ["start", "step"]
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if line.startswith("warning:")]
    assert "callback Broken failed at step 7, the run goes on without it" in line
    assert " ".join(str(error).split()) in line
    assert any("Traceback" in line for line in lines) == (not isinstance(error, UserError))


def test_a_user_error_at_the_start_ends_the_run_and_another_error_does_not(tmp_path, capsys):
    with pytest.raises(UserError, match="not installed"):
        toy_run(tmp_path / "run", callbacks=[BrokenFromTheStart(UserError("not installed"))])
    assert not (tmp_path / "run/log.jsonl").exists()
    watch = Watch()
    toy_run(tmp_path / "other", callbacks=[BrokenFromTheStart(ConnectionError()), watch], log_every=6)
    assert watch.seen == ["start", "step", "end"] and "BrokenFromTheStart failed at step 0" in capsys.readouterr().err


def test_interrupts_pass_through(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        toy_run(tmp_path / "run", callbacks=[Broken(KeyboardInterrupt())])


def test_the_end_by_an_error_is_an_end(tmp_path):
    watch = Watch()
    Callbacks([watch]).call(3, lambda each: each.on_failure(info(tmp_path), 3, ValueError()))
    assert watch.seen == ["end"]


def test_the_error_that_ends_a_run_is_told(tmp_path):
    told = []

    class Told(Callback):
        def on_failure(self, run, step, error):
            told.append((step, error))

    with pytest.raises(UserError, match="step 4: not finite") as caught:
        toy_run(tmp_path / "run", objective=ToyObjective(bad_step=3), callbacks=[Told()])
    assert told == [(3, caught.value)]


class Everywhere(Watch):
    everywhere = True


def test_all_processes_agree_on_previews_though_only_the_main_one_calls_most_callbacks(tmp_path):
    assert not Callbacks([Callback()]).want_previews
    seen = {}
    for is_main in (True, False):
        given = [Watch(), Everywhere(), Broken(OSError())]
        callbacks = Callbacks(given, is_main=is_main)
        callbacks.call(1, lambda each: each.on_step(info(tmp_path), REPORT))
        callbacks.call(1, lambda each: each.on_preview(info(tmp_path), 1, {"real": torch.zeros(1, 3, 4, 4)}))
        assert callbacks.want_previews
        seen[is_main] = [callback.seen for callback in given]
    assert seen[True] == [["step", "preview"], ["step", "preview"], ["step"]]
    assert seen[False] == [[], ["step", "preview"], []]

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from attrs import evolve
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mixar_core.errors import UserError
from mixar_core.testing import check_callback
from mixar_core.training.callback import RunInfo, StepReport
from mixar_plugins.callbacks.progress import ProgressBar, ProgressConfig, duration
from mixar_plugins.callbacks.sample_grid import SampleGrid, SampleGridConfig
from mixar_plugins.callbacks.stall_watch import StallWatch, StallWatchConfig
from mixar_plugins.callbacks.tensorboard import TensorBoard, TensorBoardConfig
from mixar_plugins.callbacks.throughput import Throughput, ThroughputConfig, peak_tflops
from mixar_plugins.callbacks.wandb import WandB, WandBConfig


def run(folder: Path, *, first_step: int = 0) -> RunInfo:
    return RunInfo("toy", folder, steps=20, batch_size=8, first_step=first_step)


REPORT = StepReport(10, {"loss": 0.5, "kl": 1.0}, 1e-4, 2.0, 123.4, 65.0, 0.01)
ROWS = {"real": torch.zeros(3, 3, 8, 8), "sampled": torch.ones(2, 3, 8, 8)}


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_loss_speed_and_time_left(tmp_path, terminal):
    text = io.StringIO()
    bar = ProgressBar(ProgressConfig(), Console(file=text, force_terminal=terminal, width=120))
    info = run(tmp_path)
    bar.on_start(info)
    bar.on_step(info, REPORT)
    bar.on_step(info, evolve(REPORT, step=11))
    bar.on_evaluation(info, 11, {"ema/loss": 0.25, "raw/loss": 0.5, "ema/kl": 1.0})
    bar.on_step(info, evolve(REPORT, step=20))
    bar.on_end(info, 20)
    shown = text.getvalue()
    for figure in ("loss 0.5", "123.4 images/s", "1m05s left", "ema/loss 0.25"):
        assert figure in shown
    if not terminal:  # a line now and then, and one at the end
        assert [line.split()[1] for line in shown.splitlines()] == ["10/20", "11/20", "20/20"]


def test_durations():
    assert [duration(s) for s in (4.4, 65, 7500, 270000)] == ["4s", "1m05s", "2h05m", "3d03h"]


def test_sample_grids_are_whole_png_files(tmp_path):
    SampleGrid(SampleGridConfig()).on_preview(run(tmp_path), 10, ROWS)
    (file,) = (tmp_path / "samples").iterdir()
    assert file.name == "step-00000010.png" and Image.open(file).size[0] > 3 * 16
    (tmp_path / "elsewhere").write_text("")
    with pytest.raises(UserError, match="elsewhere"):
        SampleGrid(SampleGridConfig()).on_preview(run(tmp_path / "elsewhere"), 10, ROWS)


def test_tensorboard_holds_curves_and_pictures(tmp_path):
    board, info = TensorBoard(TensorBoardConfig()), run(tmp_path)
    board.on_start(info)
    board.on_step(info, REPORT)
    board.on_evaluation(info, 10, {"ema/loss": 0.25})
    board.on_preview(info, 10, ROWS)
    board.on_end(info, 10)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert {"train/loss", "train/kl", "run/learning_rate", "validation/ema/loss"} <= set(events.Tags()["scalars"])
    assert events.Scalars("train/loss")[0].value == 0.5
    assert set(events.Tags()["images"]) == {"preview/real", "preview/sampled"}


def test_tensorboard_says_how_it_is_installed_where_it_is_not(monkeypatch):
    assert TensorBoard.requires == ("tensorboard",)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match="package tensorboard is not installed; pip install tensorboard, or take it"):
        TensorBoard(TensorBoardConfig())


# ---------------------------------------------------------------- throughput


@pytest.mark.parametrize(
    ("name", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("AMD Instinct MI300X", 1307.4),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A10G", None),
        ("cpu", None),
    ],
)
def test_peaks_are_known_by_the_names_torch_gives(name, bf16):
    assert peak_tflops(name, "bf16") == bf16


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "throughput.jsonl").read_text().splitlines()]


def test_throughput_is_that_of_all_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100-SXM4-80GB")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 40e9)
    info = evolve(run(tmp_path), processes=4, device=torch.device("cuda", 0), precision="bf16", flop_per_image=3.12e12)
    throughput = Throughput(ThroughputConfig())
    throughput.on_start(info)
    reports = [  # 10 steps of 8 images at 10 a second (a warm-up), at 200 and at 100
        evolve(REPORT, step=step, images_per_second=rate, waiting_share=share, extra={})
        for step, rate, share in ((10, 10.0, 0.9), (20, 200.0, 0.0), (30, 100.0, 0.3))
    ]
    for report in reports:
        throughput.on_step(info, report)
    throughput.on_end(info, 30)
    # 200 images/s x 3.12 TFLOP of 4 x 312 TFLOP/s
    assert [line["mfu"] for line in lines(tmp_path)] == [0.025, 0.5, 0.25]
    assert lines(tmp_path)[1] == {
        "kind": "throughput",
        "step": 20,
        "images_per_second": 200.0,
        "steps_per_second": 25.0,
        "mfu": 0.5,
        "waiting_share": 0.0,
        "gpu_memory_gb": 40.0,
    }
    assert reports[1].extra == {"steps_per_second": 25.0, "mfu": 0.5, "gpu_memory_gb": 40.0}
    (summary,) = capsys.readouterr().err.splitlines()
    # 160 images in 0.4 + 0.8 s, of which 0.24 s waiting
    assert summary == (
        "throughput: 133.3 images/s, 16.7 steps/s, 416 TFLOP/s, MFU 33.3% of 4 x 312 TFLOP/s "
        "(NVIDIA A100-SXM4-80GB, bf16), 20.0% waiting for data, GPU memory 40 GB"
    )


def test_throughput_says_what_it_does_not_know(tmp_path, capsys):
    for config, flop, words in (
        (ThroughputConfig(), 1e9, "no peak known of cpu; set peak_tflops"),
        (ThroughputConfig(peak_tflops=1.0), None, "MFU unknown"),
        (ThroughputConfig(peak_tflops=1.0), 1e9, "MFU 12.3% of 1 TFLOP/s (cpu, float32)"),
    ):
        throughput, info = Throughput(config), evolve(run(tmp_path), flop_per_image=flop)
        throughput.on_start(info)
        throughput.on_end(info, 0)
        assert capsys.readouterr().err == ""  # no step, no summary
        throughput.on_step(info, evolve(REPORT, extra={}))
        throughput.on_end(info, 10)
        assert words in capsys.readouterr().err
    assert [line["mfu"] for line in lines(tmp_path)] == [None, None, 0.1234]


def test_a_resumed_run_forgets_the_throughput_of_what_it_does_again(tmp_path):
    for first_step, steps in ((0, (10, 20, 30)), (20, (30, 40))):
        throughput, info = Throughput(ThroughputConfig()), run(tmp_path, first_step=first_step)
        throughput.on_start(info)
        for step in steps:
            throughput.on_step(info, evolve(REPORT, step=step, extra={}))
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30, 40]


# ---------------------------------------------------------------- stall-watch


def shares(watch: StallWatch, info: RunInfo, *values: float) -> None:
    """A report of 10 steps, a second each, for every share of waiting."""
    for index, value in enumerate(values, 1):
        watch.on_step(info, evolve(REPORT, step=10 * index, images_per_second=8.0, waiting_share=value))


def test_a_slow_loader_is_warned_of_once_an_episode(tmp_path, capsys):
    watch, info = StallWatch(StallWatchConfig(share=0.1, window=20.0)), run(tmp_path)
    watch.on_start(info)
    # the first report is left out; then in pairs: 0.2, 0.3, 0.07 (not over yet), 0.2, 0.0 (over), 0.4
    shares(watch, info, 1.0, 0.2, 0.2, 0.3, 0.3, 0.1, 0.04, 0.2, 0.2, 0.0, 0.0, 0.5, 0.3)
    watch.on_end(info, 130)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("warning: 20% of the time of steps 11 to 30 went into waiting for data")
    assert second.startswith("warning: 40% of the time of steps 111 to 130")
    assert "training.workers" in first and "training.cache" in first


def test_short_runs_and_other_processes_do_not_speak_of_shares(tmp_path, capsys):
    for info, window in ((run(tmp_path), 1000.0), (evolve(run(tmp_path), rank=1, processes=2), 0.0)):
        watch = StallWatch(StallWatchConfig(window=window))
        watch.on_start(info)
        shares(watch, info, 0.9, 0.9, 0.9)
        watch.on_end(info, 30)
    assert capsys.readouterr().err == ""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.002)


def test_a_wait_for_one_batch_is_warned_of_while_it_lasts(tmp_path, monkeypatch):
    text, waits, asked = io.StringIO(), [0.0], []

    def waiting() -> float:
        asked.append(waits[0])
        return waits[0]

    monkeypatch.setattr(sys, "stderr", text)
    info = evolve(run(tmp_path), waiting=waiting, rank=3, processes=4)
    watch, threads = StallWatch(StallWatchConfig(seconds=0.01)), threading.active_count()
    watch.on_start(info)
    for expected, wait in enumerate((75.0, 0.0, 80.0), 1):
        waits[0] = wait
        asked.clear()
        until(lambda: len(asked) > 3)
        assert text.getvalue().count("warning:") == (expected + 1) // 2  # once a wait, and none for no wait
    first, second = text.getvalue().splitlines()
    assert "process 3 of 4 has been waiting for one batch for 75 s" in first and "for 80 s" in second
    watch.on_end(info, 1)
    assert threading.active_count() == threads
    watch.on_end(info, 1)  # nothing more to end


# ---------------------------------------------------------------- wandb


class FakeRun:
    def __init__(self, arguments: dict, step: int) -> None:
        self.arguments, self.step, self.id = arguments, step, arguments["id"] or "fresh"
        self.sent: list[tuple[int, dict]] = []
        self.ended: list[int] = []

    def log(self, values: dict, step: int) -> None:
        assert step >= self.step, "wandb drops it"
        self.step = step
        self.sent.append((step, values))

    def finish(self, exit_code: int = 0) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A stand-in for the package; `runs` is what was started, a resumed run goes on after `last`."""
    package = SimpleNamespace(runs=[], last=0, Image=lambda data: data)

    def init(**arguments) -> FakeRun:
        package.runs.append(FakeRun(arguments, package.last + 1 if arguments["resume"] else 0))
        return package.runs[-1]

    package.init = init
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


def test_wandb_gets_curves_and_pictures(tmp_path, fake):
    (tmp_path / "recipe.yaml").write_text("name: toy\ntraining:\n  learning_rate: 1.0e-04\n")
    board, info = WandB(WandBConfig(project="mixar", group="ablation", mode="offline")), run(tmp_path)
    board.on_start(info)
    board.on_step(info, evolve(REPORT, extra={"mfu": 0.4}))
    board.on_evaluation(info, 10, {"ema/loss": 0.25})
    board.on_preview(info, 10, ROWS)
    board.on_end(info, 20)
    (started,) = fake.runs
    expected = {"project": "mixar", "name": "toy", "group": "ablation", "mode": "offline", "dir": str(tmp_path)}
    assert expected.items() <= started.arguments.items()
    assert started.arguments["config"] == {"name": "toy", "training": {"learning_rate": 1e-4}}
    assert {step for step, _ in started.sent} == {10} and started.ended == [0]
    sent = {key: value for _, values in started.sent for key, value in values.items()}
    assert sent["train/loss"] == 0.5 and sent["run/learning_rate"] == 1e-4 and sent["validation/ema/loss"] == 0.25
    assert sent["extra/mfu"] == 0.4
    assert sent["preview/real"].shape == (8, 3 * 8, 3) and sent["preview/real"].dtype == numpy.uint8


def test_wandb_goes_on_with_the_same_run(tmp_path, fake):
    for first_step, last in ((0, 0), (20, 30)):  # killed after step 30, resumed from the checkpoint of step 20
        fake.last = last
        board, info = WandB(WandBConfig()), run(tmp_path, first_step=first_step)
        board.on_start(info)
        for step in (first_step + 10, first_step + 20):
            board.on_step(info, evolve(REPORT, step=step))
        board.on_failure(info, first_step + 20, RuntimeError())
    first, second = fake.runs
    assert first.arguments["id"] is None and second.arguments["id"] == "fresh"
    assert second.arguments["resume"] == "allow"
    assert [[step for step, _ in each.sent] for each in (first, second)] == [[10, 20], [40]]
    assert first.ended == second.ended == [1]


def test_wandb_keeps_the_contract_with_and_without_its_package(tmp_path, fake, monkeypatch):
    check_callback(lambda: WandB(WandBConfig()), tmp_path)
    assert len(fake.runs) == 1
    for missing in (None, SimpleNamespace()):  # not there; or only a folder of that name
        monkeypatch.setitem(sys.modules, "wandb", missing)
        with pytest.raises(UserError, match="package wandb is not installed; pip install wandb"):
            WandB(WandBConfig())
        WandB(WandBConfig(mode="disabled"))

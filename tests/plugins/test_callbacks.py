from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from attrs import evolve
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mixar_core.errors import UserError
from mixar_core.training.callback import RunInfo, StepReport
from mixar_plugins.callbacks.progress import ProgressBar, ProgressConfig, duration
from mixar_plugins.callbacks.sample_grid import SampleGrid, SampleGridConfig
from mixar_plugins.callbacks.tensorboard import TensorBoard, TensorBoardConfig


def run(folder: Path) -> RunInfo:
    return RunInfo("toy", folder, steps=20, batch_size=8, first_step=0)


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

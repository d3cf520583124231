"""`python -m benchmarks.gpu` where there is no GPU, and its parts in small on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import speed
from benchmarks.gpu.part import Part, Row, read_rows
from benchmarks.gpu.report import markdown, priced
from benchmarks.runner import seconds_of

ROOT = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "benchmarks.gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_nothing_is_touched(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "there is no GPU here" in done.stdout
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_all_of_it_in_small(tmp_path: Path) -> None:
    parts = "peak,parity,training,program,processes,profiles"
    flags = ["--device", "cpu", "--tiny", "--limit", "8m", "--out", str(tmp_path), "--only", parts]
    subprocess.run([*COMMAND, *flags], cwd=ROOT, check=True)
    found = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert ",".join(found) == parts
    assert all(part["ended"] == "well" and part["rows"] for part in found.values())
    rows = [row for part in found.values() for row in part["rows"]]
    assert [row for row in rows if "failed" in row] == []
    assert {row["difference"] for name in ("program", "processes") for row in found[name]["rows"]} == {0.0}
    assert all(row["agrees"] for row in found["parity"]["rows"])
    assert all(row["TFLOP/s"] > 0.0 for row in found["training"]["rows"])
    assert (tmp_path / "gpu.md").read_text().count("\n## ") == len(found)


def test_a_row_that_fails_or_has_no_time_says_so(tmp_path: Path) -> None:
    def fail() -> dict[str, float]:
        raise torch.OutOfMemoryError("of 80 GiB")

    part = Part(torch.device("cpu"), tmp_path / "rows", time.time() + 60)
    part.row({"what": "a"}, fail)
    part.row({"what": "b"}, lambda: {"ms": 1.0})
    Part(torch.device("cpu"), tmp_path / "rows", time.time()).row({"what": "c"}, fail)
    assert read_rows(tmp_path / "rows") == [
        {"what": "a", "failed": "out of memory"},
        {"what": "b", "ms": 1.0},
        {"what": "c", "failed": "no time left"},
    ]


def test_a_training_row(tmp_path: Path) -> None:
    part = Part(torch.device("cpu"), tmp_path / "rows", time.time() + 60, tiny=True)
    row = speed.trained(part, speed.Job("mixar_l", 64, "TI-Mix"))
    assert row["images/s"] > 0.0 and 0.1 < row["loss"] < 10.0


def test_rows_meet_what_they_cost() -> None:
    rows: list[Row] = [
        {"recipe": "a", "precision": "bf16", "batch": 4, "how": "-", "images/s": 2.0},
        {"recipe": "b", "failed": "x"},
    ]
    costs = [
        {"recipe": "a", "precision": "bf16", "batch": 8, "how": "-", "GFLOP": 9.0, "GB estimated": 1.0},
        {"recipe": "a", "precision": "bf16", "batch": 4, "how": "-", "GFLOP": 500.0, "GB estimated": 3.0},
    ]
    peak: list[Row] = [{"what": "matrix product, bf16", "format": "bf16", "TFLOP/s": 4.0}, {"what": "copy"}]
    first, second = priced(rows, costs, peak)
    assert first == {**rows[0], "GB estimated": 3.0, "TFLOP/s": 1.0, "of the peak": 0.25}
    assert second == rows[1]
    page = markdown(
        {
            **dict.fromkeys(("command", "card", "memory GB", "torch", "CUDA", "driver", "date"), "here"),
            "parts": {"training": {"ended": "its process ended with -9", "rows": [first, second]}},
        },
        {"training": "Steps."},
    )
    assert "| a | bf16 | 4 | - | 2 | 3 | 1 | 25.0% |  |" in page
    assert "| b |  |  |  |  |  |  |  | x |" in page and "Not finished: its process ended with -9." in page


def test_limits() -> None:
    assert [seconds_of(text) for text in ("9m", "1.5m", "30s", "7")] == [540.0, 90.0, 30.0, 7.0]

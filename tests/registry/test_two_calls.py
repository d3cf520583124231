"""Two calls at once that draw into one folder: none loses what the other draws."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import mixar
from mixar.cli.main import app
from mixar.sampling import Plan, claim, describe, draw_chunks
from mixar.stores import RawStore
from mixar_core.distributed import Processes, StopSignals
from mixar_core.errors import UserError

ALONE = Processes(0, 1, torch.device("cpu"))
#: another process that works in a folder, as mixar_core.storage.FolderLock says it
HOLDS = """
import fcntl, os, sys
with open(sys.argv[1] + "/.lock", "a+") as lock:
    fcntl.lockf(lock, fcntl.LOCK_EX)
    print(f"process {os.getpid()} on this machine", end="", file=lock, flush=True)
    print("held", flush=True)
    sys.stdin.read()
"""


def test_two_calls_do_not_meet_in_one_folder(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither removes what the other is writing, nor draws what the other draws."""
    monkeypatch.setattr("mixar_core.storage.PATIENCE", 0.0)
    model = mixar.load(family / "models/mixar", device="cpu")
    of = Plan(5, 4, 3, model.settings(steps=2), (0,))
    store, unfinished = RawStore(tmp_path), tmp_path / ".chunk-000001.safetensors.77.unfinished"
    claim(tmp_path, describe(model, of))
    unfinished.write_bytes(b"half")
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {other.pid} on .* works in it"):
            claim(tmp_path, describe(model, of))
        with pytest.raises(UserError, match=f"process {other.pid} on .* works in it"):
            draw_chunks(model, of, store, ALONE, signals=StopSignals())
        other.communicate()
    assert unfinished.is_file() and not store.done()
    claim(tmp_path, describe(model, of))
    assert draw_chunks(model, of, store, ALONE, signals=StopSignals()) and not list(tmp_path.glob(".*"))


def test_a_folder_that_filled_while_images_were_drawn_is_not_replaced(family: Path, tmp_path: Path) -> None:
    out, draw = tmp_path / "out", mixar.Model.generate

    def meanwhile(*given: Any, **asked: Any) -> mixar.Generation:
        (out / "theirs").mkdir(parents=True, exist_ok=True)
        return draw(*given, **asked)

    words = ["sample", str(family / "models/prior"), "--labels", "0", "--out", str(out), "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mixar.Model, "generate", meanwhile)
        done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UserError) and "not empty" in str(done.exception)
    assert [path.name for path in out.iterdir()] == ["theirs"]

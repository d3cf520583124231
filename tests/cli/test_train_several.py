"""`mixar train A B C`: one after the other, the same runs as one by one, gone on with wherever it stopped."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from pathlib import Path

import pytest

from tests.cli.process import good, refused, send, started, torchrun, tree
from tests.cli.test_train_signals import wait_for
from tests.core.kills import steps_logged

ORDER = ("continuous", "discrete", "prior", "mixar")


@pytest.fixture(scope="module")
def own(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a space in its name and recipes that begin with each other's runs beside them."""
    folder = tmp_path_factory.mktemp("several") / "my images"
    shutil.copytree(family / "recipes", folder)
    for name in ORDER:
        path = folder / f"{name}.yaml"
        path.write_text(path.read_text().replace(str(family / "models"), "runs"))
    return folder


def words(*extra: str) -> list[str]:
    return ["train", *(f"my images/{name}.yaml" for name in ORDER), "--out", "my images/runs", *extra]


def weights(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name / "weights.safetensors").read_bytes() for name in ORDER}


def test_several_recipes_are_the_same_runs_and_done_ones_are_passed_over(own: Path, tmp_path: Path) -> None:
    here = tmp_path / "my images"
    shutil.copytree(own, here)
    told = good(*words(), cwd=tmp_path).splitlines()
    assert [line.split(":")[0] for line in told[:-1]] == [f"my images/runs/{name}" for name in ORDER]
    assert told[-1] == "mixar sample 'my images/runs/mixar'"
    assert len(good(*shlex.split(told[-1])[1:], cwd=tmp_path))
    together = weights(here / "runs")
    line = refused(*words(), cwd=tmp_path)
    assert "my images/runs/continuous is not an empty folder; with --resume" in line

    shutil.rmtree(here / "runs/mixar")
    times = [(here / f"runs/{name}/weights.safetensors").stat().st_mtime_ns for name in ORDER[:3]]
    told = good(*words("--resume"), cwd=tmp_path).splitlines()
    assert [", done before" in line for line in told] == [True, True, True, False, False]
    assert times == [(here / f"runs/{name}/weights.safetensors").stat().st_mtime_ns for name in ORDER[:3]]
    assert weights(here / "runs") == together

    shutil.rmtree(here / "runs")
    for name in ORDER:
        good("train", f"my images/{name}.yaml", "--out", f"my images/runs/{name}", cwd=tmp_path)
    assert weights(here / "runs") == together
    # a finished run is looked at all the same: what it was made with must be what is there
    shutil.rmtree(here / "runs/discrete")
    line = refused(*words("--resume", "--seed", "1"), cwd=tmp_path)
    assert "runs/continuous" in line and "seed was 0, is 1" in line


def test_what_cannot_begin_is_refused_before_anything_does(own: Path, tmp_path: Path) -> None:
    shutil.copytree(own, tmp_path / "my images")
    twice = ("train", "my images/prior.yaml", "my images/prior.yaml")
    assert "2 of these recipes would be trained into runs/prior" in refused(*twice, cwd=tmp_path)
    broken = tmp_path / "my images/broken.yaml"
    broken.write_text("trains: [")
    assert "broken.yaml" in refused(*words(), broken, cwd=tmp_path)
    assert "no such file" in refused(*words(), "./none.yaml", cwd=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my images"]
    assert not (tmp_path / "my images/runs").exists()
    killed = tmp_path / "my images/runs/discrete"
    killed.mkdir(parents=True)
    (killed / "recipe.yaml").write_text(good("recipe", "show", "my images/discrete.yaml", cwd=tmp_path))
    line = refused(*words("--resume"), cwd=tmp_path)
    assert "my images/runs/discrete was killed before its first checkpoint; remove it" in line
    assert not (tmp_path / "my images/runs/continuous").exists()


def test_stopped_it_says_how_all_of_it_goes_on(own: Path, tmp_path: Path) -> None:
    shutil.copytree(own, tmp_path / "my images")
    run = tmp_path / "my images/runs/discrete"
    second = tmp_path / "my images/discrete.yaml"
    second.write_text(second.read_text() + "training: {steps: 100000, checkpoint_every: 0}\n")
    with started(*words("--set", "training.log_every=1"), folder=tmp_path) as process:
        wait_for(lambda: steps_logged(run) >= 2, process)
        send(signal.SIGINT, tree(process.pid))
        process.join(60)
        assert process.exitcode == 0
    first, last = (tmp_path / "stdout").read_text().splitlines()
    assert "2 steps" in first and last.startswith("my images/runs/discrete: stopped after step ")
    again = shlex.split(last.partition("; ")[2].removesuffix(" goes on"))
    assert again == ["mixar", "train", "--resume", *words("--set", "training.log_every=1")[1:]]
    step = steps_logged(run)
    second.write_text(second.read_text().replace("100000", str(step + 1)))
    told = good(*again[1:], cwd=tmp_path).splitlines()
    assert ", done before" in told[0] and told[1].startswith(f"my images/runs/discrete: {step + 1} steps in")
    assert told[-1] == "mixar sample 'my images/runs/mixar'"


@pytest.mark.slow
def test_under_torchrun(own: Path, tmp_path: Path) -> None:
    shutil.copytree(own, tmp_path / "my images")
    told = torchrun(*words(), cwd=tmp_path)
    assert [f"my images/runs/{name}: 2 steps" in told for name in ORDER] == [True] * 4
    assert os.path.isfile(tmp_path / "my images/runs/mixar/weights.safetensors")

"""A published folder needs no other: moved, without the packages of its training, and by way of the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mixar
from mixar import strict_yaml
from mixar.folder import RECIPE, WEIGHTS, read_provenance, sha256
from mixar.publish import publish
from mixar_core.errors import UserError
from tests.weights.hub_stand_in import COMMIT, serve

#: draws from a model, in a process of its own that knows nothing of what this one has loaded
DRAW = """
import sys
import mixar
drawn = mixar.load(sys.argv[1], device="cpu", without_plugins=["zoo", "eval"]).generate(sys.argv[2].split(","), seed=3)
import torch
torch.save(drawn.images, sys.argv[3])
"""


def draw(model: str, labels: str, out: Path, **environment: str) -> torch.Tensor:
    command = [sys.executable, "-c", DRAW, model, labels, str(out)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    images: torch.Tensor = torch.load(out, weights_only=True)
    return images


def test_a_moved_folder_draws_the_same_bytes_without_the_packages_it_was_trained_with(tmp_path: Path) -> None:
    publish("digits", tmp_path / "there", licence="apache-2.0", device="cpu")
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(tmp_path / "there", tmp_path / "elsewhere" / "other-name")
    ours = mixar.load("digits", device="cpu").generate(["3", "7"], seed=3).images
    environment = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    assert torch.equal(draw(moved, "3,7", tmp_path / "a.pt", **environment), ours)
    # so do its parts by themselves
    prior = Path(moved) / "prior"
    assert mixar.load(prior, device="cpu").class_names == mixar.load("digits", device="cpu").class_names
    for key in ("continuous_tokenizer", "discrete_tokenizer"):
        assert mixar.load_recipe(Path(moved) / key / RECIPE).trains == key


def test_what_is_in_the_folder(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report = tmp_path / "report"
    report.mkdir()
    (report / "report.md").write_text(
        f"# Generation: it\n\nFID 1.5, count 7\n\n- Note: {family}/data: 2 are left out.\n"
    )
    folder = tmp_path / "whole"
    assert publish(family / "models/mixar", folder, report=report, device="cpu") == str(folder)
    model = mixar.load(family / "models/mixar", device="cpu")
    for key, place in (
        ("mixar", "."),
        *((key, key) for key in ("continuous_tokenizer", "discrete_tokenizer", "prior")),
    ):
        assert (folder / place / WEIGHTS).read_bytes() == model.files[key].read_bytes()
        assert read_provenance(folder / place)["sha256"] == sha256(folder / place / WEIGHTS)
    plain = strict_yaml.load((folder / RECIPE).read_text(), where="it")
    assert plain["prior"]["weights"] == "./prior"
    assert str(tmp_path) not in "".join(file.read_text() for file in folder.rglob("*.[ymj]*[dnl]"))
    assert str(family) not in "".join(file.read_text() for file in folder.rglob("*.yaml"))
    card = (folder / "README.md").read_text()
    assert 'mixar.load("./whole")' in card.replace("'", '"') and "FID 1.5, count 7" in card and "license" not in card
    assert all(name in card for name in model.class_names)
    assert "- Note: data: 2 are left out." in card and str(family) not in card
    assert (folder / "samples.png").is_file()
    # a working directory with folders of the same names changes nothing
    for name in ("prior", "data"):
        (tmp_path / "trap" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "trap")
    data = mixar.load(folder, device="cpu").recipe.data
    assert data is not None and data.config.path == str(folder / "data")
    # once more, of what was published
    publish(folder, tmp_path / "again", device="cpu")
    assert (tmp_path / "again" / "prior" / WEIGHTS).read_bytes() == (folder / "prior" / WEIGHTS).read_bytes()


def test_weights_that_were_a_bare_file_stay_one(family: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    shutil.copyfile(family / "models/continuous" / WEIGHTS, bare)
    shutil.copytree(family / "models/mixar", tmp_path / "model")
    recipe = tmp_path / "model" / RECIPE
    plain = strict_yaml.load(recipe.read_text(), where="it")
    plain["continuous_tokenizer"]["weights"] = str(bare)
    recipe.write_text(strict_yaml.dump(plain))
    facts = read_provenance(tmp_path / "model") | {"imported_by": "mixar weights import mar"}
    (tmp_path / "model" / "provenance.json").write_text(json.dumps(facts))
    publish(tmp_path / "model", tmp_path / "out", device="cpu")
    assert "| imported by | mixar weights import mar |" in (tmp_path / "out/README.md").read_text()
    bare.unlink()
    labels = [0, 1, 2]
    drawn = mixar.load(tmp_path / "out", device="cpu").generate(labels).images
    assert torch.equal(drawn, mixar.load(family / "models/mixar", device="cpu").generate(labels).images)


def test_the_hubs_usual_methods(family: Path, tmp_path: Path) -> None:
    model = mixar.load(family / "models/mixar", device="cpu")
    assert model.save_pretrained(tmp_path / "saved") == str(tmp_path / "saved")
    again = type(model).from_pretrained(tmp_path / "saved", device="cpu")
    assert torch.equal(again.generate([2, 0]).images, model.generate([2, 0]).images)
    with pytest.raises(UserError, match="not of the form hf://owner/name"):
        type(model).from_pretrained("no/such/folder")
    with pytest.raises(UserError, match="not of the form hf://owner/name"):
        model.push_to_hub("alone")


def test_refusals_leave_nothing(family: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    for asked, said in (
        ({"to": taken}, "is there already"),
        ({"to": tmp_path / "a", "report": tmp_path}, "has no report.md"),
        ({"to": "hf://alone"}, "not of the form hf://owner/name"),
        ({"to": tmp_path / "b", "model": "nothing"}, "nothing"),
    ):
        with pytest.raises(UserError, match=said):
            publish(**{"model": family / "models/mixar", "device": "cpu", **asked})  # type: ignore[arg-type]
    shutil.copytree(family / "models", tmp_path / "models")
    (tmp_path / "models/mixar" / WEIGHTS).write_bytes(b"broken")
    with pytest.raises(UserError):
        publish(tmp_path / "models/mixar", tmp_path / "c", device="cpu")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "taken"]
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]


def test_only_a_published_model_is_replaced(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And `~` is the home folder: `publish --to ~/x` by way of a config or a script, too."""
    monkeypatch.setenv("HOME", str(tmp_path))
    model = mixar.load(family / "models/prior", device="cpu")
    for _ in range(2):
        assert model.save_pretrained("~/mine", replace=True) == str(tmp_path / "mine")
    assert type(model).from_pretrained("~/mine", device="cpu").class_names == model.class_names
    shutil.copytree(family / "models/prior", tmp_path / "run")
    (tmp_path / "run/checkpoints").mkdir()
    (tmp_path / "photos").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("")
    (tmp_path / "file").write_text("")
    for name, strange in (("run", "checkpoints"), ("photos", f"no {RECIPE}"), ("mine", "thesis.tex"), ("file", "")):
        with pytest.raises(UserError, match=rf"{name}: holds something else than a published model \({strange}"):
            publish(family / "models/prior", tmp_path / name, replace=True, device="cpu")
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "run", "photos", "file"}
    assert (tmp_path / "run/checkpoints").is_dir() and (tmp_path / "mine/thesis.tex").is_file()


@pytest.mark.slow
def test_there_and_back_by_the_hub(family: Path, tmp_path: Path) -> None:
    files: dict[str, bytes] = {}
    environment = {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_none", "HF_HUB_DISABLE_XET": "1"}
    ours = mixar.load(family / "models/mixar", device="cpu").generate(["cat", "owl"], seed=3).images
    with serve("me/mine", files) as (endpoint, _):
        environment["HF_ENDPOINT"] = endpoint
        command = ["-m", "mixar", "publish", str(family / "models/mixar"), "--to", "hf://me/mine", "--device", "cpu"]
        done = subprocess.run(
            [sys.executable, *command], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert {"recipe.yaml", "README.md", "prior/weights.safetensors"} <= files.keys()
        assert json.loads(files["provenance.json"])["class_names"] == ["cat", "dog", "owl"]
        assert torch.equal(draw(f"hf://me/mine@{COMMIT}", "cat,owl", tmp_path / "a.pt", **environment), ours)
    # nobody answers any more: the cache does
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    assert torch.equal(draw(f"hf://me/mine@{COMMIT}", "cat,owl", tmp_path / "b.pt", **offline), ours)
    refused = [sys.executable, "-m", "mixar", "sample", "hf://me/other", "--out", str(tmp_path / "no")]
    done = subprocess.run(refused, env={**os.environ, **offline}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: hf://me/other: not in the cache of this machine, and offline"

"""Weights by hub name, against a hub on this machine: fetched once, pinned, offline, and refused in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from mixar import hub
from mixar.assembly import build
from mixar.folder import read_provenance, sha256
from mixar.plugins import plugin_manager
from mixar.recipe import load_recipe, merge, to_yaml
from mixar_core.errors import UserError
from mixar_import.imports import import_weights
from tests.weights.hub_stand_in import COMMIT, serve

#: Run in a process of its own, because huggingface_hub reads its environment when it is imported.
FETCH = """
import json, os, sys
from mixar_core.errors import UserError
from mixar import hub
from mixar_import.imports import import_weights
from mixar.plugins import plugin_manager
from mixar.folder import find_weights, read_tensors

for name, offline in json.loads(sys.argv[1]):
    os.environ["HF_HUB_OFFLINE"] = offline
    try:
        found = hub.fetch(name)
        assert find_weights(name, plugin_manager()) == found.path
        print(json.dumps([found.commit, read_tensors(found.path)["a"].tolist()]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def fetch(endpoint: str, home: Path, *names: tuple[str, str]) -> list[object]:
    """What each (name, HF_HUB_OFFLINE) gives: commit and content, or the error."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FETCH, json.dumps(names)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Retrying" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_files_are_fetched_once_pinned_and_refused_in_one_line(tmp_path: Path) -> None:
    file = "hf://who/what/deep/w.safetensors"
    with serve("who/what", {"deep/w.safetensors": save({"a": torch.ones(2)})}) as (endpoint, asked):
        answers = fetch(
            endpoint,
            tmp_path,
            (f"{file}@{COMMIT}", ""),
            (f"{file}@{COMMIT}", ""),
            (file, ""),
            (file, "1"),
            ("hf://who/what/other.safetensors", "1"),
            ("hf://who/what/other.safetensors", ""),
            ("hf://who/else/w.safetensors", ""),
            (f"{file}@v9", ""),
        )
    got = [COMMIT, [1.0, 1.0]]
    assert answers == [
        got,
        got,
        got,
        got,
        "hf://who/what/other.safetensors: not in the cache of this machine, and offline",
        "hf://who/what/other.safetensors: who/what has no file other.safetensors at revision main",
        "hf://who/else/w.safetensors: the hub has no repository who/else, or none that you may see",
        f"{file}@v9: who/what has no revision v9",
    ]
    assert sum(line.startswith("GET") and line.endswith("/w.safetensors") for line in asked) == 1

    # nobody listens there any more: what is in the cache serves, what is not is one line
    served, refused = fetch(endpoint, tmp_path, (file, ""), ("hf://who/what/other.safetensors", ""))
    assert served == got
    assert isinstance(refused, str) and "\n" not in refused
    assert "not in the cache of this machine, and cannot be fetched" in refused


@pytest.mark.parametrize(
    "name", ["hf://", "hf://who/what", "hf://who//w.safetensors", "hf://who/what/w@", "hf://a b/c/d"]
)
def test_a_name_of_another_form_is_one_line(name: str) -> None:
    with pytest.raises(UserError, match="not of the form hf://owner/name/file"):
        hub.fetch(name)


def test_a_cache_that_cannot_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is looked into before anything is at hand."""
    import huggingface_hub

    def locked(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "/cache")

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", locked)
    with pytest.raises(UserError, match=r"cannot be fetched: .*Permission denied"):
        hub.fetch("hf://who/what/w.safetensors")
    with pytest.raises(UserError, match=r"hf://a--b/what/w\.safetensors: .*Cannot have"):
        monkeypatch.undo()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        hub.fetch("hf://a--b/what/w.safetensors")


def test_a_file_at_the_hub_keeps_the_part_that_names_it() -> None:
    part = {"type": "kl", "channels": 4}
    merged = merge({"continuous_tokenizer": part}, {"continuous_tokenizer": {"weights": "hf://a/b/c.safetensors@v1"}})
    assert merged["continuous_tokenizer"] == {**part, "weights": "hf://a/b/c.safetensors@v1"}


def test_a_recipe_may_name_a_file_at_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    registry = plugin_manager()
    name = "hf://who/what/w.safetensors@v1"
    overrides = [f"continuous_tokenizer.weights={name}", "continuous_tokenizer.channels=32"]
    recipe = load_recipe("kl16", registry=registry, overrides=overrides)
    assert recipe.continuous_tokenizer is not None and recipe.continuous_tokenizer.weights == name
    assert f"weights: {name}" in to_yaml(recipe)
    with pytest.raises(UserError, match=f"{name}: not in the cache of this machine, and offline"):
        build(recipe, registry)


def test_an_import_from_the_hub_notes_the_commit(monkeypatch: pytest.MonkeyPatch, files: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(hub, "fetch", lambda name: hub.HubFile(files / "kl16.ckpt", COMMIT))
    recipe = str(files / "kl16.yaml")
    import_weights("kl16", "hf://who/what/kl16.ckpt", tmp_path / "kl16", plugin_manager(), recipe=recipe)
    source = read_provenance(tmp_path / "kl16")["source"]
    assert source == {"name": "hf://who/what/kl16.ckpt", "commit": COMMIT, "sha256": sha256(files / "kl16.ckpt")}

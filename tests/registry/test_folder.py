"""Model folders: whole or absent, and loaded strictly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mixar.folder import (
    find_weights,
    load_into,
    read_provenance,
    read_tensors,
    save_model,
    sha256,
    weights_file,
)
from mixar.plugins import Registry
from mixar_core.errors import UserError
from mixar_core.storage import whole_folder


def test_a_model_folder_holds_what_was_written(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3), "n": torch.arange(2)}
    save_model(tmp_path / "m", recipe_yaml="trains: prior\n", tensors=tensors, facts={"steps": 3}, dtype=torch.bfloat16)
    read = read_tensors(tmp_path / "m/weights.safetensors")
    assert read["a"].dtype == torch.float32 and torch.equal(read["a"], tensors["a"].bfloat16().float())
    assert torch.equal(read["n"], tensors["n"])
    provenance = read_provenance(tmp_path / "m")
    assert provenance["sha256"] == sha256(tmp_path / "m/weights.safetensors")
    assert provenance["steps"] == 3 and "torch" in provenance["versions"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_folder_is_replaced_only_where_that_was_asked_for(tmp_path: Path) -> None:
    save_model(tmp_path / "m", recipe_yaml="", tensors={"a": torch.zeros(1)})
    with pytest.raises(UserError, match="is there already"):
        save_model(tmp_path / "m", recipe_yaml="", tensors={"a": torch.ones(1)})
    assert read_tensors(tmp_path / "m/weights.safetensors")["a"] == 0
    save_model(tmp_path / "m", recipe_yaml="", tensors={"a": torch.ones(1)}, replace=True)
    assert read_tensors(tmp_path / "m/weights.safetensors")["a"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        save_model(tmp_path / "file/m", recipe_yaml="", tensors={"a": torch.zeros(1)})
    with pytest.raises(TypeError):  # facts that are not JSON, found after the weights were written
        save_model(tmp_path / "m", recipe_yaml="", tensors={"a": torch.zeros(1)}, facts={"x": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_every_kind_of_misfit_is_counted_and_named() -> None:
    module = nn.ModuleDict({"a": nn.Linear(2, 3), "b": nn.Linear(2, 2)})
    tensors = {"a.weight": torch.zeros(3, 2), "a.bias": torch.zeros(4), "c": torch.zeros(1), "d": torch.zeros(1)}
    with pytest.raises(UserError) as caught:
        load_into(module, tensors, where="weights x")
    message = str(caught.value)
    assert "2 missing: b.weight, b.bias" in message
    assert "2 unexpected: c, d" in message
    assert "1 of another shape: a.bias (4, not 3)" in message
    many = {f"x{index}": torch.zeros(1) for index in range(9)}
    with pytest.raises(UserError, match=r"9 unexpected: x0, x1, x2, x3, x4, \.\.\."):
        load_into(nn.Identity(), many, where="weights x")


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_file_that_is_no_safetensors_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    if content.endswith(b"{}      "):
        assert read_tensors(path) == {}
        return
    with pytest.raises(UserError, match=r"x\.safetensors is not a whole safetensors file"):
        read_tensors(path)


def test_a_truncated_file_is_one_line(tmp_path: Path, family: Path) -> None:
    data = (family / "models/prior/weights.safetensors").read_bytes()
    for size in (4, 100, len(data) - 1):
        (tmp_path / "x.safetensors").write_bytes(data[:size])
        with pytest.raises(UserError, match="not a whole safetensors file"):
            read_tensors(tmp_path / "x.safetensors")


def test_weights_are_found_by_folder_file_and_checkpoint(tmp_path: Path, family: Path, registry: Registry) -> None:
    prior = family / "models/prior"
    assert find_weights(str(prior), registry) == prior / "weights.safetensors"
    assert find_weights(str(prior / "weights.safetensors"), registry) == prior / "weights.safetensors"
    with pytest.raises(UserError, match=r"no weights_raw\.safetensors"):
        weights_file(prior, "raw")
    for step in (1, 2):
        checkpoint = tmp_path / f"checkpoints/step-{step:08d}"
        checkpoint.mkdir(parents=True)
    assert weights_file(tmp_path, "raw") == checkpoint / "raw"
    (tmp_path / "provenance.json").write_text(json.dumps({"a": 1})[:-2])
    with pytest.raises(UserError, match=r"provenance\.json"):
        read_provenance(tmp_path)


def test_a_folder_that_others_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"), whole_folder(tmp_path / "deep/new") as new:
        (new / "ours").write_text("1")
        (tmp_path / "deep/new").mkdir()
        (tmp_path / "deep/new/theirs").write_text("2")
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", "new", "theirs"]
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "deep/new", replace=True):
        print(1 / 0)
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", "new", "theirs"]
    with whole_folder(tmp_path / "deep/new", replace=True) as new:
        (new / "ours").write_text("1")
    assert [path.name for path in tmp_path.rglob("*")] == ["deep", "new", "ours"]

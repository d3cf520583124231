"""What a notebook shows by itself; and the tour, whose committed outputs are those of its cells."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient
from PIL import Image

import mixar
from tests import tour

CELLS = """
import mixar
model = mixar.load("MODEL", device="cpu")
---
model.generate(["cat", "owl"], seed=1)
---
model.edit(model.generate("cat", seed=1).images, (0, 0, 8, 16), ["cat", "dog"], seed=1)
---
model.generate("cat", progress=lambda done, of: None);
---
recipe = mixar.load_recipe("RECIPE", overrides=["training.steps=3", "callbacks=[{type: progress}]"])
mixar.train(recipe, "run");
"""


def shown(png: bytes) -> Image.Image:
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_what_is_drawn_shows_itself(family: Path) -> None:
    model = mixar.load(family / "models/mixar", device="cpu")
    drawn = model.generate(["cat", "owl"])
    png = drawn._repr_png_()
    assert png is not None and shown(png).tobytes() == drawn.grid().tobytes()
    assert repr(drawn) == "Generation(2 of 16x16 pixels: cat, owl)"
    edited = model.edit(drawn.images, (0, 0, 8, 16), ["cat", "owl"])
    png = edited._repr_png_()
    assert png is not None and shown(png).tobytes() == edited.picture().tobytes()
    many = mixar.Generation(torch.zeros(100, 3, 8, 8, dtype=torch.uint8), labels=(0,) * 100, names=("x",) * 100)
    png = many._repr_png_()
    assert repr(many) == "Generation(100 of 8x8 pixels: x; a notebook shows 64)"
    assert png is not None and shown(png).size < many.grid().size


def test_no_notebook_no_bar(family: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixar.progress.Progress", None)  # none is made
    mixar.load(family / "models/mixar", device="cpu").generate(["cat"])
    assert capfd.readouterr() == ("", "")


def test_the_tour_parses_and_has_outputs_of_these_cells() -> None:
    notebook = tour.read()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 10 <= len(code) <= 15
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    for cell in code:
        ast.parse(cell.source)
        assert not [output for output in cell.outputs if output.output_type == "error"]
    assert tour.NOTEBOOK.stat().st_size < 600_000
    told = str(
        [{**output, "data": {**output.get("data", {}), "image/png": ""}} for cell in code for output in cell.outputs]
    )
    assert "/tmp" not in told and "site-packages" not in told
    pictures = [output for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 6


@pytest.mark.slow
def test_progress_and_pictures_in_a_kernel(family: Path, tmp_path: Path) -> None:
    source = CELLS.replace("MODEL", str(family / "models/mixar")).replace("RECIPE", str(family / "recipes/mixar.yaml"))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in source.split("---")])
    told: list[str] = []

    class Client(NotebookClient):
        """Keeps what a bar said before it went."""

        def process_message(self, msg, cell, cell_index):  # type: ignore[no-untyped-def]
            told.append(str(msg["content"].get("data", {}).get("text/plain", "")))
            return super().process_message(msg, cell, cell_index)

    tour.run(notebook, tmp_path, Client)
    _, drawn, edited, silent, trained = ([*cell.outputs] for cell in notebook.cells)
    for outputs, kind in ((drawn, "Generation("), (edited, "Edited(")):
        assert "image/png" in outputs[-1].data and outputs[-1].data["text/plain"].startswith(kind)
        assert outputs[0].data == {"text/plain": ""}  # where the bar was
    assert any("sampling" in text and "━" in text for text in told) and any("editing" in text for text in told)
    assert silent == []
    (bar,) = (output for output in trained if "3/3" in str(output))
    assert "loss" in bar.data["text/plain"]


@pytest.mark.slow
def test_the_tour_runs_without_a_network(tmp_path: Path) -> None:
    committed, executed = tour.read(), tour.execute(tmp_path)
    assert [cell.source for cell in executed.cells] == [cell.source for cell in committed.cells]
    for then, now in zip(committed.cells, executed.cells, strict=True):
        if then.cell_type == "code":
            assert [output.output_type for output in then.outputs] == [output.output_type for output in now.outputs]
    assert "the same bytes: True" in str(executed.cells)

"""docs/tour.ipynb, executed from its first cell to its last. `python -m tests.tour` does so and saves it."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"
#: run in the kernel before the first cell: whoever would reach another machine is refused (the kernel's own are zmq's)
_OFFLINE = """
import os, socket
os.environ["HF_HUB_OFFLINE"] = "1"
def refuse(*_, **__):
    raise OSError("the tour needs no network")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
"""


def read() -> nbformat.NotebookNode:
    """The notebook as it is committed."""
    return nbformat.read(NOTEBOOK, as_version=4)


def run(notebook: nbformat.NotebookNode, folder: str | Path, client: type[NotebookClient] = NotebookClient) -> None:
    """Fill in the outputs, in a fresh kernel that works in `folder`; an error of a cell is raised."""
    resources = {"metadata": {"path": str(folder)}}
    made = client(
        notebook, kernel_name="python3", timeout=900, record_timing=False, coalesce_streams=True, resources=resources
    )
    made.execute()


def execute(folder: str | Path) -> nbformat.NotebookNode:
    """The tour with new outputs, made without a network, as they are committed: see `_small`."""
    notebook = read()
    notebook.cells.insert(0, nbformat.v4.new_code_cell(_OFFLINE))
    run(notebook, folder)
    del notebook.cells[0]
    for count, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
        cell.outputs = [small for output in cell.outputs if (small := _small(output, count)) is not None]
    return notebook


def _small(output: Any, count: int) -> Any:
    """An output as it is kept: pictures once and packed well; nothing of stderr, nor of bars that are gone."""
    if output.get("name") == "stderr" or output.get("data") == {"text/plain": ""}:
        return None
    if "execution_count" in output:
        output.execution_count = count
    if "image/png" in output.get("data", {}):
        output.data.pop("image/jpeg", None)
        packed = io.BytesIO()
        Image.open(io.BytesIO(base64.b64decode(output.data["image/png"]))).save(packed, format="PNG", optimize=True)
        output.data["image/png"] = base64.b64encode(packed.getvalue()).decode()
    return output


def main() -> None:
    """Execute and save."""
    with tempfile.TemporaryDirectory() as folder:
        notebook = execute(folder)
    nbformat.write(notebook, NOTEBOOK)
    print(f"{NOTEBOOK.name}: {NOTEBOOK.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

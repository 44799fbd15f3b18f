"""The notebook `docs/tutorial.ipynb` runs from top to bottom, at sizes of seconds, and what it prints can be read."""

import re
import sys
from pathlib import Path

import nbformat
import pytest
from doc_blocks import DOCS

NOTEBOOK = DOCS / "tutorial.ipynb"
SMALL = 'FOLDER, CONVERSATIONS, QUESTIONS, MODEL = "made", 24, 4, "tiny-random"'


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_stored_without_outputs():
    nbformat.validate(read())
    assert all(not cell.outputs and cell.execution_count is None for cell in read().cells if cell.cell_type == "code")
    first = next(cell for cell in read().cells if cell.cell_type == "code")
    assert first.metadata.tags == ["parameters"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_notebook_runs(tmp_path: Path, monkeypatch):
    """With a random two-layer model, by the kernel of this Python and none that is installed."""
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    class ThisPython(AsyncKernelManager):
        kernel_spec = KernelSpec(argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"])

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    notebook = read()
    next(cell for cell in notebook.cells if cell.metadata.get("tags") == ["parameters"]).source = SMALL
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_manager_class=ThisPython, resources=where).execute()
    assert (tmp_path / "made/sft/merged/config.json").is_file() and (tmp_path / "made/test/results.parquet").is_file()
    said = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "--- assistant" in said
    assert "\x1b" not in said and not re.search(r"[^\n]\r[^\n]", said)

"""Every notebook of the docs runs from its first cell to its last; the repository holds them without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))
NEEDS = {"equinox": ("equinox",), "peft": ("peft", "torch")}
"""{a notebook: packages that jlora itself does not need}"""

nbclient = pytest.importorskip("nbclient", reason="the extra `docs` is not installed")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel")


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
def test_the_notebooks_run(path, tmp_path, monkeypatch):
    for package in NEEDS.get(path.stem, ()):
        pytest.importorskip(package)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # no history in the home of whoever runs the tests
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, startup_timeout=600, kernel_name="python3").execute()
    for cell in notebook.cells:  # the page leaves warnings out, which name the file that they come from
        cell["outputs"] = [output for output in cell.get("outputs", []) if output.get("name") != "stderr"]
    shown = nbformat.writes(notebook)
    for folder in (Path.home(), Path.cwd(), Path(os.environ.get("TMPDIR", "/tmp"))):
        assert f"{folder}/" not in shown, f"an output names the folder {folder}"


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in NOTEBOOKS])
def test_the_notebooks_are_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 5

"""The site builds without a warning, and its reference has every public name."""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jlora

ROOT = Path(__file__).parents[2]

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
pytest.importorskip("material")
pytest.importorskip("mkdocstrings_handlers.python")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    # The notebooks are executed by tests/docs/test_notebooks.py.
    environment = os.environ | {"EXECUTE_NOTEBOOKS": "false", "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_reference_has_every_public_name(site):
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "reference").glob("*.html"))
    missing = [name for name in jlora.__all__ if f'id="jlora.{name}"' not in pages]
    assert not missing, f"add ::: lines to a page of docs/reference/ for {missing}"


def test_the_reference_shows_sources(site):
    page = (site / "reference" / "core.html").read_text(encoding="utf-8")
    assert page.count("Source code in") >= 8


def test_every_page_of_the_docs_is_in_the_site(site):
    for page in [*(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.ipynb")]:
        assert (site / page.relative_to(ROOT / "docs").with_suffix(".html")).is_file()
    assert (site / "changelog.html").is_file()
    assert (site / "contributing.html").is_file()


def test_a_notebook_becomes_a_page_with_its_outputs_and_without_warnings(monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "hooks" / "pages.py")
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    new = nbformat.v4
    outputs = [
        new.new_output("stream", name="stdout", text="loss 0.5\n"),
        new.new_output("stream", name="stderr", text="a warning\n"),
        new.new_output("display_data", {"image/png": base64.b64encode(b"a picture").decode(), "text/plain": "Figure"}),
        new.new_output("execute_result", {"text/plain": "42"}, execution_count=1),
    ]
    cells = [new.new_markdown_cell("# Title"), new.new_code_cell("run()", outputs=outputs)]
    monkeypatch.setattr(pages, "executed", lambda source: new.new_notebook(cells=cells))

    text, pictures = pages.converted(Path("docs/notebooks/some.ipynb"), "some", execute=True)
    assert text.startswith("# Title\n\n```python\nrun()\n```\n\n```text\nloss 0.5\n```\n\n![")
    assert "```text\n42\n```" in text
    assert "warning" not in text
    assert "](some-0.png)" in text
    assert pictures == {"some-0.png": b"a picture"}


def test_pages_load_nothing_from_other_servers(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"(https?:)?//[^>]*>", page.read_text())
        assert not loaded, f"{page.name} loads {loaded}"

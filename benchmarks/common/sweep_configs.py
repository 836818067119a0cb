"""The configs of the language models that a sweep over a list of points has trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jlora.files import yaml12
from train.cli.parse import parse_command_line
from train.cli.resolve import resolve
from train.lm.config import COMMAND, LMConfig


def read_sweep_configs(folder: Path) -> dict[str, LMConfig]:
    """Returns {name of a run: its config} of the finished sweep in the folder."""
    names = yaml12.read_file(folder / "sweep.yaml")["sweep"]["points"]
    return {name: resolve_config(["--config", str(folder / name / "config.yaml")]) for name in names}


def resolve_config(argv: Sequence[str]) -> LMConfig:
    """Returns the config that `jlora lm` makes of these arguments; --offline takes the file's block."""
    request = parse_command_line(argv, COMMAND)
    return resolve(request, use_offline=request.flags.offline)

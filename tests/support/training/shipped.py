"""The configs that come with jlora, and whose they are."""

from __future__ import annotations

from pathlib import Path

import train.classify.config
import train.lm.config
from train.config.command import Command

SHIPPED = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
SWEEPS = sorted((Path(__file__).parents[3] / "configs" / "sweeps").glob("*.yaml"))
SERVER = "serve.yaml"
CONFIGS = [file for file in SHIPPED if file.name != SERVER]
"""Those of the trainers."""


def command_of(file: Path) -> Command:
    """The command that the head of the config says to run it by."""
    commands = (train.classify.config.COMMAND, train.lm.config.COMMAND)
    (found,) = (
        c for c in commands if f"{c.program} --config configs/{file.name}\n" in file.read_text(encoding="utf-8")
    )
    return found


CLASSIFIERS = [file for file in CONFIGS if command_of(file) is train.classify.config.COMMAND]
LANGUAGE_MODELS = [file for file in CONFIGS if command_of(file) is train.lm.config.COMMAND]

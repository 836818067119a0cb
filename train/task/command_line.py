"""Runs a training command from its package, such as `train.classify`, which has the modules `config` and `task`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from train.cli import run_command
from train.cli.signs_of_life import working
from train.config.command import Flags
from train.config.run_config import RunConfig


def main(folder: str, argv: Sequence[str], *, alone: bool = False) -> int:
    """Runs the command of the package `folder` and returns its exit code, as `train.cli.run_command` does.

    Args:
      folder: the dotted name of the package, `train.lm`: its `config` has COMMAND, its `task` has TASK.
      argv: the arguments after the command's name.
      alone: as for `train.cli.run_command`.
    """

    def work(config: RunConfig, flags: Flags, is_offline: bool) -> None:
        with working("importing JAX, Flax and transformers"):  # not for --help
            runner, task = (importlib.import_module(name) for name in ("train.task.runner", f"{folder}.task"))
        runner.run_task(task.TASK, config, flags, is_offline=is_offline)

    command = importlib.import_module(f"{folder}.config").COMMAND
    return run_command.run_command(argv, command, work, alone=alone)

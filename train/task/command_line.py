"""Runs a training command from its package, such as `train.classify`, which has the modules `config` and `task`."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from train.cli import run_command
from train.cli.log_slow_steps import working
from train.config.command import Flags
from train.config.run_config import RunConfig


def main(folder: str, argv: Sequence[str], *, alone: bool = False) -> int:
    """Runs the training command of the package `folder` and returns its exit code.

    0 is success, 2 an error that the user can fix (printed on stderr), 75 the end of the run's time, 130 SIGINT, 143
    SIGTERM.

    Args:
      folder: the dotted name of the package, `train.lm`: its `config` has COMMAND, its `task` has TASK.
      argv: the arguments after the command's name: ["--config", "run.yaml", "lora.r=4"]. --help prints the help and
        ends the program (SystemExit).
      alone: whether nothing else runs in this process, so that PyTorch can be hidden from transformers.
    """

    def work(config: RunConfig, flags: Flags, is_offline: bool) -> None:
        with working("importing JAX, Flax and transformers"):  # not for --help
            runner, task = (importlib.import_module(name) for name in ("train.task.runner", f"{folder}.task"))
        runner.run_task(task.TASK, config, flags, is_offline=is_offline)

    command = importlib.import_module(f"{folder}.config").COMMAND
    return run_command.run_command(argv, command, work, alone=alone)

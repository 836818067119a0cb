"""Train many runs of one config together: jlora sweep --config configs/sst2.yaml --sweep FILE [key=value ...]."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jlora.closed_pipe import end_quietly
from train.cli import run_command
from train.cli.log_slow_steps import working
from train.config.command import Flags
from train.config.run_config import RunConfig
from train.sweep.config import command_for


def main(argv: Sequence[str], *, alone: bool = False) -> int:
    """Runs the command and returns its exit code, as `train.cli.run_command` does."""
    trainer, command = command_for(argv)

    def work(config: RunConfig, flags: Flags, is_offline: bool) -> None:
        with working("importing JAX, Flax and transformers"):  # not for --help
            runner, task = (importlib.import_module(name) for name in ("train.sweep.runner", f"train.{trainer}.task"))
        runner.run_sweep(task.TASK, config, flags, is_offline=is_offline)

    return run_command.run_command(argv, command, work, alone=alone)


if __name__ == "__main__":
    sys.exit(end_quietly(lambda: main(sys.argv[1:], alone=True)))

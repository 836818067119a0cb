"""Fine-tune a causal language model: jlora lm --config configs/smollm2.yaml [key=value ...]."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from train.cli.run_command import run_command
from train.cli.signs_of_life import working
from train.config.command import Flags
from train.lm.config import COMMAND, LMConfig


def main(argv: Sequence[str], *, alone: bool = False) -> int:
    """Runs the command and returns its exit code, as `run_command` does."""
    return run_command(argv, COMMAND, _lm, alone=alone)


def _lm(config: LMConfig, flags: Flags, is_offline: bool) -> None:
    with working("importing JAX, Flax and transformers"):  # not for --help
        from train.lm.trainer import train_lm

    train_lm(config, flags, is_offline)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], alone=True))

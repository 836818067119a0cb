"""Runs a training command from its command line to its exit code; imports JAX after reading the command line."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial

from jlora.errors import HubError
from train.cli.exit_codes import exit_code
from train.cli.parse import Request, parse_command_line
from train.cli.signals import leave_when_time_is_up
from train.config.command import Command, Flags
from train.config.run_config import AnyConfig


def run_command(
    argv: Sequence[str], command: Command[AnyConfig], work: Callable[[AnyConfig, Flags, bool], None], *, alone: bool
) -> int:
    """Runs a training command and returns its exit code.

    0 is success, 2 an error that the user can fix, 75 the end of the run's time, 130 SIGINT, 143 SIGTERM.

    Args:
      argv: the arguments after the command's name: ["--config", "run.yaml", "lora.r=4"]. --help prints the help and
        ends the program (SystemExit).
      command: its flags, options and config schema.
      work: called as work(config, flags, whether the config's `offline:` block is in it). In the config `train.dtype`
        is settled, not `auto`.
      alone: whether nothing else runs in this process, so that PyTorch can be hidden from transformers, and SIGUSR1 and
        SIGXCPU end it.
    """
    interrupted = f"stopped: {command_to_resume(command.program, argv)} goes on from the newest checkpoint"
    run = partial(exit_code, verbose="--verbose" in argv, interrupted=interrupted)
    requests: list[Request[AnyConfig]] = []
    code = run(lambda: requests.append(parse_command_line(argv, command)))  # --help ends the program here
    if code or not requests:  # the reader of the help has quit
        return code
    from train.cli.without_torch import keep_torch_from_transformers
    from train.devices.processes import leave_together

    if alone:
        leave_when_time_is_up()
        keep_torch_from_transformers()
    return leave_together(partial(run, partial(_work, requests[0], work)))


def command_to_resume(program: str, argv: Sequence[str]) -> str:
    """Returns the command that resumes the run of this command line, as a shell reads it."""
    kept = [word for word in argv if word not in ("--resume", "--overwrite")]
    return shlex.join([*program.split(), *kept, "--resume"])


def _work(request: Request[AnyConfig], work: Callable[[AnyConfig, Flags, bool], None]) -> None:
    from train.cli.offline import choose
    from train.devices.platform import settle_dtype, with_dtype
    from train.devices.processes import join_processes

    single = request.flags.dry_run or request.flags.preview
    with nullcontext() if single else join_processes(request.flags):
        config, is_offline = choose(request)
        # A plan for other chips must not ask which devices this machine has: that would fix their number in JAX.
        if not request.flags.mesh:
            config = settle_dtype(config)
        elif config.train.dtype == "auto":
            config = with_dtype(config, "bfloat16")
        try:
            work(config, request.flags, is_offline)
        except HubError as error:
            raise HubError(
                f"{error}\nWith --offline the run uses the hub's local cache or the config's offline: block instead"
            ) from error

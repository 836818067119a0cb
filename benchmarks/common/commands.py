"""A whole command in a process of its own: its seconds, its memory, and when its first training step was done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

_FIRST_STEP = re.compile(r"step 1/")


def timed_command(argv: Sequence[str], env: Mapping[str, str] | None = None, *, to_first_step: bool = False) -> dict:
    """{"seconds", "cpu_seconds", "peak_bytes", "first_step": seconds or None} of `python argv`, from its start on.

    Args:
      env: what is added to the environment.
      to_first_step: end the process once it says that step 1 is done.

    Raises:
      RuntimeError: it failed; with its last lines.
    """
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *argv],
        env={**os.environ, **(env or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first, lines = None, list[str]()
    with process.stderr:
        for line in process.stderr:
            lines = [*lines[-20:], line]
            if first is None and _FIRST_STEP.search(line):
                first = time.monotonic() - begin
                if to_first_step:
                    process.kill()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and not (to_first_step and first is not None):
        raise RuntimeError(f"{' '.join(argv)}: ended with code {process.returncode}:\n{''.join(lines)}")
    found: dict[str, Any] = {"seconds": time.monotonic() - begin, "first_step": first}
    return found | {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * 1024}

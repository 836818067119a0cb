"""Connects several processes that train together, and makes all of them end if one does."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import socket
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jlora.errors import JloraError
from train.config.command import Flags

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 30
"""Seconds of silence after which a process counts as dead, and all others end."""

_PATIENCE_SECONDS = 24 * 3600
"""How long a finished process waits for the others: process 0 may have a large model to write."""

_AGREED_CODES = (0, 75, 143)
"""Exit codes with which all processes end together."""

_LOST = re.compile("gloo|nccl|coordination service|socket closed|heartbeat", re.IGNORECASE)


@contextmanager
def join_processes(flags: Flags) -> Iterator[None]:
    """Connects this process to the others for the block, if the flags or the launcher say that there are several.

    Of the flags `coordinator`, `process` and `processes` are read. Nothing is connected if `processes` is 1, or if none
    is given and `is_launched` is false. JAX must not have been initialized yet. Only the first process logs messages
    below warnings.

    Raises:
      JloraError: only some of --coordinator, --process and --processes are given, JAX does not know the launcher, the
        port is in use, or the connection to another process is lost.
    """
    _join(flags)
    try:
        yield
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        if isinstance(error, JloraError) or not jax.distributed.is_initialized() or not _LOST.search(str(error)):
            raise
        raise JloraError(
            f"process {jax.process_index()} lost another process, see its output. All end now; start them again"
            f" with --resume\n  {str(error).strip().splitlines()[0][:200]}"
        ) from error


def _join(flags: Flags) -> None:
    given = (flags.coordinator, flags.process, flags.processes)
    if flags.processes == 1 or (given == (None, None, None) and not is_launched(os.environ)):
        return
    if given == (None, None, None):
        _initialize()
    else:
        _require_whole(flags)
        logger.info("process %s of %s, coordinator %s", flags.process, flags.processes, flags.coordinator)
        _initialize(
            coordinator_address=flags.coordinator,
            process_id=flags.process,
            num_processes=flags.processes,
            cluster_detection_method="deactivate",
        )
    if not is_first():
        logging.disable(logging.INFO)


def is_launched(environment: Mapping[str, str]) -> bool:
    """Returns whether, by its environment, Slurm, Open MPI or a TPU pod has started this process with others.

    That is: SLURM_STEP_NUM_TASKS or OMPI_COMM_WORLD_SIZE is more than 1, or libtpu is installed and TPU_SKIP_MDS_QUERY
    is not set. `environment` is os.environ.
    """
    sizes = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    if any(int(environment.get(name, "1")) > 1 for name in sizes):
        return True
    # JAX, imported where there are no TPU chips, sets TPU_SKIP_MDS_QUERY.
    return "TPU_SKIP_MDS_QUERY" not in environment and importlib.util.find_spec("libtpu") is not None


def is_first() -> bool:
    """Returns whether this process is the one that writes logs, records and exports; a single process always is."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all(place: str) -> None:
    """Waits until all processes have reached this place, whose name is the same in all; a single one does not wait."""
    if jax.distributed.is_initialized():
        multihost_utils.sync_global_devices(place)


def all_agree(here: bool) -> bool:
    """Returns whether `here` is true in all processes; all must call it. In a single process that is `here`."""
    return here if not jax.distributed.is_initialized() else bool(multihost_utils.process_allgather(here).all())


def require_same(text: str, what: str) -> None:
    """Raises JloraError unless all processes have the same text; all must call it. A single process never raises.

    The message begins with `what` and names the first process whose text is not that of process 0.
    """
    if not jax.distributed.is_initialized():
        return
    sums = multihost_utils.process_allgather(np.uint32(zlib.crc32(text.encode())))
    others = np.flatnonzero(sums != sums[0])
    if len(others):
        raise JloraError(f"{what}: expected the same in all processes, found another one in process {others[0]}")


@contextmanager
def first_alone(place: str) -> Iterator[bool]:
    """Yields True in the process that writes and False in the others, which wait for it after the block.

    `place` names the block, the same in all processes. A single process gets True.
    """
    yield is_first()
    wait_for_all(place)


def leave_together(work: Callable[[], int]) -> int:
    """Runs `work` and returns its exit code; several processes that end normally wait for each other.

    A single process raises what `work` raises. Of several, one that fails (an exception, or a code other than 0, 75 and
    143) ends at once, so that the others notice it.
    """
    try:
        code = work()
    except BaseException:
        if not jax.distributed.is_initialized():
            raise
        traceback.print_exc()
        code = 1
    if not jax.distributed.is_initialized():
        return code
    if code in _AGREED_CODES:
        jax.distributed.shutdown()  # before the first process ends, because then all others lose the connection
    else:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # an orderly end would wait for the others, who wait for this process
    return code


def _initialize(**given: Any) -> None:
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS, shutdown_timeout_seconds=_PATIENCE_SECONDS, **given
        )
    except (ValueError, RuntimeError) as error:
        raise JloraError(
            f"several processes: {error}\nName the coordinator and number the processes: --coordinator HOST:PORT"
            " --process I --processes N; --processes 1 trains alone"
        ) from error


def _require_whole(flags: Flags) -> None:
    """Raises JloraError if the flags do not describe a place in a group of processes; JAX would wait forever."""
    address, process, processes = flags.coordinator, flags.process, flags.processes
    if address is None or process is None or processes is None:
        raise JloraError("command line: expected all of --coordinator HOST:PORT, --process I and --processes N")
    if not re.fullmatch(r".+:\d+", address):
        raise JloraError(f"--coordinator: expected HOST:PORT, found {address!r}")
    if not 0 <= process < processes:
        raise JloraError(f"--process: expected a number from 0 to {processes - 1}, found {process}")
    if process == 0:
        _require_free(int(address.rpartition(":")[2]))


def _require_free(port: int) -> None:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=both).close()
    except OSError as error:
        raise JloraError(f"--coordinator: port {port}: expected a free one, found {error}") from error

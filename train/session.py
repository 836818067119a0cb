"""What every training command does around its loop: checks before, the run folder, resume, records, the end."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train import checkpoint, run_folder
from train.checkpoint import Best
from train.command import Flags
from train.compilation import use_compilation_cache
from train.loop import Loop, run
from train.push import check_push
from train.record import Recorder, import_tracker
from train.run_config import RunConfig
from train.step import State

logger = logging.getLogger(__name__)

Finish = Callable[[Path, Best, dict[str, float], Recorder], dict[str, Any]]
"""finish(run folder, best evaluation, times in seconds, recorder) -> report."""


def is_to_run(config: RunConfig, flags: Flags) -> bool:
    """Whether there is something to do: false, and said, where the run folder holds the finished run.

    Raises:
      JloraError: the folder, the tracker or the hub will refuse this run, before anything is read or made.
    """
    use_compilation_cache()
    if run_folder.check(config, flags) == "finished":
        logger.info("%s: this run is finished, nothing to do; --overwrite starts anew", config.output_dir)
        return False
    import_tracker(config.tracker)
    if config.hub.push and config.hub.repo:
        check_push(config.hub.repo, config.hub.private)
    return True


def train(config: RunConfig, flags: Flags, loop: Loop, state: State, finish: Finish, begin: float) -> dict[str, Any]:
    """Claims the run folder, trains from `state` or the newest checkpoint, and returns what `finish` reports.

    Args:
      begin: when the command began, by time.monotonic().
    """
    folder = run_folder.claim(config, flags)
    with checkpoint.open_checkpoints(folder / "checkpoints", config.train.keep_checkpoints) as manager:
        state, best = checkpoint.restore(manager, state)
        start = int(state.step)
        if flags.resume:
            logger.info("resumed at step %d%s", start, "" if start else ": there is no checkpoint yet")
        shown = config.model_dump(by_alias=True)
        resume_step = start if flags.resume else None
        with Recorder(
            folder, resume_step=resume_step, tracker=config.tracker, project=config.project, config=shown
        ) as recorder:
            trained = time.monotonic()
            best, rate = run(loop, state, best, manager, recorder)
            times = {
                "prepare": trained - begin,
                "train": time.monotonic() - trained,
                f"{loop.unit}_per_second": rate,
            }
            return finish(folder, best, times, recorder)

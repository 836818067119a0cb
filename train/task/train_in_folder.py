"""Runs the training loop in a run folder: checks, lock, resume, records, and the end of the run."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from train.artifacts.hub_upload import check_push
from train.cli.log_slow_steps import working
from train.cli.signals import listening
from train.config.command import Flags
from train.config.run_config import RunConfig, length_key
from train.devices import processes
from train.devices.compilation import use_compilation_cache
from train.loop.loop import Loop
from train.loop.loop import run_loop as train_steps
from train.run import checkpoints, lock, manifest
from train.run import folder as run_folder
from train.run.best import Best
from train.run.checkpoints import Checkpoint
from train.run.lock import hold_lock, require_free
from train.run.recorder import NoRecorder, Recorder, import_tracker
from train.run.state import State
from train.task.protocol import Opened

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
"""The result of the function that finishes a run."""

Finish = Callable[[Path, Best, dict[str, float], Recorder], Result]
"""finish(run folder, best evaluation, times in seconds, recorder)."""


def is_to_run(config: RunConfig, flags: Flags) -> bool:
    """Returns whether there is something to do: False, with a log line, if the folder holds this run, finished.

    Args:
      config: read are `output_dir`, all keys if a run in it is resumed, `tracker` and `hub`.
      flags: `resume` and `overwrite` allow a run in the folder; only with `resume` the result can be False.

    Raises:
      RunFolderError: the folder is in use by another process, or holds something that the flags do not allow.
      JloraError: the tracker is not installed, or the hub refuses an upload. All this is checked before anything is
        read or written.
    """
    use_compilation_cache()
    if processes.is_first():
        require_free(Path(config.output_dir))
    if run_folder.choose_action(config, flags) == "finished":
        logger.info(
            "%s: this run is finished, nothing to do. A larger %s trains it longer, a changed export.* exports it"
            " again, output_dir=FOLDER begins another run",
            config.output_dir,
            length_key(config),
        )
        return False
    import_tracker(config.tracker)
    if config.hub.push and config.hub.repo:
        check_push(config.hub.repo, config.hub.private)
    return True


def train_in_folder(
    config: RunConfig,
    flags: Flags,
    loop: Loop,
    state: State,
    finish: Finish[Result],
    begin: float,
    opened: Opened,
) -> Result:
    """Claims the run folder, trains from `state` or the newest checkpoint, and returns the result of `finish`.

    Args:
      loop, state: what `make_loop` returns.
      finish: finish(folder, best, times, recorder), called after the last step; times are {part of the run: seconds}.
      begin: when the command began, by time.monotonic().
      opened: the data of the run, which the manifest describes; a run is resumed only with the same data.

    Raises:
      RunFolderError: the folder is in use, cannot be written, or holds another run.
      Stopped: a signal or train.max_hours ended the training; the newest checkpoint has its latest state.
    """
    with working("computing checksums of base and data"):
        made_of = manifest.manifest(config, loop.base, loop.frozen, opened.contents, loop.lengths, opened.day)
    for part in ("base", "adapter", "data", "batches"):
        processes.require_same(json.dumps(made_of[part], sort_keys=True), part)
    with (
        loop.compiler,
        _claim_folder(config, flags, made_of, loop.per_epoch, opened.attention) as folder,
        checkpoints.open_checkpoints(folder / "checkpoints", config.train.keep_checkpoints) as manager,
    ):
        found = checkpoints.restore(manager, state)
        start = int(found.state.step)
        if flags.resume:
            if processes.is_first():
                run_folder.take_over(config)
            logger.info(f"resumed at step {start}" if start else "no checkpoint yet: starting at step 0")
        with _recorder(folder, config, flags, found) as recorder:
            trained = time.monotonic()
            hours = config.train.max_hours
            with listening(math.inf if hours is None else begin + 3600 * hours) as stop:
                best, rate = train_steps(loop, found, manager, recorder, stop)
                if stop.has_come():
                    logger.warning("saved: step %d of %d", manager.latest_step() or 0, loop.steps)
            times = {
                "prepare": trained - begin,
                "train": time.monotonic() - trained,
                "waited_for_programs": loop.compiler.waited,
                f"{loop.unit}_per_second": rate,
            }
            return finish(folder, best, times, recorder)


@contextmanager
def _claim_folder(
    config: RunConfig, flags: Flags, made_of: dict[str, dict[str, str]], per_epoch: int, attention: dict[str, str]
) -> Iterator[Path]:
    """Locks and claims the run folder; with several processes, the first one does it for all."""
    folder = Path(config.output_dir)
    with ExitStack() as held:
        with processes.first_alone("claimed") as is_first:
            if is_first:
                held.enter_context(hold_lock(folder))
                if flags.resume and (folder / "config.yaml").exists():
                    run_folder.require_checkpoints(folder, per_epoch)
                    _require_same_run(folder, made_of)
                run_folder.claim(config, flags, attention)
                if not (folder / manifest.NAME).exists():
                    run_folder.write_json(folder / manifest.NAME, made_of)
        processes.require_same(lock.holder(folder), f"output_dir: {folder.resolve()}: its {lock.NAME}")
        yield folder


def _require_same_run(folder: Path, made_of: dict[str, dict[str, str]]) -> None:
    file = folder / manifest.NAME
    if file.exists():
        manifest.require_same_inputs(file, made_of)
    elif any((folder / "checkpoints").glob("*")):
        logger.warning("%s: missing, so that base and data are not compared with those of the checkpoints", file)


def _recorder(folder: Path, config: RunConfig, flags: Flags, found: Checkpoint) -> Recorder:
    if not processes.is_first():
        return NoRecorder()
    return Recorder(
        folder,
        resume_step=int(found.state.step) if flags.resume else None,
        resume_lines=found.rest.lines,
        tracker=config.tracker,
        project=config.project,
        config=config.model_dump(by_alias=True),
    )

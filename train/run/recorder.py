"""Records a run's numbers: `metrics.jsonl`, TensorBoard events and, if the config says so, W&B or trackio."""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, SupportsFloat

from jlora.errors import FileError, JloraError, RunFolderError
from jlora.files.bounded_json import parse_json
from jlora.files.replace_file import replace_file

logger = logging.getLogger(__name__)


class Recorder:
    """Writes a run's numbers as they are computed; a context manager.

    W&B is used online if the machine is logged in and W&B answers, else offline (`wandb sync` uploads later);
    `WANDB_MODE` overrides both. If a tracker fails later, it is dropped with a warning and the run continues.

    Args:
      run_dir: the run folder, in which `metrics.jsonl` and `tensorboard/` are written.
      resume_step: the step of the checkpoint from which the run resumes; None starts a new record.
      resume_lines: how many lines the record had at that checkpoint. Later lines of a killed run are dropped, and so is
        an incomplete last line.
      tracker: `none`, `wandb` or `trackio`.
      project: the tracker's project for the run.
      config: the settings that the tracker shows.

    Raises:
      JloraError: there is already a record but no `resume_step`, a line in its middle is damaged, or the tracker's
        package is not installed.
    """

    def __init__(
        self,
        run_dir: str | Path,
        *,
        resume_step: int | None = None,
        resume_lines: int = 0,
        tracker: str = "none",
        project: str = "jlora",
        config: Mapping[str, Any] | None = None,
    ) -> None:
        from train.run.tensorboard import (  # takes half a second, and reading records does not need it
            open_events,
            write_scalars,
        )

        self._run_dir = Path(run_dir)
        self._resume_step = resume_step
        package = import_tracker(tracker)
        path = self._run_dir / "metrics.jsonl"
        if path.is_dir():
            raise RunFolderError(f"{path}: expected the record of the run, found a folder. Move it away, then --resume")
        if resume_step is None and path.exists():
            raise RunFolderError(f"{path}: holds the record of another run; give --resume or another output_dir")
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self.lines = 0 if resume_step is None else _keep(path, resume_lines)
        """How many lines `metrics.jsonl` has."""
        self._file = path.open("a", encoding="utf-8")
        self._write_scalars = write_scalars
        self._events = open_events(self._run_dir / "tensorboard", resume_step)
        self._tracker = None if package is None else self._start_tracker(tracker, package, project, dict(config or {}))

    def log(self, step: int, values: Mapping[str, SupportsFloat], prefix: str) -> None:
        """Records scalars of one step, named `{prefix}/{key}`; prefixes are train, start, validation, test, best.

        The line in `metrics.jsonl` is `{"step": int, "time": unix seconds, name: value, ...}`. A value that is not
        finite is written as null, and as text under `non_finite`: {name: "nan" | "inf" | "-inf"}.
        """
        named = {f"{prefix}/{key}": float(value) for key, value in values.items()}
        finite = {name: value for name, value in named.items() if math.isfinite(value)}
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        line.update({name: finite.get(name) for name in named})
        if len(finite) < len(named):
            line["non_finite"] = {name: str(value) for name, value in named.items() if name not in finite}
        with _explain_errors(Path(self._file.name)):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
        self.lines += 1
        with _explain_errors(self._run_dir / "tensorboard"):
            self._write_scalars(self._events, step, line["time"], finite)
        self._track(lambda tracker: tracker.log(finite, step=step))

    def close(self) -> None:
        """Flushes and closes everything."""
        with suppress(OSError):  # if the disk is full, what was flushed before is there
            self._file.close()
            self._events.close()
        self._track(lambda tracker: tracker.finish())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_tracker(self, tracker: str, package: Any, project: str, config: dict[str, Any]) -> Any:
        start = _start_wandb if tracker == "wandb" else _start_trackio
        try:
            return start(package, self._run_dir, project, config, self._resume_step is not None)
        except Exception as error:  # a tracker out of reach must not cost the run
            logger.warning("tracker: %s did not start, the run goes on without it: %s", tracker, error)
            return None

    def _track(self, call: Callable[[Any], Any]) -> None:
        if self._tracker is None:
            return
        try:
            call(self._tracker)
        except Exception as error:  # a tracker out of reach must not cost the run
            logger.warning("tracker: failed, the run goes on without it: %s", error)
            self._tracker = None


class NoRecorder(Recorder):
    """A recorder that records nothing, for all processes except the first."""

    def __init__(self) -> None:
        self.lines = 0

    def log(self, step: int, values: Mapping[str, SupportsFloat], prefix: str) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """Reads the lines of a `metrics.jsonl`, in order, without an incomplete last one.

    Raises:
      FileError: the file is missing or is a folder; a line other than the last is not a JSON object with an integer
        `step`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileError(f"{path}: expected the metrics of a run; found {'a folder' if path.is_dir() else 'no file'}")
    texts = path.read_text(encoding="utf-8", errors="replace").split("\n")
    lines = []
    for number, text in enumerate(texts[:-1], 1):
        try:
            line = parse_json(text.encode(), path)
        except FileError:
            line = {}
        if type(line.get("step")) is not int:
            if number == len(texts) - 1:
                break
            message = f'{path}: line {number}: expected a JSON object with "step", found {text[:60]!r}'
            raise FileError(message)
        lines.append(line)
    return lines


def last_step(path: Path) -> int:
    """Returns the step of the last line of a `metrics.jsonl`; 0 if there is no file or no line.

    Raises:
      FileError: a line before the last is damaged.
    """
    lines = read_metrics(path) if path.exists() else []
    return lines[-1]["step"] if lines else 0


@contextmanager
def _explain_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise JloraError(
            f"{path}: cannot be written: {error}. The earlier checkpoints are complete: free disk space or make the"
            " folder writable, then go on with --resume"
        ) from error


def _keep(path: Path, lines: int) -> int:
    """Rewrites `path` with its first lines only, in one atomic move, and returns how many there are."""
    kept = read_metrics(path)[:lines] if path.exists() else []
    if len(kept) < lines:
        logger.warning("%s: %d of the %d lines up to the checkpoint are missing", path, lines - len(kept), lines)
    if path.exists():
        shortened = path.with_suffix(".tmp")
        shortened.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        replace_file(shortened, path)
    return len(kept)


def import_tracker(tracker: str) -> Any:
    """Imports the package of a tracker, `wandb` or `trackio`, and returns the module; returns None for `none`.

    Raises:
      JloraError: the name is unknown, or the package is not installed.
    """
    if tracker == "none":
        return None
    if tracker not in ("wandb", "trackio"):
        raise JloraError(f"tracker: expected none, wandb or trackio, found {tracker!r}")
    try:
        return importlib.import_module(tracker)
    except ImportError:
        message = f"tracker: {tracker} is not installed; pip install {tracker}, or set tracker: none"
        raise JloraError(message) from None


def _start_wandb(wandb: Any, run_dir: Path, project: str, config: dict[str, Any], resumed: bool) -> Any:
    id_file = run_dir / "wandb" / "run_id"
    run_id = id_file.read_text() if resumed and id_file.exists() else uuid.uuid4().hex[:8]
    id_file.parent.mkdir(parents=True, exist_ok=True)
    id_file.write_text(run_id)

    def start(mode: str | None) -> Any:
        return wandb.init(
            project=project,
            name=run_dir.name,
            id=run_id,
            resume="allow",
            dir=run_dir,
            config=config,
            mode=mode,
        )

    if "WANDB_MODE" in os.environ:
        return start(None)
    try:
        if wandb.login(prompt=False):
            return start("online")
        reason = "not logged in"
    except Exception as error:  # a tracker out of reach must not cost the run
        reason = str(error)
    logger.warning("tracker: wandb records offline under %s, upload with `wandb sync`: %s", id_file.parent, reason)
    return start("offline")


def _start_trackio(trackio: Any, run_dir: Path, project: str, config: dict[str, Any], resumed: bool) -> Any:
    resume = "allow" if resumed else "never"
    return trackio.init(project=project, name=run_dir.name, config=config, resume=resume, embed=False)

"""Writes TensorBoard event files with scalars of steps."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from train.cli.without_torch import torch_hidden

with torch_hidden():
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary


def open_events(folder: Path, resume_step: int | None) -> EventsWriter:
    """Opens a new file of TensorBoard events in `folder`, which is made if it does not exist.

    TensorBoard hides events of other files after `resume_step`; None hides none. Events are written directly.
    tensorboardX's own writer is a thread: a full disk ends it, and its queue then blocks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    events = EventsWriter(str(folder / "events"), f".{os.getpid()}")
    if resume_step is not None:
        start = SessionLog(status=SessionLog.START)
        events.write_event(Event(wall_time=time.time(), step=resume_step + 1, session_log=start))
    return events


def write_scalars(events: EventsWriter, step: int, seconds: float, values: Mapping[str, float]) -> None:
    """Writes {name: value} of one step as one event, at `seconds` since 1970, and flushes."""
    shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
    events.write_event(Event(wall_time=seconds, step=step, summary=Summary(value=shown)))
    events.flush()

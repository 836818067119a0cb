"""Runs of the two trainers in processes of their own, and the faults that come to them."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.training import processes

_LATEST = 6
"""Steps after which a run that is to be killed is killed, whatever its moment was."""

# 22 rows in windows of 2 x 4: the last window of each epoch is partial. Evaluations, lines and checkpoints fall on
# different steps, and dropout draws its keys.
_STEPS = (
    "train.batch_size=4", "train.gradient_accumulation_steps=2", "train.max_steps=80", "train.eval_every=5",
    "train.checkpoint_every=2", "train.log_every=3", "train.learning_rate=1e-2", "lora.lora_dropout=0.1",
    "train.dropout=true", "export.merged=false",
)  # fmt: skip

Fault = tuple[str, int, float]
"""(kind, number, seconds). SIGKILL comes `any`: seconds after the start; `batch` or `save`: seconds after the batch or
the folder of a checkpoint of this number, counted from where the run goes on. `nan`: the batch of this number is NaN.
`clock`: the clock runs backwards, and has lost so many seconds."""


def classifier(folder: Path, *more: str) -> list[str]:
    """A command line of train.classify."""
    from tests.support.training import (
        tiny,  # which makes a folder: not in the processes that run a trainer, which import this file
    )

    return tiny.arguments(folder, *_STEPS, f"data.train={tiny.data_file(22)}", *more)


def language_model(folder: Path, *more: str) -> list[str]:
    """A command line of train.lm."""
    from tests.support.training import tiny_lm

    return tiny_lm.arguments(folder, *_STEPS, *more, data=tiny_lm.text_file(110))


TRAINERS = {"classify": classifier, "lm": language_model}
EITHER = ["classify"]
"""For faults that only what both trainers share can meet: the runner, its checkpoints and its records."""


def start(trainer: str, arguments: Sequence[str], log: Path, fault: Fault | None = None) -> Any:
    """A process that runs the trainer; its output is added to `log`."""
    return processes.start(trainer, arguments, log, None if fault is None else functools.partial(_plan, *fault))


def run(trainer: str, arguments: Sequence[str], log: Path, fault: Fault | None = None) -> int:
    """The exit code of a run in a process of its own, negative where a signal ended it."""
    return processes.finish(start(trainer, arguments, log, fault))


def moments(count: int, seed: int, seconds: float) -> list[Fault]:
    """Seeded moments of a run that takes so many `seconds`, a third of each kind."""
    draw = random.Random(seed)
    kinds = [("any", "batch", "save")[index % 3] for index in range(count)]
    draw.shuffle(kinds)
    later = {"any": seconds, "batch": 0.02, "save": 0.02}
    return [(kind, draw.randint(1, 3), draw.uniform(0, later[kind])) for kind in kinds]


def learned(folder: Path) -> list[dict[str, Any]]:
    """The record of a run, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "time" and not k.endswith("_per_second")} for line in lines]


def assert_same(run: Path, other: Path) -> None:
    """The two finished runs have left the same adapter, bit for bit, the same record and the same results."""
    from tests.support.training import tiny

    name = "adapter/adapter_model.safetensors"
    assert (run / name).read_bytes() == (other / name).read_bytes()
    assert learned(run) == learned(other)
    for key in ("metrics", "best", "parameters", "seed"):
        assert tiny.report(run)[key] == tiny.report(other)[key]


def newest(folder: Path) -> Path:
    """The newest whole checkpoint of a run folder."""
    return max((path for path in (folder / "checkpoints").iterdir() if path.name.isdigit()), key=lambda p: int(p.name))


def begun(folder: Path) -> list[Path]:
    """Checkpoints of a run folder that are not whole."""
    return list((folder / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def _plan(kind: str, number: int, seconds: float) -> None:
    """Has the fault happen in this process. SIGKILL comes wherever the threads are; at the latest after a few steps."""
    from train.loop import loop
    from train.run import checkpoints as checkpoint

    if kind == "clock":
        now = time.time
        begin = now()
        time.time = lambda: 2 * begin - now() - seconds
        return
    if kind == "any":
        _kill(lambda: None, seconds)
    planned_steps, save, calls = loop.plan_steps, checkpoint.save, []

    def poisoned(loop: Any, *arguments: Any) -> Any:
        for place, planned in enumerate(planned_steps(loop, *arguments), 1):
            if place == number:
                object.__setattr__(loop, "batch", functools.partial(_poisoned_batch, loop.batch))
            yield planned

    if kind == "nan":
        loop.plan_steps = poisoned
        return

    def steps_until_killed(*arguments: Any) -> Any:
        for count, planned in enumerate(planned_steps(*arguments), 1):
            if kind == "batch" and count == number:
                _kill(lambda: None, seconds)
            if count > _LATEST:
                os.kill(os.getpid(), signal.SIGKILL)
            yield planned
        os.kill(os.getpid(), signal.SIGKILL)

    def save_until_killed(manager: Any, begun_at: Any) -> None:
        calls.append(begun_at)
        if kind == "save" and len(calls) == number:
            _kill(lambda: _wait_for_a_folder(Path(manager.directory)), seconds)
        save(manager, begun_at)

    loop.plan_steps, checkpoint.save = steps_until_killed, save_until_killed


def _poisoned_batch(make: Callable[[Any], Any], planned: Any) -> Any:
    batch = make(planned)
    return batch._replace(weights=batch.weights * np.float32("nan"))


def _wait_for_a_folder(checkpoints: Path) -> None:
    while not begun(checkpoints.parent):
        time.sleep(0.001)


def _kill(wait: Callable[[], None], seconds: float) -> None:
    def kill() -> None:
        wait()
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()

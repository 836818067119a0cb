"""One run of a sweep while it trains: its values, its record, and its checkpoints in its own folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from jlora.errors import RunFolderError
from jlora.files.replace_file import replace_file
from jlora.lora.adapted_model import Adapted
from jlora.tree.leaf_paths import leaves_by_path
from train.config.run_config import RunConfig, learning_rate_of, order_seed_of, rows_of_a_step
from train.data.bucketing import PlannedBatch, plan_epoch
from train.loop.optimizer import schedule
from train.run.best import Best
from train.run.recorder import Recorder
from train.run.state import State
from train.sweep.pad_adapters import Ranks
from train.sweep.points import Point
from train.task.protocol import Opened

_FOLDER = "checkpoints"


@dataclasses.dataclass
class Member:
    """A run of a sweep.

    Attributes:
      point, config: its values, and the config that they give.
      opened: its data.
      adapted: the model and the group's base with this run's own start, not padded.
      lengths: the padded lengths of its batches.
      per_epoch, steps: optimizer steps of an epoch, and of its whole run.
      ranks: the true ranks of its adapter.
      frozen: the adapter's leaves that are not trained, padded.
      state: the train state, padded, of numpy arrays; between stages only.
      best: the best evaluation; `trainable` is padded.
      losses: of the steps that are not in the record yet.
      lines: how many lines the record has.
      seconds: how long it has trained.
    """

    point: Point
    config: RunConfig
    opened: Opened
    adapted: Adapted
    lengths: tuple[int, ...]
    per_epoch: int
    steps: int
    ranks: Ranks
    frozen: Any
    state: State
    best: Best
    losses: list[float] = dataclasses.field(default_factory=list)
    lines: int = 0
    seconds: float = 0.0

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output_dir)

    @property
    def step(self) -> int:
        """How many steps it has made."""
        return int(self.state.step)

    def plan(self, start: int, end: int) -> list[PlannedBatch]:
        """Returns the planned batches of the steps from `start`, counted from 0, to `end`, as for the run alone."""
        lengths, size = self.opened.rows["train"].lengths, rows_of_a_step(self.config)
        epochs = range(start // self.per_epoch, -(-end // self.per_epoch))
        seed = order_seed_of(self.config)
        plans = [plan_epoch(lengths, self.lengths, size, seed, epoch) for epoch in epochs]
        first = start - epochs.start * self.per_epoch
        return [planned for plan in plans for planned in plan][first : first + end - start]

    def learning_rates(self, start: int, end: int) -> np.ndarray:
        """Returns the learning rates of the steps from `start` to `end`, float32 (end - start,)."""
        rate = schedule(self.config.train, learning_rate_of(self.config), self.steps)
        return np.asarray(rate(jnp.arange(start, end)), np.float32)

    def open_record(self) -> Recorder:
        """Opens the record; lines that are newer than the state, of a killed sweep, are dropped."""
        is_new = not (self.folder / "metrics.jsonl").exists()
        return Recorder(self.folder, resume_step=None if is_new else self.step, resume_lines=self.lines)

    def save(self) -> None:
        """Writes a checkpoint of state and best evaluation, whole or not at all."""
        arrays = {f"state/{path}": np.asarray(leaf) for path, leaf in leaves_by_path(self.state).items()}
        arrays |= {f"best/{path}": np.asarray(leaf) for path, leaf in leaves_by_path(self.best.trainable).items()}
        notes = {name: value for name, value in vars(self.best).items() if name != "trainable"}
        rest = {"best": notes, "losses": self.losses, "lines": self.lines, "seconds": self.seconds}
        file = self.folder / _FOLDER / f"{self.step}.safetensors"
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".unfinished")
        save_file(arrays, unfinished, metadata={"notes": json.dumps(rest)})
        replace_file(unfinished, file)

    def saved_steps(self) -> list[int]:
        """Returns the steps that have a checkpoint, ascending."""
        return sorted(int(file.stem) for file in (self.folder / _FOLDER).glob("*.safetensors"))

    def drop_before(self, step: int) -> None:
        """Deletes the checkpoints of earlier steps."""
        for old in self.saved_steps():
            if old < step:
                (self.folder / _FOLDER / f"{old}.safetensors").unlink()

    def restore_newest(self) -> None:
        """Takes the state from the newest checkpoint; raises RunFolderError if there is none."""
        if not (steps := self.saved_steps()):
            raise RunFolderError(
                f"{self.folder / _FOLDER}: expected a checkpoint, found none: a sweep that has ended deletes them. Its"
                f" adapter is in {self.folder / 'adapter'}: jlora export merges it"
            )
        self.restore(steps[-1])

    def restore(self, step: int) -> None:
        """Takes state, best evaluation and bookkeeping from the checkpoint of this step."""
        with safe_open(self.folder / _FOLDER / f"{step}.safetensors", "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            notes = json.loads(file.metadata()["notes"])
        best = _fill(self.best.trainable, "best/", arrays)
        self.state = _fill(self.state, "state/", arrays)
        self.best = Best(best, **notes["best"])
        self.losses, self.lines, self.seconds = notes["losses"], notes["lines"], notes["seconds"]


def _fill(like: Any, prefix: str, arrays: Mapping[str, np.ndarray]) -> Any:
    leaves = [arrays[prefix + path] for path in leaves_by_path(like)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)

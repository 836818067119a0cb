"""A training of its own kind in sixty lines: what the runner does for it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from types import SimpleNamespace
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jlora
from jlora.errors import JloraError
from jlora.lora.adapted_model import Adapted
from tests.support.training import tiny
from train.cli.exit_codes import show
from train.cli.signals import Stopped
from train.config.command import Flags
from train.config.run_config import RunConfig
from train.config.sections import ExportSection
from train.data.bucketing import lay_out
from train.run.recorder import read_metrics
from train.sources.starting_adapter import lora_config
from train.task import runner
from train.task.protocol import Opened, TrainingTask


class MatrixConfig(RunConfig):
    """A run of MatrixTask."""

    learning_rates: ClassVar[dict[str, float]] = {"lora": 5e-2}
    method: Literal["lora"] = "lora"
    export: ExportSection = ExportSection(merged=False)


class Pairs(NamedTuple):
    """Rows x (n, 6) and y (n, 4); of a batch, weights are 0 in filler rows."""

    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class Rows:
    """All pairs of a split."""

    pairs: Pairs
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)


def _product(base, x):
    return x @ base["params"]["dense"]["kernel"]


def _summed_errors(model):
    adapted = jlora.adapt(model.apply)

    def summed(adapter, base, batch):
        return jnp.sum(jnp.square(adapted(base, adapter, batch.x) - batch.y).mean(1) * batch.weights)

    return summed


class MatrixTask(TrainingTask[MatrixConfig, Opened]):
    """Finds the low-rank update that tells a matrix from another: linear regression on a plain function."""

    def describe(self, config, flags):
        show("a matrix, 6 x 4")

    def open(self, config, mesh, *, resume):
        draw = np.random.default_rng(config.seed)
        true, rows = draw.normal(size=(6, 1)) @ draw.normal(size=(1, 4)), {}
        for split, count in (("train", 22), ("validation", 10), ("test", 5)):
            x, ones = draw.normal(size=(count, 6)).astype("f"), np.ones(count, np.int64)
            rows[split] = Rows(Pairs(x, (x @ true).astype("f"), ones.astype("f")), ones)
        contents = {split: part.pairs._asdict() for split, part in rows.items()}
        model = SimpleNamespace(apply=_product)
        return Opened(model=model, tokenizer=None, rows=rows, contents=contents, width=1)

    def build(self, config, opened, mesh):
        base, lora = {"params": {"dense": {"kernel": jnp.zeros((6, 4))}}}, lora_config(config.lora, ["dense"], None)
        example = jax.ShapeDtypeStruct((1, 6), jnp.float32)
        adapter = jlora.init(jax.random.key(config.seed), lora, base, opened.model.apply, example)
        return Adapted(opened.model, base, adapter, lora)

    def loss(self, config, opened, model):
        summed = _summed_errors(model)
        return lambda trainable, frozen, base, batch, key: summed(jlora.combine(trainable, frozen), base, batch)

    def batch(self, opened, split, planned, size, places):
        pairs, lengths = opened.rows[split].pairs, opened.rows[split].lengths
        layout = lay_out(planned, lengths, np.arange(len(lengths)), size, places)
        return Pairs(pairs.x[layout.rows], pairs.y[layout.rows], layout.real.astype("f"))

    def forward(self, model):
        return _summed_errors(model)

    def metrics(self, opened, split, found):
        return {"loss": float(np.sum([loss for _, loss in found])) / len(opened.rows[split])}

    def next_steps(self, config, opened):
        return ["  adapter/     opens with jlora.load_adapter"]


def _config(folder, **train):
    train = {"batch_size": 4, "eval_batch_size": 8, "max_steps": 30, "eval_every": 10, "log_every": 1, **train}
    sections = {"data": {"train": "drawn", "max_length": 4}, "lora": {"r": 1}, "train": train}
    return MatrixConfig(model=str(folder), output_dir=str(folder / "run"), **sections)


def _run(folder, *, on_step=runner.nothing, resume=False, **train):
    folder.mkdir(exist_ok=True)
    with tiny.isolated():
        return runner.run_task(MatrixTask(), _config(folder, **train), Flags(resume=resume), on_step=on_step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(what was said at each step, the finished run)."""
    seen = {}
    return seen, _run(tmp_path_factory.mktemp("whole"), on_step=seen.__setitem__)


def test_data_seed_changes_the_order_of_the_rows_alone(whole, tmp_path):
    seen: dict = {}
    other = _run(tmp_path / "other", on_step=seen.__setitem__, data_seed=1)
    assert seen[1] != whole[0][1]
    records = [read_metrics(run.folder / "metrics.jsonl") for run in (other, whole[1])]
    starts = [[line["start/loss"] for line in record if "start/loss" in line] for record in records]
    assert starts[0] == starts[1] != []
    again: dict = {}
    _run(tmp_path / "again", on_step=again.__setitem__, data_seed=0)
    assert again == whole[0]


def test_it_learns(whole):
    seen, finished = whole
    assert list(seen) == list(range(1, 31))
    assert set(seen[1]) == {"loss", "grad_norm"}
    found = finished.report["metrics"]
    assert set(found) == {"validation", "test"}
    assert found["validation"]["loss"] < 0.1 * seen[1]["loss"]
    assert finished.report["best"]["metric"] == "loss"


def test_the_run_folder_holds_what_every_run_leaves(whole):
    _, finished = whole
    names = {path.name for path in finished.folder.iterdir()}
    assert {"adapter", "checkpoints", "config.yaml", "curves.png", "manifest.json", "metrics.jsonl"} <= names
    assert json.loads(finished.report_file.read_text()) == finished.report
    assert finished.report["rows"] == {"train": 22, "validation": 10, "test": 5}
    assert finished.merged_folder is None
    example = jax.ShapeDtypeStruct((1, 6), jnp.float32)
    stored, _ = jlora.load_adapter(finished.adapter_folder, finished.base, finished.model.apply, example)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(stored), jax.device_get(finished.adapter))


def _recorded(finished):
    lines = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "train/examples_per_second")} for line in lines]


def test_stopped_twice_and_resumed_it_is_the_run_that_was_not_stopped(whole, tmp_path):
    def stop(step, values):
        if step in (7, 19):
            os.kill(os.getpid(), signal.SIGTERM)

    for resume in (False, True):
        with pytest.raises(Stopped):
            _run(tmp_path / "stopped", on_step=stop, resume=resume)
    finished, expected = _run(tmp_path / "stopped", resume=True), whole[1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(finished.adapter), jax.device_get(expected.adapter))
    assert _recorded(finished) == _recorded(expected)
    assert finished.report["metrics"] == expected.report["metrics"]


def test_a_finished_run_is_left_alone_and_other_data_are_refused(whole):
    _, finished = whole
    folder = finished.folder.parent
    assert _run(folder, resume=True) is None
    with pytest.raises(JloraError, match="seed: the run has 0, now given 1"), tiny.isolated():
        runner.run_task(MatrixTask(), _config(folder).model_copy(update={"seed": 1}), Flags(resume=True))


def test_a_dry_run_describes_it(tmp_path, capsys):
    assert runner.run_task(MatrixTask(), _config(tmp_path), Flags(dry_run=True)) is None
    assert capsys.readouterr().out == "a matrix, 6 x 4\n"
    assert list(tmp_path.iterdir()) == []

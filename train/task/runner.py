"""Runs every kind of training in the same order: claim the run folder, open, build, train, and finish."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jlora
from train.cli.exit_codes import show
from train.cli.log_slow_steps import working
from train.cli.progress import clock
from train.config.command import Flags
from train.config.run_config import AnyConfig, order_seed_of, rows_of_a_step, steps_of, to_yaml
from train.data.bucketing import PlannedBatch, plan_epoch
from train.devices import placement, processes
from train.devices.compile_ahead import CompiledAhead, Compiler
from train.loop.assemble import Training, TrainingRows, make_loop, training_of
from train.loop.evaluation import make_eval_step
from train.loop.loop import Loop, nothing
from train.planning.memory_advice import explain_out_of_memory
from train.planning.parameter_table import summary
from train.run.best import Best
from train.run.padded_lengths import lengths_of_run
from train.run.recorder import Recorder
from train.run.state import State
from train.task.evaluate import place_batch, validation
from train.task.finish import finish
from train.task.protocol import AnyOpened, EndedRun, Finished, Run, TrainingTask
from train.task.train_in_folder import is_to_run, train_in_folder

logger = logging.getLogger(__name__)


def run_task(
    task: TrainingTask[AnyConfig, AnyOpened],
    config: AnyConfig,
    flags: Flags,
    *,
    is_offline: bool = False,
    on_step: Callable[[int, Mapping[str, float]], None] = nothing,
) -> Finished | None:
    """Trains as the config says; returns None for --dry-run and --preview, and if the folder holds the finished run.

    Args:
      task: the kind of training, whose methods are called.
      flags: with `dry_run` or `preview` only `task.describe(config, flags)` is called; `resume` and `overwrite` say
        what to do with a run in `config.output_dir`.
      is_offline: whether the config's `offline:` block was used.
      on_step: on_step(step, {"loss", "grad_norm"}), called after each step, counted from 1.

    Raises:
      JloraError: an error that the user can fix.
      Stopped: a signal or train.max_hours ended the training; the newest checkpoint has its latest state.
    """
    if flags.dry_run or flags.preview:
        task.describe(config, flags)
        return None
    begin = time.monotonic()
    if not is_to_run(config, flags):
        return None
    processes.require_same(to_yaml(config), "configuration")
    compiler = Compiler()
    ready = _prepare(task, config, flags, compiler)
    adapted, steps = ready.adapted, steps_of(config, len(ready.opened.rows["train"]))[1]
    if processes.is_first():
        show(summary(adapted.base, adapted.adapter, verbose=flags.verbose, steps=steps))
    training = training_of(config, task.loss(config, ready.opened, adapted.model), steps)
    loop, state = _loop(ready, training, compiler)

    def end(folder: Path, best: Best, times: dict[str, float], recorder: Recorder) -> Finished:
        logger.info("exporting the best step, %d", best.step)
        adapter = placement.put_adapter(ready.mesh, jlora.combine(best.trainable, loop.frozen), config)
        ended = EndedRun(**vars(ready), adapter=adapter, folder=folder, best=best, times=times, offline=is_offline)
        return finish(ended, recorder)

    with explain_out_of_memory(lambda: task.memory_help(config, ready.mesh, adapted, training)):
        looked_at = dataclasses.replace(loop, on_step=on_step)
        finished = train_in_folder(config, flags, looked_at, state, end, begin, ready.opened)
    _say_what_is_there(ready, finished.report, time.monotonic() - begin)
    return finished


def _prepare(
    task: TrainingTask[AnyConfig, AnyOpened], config: AnyConfig, flags: Flags, compiler: Compiler
) -> Run[AnyConfig, AnyOpened]:
    """Reads the inputs of the run: first everything except weights, which may raise errors, then the weights."""
    mesh = placement.mesh_of(config)
    opened = task.open(config, mesh, resume=flags.resume)
    helps = partial(task.memory_help, config, mesh)
    with explain_out_of_memory(helps, " while the model was read"), working(f"reading {config.model}"):
        adapted = task.build(config, opened, mesh)
    rows = {name: part.lengths for name, part in opened.rows.items()}
    lengths = lengths_of_run(config, rows, adapted.base, resume=flags.resume, width=opened.width)
    eval_step = CompiledAhead(make_eval_step(task.forward(adapted.model), mesh), compiler, batch=2)
    return Run(task, config, opened, adapted, mesh, lengths, eval_step)


def _loop(run: Run, training: Training, compiler: Compiler) -> tuple[Loop, State]:
    config, size = run.config, rows_of_a_step(run.config)
    lengths = run.opened.rows["train"].lengths

    def count(planned: PlannedBatch) -> int:
        return int(lengths[planned.rows].sum()) if run.task.unit == "tokens" else len(planned.rows)

    rows = TrainingRows(
        len(lengths),
        plan=lambda epoch: plan_epoch(lengths, run.lengths, size, order_seed_of(config), epoch),
        batch=partial(place_batch, run, "train", size),
        count=count,
        unit=run.task.unit,
        lengths=run.lengths,
    )
    return make_loop(config, run.adapted, training, rows, validation(run), compiler, run.mesh)


def _say_what_is_there(run: Run, report: dict[str, Any], seconds: float) -> None:
    for name, found in report["metrics"].items():
        if name in run.opened.rows:
            logger.info("%s: %s", name, "  ".join(f"{key} {value:.4f}" for key, value in found.items()))
    logger.info("done in %s. In %s:", clock(seconds), run.config.output_dir)
    for line in run.task.next_steps(run.config, run.opened):
        logger.info("%s", line)
    if report.get("note"):
        logger.warning("%s", report["note"])

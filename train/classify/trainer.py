"""The trainer of text classifiers: data, model, loop and what the run leaves."""

from __future__ import annotations

import logging
import shlex
import time
from functools import partial
from pathlib import Path
from typing import Any

from jlora.pretrained.load import example_batch
from train.classify import metrics
from train.classify.config import Config
from train.classify.data.batches import Batch, make_batch
from train.classify.data.splits import load_data
from train.classify.evaluate import Task, make_eval_step, validation
from train.classify.finish import Run, finish
from train.classify.loss import classification_loss
from train.classify.model import abstract_model, prepare_model, prepare_splits, require_fit, unlabelled_model
from train.cli.exit_codes import show
from train.cli.progress import clock
from train.cli.signs_of_life import working
from train.config.command import Flags
from train.config.run_config import rows_of_a_step, steps_of, to_yaml
from train.data.bucketing import PlannedBatch, plan_epoch
from train.devices import placement, processes
from train.devices.platform import attention_of
from train.devices.programs import CompiledAhead, Compiler
from train.loop.assemble import Evaluation, Rows, make_loop, training_of
from train.loop.loop import Loop
from train.planning.memory_advice import advice, explain_out_of_memory
from train.planning.parameter_table import summary
from train.run.best import Best
from train.run.lengths import lengths_of_run
from train.run.recorder import Recorder
from train.run.state import State
from train.sources.model_files import load_tokenizer
from train.sources.starting_adapter import Adapted
from train.task import session

logger = logging.getLogger(__name__)


def classify(config: Config, flags: Flags, is_offline: bool) -> None:
    """Runs `jlora classify`. `is_offline`: whether the config includes its `offline:` block."""
    if flags.dry_run:
        _dry_run(config, flags)
    else:
        _train(config, flags, is_offline)


def _dry_run(config: Config, flags: Flags) -> None:
    adapted = abstract_model(config)
    show(summary(adapted.base, adapted.adapter, verbose=flags.verbose, steps=config.train.max_steps))
    logger.info("dry run: only the model's config.json was read, and nothing was written")


def _train(config: Config, flags: Flags, is_offline: bool) -> None:
    begin = time.monotonic()
    if not session.is_to_run(config, flags):
        return
    processes.require_same(to_yaml(config), "configuration")
    mesh = placement.mesh_of(config)
    model = unlabelled_model(config)
    attention = attention_of(config, model, list(example_batch(model.config)), mesh)
    tokenizer = load_tokenizer(config.model)
    data = load_data(config.data, config.seed, config.task)
    for note in data.notes:
        logger.info(note)
    rows = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    with working(f"tokenizing {rows} rows"):
        labels, splits = prepare_splits(config, data, tokenizer)
    metric = config.train.metric or metrics.primary(labels.problem_type)
    metrics.check(metric, labels.problem_type, len(labels))

    def helps() -> str:
        return advice(config, None if mesh is None else mesh.shape)

    with explain_out_of_memory(helps, " while the model was read"), working(f"reading {config.model}"):
        adapted = prepare_model(config, labels, mesh)
    lengths = {name: split.tokens.lengths for name, split in splits.items()}
    buckets = lengths_of_run(config, lengths, adapted.base, resume=flags.resume)
    require_fit(adapted, splits, buckets[-1])
    _print_summary(adapted, config, flags, len(splits["train"].tokens))
    compiler = Compiler()
    eval_step = CompiledAhead(make_eval_step(adapted.model.apply, mesh), compiler, batch=2)
    task = Task(labels, splits, buckets, eval_step, config.train.eval_batch_size, mesh)
    evaluation = validation(task, eval_step, adapted.base, metric)
    loop, state = _loop(config, adapted, task, evaluation, compiler)

    def end(folder: Path, best: Best, times: dict[str, float], recorder: Recorder) -> dict[str, Any]:
        return finish(Run(config, folder, loop, adapted, task, tokenizer, best, times, is_offline), recorder)

    read = {name: {**vars(split.tokens), "labels": split.labels} for name, split in splits.items()}
    with explain_out_of_memory(helps):
        report = session.train(config, flags, loop, state, end, begin, read, attention)
    _say_where(config, report["metrics"], time.monotonic() - begin)
    if report["note"]:
        logger.warning(report["note"])


def _print_summary(adapted: Adapted, config: Config, flags: Flags, rows: int) -> None:
    _, steps = steps_of(config, rows)
    if processes.is_first():
        show(summary(adapted.base, adapted.adapter, verbose=flags.verbose, steps=steps))


def _loop(
    config: Config, adapted: Adapted, task: Task, evaluation: Evaluation, compiler: Compiler
) -> tuple[Loop, State]:
    split, size, mesh = task.splits["train"], rows_of_a_step(config), task.mesh
    number = len(split.tokens)
    loss = classification_loss(adapted.model.apply, task.labels.problem_type, model_dropout=config.train.dropout)

    def batch(planned: PlannedBatch) -> Batch:
        return placement.put_batch(
            mesh, size, partial(make_batch, split.tokens, split.labels, planned, size, split.pad_id)
        )

    rows = Rows(
        number,
        plan=lambda epoch: plan_epoch(split.tokens.lengths, task.buckets, size, config.seed, epoch),
        batch=batch,
        count=lambda planned: len(planned.rows),
        unit="examples",
        lengths=task.buckets,
    )
    _, steps = steps_of(config, number)
    return make_loop(config, adapted, training_of(config, loss, steps), rows, evaluation, compiler, mesh)


def _say_where(config: Config, results: dict, seconds: float) -> None:
    for name, found in results.items():
        logger.info("%s: %s", name, "  ".join(f"{key} {value:.4f}" for key, value in found.items()))
    logger.info("done in %s. In %s:", clock(seconds), config.output_dir)
    if config.method == "lora":
        logger.info("  adapter/     opens with PEFT")
    if config.export.merged:
        logger.info("  merged/      opens with transformers: AutoModelForSequenceClassification.from_pretrained")
    logger.info("  report.json  curves.png  predictions.csv  metrics.jsonl  tensorboard/")
    columns = f" (columns {config.data.text} and {config.data.text_pair})" if config.data.text_pair else ""
    run = shlex.quote(config.output_dir)
    logger.info("Label new text%s: jlora predict --model %s --input texts.csv --output labelled.csv", columns, run)

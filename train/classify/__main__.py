"""Fine-tune a text classifier: python -m train.classify --config configs/sst2.yaml [key=value ...]."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jlora
from train import devices, distributed, metrics, offline, session
from train.adapted import Adapted
from train.batches import PlannedBatch, plan_epoch
from train.checkpoint import Best
from train.classify.batches import Batch, make_batch
from train.classify.config import COMMAND, Config
from train.classify.data import load_data
from train.classify.evaluate import Task, evaluated, make_eval_step
from train.classify.finish import Run, finish
from train.classify.loss import classification_loss
from train.classify.prepare import abstract_model, prepare_model, prepare_splits, require_fit
from train.command_line import Request, parse
from train.entry import exit_code
from train.loop import Loop
from train.model_files import load_tokenizer
from train.optimizer import optimizer, schedule
from train.progress import clock
from train.record import Recorder
from train.run_config import learning_rate_of, steps_of, to_yaml
from train.step import State, make_train_step
from train.summary import summary

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 2 something that the user can mend, 130 SIGINT, 143 SIGTERM."""
    interrupted = "interrupted; --resume goes on from the newest checkpoint"
    work = partial(exit_code, lambda: _classify(parse(argv, COMMAND)), verbose="--verbose" in argv)
    return distributed.leave_together(partial(work, interrupted=interrupted))


def _classify(request: Request[Config]) -> None:
    with distributed.joined(request.flags):
        config, is_offline = offline.choose(request)
        if request.flags.dry_run:
            _dry_run(config, request)
        else:
            _train(config, request, is_offline)


def _dry_run(config: Config, request: Request[Config]) -> None:
    adapted = abstract_model(config)
    print(summary(adapted.base, adapted.adapter, verbose=request.flags.verbose, steps=config.train.max_steps))
    logger.info("dry run: nothing was read but the model's config.json, nothing was written")


def _train(config: Config, request: Request[Config], is_offline: bool) -> None:
    begin = time.monotonic()
    if not session.is_to_run(config, request.flags):
        return
    distributed.require_same(to_yaml(config), "configuration")
    mesh = devices.mesh_of(config)
    tokenizer = load_tokenizer(config.model)
    data = load_data(config.data, config.seed, config.task)
    for note in data.notes:
        logger.info(note)
    labels, splits, buckets = prepare_splits(config, data, tokenizer)
    metric = config.train.metric or metrics.primary(labels.problem_type)
    metrics.check(metric, labels.problem_type, len(labels))
    adapted = prepare_model(config, labels, mesh)
    require_fit(adapted, splits, buckets[-1])
    _print_summary(adapted, config, request, len(splits["train"].tokens))
    eval_step = make_eval_step(adapted.model.apply, mesh)
    task = Task(labels, splits, buckets, eval_step, config.train.eval_batch_size, mesh)
    loop, state = _loop(config, adapted, task, metric)

    def end(folder: Path, best: Best, times: dict[str, float], recorder: Recorder) -> dict[str, Any]:
        return finish(Run(config, folder, loop, adapted, task, tokenizer, best, times, is_offline), recorder)

    read = {name: {**vars(split.tokens), "labels": split.labels} for name, split in splits.items()}
    report = session.train(config, request.flags, loop, state, end, begin, read)
    _say_where(config, report["metrics"], time.monotonic() - begin)


def _print_summary(adapted: Adapted, config: Config, request: Request[Config], rows: int) -> None:
    _, steps = steps_of(config, rows)
    if distributed.is_first():
        print(summary(adapted.base, adapted.adapter, verbose=request.flags.verbose, steps=steps), flush=True)


def _loop(config: Config, adapted: Adapted, task: Task, metric: str) -> tuple[Loop, State]:
    train, split = config.train, task.splits["train"]
    size = train.batch_size * train.gradient_accumulation_steps
    per_epoch, steps = steps_of(config, len(split.tokens))
    rate = schedule(train, learning_rate_of(config), steps)
    tx = optimizer(train, rate)
    trainable, frozen = jlora.split(adapted.adapter)
    state = devices.put_rest(task.mesh, State(trainable, tx.init(trainable), jnp.int32(0)))
    loss = classification_loss(adapted.model.apply, task.labels.problem_type, model_dropout=train.dropout)
    step = make_train_step(loss, tx, train.gradient_accumulation_steps)

    def batch(planned: PlannedBatch) -> Batch:
        make = partial(make_batch, split.tokens, split.labels, planned, size, split.pad_id)
        return devices.put_batch(task.mesh, size, make)

    loop = Loop(
        train=train,
        steps=steps,
        per_epoch=per_epoch,
        base=adapted.base,
        frozen=frozen,
        plan=lambda epoch: plan_epoch(split.tokens.lengths, task.buckets, size, config.seed, epoch),
        batch=batch,
        count=lambda planned: len(planned.rows),
        unit="examples",
        train_step=devices.train_step_on(task.mesh, step, state),
        evaluate=lambda adapter, check: evaluated(task, adapter, adapted.base, "validation", check),
        metric=metric,
        rate=rate,
        key=jax.random.fold_in(jax.random.key(config.seed), 1),
    )
    return loop, state


def _say_where(config: Config, results: dict, seconds: float) -> None:
    for name, found in results.items():
        logger.info("%s: %s", name, "  ".join(f"{key} {value:.4f}" for key, value in found.items()))
    logger.info("done in %s. In %s:", clock(seconds), config.output_dir)
    if config.method == "lora":
        logger.info("  adapter/     opens with PEFT")
    if config.export.merged:
        logger.info("  merged/      opens with transformers: AutoModelForSequenceClassification.from_pretrained")
    logger.info("  report.json  curves.png  predictions.csv  metrics.jsonl  tensorboard/")
    run = config.output_dir
    logger.info("Label new text: python -m train.predict --model %s --input texts.csv --output labelled.csv", run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

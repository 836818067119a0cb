"""Fine-tune a text classifier: python -m train.classify --config configs/sst2.yaml [key=value ...]."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp

from jlora import split
from train import checkpoint, metrics, offline, run_folder
from train.command_line import Request, parse
from train.compilation import use_compilation_cache
from train.config import Config, learning_rate_of
from train.data import load_data
from train.entry import exit_code
from train.finish import Run, finish
from train.labels import Labels
from train.loop import Loop, run
from train.optimizer import optimizer, schedule
from train.prepare import (
    Adapted,
    abstract_model,
    load_tokenizer,
    prepare_model,
    prepare_splits,
    require_fit,
    steps_of,
)
from train.progress import clock
from train.push import check_push
from train.record import Recorder, import_tracker
from train.step import State, make_eval_step, make_train_step
from train.summary import summary

logger = logging.getLogger(__name__)


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 2 something that the user can mend, 130 an interruption."""
    interrupted = "interrupted; --resume goes on from the newest checkpoint"
    return exit_code(lambda: _classify(parse(argv)), verbose="--verbose" in argv, interrupted=interrupted)


def _classify(request: Request) -> None:
    config, is_offline = offline.choose(request)
    if request.flags.dry_run:
        _dry_run(config, request)
    else:
        _train(config, request, is_offline)


def _dry_run(config: Config, request: Request) -> None:
    adapted = abstract_model(config)
    print(summary(adapted.base, adapted.adapter, verbose=request.flags.verbose, steps=config.train.max_steps))
    logger.info("dry run: nothing was read but the model's config.json, nothing was written")


def _train(config: Config, request: Request, is_offline: bool) -> None:
    begin = time.monotonic()
    use_compilation_cache()
    if run_folder.check(config, request.flags) == "finished":
        logger.info("%s: this run is finished, nothing to do; --overwrite starts anew", config.output_dir)
        return
    import_tracker(config.tracker)
    if config.hub.push and config.hub.repo:
        check_push(config.hub.repo, config.hub.private)
    tokenizer = load_tokenizer(config.model)
    data = load_data(config.data, config.seed, config.task)
    for note in data.notes:
        logger.info(note)
    labels, splits, buckets = prepare_splits(config, data, tokenizer)
    metric = config.train.metric or metrics.primary(labels.problem_type)
    metrics.check(metric, labels.problem_type, len(labels))
    adapted = prepare_model(config, labels)
    require_fit(adapted, splits, buckets[-1])
    _print_summary(adapted, config, request, len(splits["train"].tokens))
    loop, state = _loop(config, adapted, labels, splits, buckets, metric)
    folder = run_folder.claim(config, request.flags)
    with checkpoint.open_checkpoints(folder / "checkpoints", config.train.keep_checkpoints) as manager:
        state, best = checkpoint.restore(manager, state)
        start = int(state.step)
        if request.flags.resume:
            logger.info("resumed at step %d%s", start, "" if start else ": there is no checkpoint yet")
        resume_step = start if request.flags.resume else None
        with Recorder(
            folder, resume_step=resume_step, tracker=config.tracker, config=config.model_dump(by_alias=True)
        ) as recorder:
            trained = time.monotonic()
            best, rate = run(loop, state, best, manager, recorder)
            times = {
                "prepare": trained - begin,
                "train": time.monotonic() - trained,
                "examples_per_second": rate,
            }
            done = Run(config, folder, loop, adapted, labels, tokenizer, best, times, is_offline)
            report = finish(done, recorder)
    _say_where(folder, config, report["metrics"], time.monotonic() - begin)


def _print_summary(adapted: Adapted, config: Config, request: Request, rows: int) -> None:
    _, steps = steps_of(config, rows)
    print(summary(adapted.base, adapted.adapter, verbose=request.flags.verbose, steps=steps), flush=True)


def _loop(
    config: Config, adapted: Adapted, labels: Labels, splits: dict, buckets: tuple[int, ...], metric: str
) -> tuple[Loop, State]:
    _, steps = steps_of(config, len(splits["train"].tokens))
    rate = schedule(config.train, learning_rate_of(config), steps)
    tx = optimizer(config.train, rate)
    apply = adapted.model.apply
    trainable, frozen = split(adapted.adapter)
    train_step = make_train_step(
        apply,
        labels.problem_type,
        tx,
        config.train.gradient_accumulation_steps,
        model_dropout=config.train.dropout,
    )
    state = State(trainable, tx.init(trainable), jnp.int32(0))
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    loop = Loop(
        config=config,
        problem_type=labels.problem_type,
        base=adapted.base,
        frozen=frozen,
        splits=splits,
        buckets=buckets,
        train_step=train_step,
        eval_step=make_eval_step(apply),
        rate=rate,
        key=key,
        metric=metric,
    )
    return loop, state


def _say_where(folder: Path, config: Config, results: dict, seconds: float) -> None:
    for name, found in results.items():
        logger.info("%s: %s", name, "  ".join(f"{key} {value:.4f}" for key, value in found.items()))
    logger.info("done in %s. In %s:", clock(seconds), folder)
    if config.method == "lora":
        logger.info("  adapter/     opens with PEFT")
    if config.export.merged:
        logger.info("  merged/      opens with transformers: AutoModelForSequenceClassification.from_pretrained")
    logger.info("  report.json  curves.png  predictions.csv  metrics.jsonl  tensorboard/")
    logger.info("Label new text: python -m train.predict --model %s --input texts.csv --output labelled.csv", folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

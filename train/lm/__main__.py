"""Fine-tune a causal language model: python -m train.lm --config configs/smollm2.yaml [key=value ...]."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from transformers import PreTrainedTokenizerBase

import jlora
from train import devices, distributed, offline, session
from train.adapted import Adapted
from train.batches import PlannedBatch, plan_epoch
from train.checkpoint import Best
from train.command import Flags
from train.command_line import Request, parse
from train.entry import exit_code
from train.lm.batches import Batch, make_batch, row_lengths
from train.lm.config import COMMAND, LMConfig
from train.lm.data import Data, load_examples
from train.lm.evaluate import Task, evaluated
from train.lm.finish import Run, finish
from train.lm.out_of_memory import explain_out_of_memory
from train.lm.plan import plan_step
from train.lm.prepare import abstract_model, causal_config, pad_id, prepare_model, require_fit
from train.lm.preview import preview
from train.lm.step import make_eval_step
from train.lm.templates import with_template
from train.lm.training import Training, arguments, rows_of_a_step, training_of
from train.loop import Loop
from train.model_files import load_tokenizer
from train.planning.chips import chip_named
from train.planning.dry_run import describe
from train.planning.flops import matrix_rate
from train.planning.memory import memory_table, step_memory
from train.planning.mesh import force_devices, mesh_sizes
from train.planning.plan_text import plan_text
from train.progress import clock
from train.record import Recorder
from train.run_config import steps_of, to_yaml
from train.step import State
from train.summary import parameters, summary

logger = logging.getLogger(__name__)

PREVIEWED = 3
"""Rows that --preview prints."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; 0 is success, 2 something that the user can mend, 130 SIGINT, 143 SIGTERM."""
    interrupted = "interrupted; --resume goes on from the newest checkpoint"
    work = partial(exit_code, lambda: _lm(parse(argv, COMMAND)), verbose="--verbose" in argv)
    return distributed.leave_together(partial(work, interrupted=interrupted))


def _lm(request: Request[LMConfig]) -> None:
    with distributed.joined(request.flags):
        config, is_offline = offline.choose(request)
        if request.flags.mesh:
            _plan(config, request.flags.mesh, request.flags.chip)
        elif request.flags.dry_run:
            _dry_run(config, verbose=request.flags.verbose)
        elif request.flags.preview:
            _preview(config)
        else:
            _train(config, request.flags, is_offline)


def _dry_run(config: LMConfig, *, verbose: bool) -> None:
    adapted, steps = abstract_model(config), config.train.max_steps
    print(parameters(adapted.base, adapted.adapter, verbose=verbose) + "\n")
    training = training_of(config, adapted.model, steps or 1)
    inputs, words = arguments(config, adapted, training.tx), adapted.model.config.vocab_size
    rate = matrix_rate(config.train.dtype)
    print(describe(training.step, inputs, vocab_size=words, steps=steps, tokens=None, rate=rate))
    logger.info("dry run: nothing was read but the model's config.json, nothing was written")


def _plan(config: LMConfig, mesh: str, chip: str | None) -> None:
    known = None if chip is None else chip_named(chip)
    sizes = mesh_sizes(mesh)
    force_devices(math.prod(sizes.values()))
    print(plan_text(plan_step(config, sizes), known))
    logger.info("dry run: nothing was read but the model's config.json, nothing was written")


def _preview(config: LMConfig) -> None:
    tokenizer = _tokenizer(config)
    print(preview(_data(config, tokenizer).rows["train"], tokenizer, PREVIEWED))


def _train(config: LMConfig, flags: Flags, is_offline: bool) -> None:
    begin = time.monotonic()
    if not session.is_to_run(config, flags):
        return
    distributed.require_same(to_yaml(config), "configuration")
    mesh = devices.mesh_of(config)
    causal_config(config.model)  # a wrong model is said before any data are read
    tokenizer = _tokenizer(config)
    data = _data(config, tokenizer)
    lengths = row_lengths(list(data.rows.values()), config.train.bucket_count, config.data.max_length)
    require_fit(config, data.rows, lengths[-1])
    adapted = prepare_model(config, mesh)
    _, steps = steps_of(config, len(data.rows["train"]))
    if distributed.is_first():
        print(summary(adapted.base, adapted.adapter, verbose=flags.verbose, steps=steps), flush=True)
    eval_step = make_eval_step(adapted.model, mesh)
    task = Task(data, lengths, eval_step, config.train.eval_batch_size, pad_id(tokenizer), mesh)
    training = training_of(config, adapted.model, steps)
    loop, state = _loop(config, adapted, task, training)

    def end(folder: Path, best: Best, times: dict[str, float], recorder: Recorder) -> dict[str, Any]:
        return finish(Run(config, folder, loop, adapted, task, tokenizer, best, times, is_offline), recorder)

    def needed() -> str:
        if mesh is not None:
            sizes = ",".join(f"{axis}={size}" for axis, size in mesh.shape.items())
            return f"  what --dry-run --mesh {sizes} says"
        inputs = arguments(config, adapted, training.tx)
        return memory_table(step_memory(training.step, inputs, adapted.model.config.vocab_size))

    with explain_out_of_memory(config, needed, devices.row_parts(mesh)):
        read = {name: vars(rows) for name, rows in data.rows.items()}
        report = session.train(config, flags, loop, state, end, begin, read)
    _say_where(config, report["metrics"]["validation"], time.monotonic() - begin)


def _tokenizer(config: LMConfig) -> PreTrainedTokenizerBase:
    return with_template(load_tokenizer(config.model), config.data.chat_template)


def _data(config: LMConfig, tokenizer: PreTrainedTokenizerBase) -> Data:
    data = load_examples(config.data, tokenizer, config.seed)
    for note in data.notes:
        logger.info(note)
    return data


def _loop(config: LMConfig, adapted: Adapted, task: Task, training: Training) -> tuple[Loop, State]:
    rows, size = task.data.rows["train"], rows_of_a_step(config)
    per_epoch, steps = steps_of(config, len(rows))
    trainable, frozen = jlora.split(adapted.adapter)
    state = devices.put_rest(task.mesh, State(trainable, training.tx.init(trainable), jnp.int32(0)))

    def batch(planned: PlannedBatch) -> Batch:
        return devices.put_batch(task.mesh, size, partial(make_batch, rows, planned, size, task.pad_id))

    loop = Loop(
        train=config.train,
        steps=steps,
        per_epoch=per_epoch,
        base=adapted.base,
        frozen=frozen,
        plan=lambda epoch: plan_epoch(rows.lengths, task.lengths, size, config.seed, epoch),
        batch=batch,
        count=lambda planned: int(rows.lengths[planned.rows].sum()),
        unit="tokens",
        train_step=devices.train_step_on(task.mesh, training.step, state),
        evaluate=lambda adapter, check: evaluated(task, adapter, adapted.base, "validation", check),
        metric="loss",
        rate=training.rate,
        key=jax.random.fold_in(jax.random.key(config.seed), 1),
    )
    return loop, state


def _say_where(config: LMConfig, found: dict[str, float], seconds: float) -> None:
    logger.info("validation: %s", "  ".join(f"{name} {value:.4f}" for name, value in found.items()))
    logger.info("done in %s. In %s:", clock(seconds), config.output_dir)
    if config.method == "lora":
        logger.info("  adapter/     opens with PEFT%s", ", adapter.gguf with llama.cpp" * config.export.gguf_lora)
    if config.export.merged:
        logger.info("  merged/      opens with transformers: AutoModelForCausalLM.from_pretrained")
    logger.info(
        "  report.json  curves.png  metrics.jsonl  tensorboard/%s", "  samples.jsonl" * bool(config.samples.count)
    )
    logger.info("Talk to it: python -m train.generate --model %s --prompt TEXT", config.output_dir)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

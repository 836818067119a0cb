"""The trainer of causal language models: data, model, loop and what the run leaves."""

from __future__ import annotations

import datetime
import logging
import math
import shlex
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jlora.errors import JloraError
from jlora.sharding.mesh import AXES
from train.cli.exit_codes import show
from train.cli.progress import clock
from train.cli.signs_of_life import working
from train.config.command import Flags
from train.config.run_config import rows_of_a_step, steps_of, to_yaml
from train.data.bucketing import PlannedBatch, plan_epoch
from train.devices import placement, processes
from train.devices.platform import attention_of
from train.devices.programs import CompiledAhead, Compiler
from train.lm.config import LMConfig
from train.lm.data.batches import Batch, longest_batch, make_batch, row_lengths
from train.lm.data.load import Data, load_examples
from train.lm.data.preview import preview
from train.lm.evaluate import Task, validation
from train.lm.finish import Run, finish
from train.lm.memory_advice import offers, training_help
from train.lm.model import abstract_model, build_model, causal_config, prepare_model, require_fit
from train.lm.objective import make_eval_step
from train.lm.step_arguments import arguments, batch_names, training_of
from train.lm.step_plan import plan_step
from train.lm.text.chat_templates import with_template
from train.lm.vocabulary.added_tokens import add_tokens
from train.loop.assemble import Evaluation, Rows, Training, make_loop
from train.loop.loop import Loop
from train.planning.chips import chip_named
from train.planning.dry_run import describe
from train.planning.flops import matrix_rate
from train.planning.memory_advice import explain_out_of_memory
from train.planning.parameter_table import parameters, summary
from train.planning.plan_report import plan_text
from train.planning.virtual_mesh import force_devices, mesh_sizes
from train.run.best import Best
from train.run.manifest import run_day
from train.run.recorder import Recorder
from train.run.state import State
from train.sources.model_files import load_tokenizer, pad_id
from train.sources.starting_adapter import Adapted
from train.task import session

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PREVIEWED = 3
"""Rows that --preview prints."""


def train_lm(config: LMConfig, flags: Flags, is_offline: bool) -> None:
    """Runs `jlora lm`. `is_offline`: whether the config includes its `offline:` block."""
    if flags.mesh:
        _plan(config, flags.mesh, flags.chip)
    elif flags.dry_run:
        _dry_run(config, verbose=flags.verbose)
    elif flags.preview:
        _preview(config)
    else:
        _train(config, flags, is_offline)


def _dry_run(config: LMConfig, *, verbose: bool) -> None:
    if config.mesh.fsdp * config.mesh.tensor > 1 or config.mesh.data > 1:
        sizes = ",".join(f"{axis}={max(1, getattr(config.mesh, axis))}" for axis in AXES)
        raise JloraError(f"--dry-run: plans one device, and mesh asks for more: add --mesh {sizes}")
    adapted, steps = abstract_model(config, _planned_tokens(config)), config.train.max_steps
    show(parameters(adapted.base, adapted.adapter, verbose=verbose) + "\n")
    training = training_of(config, adapted.model, steps or 1)
    inputs, words = arguments(config, adapted, training.tx), adapted.model.config.vocab_size
    rate = matrix_rate(config.train.dtype)
    show(describe(training.step, inputs, vocab_size=words, steps=steps, rate=rate))
    _say_what_was_read(config)


def _plan(config: LMConfig, mesh: str, chip: str | None) -> None:
    known = None if chip is None else chip_named(chip)
    sizes = mesh_sizes(mesh)
    placement.require_shared(config.train.batch_size, sizes)
    force_devices(math.prod(sizes.values()))
    show(plan_text(plan_step(config, sizes, _planned_tokens(config)), known))
    _say_what_was_read(config)


def _planned_tokens(config: LMConfig) -> tuple[int, ...]:
    """Returns the ids of added tokens; without any, a plan does not need the tokenizer."""
    return _tokenizer(config)[1] if config.data.add_tokens else ()


def _say_what_was_read(config: LMConfig) -> None:
    files = "config.json and tokenizer were" if config.data.add_tokens else "config.json was"
    logger.info("dry run: only the model's %s read, and nothing was written", files)


def _preview(config: LMConfig) -> None:
    tokenizer, _ = _tokenizer(config)
    show(preview(_data(config, tokenizer).rows["train"], tokenizer, PREVIEWED))


def _train(config: LMConfig, flags: Flags, is_offline: bool) -> None:
    begin = time.monotonic()
    if not session.is_to_run(config, flags):
        return
    processes.require_same(to_yaml(config), "configuration")
    mesh = placement.mesh_of(config)
    causal_config(config.model)  # raises for a wrong model before any data are read
    tokenizer, added = _tokenizer(config)
    attention = attention_of(config, build_model(config, added), batch_names(config), mesh)
    day = run_day(Path(config.output_dir), resume=flags.resume)
    data = _data(config, tokenizer, day)
    require_fit(config, data.rows, longest_batch(config, data.rows), added)
    with (
        explain_out_of_memory(lambda: offers(config, mesh), " while the model was read"),
        working(f"reading {config.model}"),
    ):
        adapted = prepare_model(config, mesh, added)
    _, steps = steps_of(config, len(data.rows["train"]))
    if processes.is_first():
        show(summary(adapted.base, adapted.adapter, verbose=flags.verbose, steps=steps))
    lengths = row_lengths(config, data.rows, adapted.base, resume=flags.resume)
    compiler = Compiler()
    eval_step = CompiledAhead(make_eval_step(adapted.model, mesh), compiler, batch=2)
    task = Task(data, lengths, eval_step, config.train.eval_batch_size, pad_id(tokenizer), mesh)
    training = training_of(config, adapted.model, steps)
    evaluation = validation(task, eval_step, adapted.base)
    loop, state = _loop(config, adapted, task, training, evaluation, compiler)

    def end(folder: Path, best: Best, times: dict[str, float], recorder: Recorder) -> dict[str, Any]:
        return finish(Run(config, folder, loop, adapted, task, tokenizer, best, times, is_offline), recorder)

    read = {name: vars(rows) for name, rows in data.rows.items()}
    with explain_out_of_memory(lambda: training_help(config, adapted, training, mesh)):
        report = session.train(config, flags, loop, state, end, begin, read, attention, day)
    _say_where(config, report["metrics"]["validation"], time.monotonic() - begin, data.chats)


def _tokenizer(config: LMConfig) -> tuple[PreTrainedTokenizerBase, tuple[int, ...]]:
    """Loads the model's tokenizer, and returns it with the ids of the tokens that were added."""
    tokenizer = with_template(load_tokenizer(config.model), config.data.chat_template)
    if not config.data.add_tokens:
        return tokenizer, ()
    return tokenizer, add_tokens(tokenizer, config.data.add_tokens, causal_config(config.model).vocab_size)


def _data(config: LMConfig, tokenizer: PreTrainedTokenizerBase, day: datetime.date | None = None) -> Data:
    with working("reading and tokenizing the data"):
        data = load_examples(config.data, tokenizer, config.seed, day)
    for note in data.notes:
        logger.info(note)
    return data


def _loop(
    config: LMConfig, adapted: Adapted, task: Task, training: Training, evaluation: Evaluation, compiler: Compiler
) -> tuple[Loop, State]:
    examples, size, mesh = task.data.rows["train"], rows_of_a_step(config), task.mesh

    def batch(planned: PlannedBatch) -> Batch:
        return placement.put_batch(mesh, size, partial(make_batch, examples, planned, size, task.pad_id))

    rows = Rows(
        len(examples),
        plan=lambda epoch: plan_epoch(examples.lengths, task.lengths, size, config.seed, epoch),
        batch=batch,
        count=lambda planned: int(examples.lengths[planned.rows].sum()),
        unit="tokens",
        lengths=task.lengths,
    )
    return make_loop(config, adapted, training, rows, evaluation, compiler, mesh)


def _say_where(config: LMConfig, found: dict[str, float], seconds: float, chat: bool) -> None:
    logger.info("validation: %s", "  ".join(f"{name} {value:.4f}" for name, value in found.items()))
    logger.info("done in %s. In %s:", clock(seconds), config.output_dir)
    if config.method == "lora":
        more = ", adapter.gguf with llama.cpp" * config.export.gguf_lora
        more += ", after the tokens are added to the base: see its README.md" * bool(config.data.add_tokens)
        logger.info("  adapter/     opens with PEFT%s", more)
    if config.export.merged:
        logger.info("  merged/      opens with transformers: AutoModelForCausalLM.from_pretrained")
    logger.info(
        "  report.json  curves.png  metrics.jsonl  tensorboard/%s", "  samples.jsonl" * bool(config.samples.count)
    )
    how = "--chat" if chat else "--prompt TEXT"
    logger.info("Talk to it: jlora generate --model %s %s", shlex.quote(config.output_dir), how)

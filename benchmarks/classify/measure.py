"""The two measurements: one training step on a full batch, and a whole epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks.classify import jlora_side, peft_side
from benchmarks.classify.jlora_side import JloraRun
from benchmarks.classify.peft_side import TorchRun
from benchmarks.classify.setup import Setup, full_batch, variant
from benchmarks.common.timing import spread, take_turns, timed
from jlora.pretrained.source import PretrainedSource
from train.classify.data.batches import Batch, make_batch
from train.classify.model import prepare_model
from train.config.run_config import steps_of
from train.data.bucketing import PlannedBatch, plan_epoch

METHODS = ("lora", "full")


def steps(setup: Setup, rows: int, length: int, rounds: int, *, dropout: bool) -> dict[str, Any]:
    """One training step on one batch of (rows, length) tokens, of both sides and methods in turns.

    Returns:
      {"seconds": {run: one a round}, "spread": {run: ...}, "losses": {run: of each step from the first on},
       "trainable": {run: parameters}, "compile_seconds": {run of jlora: ...}}; the runs are `jlora lora`,
       `jlora full`, `peft lora` and `torch full`.
    """
    batch = full_batch(setup, rows, length)
    torch_batch = peft_side.tensors(batch.inputs, batch.labels)
    ours = {f"jlora {method}": jlora_run(setup, method, dropout) for method in METHODS}
    theirs = {name: torch_run(setup, name.split()[1], dropout) for name in ("peft lora", "torch full")}
    for run in ours.values():
        run.compile(batch)
    calls: dict[str, Callable[[], float]] = {name: partial(run, batch) for name, run in ours.items()}
    calls |= {name: partial(run, torch_batch) for name, run in theirs.items()}
    # The first round, in which the machine warms up, gives losses but no times.
    found = take_turns(calls, rounds + 1)
    seconds = {name: [spent for spent, _ in steps[1:]] for name, steps in found.items()}
    return {
        "seconds": seconds,
        "spread": {name: spread(values) for name, values in seconds.items()},
        "losses": {name: [loss for _, loss in steps] for name, steps in found.items()},
        "trainable": {name: run.trainable for name, run in (ours | theirs).items()},
        "compile_seconds": {name: sum(run.compile_seconds.values()) for name, run in ours.items()},
    }


def epoch(setup: Setup, chunks: int, *, dropout: bool) -> dict[str, Any]:
    """One epoch of each side with LoRA, cut in `chunks` that take turns.

    jlora goes through the trainer's buckets, PEFT through random batches padded to their longest row. Making the
    batches counts on both sides, tokenizing on neither.

    Returns:
      {"seconds": {side: one a chunk}, "total": {side: sum}, "with_compilation": {side: sum}, "tokens": {side: computed,
       padding included}, "real_tokens", "compile_seconds": {length: ...}}.
    """
    split, size = setup.split, setup.config.train.batch_size
    jlora, peft = jlora_run(setup, "lora", dropout), torch_run(setup, "lora", dropout)
    plan = plan_epoch(split.tokens.lengths, setup.buckets, size, setup.config.seed, 0)
    for planned in {planned.length: planned for planned in plan}.values():
        jlora.compile(_batch(setup, planned))
    loader = peft_side.dynamic_padding(split, setup.tokenizer, size, setup.config.seed)
    batches, tokens = iter(loader), {"jlora": sum(planned.length for planned in plan) * size, "peft": 0}
    seconds: dict[str, list[float]] = {"jlora": [], "peft": []}
    for part in np.array_split(np.arange(len(plan)), chunks):
        seconds["jlora"].append(timed(partial(_jlora_steps, jlora, setup, [plan[i] for i in part]))[0])
        spent, computed = timed(partial(_torch_steps, peft, batches, len(part)))
        seconds["peft"].append(spent)
        tokens["peft"] += computed
    total = {side: sum(values) for side, values in seconds.items()}
    compilation = sum(jlora.compile_seconds.values())
    return {
        "seconds": seconds,
        "total": total,
        "with_compilation": {"jlora": total["jlora"] + compilation, "peft": total["peft"]},
        "tokens": tokens,
        "real_tokens": int(split.tokens.lengths.sum()),
        "compile_seconds": {str(shape[1]): spent for shape, spent in jlora.compile_seconds.items()},
    }


def jlora_run(setup: Setup, method: str, dropout: bool) -> JloraRun:
    config = variant(setup.config, method, dropout=dropout)
    adapted = prepare_model(config, PretrainedSource(config.model), setup.labels)
    return jlora_side.start(config, adapted, setup.labels, _count(setup))


def torch_run(setup: Setup, method: str, dropout: bool) -> TorchRun:
    return peft_side.start(variant(setup.config, method, dropout=dropout), setup.folder, _count(setup))


def _count(setup: Setup) -> int:
    return steps_of(setup.config, len(setup.split.tokens))[0]


def _batch(setup: Setup, planned: PlannedBatch) -> Batch:
    split = setup.split
    return make_batch(split.tokens, split.labels, planned, setup.config.train.batch_size, split.pad_id)


def _jlora_steps(run: JloraRun, setup: Setup, plan: list[PlannedBatch]) -> None:
    for planned in plan:
        run(_batch(setup, planned))


def _torch_steps(run: TorchRun, batches: Iterator[Any], count: int) -> int:
    """Takes `count` steps; returns the tokens computed, padding included."""
    computed = 0
    for _ in range(count):
        batch = next(batches)
        run(batch)
        computed += batch["input_ids"].numel()
    return computed

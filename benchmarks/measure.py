"""The two measurements: one training step on a full batch, and a whole epoch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np

from benchmarks import jlora_side, peft_side
from benchmarks.jlora_side import JloraRun
from benchmarks.peft_side import TorchRun
from benchmarks.setup import Setup, full_batch, variant
from benchmarks.timing import spread, take_turns, timed
from train.batches import PlannedBatch, make_batch, plan_epoch
from train.loop import to_rows
from train.prepare import prepare_model, steps_of

METHODS = ("lora", "full")


def steps(setup: Setup, rows: int, length: int, rounds: int, *, dropout: bool) -> dict[str, Any]:
    """One training step on one batch of (rows, length) tokens, of both sides and methods in turns.

    Returns:
      {"seconds": {run: one a round}, "spread": {run: ...}, "first_loss", "trainable": {run: ...},
       "compile_seconds": {run of jlora: ...}}; the runs are `jlora lora`, `jlora full`, `peft lora`, `torch full`.
    """
    batch = full_batch(setup, rows, length)
    torch_batch = peft_side.tensors(batch.inputs, batch.labels)
    runs: dict[str, JloraRun | TorchRun] = {}
    for method in METHODS:
        runs[f"jlora {method}"] = jlora = _jlora(setup, method, dropout)
        jlora.compile(batch)
    for method, package in zip(METHODS, ("peft", "torch"), strict=True):
        runs[f"{package} {method}"] = _torch(setup, method, dropout)
    trainable = {name: run.trainable for name, run in runs.items()}
    calls = {name: partial(run, batch if isinstance(run, JloraRun) else torch_batch) for name, run in runs.items()}
    first_loss = {name: call() for name, call in calls.items()}
    seconds = take_turns(calls, rounds)
    compiled = {name: sum(run.compile_seconds.values()) for name, run in runs.items() if isinstance(run, JloraRun)}
    return {
        "seconds": seconds,
        "spread": {name: spread(values) for name, values in seconds.items()},
        "first_loss": first_loss,
        "trainable": trainable,
        "compile_seconds": compiled,
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
    jlora, peft = _jlora(setup, "lora", dropout), _torch(setup, "lora", dropout)
    plan = plan_epoch(split.tokens.lengths, setup.buckets, size, setup.config.seed, 0)
    for length in sorted({planned.length for planned in plan}):
        jlora.compile(to_rows(_batch(setup, next(planned for planned in plan if planned.length == length))))
    loader = peft_side.dynamic_padding(split, setup.tokenizer, size, setup.config.seed)
    batches, tokens = iter(loader), {"jlora": sum(planned.length for planned in plan) * size, "peft": 0}
    seconds: dict[str, list[float]] = {"jlora": [], "peft": []}
    for part in np.array_split(np.arange(len(plan)), chunks):
        seconds["jlora"].append(timed(lambda part=part: [jlora(to_rows(_batch(setup, plan[i]))) for i in part])[0])
        spent, computed = timed(lambda part=part: _torch_steps(peft, batches, len(part)))
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


def _jlora(setup: Setup, method: str, dropout: bool) -> JloraRun:
    config = variant(setup.config, method, dropout=dropout)
    return jlora_side.start(config, prepare_model(config, setup.labels), setup.labels, _count(setup))


def _torch(setup: Setup, method: str, dropout: bool) -> TorchRun:
    return peft_side.start(variant(setup.config, method, dropout=dropout), setup.folder, _count(setup))


def _count(setup: Setup) -> int:
    return steps_of(setup.config, len(setup.split.tokens))[0]


def _batch(setup: Setup, planned: PlannedBatch) -> Any:
    split = setup.split
    return make_batch(split.tokens, split.labels, planned, setup.config.train.batch_size, split.pad_id)


def _torch_steps(run: TorchRun, batches: Iterator[Any], count: int) -> int:
    """Takes `count` steps; returns the tokens computed, padding included."""
    computed = 0
    for _ in range(count):
        batch = next(batches)
        run(batch)
        computed += batch["input_ids"].numel()
    return computed
